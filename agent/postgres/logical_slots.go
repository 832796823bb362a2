package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is about logical slots on replicas (design 5.28). PostgreSQL makes none there that
// begins where the primary's does, so the slot's state is copied from the primary, as a file,
// while the replica is down; from then on it is advanced in SQL.

// AdvanceLogical moves logical slots to where their readers have come, while this replica is on
// the leader's timeline: on another one the same position is of other WAL. One whose WAL is
// gone is dropped, and copied anew.
func (p *replication) AdvanceLogical(ctx context.Context, timeline int, slots []pg.WantedSlot) error {
	byDatabase := map[string][]pg.WantedSlot{}
	var databases []string
	for _, s := range slots {
		if byDatabase[s.Database] == nil {
			databases = append(databases, s.Database)
		}
		byDatabase[s.Database] = append(byDatabase[s.Database], s)
	}
	var errs []error
	for _, database := range databases {
		errs = append(errs, p.advanceIn(ctx, database, timeline, byDatabase[database]))
	}
	return errors.Join(errs...)
}

const advanceSQL = `SELECT pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_replication_slots
	WHERE slot_name = $1 AND slot_type = 'logical' AND database = current_database() AND NOT active AND confirmed_flush_lsn < $2::text::pg_lsn
	AND pg_is_in_recovery() AND (SELECT received_tli FROM pg_stat_get_wal_receiver()) = $3`

// undefinedFile is the SQLSTATE of a WAL segment that is not there any more.
const undefinedFile = "58P01"

func (p *replication) advanceIn(ctx context.Context, database string, timeline int, slots []pg.WantedSlot) error {
	conn, err := p.connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, database, agentName)
	if err != nil {
		return fmt.Errorf("advancing the logical slots of database %s: %w", database, err)
	}
	defer hangUpOn(conn)
	var errs []error
	for _, s := range slots {
		_, err := conn.Exec(ctx, advanceSQL, s.Name, pg.FormatLSN(s.To), timeline)
		if refused := new(pgconn.PgError); errors.As(err, &refused) && refused.Code == undefinedFile {
			p.log.Warn().Err(err).Str("slot", s.Name).Msg("this replica has not kept the WAL of a logical slot, which is copied anew from the leader")
			_, err = conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", s.Name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("advancing the logical slot %s to %s: %w", s.Name, pg.FormatLSN(s.To), err))
		}
	}
	return errors.Join(errs...)
}

// createLogical makes a logical slot on a primary.
func (p *replication) createLogical(ctx context.Context, s cluster.Slot) error {
	conn, err := p.connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, s.Database, agentName)
	if err != nil {
		return fmt.Errorf("making the logical slot %s: %w", s.Name, err)
	}
	defer hangUpOn(conn)
	create := "SELECT pg_create_logical_replication_slot($1, $2)"
	if p.SyncsSlots() {
		create = "SELECT pg_create_logical_replication_slot($1, $2, failover => true)"
	}
	if _, err := conn.Exec(ctx, create, s.Name, s.Plugin); err != nil {
		return fmt.Errorf("making the logical slot %s: %w", s.Name, err)
	}
	p.log.Info().Str("slot", s.Name).Str("database", s.Database).Str("plugin", s.Plugin).Msg("made logical slot; its reader gets what is written from now on")
	return nil
}

