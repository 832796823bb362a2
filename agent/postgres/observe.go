package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// observeSQL asks for everything at once. Functions that are not allowed in the
// other role stand in a CASE, of which only one branch is executed. A standby's
// positions are read before its timeline, so that what it has received on a new one
// is never taken for WAL of the old one: that would look like a fork.
const observeSQL = `
SELECT r.rec,
  CASE WHEN r.rec THEN GREATEST(COALESCE((SELECT received_tli FROM pg_stat_get_wal_receiver()), 0),
         (SELECT COALESCE(min_recovery_end_timeline, 0) FROM pg_control_recovery()), (SELECT timeline_id FROM pg_control_checkpoint()))
       ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
  CASE WHEN r.rec THEN 0 ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint END,
  COALESCE(pg_wal_lsn_diff(r.received, '0/0')::bigint, 0),
  r.received IS NOT NULL OR COALESCE(s.waits, false), COALESCE(s.pid, 0), COALESCE(s.started, 'epoch'),
  COALESCE(pg_wal_lsn_diff(r.replayed, '0/0')::bigint, 0),
  pg_last_xact_replay_timestamp(),
  CASE WHEN r.rec THEN pg_is_wal_replay_paused() ELSE false END,
  CASE WHEN NOT r.rec THEN ''
       WHEN (SELECT status FROM pg_stat_get_wal_receiver()) = 'streaming' THEN 'streaming'
       WHEN current_setting('restore_command') <> '' THEN 'in archive recovery' ELSE '' END,
  CASE WHEN r.rec AND current_setting('recovery_min_apply_delay') NOT IN ('0', '0ms') THEN current_setting('recovery_min_apply_delay') ELSE '' END,
  r.rec AND current_setting('primary_conninfo') <> '' AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver'),
  pg_postmaster_start_time(),
  current_setting('server_version_num')::int,
  (SELECT system_identifier::text FROM pg_control_system()),
  current_setting('synchronous_standby_names'),
  current_setting('data_directory'),
  COALESCE((SELECT json_agg(json_build_object('usename', usename, 'application_name', application_name,
     'client_addr', COALESCE(host(client_addr), ''), 'state', COALESCE(state, ''), 'sync_state', COALESCE(sync_state, ''),
     'sync_priority', COALESCE(sync_priority, 0), 'write', COALESCE(pg_wal_lsn_diff(write_lsn, '0/0')::bigint, 0),
     'flush', COALESCE(pg_wal_lsn_diff(flush_lsn, '0/0')::bigint, 0),
     'replay', COALESCE(pg_wal_lsn_diff(replay_lsn, '0/0')::bigint, 0)))
     FROM pg_stat_replication WHERE NOT (application_name = '` + agentName + `' AND state = 'startup')), '[]')::text,
  COALESCE((SELECT json_agg(json_build_object('slot_name', slot_name, 'slot_type', slot_type, 'plugin', COALESCE(plugin, ''),
     'database', COALESCE(database, ''), 'active', active, 'restart_lsn', COALESCE(pg_wal_lsn_diff(restart_lsn, '0/0')::bigint, 0)))
     FROM pg_replication_slots WHERE NOT temporary), '[]')::text
FROM (SELECT pg_is_in_recovery() AS rec, pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed) r
LEFT JOIN (SELECT pid, backend_start AS started, COALESCE(wait_event, '') IN ('RecoveryWalStream', 'RecoveryWalAll', 'RecoveryRetrieveRetryInterval') AS waits
  FROM pg_stat_activity WHERE backend_type = 'startup' LIMIT 1) s ON r.rec`

