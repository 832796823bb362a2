package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strconv"

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
	conn, err := connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, database, agentName)
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
	conn, err := connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, s.Database, agentName)
	if err != nil {
		return fmt.Errorf("making the logical slot %s: %w", s.Name, err)
	}
	defer hangUpOn(conn)
	if _, err := conn.Exec(ctx, "SELECT pg_create_logical_replication_slot($1, $2)", s.Name, s.Plugin); err != nil {
		return fmt.Errorf("making the logical slot %s: %w", s.Name, err)
	}
	p.log.Info().Str("slot", s.Name).Str("database", s.Database).Str("plugin", s.Plugin).Msg("made logical slot; its reader gets what is written from now on")
	return nil
}

// mostState is more than the state of a slot has bytes.
const mostState = 64 << 10

// FetchSlots reads the state of logical slots on the primary. All of them are there, as they
// are configured, and whole; or there is an error.
func (p *replication) FetchSlots(ctx context.Context, from Upstream, slots []cluster.Slot) ([]pg.SlotFile, error) {
	role := p.local.Load().Authentication.Rewind
	if role.Username == "" {
		role = p.local.Load().Authentication.Superuser
	}
	conn, err := connect(ctx, from.Host, from.Port, role, p.database(), agentName)
	if err != nil {
		return nil, fmt.Errorf("copying logical slots from %s: %w", from.Name, err)
	}
	defer hangUpOn(conn)
	var files []pg.SlotFile
	for _, want := range slots {
		f := pg.SlotFile{Slot: cluster.Slot{Name: want.Name, Type: cluster.SlotLogical}}
		var primary bool
		err := conn.QueryRow(ctx, `SELECT plugin::text, database::text, NOT pg_is_in_recovery(), pg_read_binary_file('pg_replslot/' || slot_name || '/state', 0, $2, false)
			FROM pg_replication_slots WHERE slot_name = $1 AND slot_type = 'logical' AND NOT temporary`, want.Name, mostState).Scan(&f.Plugin, &f.Database, &primary, &f.State)
		switch {
		case err != nil:
			err = fmt.Errorf("%w (role %s)", err, role.Username)
		case !primary:
			err = errors.New("it is no primary any more")
		case f.Slot != want:
			err = fmt.Errorf("there it is of plugin %s in database %s, and is to be of %s in %s: drop it there, or change slots", f.Plugin, f.Database, want.Plugin, want.Database)
		default:
			err = checkSlotState(f)
		}
		if err != nil {
			return nil, fmt.Errorf("copying the logical slot %s from %s: %w", want.Name, from.Name, err)
		}
		files = append(files, f)
	}
	return files, nil
}

// The head of a slot's state (ReplicationSlotOnDisk in src/backend/replication/slot.c, the same
// in all versions from 12 to 18): magic, checksum, version, length, and then name, database and
// persistence. The checksum is of all that stands behind it.
const (
	slotMagic      = 0x1051CA1
	slotHead       = 16
	slotSummed     = 8
	slotNameSize   = 64
	slotPersistent = 0
)

// checkSlotState refuses what would keep PostgreSQL from starting: it ends when it finds a slot
// whose state is not whole.
func checkSlotState(f pg.SlotFile) error {
	b, order := f.State, binary.NativeEndian
	const persistence = slotHead + slotNameSize + 4
	if len(b) < persistence+4 || order.Uint32(b) != slotMagic || int(order.Uint32(b[12:])) != len(b)-slotHead {
		return fmt.Errorf("its state, %d bytes, is not that of a slot", len(b))
	}
	if crc32.Checksum(b[slotSummed:], crc32.MakeTable(crc32.Castagnoli)) != order.Uint32(b[4:]) {
		return errors.New("its state has another checksum than it says")
	}
	name, _, _ := bytes.Cut(b[slotHead:slotHead+slotNameSize], []byte{0})
	if string(name) != f.Name || order.Uint32(b[persistence:]) != slotPersistent {
		return fmt.Errorf("its state is that of %q, or of one that does not last", name)
	}
	return nil
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
	p.settings.Lock()
	values := p.commandLineValues(Replica, d.Control)
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
	all := p.inData("pg_replslot")
	dir := p.inData("pg_replslot/" + f.Name)
	if _, err := p.disk.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("%s is there already", dir))
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

// writeSynced writes a new file of PostgreSQL's, down to the disk.
func (p *replication) writeSynced(path string, content []byte) error {
	f, err := p.disk.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(p.fileMode()), p.disk.Give(path), f.Sync(), f.Close())
}
