package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// syncStandbyNames is the value of synchronous_standby_names that waits for all
// of the standbys; "*" alone waits for anybody.
func syncStandbyNames(standbys []string) string {
	if len(standbys) == 1 && standbys[0] == "*" {
		return "*"
	}
	names := quotedNames(standbys)
	switch len(names) {
	case 0:
		return ""
	case 1:
		return names[0]
	}
	return fmt.Sprintf("%d (%s)", len(names), strings.Join(names, ","))
}

func quotedNames(names []string) []string {
	quoted := make([]string, 0, len(names))
	for _, n := range names {
		quoted = append(quoted, `"`+strings.ReplaceAll(n, `"`, `""`)+`"`)
	}
	return quoted
}

// SyncSetting is whom commits wait for. Lictor's own sessions never wait.
type SyncSetting struct {
	// Names are members; "*" alone is anybody, none nobody.
	Names []string
	// Any is how many of them suffice (ANY), 0: all are needed.
	Any int
}

// value is the setting as synchronous_standby_names has it. A quorum is written
// as one even if it is of one, as Patroni does.
func (s SyncSetting) value() string {
	if s.Any == 0 || len(s.Names) == 0 {
		return syncStandbyNames(s.Names)
	}
	list := "*"
	if !s.anybody() {
		list = strings.Join(quotedNames(s.Names), ",")
	}
	return fmt.Sprintf("ANY %d (%s)", s.Any, list)
}

func (s SyncSetting) anybody() bool { return len(s.Names) == 1 && s.Names[0] == "*" }

func (s SyncSetting) has(name string) bool {
	return s.anybody() || slices.ContainsFunc(s.Names, func(n string) bool { return strings.EqualFold(n, name) })
}

// SetSynchronous makes commits wait as s says and returns when that is in force. If
// it fails, the old setting may be in force as well as the new one.
//
// That a session shows the new value says little: commits wait when the
// checkpointer has read it, and are released by what each WAL sender has read
// (PostgreSQL's src/backend/replication/syncrep.c). So the position is taken only
// after all of these have.
func (p *replication) SetSynchronous(ctx context.Context, s SyncSetting) (SyncInForce, error) {
	p.setSyncNames(s.value())
	if err := p.rewriteConfig(); err != nil {
		return SyncInForce{}, err
	}
	if err := p.signal(syscall.SIGHUP); err != nil {
		return SyncInForce{}, err
	}
	var (
		set  SyncInForce
		conn *pgx.Conn
		why  string
	)
	defer func() {
		if conn != nil {
			hangUpOn(conn)
		}
	}()
	for {
		var (
			err error
			who string
		)
		if conn == nil {
			conn, set.Value, who, err = p.sessionThatKnows(ctx, s)
		}
		if conn != nil {
			if set.Since, who, err = synchronousSince(ctx, conn, s); err == nil && who == "" {
				if set.Since == 0 {
					return set, nil
				}
				if err = releaseWaiting(ctx, conn); err == nil {
					return set, nil
				}
			}
		}
		if err == nil {
			why = who
		} else {
			if !p.Running() {
				return SyncInForce{}, fmt.Errorf("synchronous_standby_names: %w", err)
			}
			if ctx.Err() == nil || why == "" {
				why = err.Error()
			}
			if conn != nil { // it may be broken
				hangUpOn(conn)
				conn = nil
			}
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return SyncInForce{}, fmt.Errorf("synchronous_standby_names did not take effect (%s): %w", why, ctx.Err())
		}
	}
}

// syncNamesInFile is the value of synchronous_standby_names in the configuration
// file: the agent's, or the user's while the agent has none.
func (p *confFiles) syncNamesInFile() string {
	p.settings.Lock()
	defer p.settings.Unlock()
	if p.ownsSyncNames() {
		return p.syncNames
	}
	return p.parameters()[syncNames]
}

// sessionThatKnows opens a session if a new one has the value of
// synchronous_standby_names; otherwise it says what it has. That it is new and has
// it proves that the postmaster is done with passing the signal on: it does one
// thing at a time. Where commits need wait for nobody, what somebody has set with
// ALTER SYSTEM, which wins over the file, or in a file of the operator's that it includes,
// is accepted: it takes nothing away.
func (p *replication) sessionThatKnows(ctx context.Context, s SyncSetting) (_ *pgx.Conn, value, why string, err error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return nil, "", "", err
	}
	var now, file string
	err = conn.QueryRow(ctx, `SELECT current_setting('synchronous_standby_names'),
		COALESCE((SELECT sourcefile FROM pg_settings WHERE name = 'synchronous_standby_names'), '')`).Scan(&now, &file)
	switch value := p.syncNamesInFile(); {
	case err != nil:
		err = fmt.Errorf("reading synchronous_standby_names: %w", err)
	case now == value, len(s.Names) == 0 && file != "" && filepath.Clean(file) != p.inConf("postgresql.conf"):
		return conn, now, "", nil
	case filepath.Base(file) == "postgresql.auto.conf":
		why = fmt.Sprintf("it was set to %q with ALTER SYSTEM meanwhile", now)
	default:
		why = "the postmaster has not read it"
	}
	hangUpOn(conn)
	return nil, "", why, err
}

