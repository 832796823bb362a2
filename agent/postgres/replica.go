package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// progressEvery is how often the size of a growing clone is looked at.
const progressEvery = 2 * time.Second

// BaseBackup fills the empty data directory from an upstream. progress, if set,
// is told how many bytes there are and how many are expected (0: unknown). On
// failure what was made is removed again; killed on the way, it is found marked.
func (p *Instance) BaseBackup(ctx context.Context, u Upstream, progress func(done, total int64)) error {
	if err := p.mark(markClone); err != nil {
		return err
	}
	if err := p.writePgpass(u); err != nil {
		return err
	}
	stop := p.watchSize(ctx, u, progress)
	args := append([]string{
		"--pgdata=" + p.dataDir, "--wal-method=stream", "--no-password",
		"--dbname=" + p.conninfo(u, p.local.Load().Authentication.Replication, "", p.name),
	}, p.baseBackupOptions()...)
	var err error
	for range 2 {
		if _, err = p.run(ctx, nil, "pg_basebackup", args...); err == nil || ctx.Err() != nil {
			break
		}
		if err := p.empty(); err != nil {
			break
		}
	}
	stop()
	if err != nil {
		if cleanup := p.empty(); cleanup != nil {
			return errors.Join(err, cleanup)
		}
		return errors.Join(fmt.Errorf("cloning from %s: %w", u.Name, err), p.unmark())
	}
	if progress != nil {
		size := dirSize(p.dataDir)
		progress(size, size)
	}
	return p.unmark()
}

// baseBackupOptions are the user's, and a fast checkpoint unless they say
// otherwise.
func (p *Instance) baseBackupOptions() []string {
	var options []string
	add := func(name string, value any) {
		if slices.Contains([]string{"pgdata", "D", "dbname", "d", "wal-method", "X", "no-password", "w"}, name) {
			return // ours
		}
		switch v := value.(type) {
		case nil:
			options = append(options, "--"+name)
		case bool:
			if v {
				options = append(options, "--"+name)
			}
		default:
			options = append(options, fmt.Sprintf("--%s=%v", name, v))
		}
	}
	switch list := p.local.Load().BaseBackup.(type) {
	case map[string]any:
		for name, value := range list {
			add(name, value)
		}
	case []any:
		for _, item := range list {
			switch o := item.(type) {
			case string:
				add(o, nil)
			case map[string]any:
				for name, value := range o {
					add(name, value)
				}
			}
		}
	}
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "--checkpoint") }) {
		options = append(options, "--checkpoint=fast")
	}
	slices.Sort(options)
	return options
}

// watchSize tells progress while a clone grows. The function that it returns
// ends that.
func (p *Instance) watchSize(ctx context.Context, u Upstream, progress func(done, total int64)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		var total int64
		if conn, err := connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, "postgres", "Lictor"); err == nil {
			_ = conn.QueryRow(ctx, "SELECT sum(pg_tablespace_size(oid))::bigint FROM pg_tablespace").Scan(&total)
			_ = conn.Close(ctx)
		}
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				progress(dirSize(p.dataDir), total)
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

func dirSize(dir string) int64 {
	var size int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil // files come and go while it is measured
	})
	return size
}

// RewindOutcome says what it took to make a data directory fit to follow.
type RewindOutcome string

// The outcomes of Rewind.
const (
	NotNeeded RewindOutcome = "not diverged"
	Rewound   RewindOutcome = "rewound"
)

func (o RewindOutcome) String() string { return string(o) }

// ErrDiverged: the data directory has WAL that the upstream does not have, and
// it was not rewound.
var ErrDiverged = errors.New("this member's WAL has diverged from the upstream's")

// Rewind makes the stopped data directory fit to follow an upstream. Whether it
// has diverged is found out with two questions to the upstream; only where that
// cannot tell (after a crash) does pg_rewind decide. A rewind that was cut
// short leaves a mark, and nothing is started before it was done again.
func (p *Instance) Rewind(ctx context.Context, u Upstream, allowed bool) (RewindOutcome, error) {
	control, err := p.control(ctx)
	if err != nil {
		return "", err
	}
	if err := p.writePgpass(u); err != nil {
		return "", err
	}
	_, interrupted := os.Stat(p.stateFile("rewinding"))
	if interrupted != nil {
		needed, err := p.diverged(ctx, u, control)
		if err != nil || !needed {
			return NotNeeded, err
		}
	}
	if !allowed {
		return "", fmt.Errorf("%w: set use_pg_rewind, or reinitialize it", ErrDiverged)
	}
	if err := p.killLeftovers(ctx); err != nil {
		return "", err
	}
	if err := p.awaitCheckpoint(ctx, u); err != nil {
		return "", err
	}
	if err := p.writeFile(p.stateFile("rewinding"), u.Name+"\n"); err != nil {
		return "", err
	}
	// A crashed directory is recovered in single-user mode, which knows no standby.
	if err := p.setSignalFile(Primary); err != nil {
		return "", err
	}
	if p.major < 13 && control.State != "shut down" && control.State != "shut down in recovery" {
		if err := p.recoverAlone(ctx); err != nil {
			return "", err
		}
	}
	role := p.local.Load().Authentication.Rewind
	if role.Username == "" {
		role = p.local.Load().Authentication.Superuser
	}
	source := p.conninfo(u, role, "postgres", p.name)
	if _, err := p.run(ctx, []string{"PGPASSFILE=" + p.pgpassPath()}, "pg_rewind", "--target-pgdata="+p.dataDir, "--source-server="+source); err != nil {
		return "", fmt.Errorf("%w and could not be rewound (pg_rewind needs wal_log_hints or data checksums, and the WAL back to the fork): %w", ErrDiverged, err)
	}
	if err := os.Remove(p.stateFile("rewinding")); err != nil {
		return "", fmt.Errorf("rewind: %w", err)
	}
	return Rewound, nil
}

