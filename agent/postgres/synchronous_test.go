package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
)

func TestSyncSettingValue(t *testing.T) {
	for want, s := range map[string]SyncSetting{
		"":                     {Any: 1},
		`"b"`:                  {Names: []string{"b"}},
		`2 ("b","c")`:          {Names: []string{"b", "c"}},
		`ANY 1 ("postgres-1")`: {Names: []string{"postgres-1"}, Any: 1},
		`ANY 2 ("b","C","d")`:  {Names: []string{"b", "C", "d"}, Any: 2},
		"*":                    {Names: []string{"*"}},
		"ANY 1 (*)":            {Names: []string{"*"}, Any: 1},
	} {
		if got := s.value(); got != want {
			t.Errorf("%+v: %s, want %s", s, got, want)
		}
	}
}

func TestSynchronousCommit(t *testing.T) {
	for want, p := range map[string]*Instance{
		"on":           unwired(15, config.Postgres{}, cluster.DynamicPostgres{}),
		"remote_apply": unwired(15, config.Postgres{}, cluster.DynamicPostgres{Parameters: map[string]any{"synchronous_commit": "Remote_Apply"}}),
		"remote_write": unwired(15, config.Postgres{Parameters: map[string]any{"Synchronous_Commit": "remote_write"}}, cluster.DynamicPostgres{Parameters: map[string]any{"synchronous_commit": "off"}}),
		"off":          unwired(15, config.Postgres{}, cluster.DynamicPostgres{Parameters: map[string]any{"synchronous_commit": false}}),
	} {
		if got := p.SynchronousCommit(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// What is set is what PostgreSQL shows and does, with three members.
func TestSynchronousThreeMembers(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a, b, c := newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b")), newInstance(t, settings(t, dir, "c"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b", "c")
	for _, p := range []*Instance{b, c} {
		must(t, p.BaseBackup(ctx, upstream(a), nil))
		follow(ctx, t, p, a)
	}
	sql(ctx, t, a, "CREATE TABLE public.t (i int)")

	for _, tt := range []struct {
		set  SyncSetting
		want string // sync_state of b and c
	}{
		{SyncSetting{Names: []string{"b"}}, "[sync async]"},
		{SyncSetting{Names: []string{"b", "c"}}, "[sync sync]"},
		{SyncSetting{Names: []string{"B", "C"}, Any: 1}, "[quorum quorum]"},
		{SyncSetting{Names: []string{"b", "c"}, Any: 2}, "[quorum quorum]"},
		{SyncSetting{Names: []string{"c"}, Any: 1}, "[async quorum]"},
		{SyncSetting{Names: []string{"*"}, Any: 1}, "[quorum quorum]"},
		{SyncSetting{}, "[async async]"},
	} {
		set, err := a.SetSynchronous(ctx, tt.set)
		must(t, err)
		s := observe(ctx, t, a, "both stream", func(s State) bool {
			return len(s.Standbys) == 2 && s.Standbys[0].State == Streaming && s.Standbys[1].State == Streaming
		})
		slices.SortFunc(s.Standbys, func(x, y StandbyState) int { return strings.Compare(x.ApplicationName, y.ApplicationName) })
		if got := fmt.Sprint([]string{s.Standbys[0].SyncState, s.Standbys[1].SyncState}); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.set, got, tt.want)
		}
		if s.SyncNames != set.Value || (set.Since > 0) != (len(tt.set.Names) > 0) || set.Since > s.WriteLSN {
			t.Errorf("%+v: in force %+v; shown %s at %d", tt.set, set, s.SyncNames, s.WriteLSN)
		}
	}

	// With c frozen a commit passes when any one will do, and waits for both.
	freeze(t, c)
	_, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b", "c"}, Any: 1})
	must(t, err)
	commits(ctx, t, a)
	_, err = a.SetSynchronous(ctx, SyncSetting{Names: []string{"b", "c"}, Any: 2})
	must(t, err)
	conn, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "SET synchronous_commit = on; INSERT INTO public.t VALUES (2)")
		done <- err
	}()
	awaitSQL(ctx, t, a, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
	// The background writer writes WAL every 15 s.
	other, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(other)
	var writer int
	must(t, other.QueryRow(ctx, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'").Scan(&writer))
	must(t, syscall.Kill(writer, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(writer, syscall.SIGCONT) })
	select {
	case err := <-done:
		t.Errorf("committed without c: %v", err)
	default:
	}
	set, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b", "c"}, Any: 1})
	must(t, err)
	// b has all WAL and has said so: it takes new WAL to make it report again at once.
	var flushed int64
	must(t, other.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint").Scan(&flushed))
	if flushed <= set.Since {
		t.Errorf("no WAL was written since %d: the commit waits for b's wal_receiver_status_interval", set.Since)
	}
	must(t, <-done)
}

// A WAL sender that was listed before, and has not read that it now needs
// another one besides, would release commits too early.
func TestSynchronousAwaitsTheWALSenders(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, _ := pair(ctx, t)
	_, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}, Any: 1})
	must(t, err)
	conn, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	var sender int
	must(t, conn.QueryRow(ctx, "SELECT pid FROM pg_stat_replication").Scan(&sender))
	must(t, syscall.Kill(sender, syscall.SIGSTOP))
	staysOut(ctx, t, a, SyncSetting{Names: []string{"b", "c"}, Any: 2}, "the WAL sender of b")
	must(t, syscall.Kill(sender, syscall.SIGCONT))
	_, err = a.SetSynchronous(ctx, SyncSetting{Names: []string{"b", "c"}, Any: 2})
	must(t, err)
}

