package postgres

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
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
	names := make([]string, 0, len(standbys))
	for _, s := range standbys {
		names = append(names, `"`+strings.ReplaceAll(s, `"`, `""`)+`"`)
	}
	switch len(names) {
	case 0:
		return ""
	case 1:
		return names[0]
	}
	return fmt.Sprintf("%d (%s)", len(names), strings.Join(names, ","))
}

var (
	syncList = regexp.MustCompile(`(?is)^\s*(?:(?:FIRST|ANY)\s+)?\d+\s*\((.*)\)\s*$`)
	syncName = regexp.MustCompile(`"((?:[^"]|"")*)"|[^\s,"]+`)
)

// syncMembers are the names in a value of synchronous_standby_names: of
// syncStandbyNames, or one that Patroni wrote.
func syncMembers(value string) []string {
	if m := syncList.FindStringSubmatch(value); m != nil {
		value = m[1]
	}
	var names []string
	for _, m := range syncName.FindAllStringSubmatch(value, -1) {
		if strings.HasPrefix(m[0], `"`) {
			names = append(names, strings.ReplaceAll(m[1], `""`, `"`))
		} else {
			names = append(names, m[0])
		}
	}
	return names
}

// SyncStandbys are the standbys that the configuration file makes commits wait
// for.
func (p *Instance) SyncStandbys() []string {
	p.settings.Lock()
	defer p.settings.Unlock()
	return syncMembers(p.syncNames)
}

// SetSynchronousStandbys makes commits wait for the standbys, and returns the
// flush position after that took effect: whoever has flushed it has every
// commit that was acknowledged before.
//
// That a session shows the new value says little: commits wait when the
// checkpointer has read it, and are released by what each WAL sender has read
// (PostgreSQL's src/backend/replication/syncrep.c). So the position is taken only
// after all of these have.
func (p *Instance) SetSynchronousStandbys(ctx context.Context, standbys []string) (int64, error) {
	value := syncStandbyNames(standbys)
	p.setSyncNames(value)
	if err := p.writeConfig(p.getRuns()); err != nil {
		return 0, err
	}
	if err := p.signal(syscall.SIGHUP); err != nil {
		return 0, err
	}
	why := ""
	for {
		lsn, now, err := p.synchronousSince(ctx, value, standbys)
		switch {
		case err != nil && !p.Running():
			return 0, fmt.Errorf("synchronous_standby_names: %w", err)
		case err != nil && why == "":
			why = err.Error()
		case err == nil && now == "":
			return lsn, nil
		case err == nil:
			why = now
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return 0, fmt.Errorf("synchronous_standby_names did not take effect (%s): %w", why, ctx.Err())
		}
	}
}

// synchronousSince returns the flush position if all of PostgreSQL knows the
// value, or else who does not.
func (p *Instance) synchronousSince(ctx context.Context, value string, standbys []string) (lsn int64, why string, err error) {
	// A session that is new and knows the value proves that the postmaster is
	// done with passing the signal on: it does one thing at a time.
	conn, err := p.dedicated(ctx)
	if err != nil {
		return 0, "", err
	}
	defer hangUpOn(conn)
	var now string
	if err := conn.QueryRow(ctx, "SELECT current_setting('synchronous_standby_names')").Scan(&now); err != nil {
		return 0, "", err
	}
	switch {
	case now != value:
		return 0, "the postmaster has not read it", nil
	case value == "": // commits that wait a moment longer do no harm
		return 0, "", nil
	}
	if why, err := checkpointerKnows(ctx, conn); err != nil || why != "" {
		return 0, why, err
	}
	rows, err := conn.Query(ctx, "SELECT application_name, sync_priority > 0 FROM pg_stat_replication WHERE state IN ('streaming', 'catchup')")
	if err != nil {
		return 0, "", err
	}
	counted := map[string]bool{}
	var name string
	var counts bool
	if _, err := pgx.ForEachRow(rows, []any{&name, &counts}, func() error { counted[name] = counts; return nil }); err != nil {
		return 0, "", err
	}
	for _, name := range slices.Sorted(maps.Keys(counted)) {
		if listed := value == "*" || slices.ContainsFunc(standbys, func(s string) bool { return strings.EqualFold(s, name) }); listed != counted[name] {
			return 0, "the WAL sender of " + name + " has not read it", nil
		}
	}
	err = conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint").Scan(&lsn)
	return lsn, "", err
}

// checkpointerKnows tells whether the checkpointer has handled every SIGHUP that
// it was sent; otherwise why not. It has when none is pending and it sleeps (so
// that its signal handler has run, which lets it sleep nowhere before it has
// read the files), and then is seen waiting for work.
func checkpointerKnows(ctx context.Context, conn *pgx.Conn) (why string, err error) {
	const find = "SELECT pid, COALESCE(wait_event, '') FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
	var (
		pid   int
		event string
	)
	if err := conn.QueryRow(ctx, find).Scan(&pid, &event); err != nil {
		return "", fmt.Errorf("looking for the checkpointer: %w", err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", fmt.Errorf("looking at the checkpointer: %w", err)
	}
	if !sleepsWithoutSIGHUP(string(status)) {
		return "the checkpointer (pid " + strconv.Itoa(pid) + ") has not read it", nil
	}
	if err := conn.QueryRow(ctx, find).Scan(&pid, &event); err != nil {
		return "", fmt.Errorf("looking for the checkpointer: %w", err)
	}
	switch event {
	case "CheckpointerMain", "CheckpointWriteDelay":
		return "", nil
	}
	return "the checkpointer (pid " + strconv.Itoa(pid) + ") is busy", nil
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
