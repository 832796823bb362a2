package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// observer looks at how PostgreSQL fares.
type observer struct {
	*installation
	*credentials
	*confFiles
	*walDir
	*session
	*processes
	*replication
	*upstreams

	// reached is the timeline that PostgreSQL, started then, was seen on.
	reached struct {
		start    time.Time
		timeline int
	}
	recovery recovery // of the replica that runs
	receiver process  // the WAL receiver that was seen
	weaker   weaker   // what sessions may still commit by
	// settled are the settings of which none needed a restart.
	settled struct {
		start, loaded time.Time
		wanted        map[string]string
	}
}

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
  r.rec AND current_setting('primary_conninfo') <> '', COALESCE((SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver' LIMIT 1), 0),
  pg_postmaster_start_time(), pg_conf_load_time(),
  current_setting('server_version_num')::int,
  (SELECT system_identifier::text FROM pg_control_system()),
  current_setting('synchronous_standby_names'), (SELECT reset_val FROM pg_settings WHERE name = '` + synchronousCommit + `'), current_setting('fsync') = 'on',
  COALESCE((SELECT split_part(one, '=', 2) FROM pg_db_role_setting, unnest(setconfig) AS one
     WHERE setrole = 0 AND setdatabase = 0 AND one LIKE '` + synchronousCommit + `=%' LIMIT 1), ''),
  clock_timestamp(), (SELECT min(query_start) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()),
  COALESCE((SELECT GREATEST(extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000, 1)::bigint FROM pg_stat_wal_receiver
     WHERE status = 'streaming' AND last_msg_receipt_time IS NOT NULL LIMIT 1), 0),
  current_setting('data_directory'),
  COALESCE((SELECT json_agg(json_build_object('usename', usename, 'application_name', application_name,
     'client_addr', COALESCE(host(client_addr), ''), 'state', COALESCE(state, ''), 'sync_state', COALESCE(sync_state, ''),
     'sync_priority', COALESCE(sync_priority, 0), 'write', COALESCE(pg_wal_lsn_diff(write_lsn, '0/0')::bigint, 0),
     'flush', COALESCE(pg_wal_lsn_diff(flush_lsn, '0/0')::bigint, 0),
     'replay', COALESCE(pg_wal_lsn_diff(replay_lsn, '0/0')::bigint, 0)))
     FROM pg_stat_replication WHERE NOT (starts_with(application_name, '` + agentName + `') AND state IN ('startup', 'catchup'))), '[]')::text,
  COALESCE((SELECT json_agg(json_build_object('slot_name', slot_name, 'slot_type', slot_type, 'plugin', COALESCE(plugin, ''),
     'database', COALESCE(database, ''), 'active', active, 'restart_lsn', COALESCE(pg_wal_lsn_diff(restart_lsn, '0/0')::bigint, 0),
     'confirmed_flush_lsn', COALESCE(pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint, 0),
     'lost', COALESCE(to_jsonb(l) ->> 'wal_status', '') = 'lost',
     'failover', COALESCE((to_jsonb(l) ->> 'failover')::boolean, false), 'synced', COALESCE((to_jsonb(l) ->> 'synced')::boolean, false)))
     FROM pg_replication_slots l WHERE NOT temporary), '[]')::text
FROM (SELECT pg_is_in_recovery() AS rec, pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed) r
LEFT JOIN (SELECT pid, backend_start AS started, COALESCE(wait_event, '') IN ('RecoveryWalStream', 'RecoveryWalAll', 'RecoveryRetrieveRetryInterval') AS waits
  FROM pg_stat_activity WHERE backend_type = 'startup' LIMIT 1) s ON r.rec`

// errBroken: the connection was broken, as it is after a crash of PostgreSQL's processes.
var errBroken = errors.New("the connection is broken")

// Observe looks at PostgreSQL. An error says why a running PostgreSQL could not
// be asked; the state is then still right about Running.
func (p *observer) Observe(ctx context.Context) (State, error) {
	s, err := p.look(ctx)
	if errors.Is(err, errBroken) && ctx.Err() == nil {
		// By whatever befell it since the last look. How PostgreSQL fares now a new one tells.
		s, err = p.look(ctx)
	}
	return s, err
}

func (p *observer) look(ctx context.Context) (State, error) {
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
		loaded          time.Time
		follows         bool
		receiver        int
		messageAge      int64 // milliseconds
		everybodys      string
		now             time.Time
		oldest          *time.Time
	)
	err = conn.QueryRow(ctx, observeSQL).Scan(&s.InRecovery, &s.Timeline, &s.WriteLSN, &s.ReceivedLSN, &startup.ended, &startup.pid, &startup.began, &s.ReplayedLSN, &replayedAt,
		&s.ReplayPaused, &s.ReplicationState, &applyDelay, &follows, &receiver, &s.StartTime, &loaded, &s.ServerVersion, &s.SystemIdentifier, &s.SyncNames, &s.SynchronousCommit, &s.Fsync, &everybodys, &now, &oldest, &messageAge, &dataDir, &standbys, &slots)
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
		p.learnVerifiers(ctx, conn, loaded)
		s.PendingRestart, err = p.pendingRestart(ctx, conn, s, loaded)
	}
	if err == nil {
		s.Standstill, s.Undersized, err = p.standstill(ctx, conn, s.ReplayPaused, applyDelay)
	}
	if err != nil {
		broken := conn.IsClosed()
		hangUpOn(conn) // a connection in an unknown state is not kept
		if !p.Running() {
			return State{}, nil
		}
		if broken {
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		return State{Running: true, Silent: p.isSilent(ctx)}, fmt.Errorf("observing PostgreSQL: %w", err)
	}
	if s.ReceivedLSN > 0 {
		// A WAL receiver begins at its segment's first byte: what was replayed beyond
		// that has been received before.
		s.ReceivedLSN = max(s.ReceivedLSN, s.ReplayedLSN)
	}
	s.SynchronousCommit = p.givenToClients(ctx, s.SynchronousCommit, everybodys)
	s.SynchronousCommit = p.weaker.still(s, loaded, now, oldest)
	s.MessageAge = time.Duration(messageAge) * time.Millisecond
	if replayedAt != nil {
		s.ReplayedAt = *replayedAt
	}
	p.watchReceiver(receiver)
	if s.NoReceiver = follows && receiver == 0; s.NoReceiver {
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

// watchReceiver follows the WAL receiver, zero being none.
func (p *observer) watchReceiver(pid int) {
	if pid == 0 || pid == p.receiver.pid() {
		return
	}
	if err := p.receiver.watch(pid); err != nil && !errors.Is(err, unix.ESRCH) {
		p.log.Debug().Err(err).Int("pid", pid).Msg("the WAL receiver cannot be watched")
	}
}

// ReceiverEnded fires when the WAL receiver that was observed last ends; nil when there was none,
// or it cannot be watched.
func (p *observer) ReceiverEnded() <-chan struct{} {
	if p.receiver.pid() == 0 {
		return nil
	}
	return p.receiver.done()
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
func (p *observer) replayEnded(now recovery) bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	if r := &p.recovery; now.pid == 0 || now.pid != r.pid || !now.began.Equal(r.began) {
		*r = now
	} else {
		r.ended = r.ended || now.ended
	}
	return p.recovery.pid != 0 && p.recovery.ended
}

// furthestTimeline is the timeline that a running replica has reached. Once its WAL
// receiver has ended, only the control file tells of one, which is behind until the
// next restartpoint; yet no timeline is ever left again.
func (p *observer) furthestTimeline(s State) int {
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
func (p *observer) pendingRestart(ctx context.Context, conn *pgx.Conn, s State, loaded time.Time) (map[string]cluster.PendingChange, error) {
	role := Primary
	if s.InRecovery {
		role = Replica
	}
	p.settings.Lock()
	wanted := p.commandLineValues(role, Control{})
	settled := p.settled
	p.settings.Unlock()
	// Of a server that runs, a RELOAD and Lictor's own settings alone change what is pending.
	if settled.start.Equal(s.StartTime) && settled.loaded.Equal(loaded) && maps.Equal(settled.wanted, wanted) {
		return nil, nil //nolint:nilnil // nothing is pending
	}
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
	pending := map[string]cluster.PendingChange{}
	for _, now := range settings {
		switch want, ours := wanted[now.Name]; {
		case ours && want != now.Setting:
			pending[now.Name] = cluster.PendingChange{OldValue: now.Setting, NewValue: want}
		case !ours && now.Pending:
			pending[now.Name] = cluster.PendingChange{OldValue: now.Setting, NewValue: now.File}
		}
	}
	if len(pending) > 0 {
		return pending, nil
	}
	p.settings.Lock()
	defer p.settings.Unlock()
	p.settled.start, p.settled.loaded, p.settled.wanted = s.StartTime, loaded, wanted
	return nil, nil //nolint:nilnil // nothing is pending
}