// In strict mode a replica waits for somebody before it is promoted, so that it
// does from its first commit on.
func TestSynchronousBeforePromotion(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	set, err := b.SetSynchronous(ctx, SyncSetting{Names: []string{"*"}})
	must(t, err)
	if set.Value != "*" || set.Since != 0 {
		t.Errorf("on a replica: %+v", set)
	}
	must(t, b.Promote(ctx, 0))
	s := observe(ctx, t, b, "promoted", func(s State) bool { return s.Accepting && !s.InRecovery })
	if s.SyncNames != "*" {
		t.Errorf("after the promotion: %q", s.SyncNames)
	}
}

// A change of other settings at the same moment does not put the old value back.
func TestSynchronousWhileTheFilesAreRewritten(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	rewriting, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		for rewriting.Err() == nil {
			if _, err := a.Rewrite(ctx); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for i := range 30 {
		name := fmt.Sprintf("b%d", i)
		a.setSyncNames(name)
		must(t, a.writeConfig(a.getRuns()))
		if got := a.readSyncNames(); got != name {
			t.Fatalf("the file has %q, want %q", got, name)
		}
	}
	stop()
	must(t, <-done)
}

// When Lictor's own setting ends, the user's comes back; ALTER SYSTEM is noticed.
func TestSynchronousOfTheUser(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.Parameters["synchronous_standby_names"] = "theirs"
	a := newInstance(t, s)
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	_, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}})
	must(t, err)
	set, err := a.SetSynchronous(ctx, SyncSetting{})
	if err != nil || set.Value != "theirs" {
		t.Errorf("%+v %v", set, err)
	}
	sql(ctx, t, a, "ALTER SYSTEM SET synchronous_standby_names = 'mine'")
	if set, err := a.SetSynchronous(ctx, SyncSetting{}); err != nil || set.Value != "mine" {
		t.Errorf("nobody, with ALTER SYSTEM: %+v %v", set, err)
	}
	// Where the agent says whom commits wait for, it does not win.
	if set, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}}); err != nil || set.Value != `"b"` {
		t.Errorf("after ALTER SYSTEM: %+v %v", set, err)
	}
}

// staysOut demands that a setting cannot take effect, for a reason that is told however
// long it takes a busy machine to find it.
func staysOut(ctx context.Context, t *testing.T, p *Instance, s SyncSetting, reason string) {
	t.Helper()
	for limit := 300 * time.Millisecond; ; limit *= 2 {
		limited, cancel := context.WithTimeout(ctx, limit)
		set, err := p.SetSynchronous(limited, s)
		cancel()
		switch {
		case err == nil:
			t.Fatalf("%+v took effect: %+v", s, set)
		case strings.Contains(err.Error(), reason):
			return
		case ctx.Err() != nil:
			t.Fatalf("got %v, want %q", err, reason)
		}
	}
}

// freeze stops every process of an instance until thaw, or the end of the test.
func freeze(t *testing.T, p *Instance) (thaw func()) {
	t.Helper()
	pids, err := fence.Processes(p.dataDir)
	must(t, err)
	each := func(s syscall.Signal) {
		for _, pid := range pids {
			_ = syscall.Kill(pid, s) // a backend may have ended meanwhile
		}
	}
	t.Cleanup(func() { each(syscall.SIGCONT) })
	each(syscall.SIGSTOP)
	return func() { each(syscall.SIGCONT) }
}

// commits makes a transaction that waits as the setting says.
func commits(ctx context.Context, t *testing.T, p *Instance) {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	_, err = conn.Exec(ctx, "SET synchronous_commit = on; INSERT INTO public.t VALUES (1)")
	must(t, err)
}

func awaitSQL(ctx context.Context, t *testing.T, p *Instance, question string) {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	for {
		var yes bool
		must(t, conn.QueryRow(ctx, question).Scan(&yes))
		if yes {
			return
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			t.Fatal(question)
		}
	}
}