// checkpointWithin is how long a rewind waits for the upstream's first
// checkpoint on its timeline.
const checkpointWithin = time.Minute

// awaitCheckpoint waits until the upstream's control file names the timeline
// that it is on. Before that, pg_rewind would look at the old one and find
// nothing to do.
func (p *Instance) awaitCheckpoint(ctx context.Context, u Upstream) error {
	ctx, cancel := context.WithTimeout(ctx, checkpointWithin)
	defer cancel()
	conn, err := connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, "postgres", "Lictor")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is done with
	for {
		var done bool
		err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery() OR timeline_id = ('x' || left(pg_walfile_name(
			CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() END), 8))::bit(32)::int FROM pg_control_checkpoint()`).Scan(&done)
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the first checkpoint of %s: %w", u.Name, err)
		case done:
			return nil
		}
		select {
		case <-time.After(10 * pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("waiting for the first checkpoint of %s: %w", u.Name, ctx.Err())
		}
	}
}

// recoverAlone lets a crashed PostgreSQL before 13 recover in single-user mode,
// as pg_rewind needs it; later ones do so themselves.
func (p *Instance) recoverAlone(ctx context.Context) error {
	_, err := p.run(ctx, nil, "postgres", "--single", "-D", p.dataDir, "-c", "archive_mode=on", "-c", "archive_command=false", "template1")
	return err
}

// diverged compares the data directory with the upstream's history through the
// replication protocol (PostgreSQL's documentation, 55.4 Streaming Replication
// Protocol: IDENTIFY_SYSTEM, TIMELINE_HISTORY).
func (p *Instance) diverged(ctx context.Context, u Upstream, control Control) (bool, error) {
	conn, err := p.replicationConn(ctx, u)
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is done with
	row, err := queryRow(ctx, conn, "IDENTIFY_SYSTEM")
	if err != nil || len(row) < 3 {
		return false, fmt.Errorf("asking %s who it is: %w", u.Name, err)
	}
	if id := string(row[0]); id != control.SystemIdentifier {
		return false, fmt.Errorf("%s has the system identifier %s, this data directory %s: they are not of one cluster", u.Name, id, control.SystemIdentifier)
	}
	upstream, err := strconv.Atoi(string(row[1]))
	if err != nil {
		return false, fmt.Errorf("asking %s who it is: timeline %q", u.Name, row[1])
	}
	local := max(control.Timeline, control.MinRecoveryTimeline)
	if upstream <= local {
		return upstream < local, nil
	}
	row, err = queryRow(ctx, conn, "TIMELINE_HISTORY "+strconv.Itoa(upstream))
	if err != nil || len(row) < 2 {
		return false, fmt.Errorf("asking %s for the history of timeline %d: %w", u.Name, upstream, err)
	}
	history, err := parseHistory(string(row[1]))
	if err != nil {
		return false, err
	}
	return divergedFrom(history, control, local), nil
}

// divergedFrom compares where a data directory stands with where the upstream's
// history left its timeline.
//
//	state                    diverged when
//	shut down                its shutdown checkpoint lies at or beyond the fork
//	shut down in recovery,
//	  in archive recovery    it replayed beyond the fork; what it received beyond
//	                         and did not replay shows when it is started
//	anything else (crashed)  unknown: pg_rewind looks
//	timeline unknown there   yes
func divergedFrom(history cluster.History, control Control, timeline int) bool {
	i := slices.IndexFunc(history, func(h cluster.TimelineSwitch) bool { return h.Timeline == timeline })
	if i < 0 {
		return true
	}
	switch fork := history[i].LSN; control.State {
	case "shut down":
		return control.CheckpointLSN >= fork
	case "shut down in recovery", "in archive recovery":
		return max(control.MinRecovery, control.CheckpointLSN) > fork
	default:
		return true
	}
}

func (p *Instance) replicationConn(ctx context.Context, u Upstream) (*pgconn.PgConn, error) {
	role := p.local.Load().Authentication.Replication
	c, err := pgconn.ParseConfig("sslmode=prefer")
	if err != nil {
		return nil, fmt.Errorf("replication connection: %w", err)
	}
	if role.SSLMode != "" || role.SSLRootCert != "" || role.SSLCert != "" {
		c, err = pgconn.ParseConfig(sslText(role))
		if err != nil {
			return nil, fmt.Errorf("replication connection: the TLS settings of %s are not valid", role.Username)
		}
	}
	for _, f := range append([]*pgconn.FallbackConfig{}, c.Fallbacks...) {
		f.Host, f.Port = u.Host, uint16(u.Port)
	}
	c.Host, c.Port, c.User, c.Password, c.Database = u.Host, uint16(u.Port), role.Username, role.Password, ""
	c.RuntimeParams = map[string]string{"replication": "true", "application_name": "Lictor"}
	c.ConnectTimeout = 3 * time.Second
	conn, err := pgconn.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("replication connection to %s as %s: %w", u.Name, role.Username, err)
	}
	return conn, nil
}

func sslText(role config.PgUser) string {
	text := "sslmode=" + conninfoValue(role.SSLMode)
	for name, value := range map[string]string{"sslcert": role.SSLCert, "sslkey": role.SSLKey, "sslrootcert": role.SSLRootCert} {
		if value != "" {
			text += " " + name + "=" + conninfoValue(value)
		}
	}
	return text
}

func queryRow(ctx context.Context, conn *pgconn.PgConn, command string) ([][]byte, error) {
	results, err := conn.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 || len(results[0].Rows) == 0 {
		return nil, errors.New("no answer")
	}
	return results[0].Rows[0], nil
}