// FetchSlots reads the state of logical slots on the primary, for a replica that runs. All of them are there, as
// they are configured, and whole; and this replica has room for them, has the WAL from which they are read, and
// has received what their readers have. Or there is an error.
func (p *replication) FetchSlots(ctx context.Context, from Upstream, slots []cluster.Slot) ([]pg.SlotFile, error) {
	d, err := p.server.DataDir(ctx)
	if err == nil {
		err = p.hasRoomFor(len(slots), d.Control)
	}
	if err != nil {
		return nil, fmt.Errorf("logical slots are not copied: %w", err)
	}
	role := p.local.Load().Authentication.Rewind
	if role.Username == "" {
		role = p.local.Load().Authentication.Superuser
	}
	conn, err := p.connect(ctx, from.Host, from.Port, role, p.database(), agentName)
	if err != nil {
		return nil, fmt.Errorf("copying logical slots from %s: %w", from.Name, err)
	}
	defer hangUpOn(conn)
	var files []pg.SlotFile
	for _, want := range slots {
		f, confirmed, err := fetchSlot(ctx, conn, want, role.Username)
		if err == nil {
			err = p.canRead(ctx, f, confirmed)
		}
		if err != nil {
			return nil, fmt.Errorf("copying the logical slot %s from %s: %w", want.Name, from.Name, err)
		}
		files = append(files, f)
	}
	return files, nil
}

const (
	mostState    = 64 << 10 // more than the state of a slot has bytes
	mostSnapshot = 16 << 20 // and of a snapshot, with four million transactions
	// fetchTries is how often a slot is read: its reader moves it on every 15 seconds or so.
	fetchTries = 3
)