// Observe looks at PostgreSQL. An error says why a running PostgreSQL could not
// be asked; the state is then still right about Running.
func (p *Instance) Observe(ctx context.Context) (State, error) {
	if !p.Running() {
		return State{}, nil
	}
	s := State{Running: true}
	conn, err := p.take(ctx)
	if err != nil {
		if refused := new(pgconn.PgError); errors.As(err, &refused) && refused.Code == startingUp {
			if s.Stopping = p.isStopping(); s.Stopping {
				c, err := p.control(ctx)
				s.ShutDown = err == nil && c.IsShutDown()
			}
			return s, nil
		}
		if !p.Running() {
			return State{}, nil
		}
		s.Silent = p.isSilent(ctx)
		return s, err
	}
	defer p.give(conn)
	var (
		replayedAt      *time.Time
		startup         recovery
		applyDelay      string
		standbys, slots string
		dataDir         string
	)
	err = conn.QueryRow(ctx, observeSQL).Scan(&s.InRecovery, &s.Timeline, &s.WriteLSN, &s.ReceivedLSN, &startup.ended, &startup.pid, &startup.began, &s.ReplayedLSN, &replayedAt,
		&s.ReplayPaused, &s.ReplicationState, &applyDelay, &s.NoReceiver, &s.StartTime, &s.ServerVersion, &s.SystemIdentifier, &s.SyncNames, &dataDir, &standbys, &slots)
	if err == nil {
		err = p.worksHere(dataDir)
	}
	if err == nil {
		err = json.Unmarshal([]byte(standbys), &s.Standbys)
	}
	if err == nil {
		err = json.Unmarshal([]byte(slots), &s.Slots)
	}
	if err == nil {
		p.learnVerifiers(ctx, conn, s.StartTime)
		s.PendingRestart, err = p.pendingRestart(ctx, conn, s)
	}
	if err == nil {
		s.Standstill, s.Undersized, err = p.standstill(ctx, conn, s.ReplayPaused, applyDelay)
	}
	if err != nil {
		hangUpOn(conn) // a connection in an unknown state is not kept
		if !p.Running() {
			return State{}, nil
		}
		return State{Running: true, Silent: p.isSilent(ctx)}, fmt.Errorf("observing PostgreSQL: %w", err)
	}
	if s.ReceivedLSN > 0 {
		// A WAL receiver begins at its segment's first byte: what was replayed beyond
		// that has been received before.
		s.ReceivedLSN = max(s.ReceivedLSN, s.ReplayedLSN)
	}
	if replayedAt != nil {
		s.ReplayedAt = *replayedAt
	}
	if s.NoReceiver {
		if err := p.wakePostmaster(); err != nil {
			return State{Running: true}, fmt.Errorf("observing PostgreSQL: %w", err)
		}
	}
	s.Replaying = s.InRecovery && !p.replayEnded(startup)
	if s.InRecovery && !s.Replaying && s.ReplicationState != Streaming {
		if s.Timeline, err = p.timelineAt(s.Timeline, s.LSN()); err != nil {
			return State{Running: true}, fmt.Errorf("observing PostgreSQL: %w", err)
		}
	}
	s.Timeline = p.furthestTimeline(s)
	if err := p.postmasterAnswers(ctx); err != nil {
		if !p.Running() {
			return State{}, nil
		}
		s.Silent = p.isSilent(ctx)
		return s, fmt.Errorf("observing PostgreSQL: %w", err)
	}
	s.Accepting = true
	return s, nil
}

// recovery is what one startup process has come to. There is another one after a
// crash of the standby's processes, which begins again at the last restartpoint, though
// the postmaster is the same.
type recovery struct {
	pid   int
	began time.Time
	// ended: it has come to the end of the WAL that was there when it began.
	ended bool
}

// replayEnded reports whether recovery has come to the end of the local WAL. What a standby
// received before it was started it replays while it answers already, and of how far
// that goes nothing in SQL or in the control file tells. But the startup process asks
// for a WAL receiver, or waits, only when there is no more WAL locally, nor in the
// archive (WaitForWALToBecomeAvailable in src/backend/access/transam/xlogrecovery.c);
// and pg_last_wal_receive_lsn() is NULL until it has asked for one. The wait is
// seen now and then only, so that it is remembered. It has one of these names:
//
//	12      RecoveryWalAll (a WAL receiver is at work), RecoveryWalStream (nothing to be had)
//	13-18   RecoveryWalStream                           RecoveryRetrieveRetryInterval
func (p *Instance) replayEnded(now recovery) bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	if r := &p.recovery; now.pid == 0 || now.pid != r.pid || !now.began.Equal(r.began) {
		*r = now
	} else {
		r.ended = r.ended || now.ended
	}
	return p.recovery.pid != 0 && p.recovery.ended
}

// timelineAt is the timeline that a replica is on which has WAL up to lsn. The control
// file knows of a timeline only from the next restartpoint on, and the WAL receiver
// that received it may have been of an earlier life. WAL beyond the point at which a
// timeline was left is of the next one if that has it.
func (p *Instance) timelineAt(timeline int, lsn int64) (int, error) {
	files, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return 0, fmt.Errorf("looking for timelines: %w", err)
	}
	slices.Sort(files)
	for _, file := range slices.Backward(files) {
		tli, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(file), ".history"), 16, 32)
		if err != nil || int(tli) <= timeline {
			continue
		}
		history, err := p.TimelineHistory(int(tli))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		own := slices.IndexFunc(history, func(h cluster.TimelineSwitch) bool { return h.Timeline == timeline })
		if own < 0 || history[len(history)-1].LSN >= lsn {
			continue
		}
		if segment, err := p.segmentAt(int(tli), lsn-1); err != nil || segment != "" {
			return int(tli), err
		}
	}
	return timeline, nil
}

// errElsewhere: PostgreSQL works in another directory than the one that it is to.
var errElsewhere = errors.New("its data directory is not the one that is configured")

// worksHere compares the data directory that PostgreSQL says it works in with the one
// that is configured, which all else is about: control file, rewind, disk probe.
func (p *Instance) worksHere(says string) error {
	if filepath.Clean(says) == p.dataDir {
		return nil
	}
	its, err := p.disk.Stat(says)
	if err != nil {
		return fmt.Errorf("%w: it works in %s, not in %s: %w", errElsewhere, says, p.dataDir, err)
	}
	here, err := p.disk.Stat(p.dataDir)
	if err != nil {
		return fmt.Errorf("%w: it works in %s, not in %s: %w", errElsewhere, says, p.dataDir, err)
	}
	if !os.SameFile(its, here) {
		return fmt.Errorf("%w: it works in %s, not in %s; remove data_directory from its settings", errElsewhere, says, p.dataDir)
	}
	return nil
}