// synchronousSince returns the flush position if all of PostgreSQL knows the
// setting, or else who does not.
func synchronousSince(ctx context.Context, conn *pgx.Conn, s SyncSetting) (since int64, why string, err error) {
	if len(s.Names) == 0 {
		return 0, "", nil // commits that wait a moment longer do no harm
	}
	if why, err := checkpointerKnows(ctx, conn); err != nil || why != "" {
		return 0, why, err
	}
	var recovery bool
	if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovery); err != nil || recovery {
		return 0, "", err // a replica has nothing that waits
	}
	if why, err := walSendersKnow(ctx, conn, s); err != nil || why != "" {
		return 0, why, err
	}
	err = conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint").Scan(&since)
	return since, "", err
}

// releaseWaiting lets go what waits by the old setting and need not by the new one. A
// WAL sender releases commits when its standby reports something, not when it reads
// the setting (syncrep.c). A standby that has all WAL reports nothing until its
// wal_receiver_status_interval is over, 10 s by default, and when all clients wait
// nobody writes WAL: so this writes some, and waits for nobody itself.
func releaseWaiting(ctx context.Context, conn *pgx.Conn) error {
	for _, statement := range []string{
		"SET synchronous_commit = local",
		// A commit flushes WAL at once only if something was written before it.
		"SELECT pg_logical_emit_message(true, 'lictor', '')",
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("releasing commits that wait for standbys which need not have them any more: %w", err)
		}
	}
	return nil
}

// walSendersKnow tells whether every WAL sender that may release commits has read
// the setting; otherwise why not. The priority of a sender says whether its own
// reading of the setting lists it, but not how many others that wants: a sender
// that was listed before as well must be seen waiting for work after it has
// handled its signal.
func walSendersKnow(ctx context.Context, conn *pgx.Conn, s SyncSetting) (why string, err error) {
	rows, err := conn.Query(ctx, `SELECT pid, application_name, sync_priority > 0 FROM pg_stat_replication
		WHERE state IN ('streaming', 'catchup') ORDER BY application_name`)
	if err != nil {
		return "", fmt.Errorf("looking for the WAL senders: %w", err)
	}
	type sender struct {
		PID    int
		Name   string
		Counts bool
	}
	senders, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sender])
	if err != nil {
		return "", fmt.Errorf("looking for the WAL senders: %w", err)
	}
	for _, sender := range senders {
		if s.has(sender.Name) != sender.Counts {
			return "the WAL sender of " + sender.Name + " has not read it", nil
		}
		if !sender.Counts {
			continue
		}
		if why, err := hasReread(ctx, conn, "the WAL sender of "+sender.Name, sender.PID, "WalSenderMain"); err != nil || why != "" {
			return why, err
		}
	}
	return "", nil
}

// checkpointerKnows tells whether the checkpointer has read the setting;
// otherwise why not.
func checkpointerKnows(ctx context.Context, conn *pgx.Conn) (why string, err error) {
	var pid int
	if err := conn.QueryRow(ctx, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").Scan(&pid); err != nil {
		return "", fmt.Errorf("looking for the checkpointer: %w", err)
	}
	return hasReread(ctx, conn, "the checkpointer", pid, "CheckpointerMain", "CheckpointWriteDelay")
}

// hasReread tells whether a process has handled every SIGHUP that it was sent;
// otherwise why not. It has when none is pending and it is seen waiting for work
// after that: its handler has run by then, and woken it, so that it would not
// wait before it has read the files. As a process passes through its wait when it
// was woken, it must sleep there, and still be there afterwards.
func hasReread(ctx context.Context, conn *pgx.Conn, who string, pid int, waits ...string) (why string, err error) {
	who += " (pid " + strconv.Itoa(pid) + ")"
	for range 2 {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		switch {
		case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH):
			return who + " has ended meanwhile", nil
		case err != nil:
			return "", fmt.Errorf("looking at %s: %w", who, err)
		case !sleepsWithoutSIGHUP(string(status)):
			return who + " has not read it", nil
		}
		var event string
		err = conn.QueryRow(ctx, "SELECT COALESCE(wait_event, '') FROM pg_stat_activity WHERE pid = $1", pid).Scan(&event)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return who + " has ended meanwhile", nil
		case err != nil:
			return "", fmt.Errorf("looking at %s: %w", who, err)
		case !slices.Contains(waits, event):
			return who + " is busy", nil
		}
	}
	return "", nil
}

// sleepsWithoutSIGHUP reads /proc/PID/status (proc_pid_status(5)).
func sleepsWithoutSIGHUP(status string) bool {
	sleeps, pending := false, false
	for line := range strings.Lines(status) {
		label, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); label {
		case "State":
			sleeps = strings.HasPrefix(value, "S")
		case "SigPnd", "ShdPnd":
			set, err := strconv.ParseUint(value, 16, 64)
			pending = pending || err != nil || set&(1<<(syscall.SIGHUP-1)) != 0
		}
	}
	return sleeps && !pending
}