// fetchSlot reads a slot's state, and the snapshot of the position from which it is read
// (pg_logical/snapshots): which transactions ran there, and have to be known at once. A slot that
// nobody has moved on so far has none, and finds what it needs in the WAL. It reports as well up to
// where the reader has everything.
func fetchSlot(ctx context.Context, conn *pgx.Conn, want cluster.Slot, role string) (f pg.SlotFile, confirmed int64, err error) {
	for range fetchTries {
		f = pg.SlotFile{Slot: cluster.Slot{Name: want.Name, Type: cluster.SlotLogical}}
		var primary, failover bool
		err := conn.QueryRow(ctx, `SELECT plugin::text, database::text, NOT pg_is_in_recovery(), pg_read_binary_file('pg_replslot/' || slot_name || '/state', 0, $2, false),
			COALESCE((to_jsonb(s) ->> 'failover')::boolean, false)
			FROM pg_replication_slots s WHERE slot_name = $1 AND slot_type = 'logical' AND NOT temporary`, want.Name, mostState).Scan(&f.Plugin, &f.Database, &primary, &f.State, &failover)
		switch {
		case err != nil:
			return f, 0, fmt.Errorf("%w (role %s)", err, role)
		case !primary:
			return f, 0, errors.New("it is no primary any more")
		case failover:
			return f, 0, errors.New("it is a failover slot, which PostgreSQL itself keeps on replicas: set sync_replication_slots")
		case f.Slot != want:
			return f, 0, fmt.Errorf("there it is of plugin %s in database %s, and is to be of %s in %s: drop it there, or change slots", f.Plugin, f.Database, want.Plugin, want.Database)
		}
		if err := checkSlotState(f); err != nil {
			return f, 0, err
		}
		if err := conn.QueryRow(ctx, "SELECT pg_read_binary_file($1, 0, $2, true)", snapshotFile(f), mostSnapshot).Scan(&f.Snapshot); err != nil {
			return f, 0, fmt.Errorf("its snapshot: %w (role %s)", err, role)
		}
		// PostgreSQL removes a snapshot that no slot needs any more.
		var restart int64
		if err := conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(restart_lsn, '0/0')::bigint, pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint
			FROM pg_replication_slots WHERE slot_name = $1 AND restart_lsn IS NOT NULL`, want.Name).Scan(&restart, &confirmed); err != nil {
			return f, 0, fmt.Errorf("whether it is still there: %w", err)
		}
		if restart == restartLSN(f) {
			return f, confirmed, checkSnapshot(f)
		}
	}
	return f, 0, errors.New("its reader moves it on all the while")
}

// canRead waits until this replica has received what the reader of a slot has: else the copy would skip
// WAL that comes in the place of that if it never gets here. What this replica has not kept it
// cannot wait for.
func (p *replication) canRead(ctx context.Context, f pg.SlotFile, confirmed int64) error {
	if kept, err := p.keepsWAL(restartLSN(f)); err != nil {
		return err
	} else if !kept {
		return fmt.Errorf("this replica has not kept the WAL from which it is read, at %s: let its reader read on", pg.FormatLSN(restartLSN(f)))
	}
	conn, err := p.dedicated(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	var behind error // what was seen last says more than that the time is over
	for {
		var received int64
		if err := conn.QueryRow(ctx, `SELECT COALESCE(pg_wal_lsn_diff(GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0'), 0)::bigint`).Scan(&received); err != nil {
			if ctx.Err() != nil && behind != nil {
				return fmt.Errorf("%w: %w", behind, ctx.Err())
			}
			return fmt.Errorf("asking how much WAL there is: %w", err)
		}
		if received >= confirmed {
			return nil
		}
		behind = fmt.Errorf("this replica has received WAL up to %s, and its reader has all up to %s", pg.FormatLSN(received), pg.FormatLSN(confirmed))
		select {
		case <-time.After(receivedEvery):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", behind, ctx.Err())
		}
	}
}

// receivedEvery is how often it is asked how much WAL there is.
const receivedEvery = 50 * time.Millisecond

// The head of a slot's state (ReplicationSlotOnDisk in src/backend/replication/slot.c, the same
// in all versions from 12 to 18): magic, checksum, version, length, and then name, database,
// persistence, two transactions, and restart_lsn. The checksum is of all that stands behind it. The head of a
// snapshot (SnapBuildOnDisk in snapbuild.c) is the same.
const (
	slotMagic      = 0x1051CA1
	snapshotMagic  = 0x51A1E001
	slotHead       = 16
	slotSummed     = 8
	slotNameSize   = 64
	slotPersistent = 0

	persistenceAt = slotHead + slotNameSize + 4
	restartLSNAt  = persistenceAt + 12
)

// checkSlotState refuses what would keep PostgreSQL from starting: it ends when it finds a slot
// whose state is not whole.
func checkSlotState(f pg.SlotFile) error {
	b, order := f.State, binary.NativeEndian
	if len(b) < restartLSNAt+8 || order.Uint32(b) != slotMagic || int(order.Uint32(b[12:])) != len(b)-slotHead {
		return fmt.Errorf("its state, %d bytes, is not that of a slot", len(b))
	}
	if !isWhole(b) {
		return errors.New("its state has another checksum than it says")
	}
	name, _, _ := bytes.Cut(b[slotHead:slotHead+slotNameSize], []byte{0})
	if string(name) != f.Name || order.Uint32(b[persistenceAt:]) != slotPersistent {
		return fmt.Errorf("its state is that of %q, or of one that does not last", name)
	}
	if restartLSN(f) <= 0 {
		return errors.New("its state says nowhere to begin")
	}
	return nil
}

// checkSnapshot refuses a snapshot with which the slot could not be read.
func checkSnapshot(f pg.SlotFile) error {
	b := f.Snapshot
	if b != nil && (len(b) < slotHead || binary.NativeEndian.Uint32(b) != snapshotMagic || !isWhole(b)) {
		return fmt.Errorf("its snapshot, %d bytes, is not whole", len(b))
	}
	return nil
}

func isWhole(b []byte) bool {
	return crc32.Checksum(b[slotSummed:], crc32.MakeTable(crc32.Castagnoli)) == binary.NativeEndian.Uint32(b[4:])
}

// restartLSN is where the reading of a slot begins.
func restartLSN(f pg.SlotFile) int64 {
	return int64(binary.NativeEndian.Uint64(f.State[restartLSNAt:]))
}

// snapshotFile is where PostgreSQL looks for the snapshot of that position.
func snapshotFile(f pg.SlotFile) string {
	lsn := restartLSN(f)
	return fmt.Sprintf("pg_logical/snapshots/%X-%X.snap", lsn>>32, lsn&math.MaxUint32)
}

// PlaceSlots puts the state of logical slots into the data directory of a replica that is
// down. PostgreSQL does not start with a slot that is not whole, with more slots than
// max_replication_slots, or with a logical one below wal_level logical: so each is
// whole on the disk before it gets its name, and none is placed that would keep it down.
// (What has no name yet when the host fails, NAME.tmp, PostgreSQL removes when it starts.)
func (p *replication) PlaceSlots(ctx context.Context, files []pg.SlotFile) error {
	if err := p.mayPlaceSlots(ctx, len(files)); err != nil {
		return fmt.Errorf("logical slots are not placed: %w", err)
	}
	for _, f := range files {
		if err := p.placeSlot(f); err != nil {
			return fmt.Errorf("placing the logical slot %s: %w", f.Name, err)
		}
		p.log.Info().Str("slot", f.Name).Msg("copied logical slot from the leader")
	}
	return nil
}

func (p *replication) mayPlaceSlots(ctx context.Context, more int) error {
	if p.Running() {
		return errors.New("PostgreSQL runs")
	}
	d, err := p.server.DataDir(ctx)
	if err != nil {
		return err
	}
	if d.State != Valid || !d.Standby || !slices.Contains([]string{"shut down in recovery", "in archive recovery"}, d.Control.State) {
		return fmt.Errorf("the data are no replica's: %s, %s", d.State, d.Control.State)
	}
	return p.hasRoomFor(more, d.Control)
}

// hasRoomFor says why PostgreSQL would not start with as many more logical slots as there are.
func (p *replication) hasRoomFor(more int, control Control) error {
	p.settings.Lock()
	values := p.commandLineValues(Replica, control)
	p.settings.Unlock()
	if level := values["wal_level"]; level != "logical" {
		return fmt.Errorf("wal_level is %s, and must be logical", level)
	}
	dir := p.inData("pg_replslot")
	info, err := p.disk.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory", dir)
	}
	entries, err := p.disk.ReadDir(dir)
	if err != nil {
		return err
	}
	if most, err := strconv.Atoi(values["max_replication_slots"]); err != nil || len(entries)+more > most {
		return fmt.Errorf("there are %d slots already, and max_replication_slots is %s", len(entries), values["max_replication_slots"])
	}
	return nil
}