// checkDataDir asks a running PostgreSQL where it works. Only errElsewhere says that
// it is not here.
func (p *Instance) checkDataDir(ctx context.Context, conn *pgx.Conn) error {
	var dir string
	if err := conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&dir); err != nil {
		return fmt.Errorf("asking PostgreSQL for its data directory: %w", err)
	}
	return p.worksHere(dir)
}

// furthestTimeline is the timeline that a running replica has reached. Once its WAL
// receiver has ended, only the control file tells of one, which is behind until the
// next restartpoint; yet no timeline is ever left again.
func (p *Instance) furthestTimeline(s State) int {
	p.settings.Lock()
	defer p.settings.Unlock()
	if s.InRecovery && p.reached.start.Equal(s.StartTime) {
		s.Timeline = max(s.Timeline, p.reached.timeline)
	}
	p.reached.start, p.reached.timeline = s.StartTime, s.Timeline
	return s.Timeline
}

// pendingRestart finds parameters that take effect with the next restart: those
// of the file that PostgreSQL itself flags, and those of the command line that
// are now configured otherwise. A standby that runs with more than is configured,
// because its primary had more when it made the WAL, is restarted after that.
func (p *Instance) pendingRestart(ctx context.Context, conn *pgx.Conn, s State) (map[string]cluster.PendingChange, error) {
	var names []string
	for _, c := range cluster.SharedParameters() {
		names = append(names, c.Name)
	}
	rows, err := conn.Query(ctx, `SELECT name, CASE WHEN pending_restart AND name <> ALL($1) THEN current_setting(name) ELSE setting END, pending_restart,
		CASE WHEN pending_restart THEN COALESCE((SELECT f.setting FROM pg_file_settings f WHERE lower(f.name) = lower(s.name) ORDER BY f.seqno DESC LIMIT 1), boot_val, '') ELSE '' END
		FROM pg_settings s WHERE pending_restart OR name = ANY($1)`, names)
	if err != nil {
		return nil, err
	}
	type setting struct {
		Name    string
		Setting string
		Pending bool
		File    string // what the files say
	}
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[setting])
	if err != nil {
		return nil, err
	}
	role := Primary
	if s.InRecovery {
		role = Replica
	}
	p.settings.Lock()
	wanted := p.commandLineValues(role, Control{})
	p.settings.Unlock()
	pending := map[string]cluster.PendingChange{}
	for _, now := range settings {
		switch want, ours := wanted[now.Name]; {
		case ours && want != now.Setting:
			pending[now.Name] = cluster.PendingChange{OldValue: now.Setting, NewValue: want}
		case !ours && now.Pending:
			pending[now.Name] = cluster.PendingChange{OldValue: now.Setting, NewValue: now.File}
		}
	}
	if len(pending) == 0 {
		return nil, nil //nolint:nilnil // nothing is pending
	}
	return pending, nil
}

// take takes the kept connection, made anew when it is broken. Who takes it
// gives it back.
func (p *Instance) take(ctx context.Context) (*pgx.Conn, error) {
	var conn *pgx.Conn
	select {
	case conn = <-p.sql:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the connection to PostgreSQL: %w", ctx.Err())
	}
	if conn != nil && !conn.IsClosed() {
		return conn, nil
	}
	conn, err := p.dedicated(ctx)
	if err != nil {
		p.give(nil)
		return nil, err
	}
	// PostgreSQL 14 and later may end sessions that are idle, which this one mostly is.
	if _, err := conn.Exec(ctx, "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"); err != nil {
		hangUpOn(conn)
		p.give(nil)
		return nil, fmt.Errorf("connecting to PostgreSQL: %w", err)
	}
	return conn, nil
}

func (p *Instance) give(conn *pgx.Conn) { p.sql <- conn }

// hangUp closes the kept connection, which has no use when PostgreSQL ends.
func (p *Instance) hangUp() {
	select {
	case conn := <-p.sql:
		if conn != nil {
			hangUpOn(conn)
		}
		p.give(nil)
	default: // it is in use, and breaks with the server
	}
}

// hangUpOn closes a connection without waiting for a server that hangs.
func hangUpOn(conn interface{ Close(context.Context) error }) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is left to be done about it
}

// Answers reports whether the PostgreSQL of an upstream answers, whatever its role.
func (p *Instance) Answers(ctx context.Context, u Upstream) bool {
	conn, err := connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, p.database(), "Lictor")
	if err != nil {
		return false
	}
	hangUpOn(conn)
	return true
}

// Reachable tells whether the PostgreSQL of an upstream answers as a primary.
func (p *Instance) Reachable(ctx context.Context, u Upstream) bool {
	conn, err := connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, p.database(), agentName)
	if err != nil {
		return false
	}
	defer hangUpOn(conn)
	var recovering bool
	return conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering) == nil && !recovering
}