func (p *replication) placeSlot(f pg.SlotFile) error {
	if err := checkSlotState(f); err != nil {
		return err
	}
	if err := checkSnapshot(f); err != nil {
		return err
	}
	all := p.inData("pg_replslot")
	dir := p.inData("pg_replslot/" + f.Name)
	if _, err := p.disk.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("%s is there already", dir))
	}
	if err := p.placeSnapshot(f); err != nil {
		return err
	}
	temporary := dir + ".tmp"
	if err := p.disk.RemoveAll(temporary); err != nil {
		return err
	}
	mode := os.FileMode(0o700)
	if p.fileMode() == 0o640 {
		mode = groupAccess
	}
	if err := p.disk.Mkdir(temporary, mode); err != nil {
		return err
	}
	if err := p.disk.Give(temporary); err != nil {
		return err
	}
	if err := p.writeSynced(temporary+"/state", f.State); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return p.disk.Sync(temporary) },
		func() error { return p.disk.Rename(temporary, dir) },
		func() error { return p.disk.Sync(dir) },
		func() error { return p.disk.Sync(all) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// placeSnapshot puts the slot's snapshot where PostgreSQL looks for it, and where it removes
// what no slot needs.
func (p *replication) placeSnapshot(f pg.SlotFile) error {
	if f.Snapshot == nil {
		return nil
	}
	path := p.inData(snapshotFile(f))
	temporary := path + ".tmp"
	if err := p.disk.RemoveAll(temporary); err != nil {
		return err
	}
	if err := p.writeSynced(temporary, f.Snapshot); err != nil {
		return err
	}
	if err := p.disk.Rename(temporary, path); err != nil {
		return err
	}
	return p.disk.Sync(filepath.Dir(path))
}

// writeSynced writes a new file of PostgreSQL's, down to the disk.
func (p *replication) writeSynced(path string, content []byte) error {
	f, err := p.disk.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(p.fileMode()), p.disk.Give(path), f.Sync(), f.Close())
}
