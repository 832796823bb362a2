package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/fence"
)

// pair is a primary and a replica that streams from it.
func pair(ctx context.Context, t *testing.T) (a, b *Instance) {
	t.Helper()
	dir := newDir(t)
	a, b = newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	return a, b
}

// follow starts b as a replica of a and waits until it streams.
func follow(ctx context.Context, t *testing.T, b, a *Instance) {
	t.Helper()
	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	observe(ctx, t, b, "streams", func(s State) bool { return s.InRecovery && s.ReplicationState == Streaming })
}

// caughtUp waits until b has all of a's WAL.
func caughtUp(ctx context.Context, t *testing.T, a, b *Instance) {
	t.Helper()
	s, err := a.Observe(ctx)
	must(t, err)
	observe(ctx, t, b, "caught up", func(r State) bool { return r.ReplayedLSN >= s.WriteLSN })
}

// What the file that was there before the agent says of a standby is not in force: no
// other slot than its own is asked for, and no file promotes it.
func TestStandbyOfAnotherTime(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, a)
	base := "primary_slot_name = 'gone'\n"
	if supported(triggerFile, a.Major()) {
		base += triggerFile + " = '" + a.inData("PG_VERSION") + "'\n"
	}
	must(t, a.writeFile(a.baseConf(), base))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	s, no := settings(t, dir, "b"), false
	s.Postgres.UseSlots = &no
	b := newInstance(t, s)
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	if got := value(ctx, t, b, "SELECT string_agg(setting, '') FROM pg_settings WHERE name IN ('primary_slot_name', '"+triggerFile+"')"); got != "" {
		t.Errorf("in force: %s", got)
	}
}

func crash(t *testing.T, p *Instance) {
	t.Helper()
	gone := p.Exited()
	must(t, p.signal(syscall.SIGKILL))
	<-gone
}

// A backend outlives its postmaster, keeps the port and shared memory, and might
// still commit: Start does away with it.
func TestStartAfterCrashWithABusyBackend(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	busy, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(busy)
	ended := make(chan error, 1)
	// One that sleeps would notice the end of its postmaster; this one does not.
	go func() { _, err := busy.Exec(ctx, "DO 'BEGIN LOOP NULL; END LOOP; END'"); ended <- err }()
	observed, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(observed)
	for found := false; !found; {
		must(t, observed.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active')").Scan(&found))
	}
	crash(t, p)
	if p.Running() {
		t.Error("runs without its postmaster")
	}
	left, err := fence.Processes(p.dataDir)
	must(t, err)
	if len(left) == 0 {
		t.Error("this test should find a backend left")
	}
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Errorf("the old backend went on: %v", err)
	}
	observe(ctx, t, p, "accepts", func(s State) bool { return s.Accepting && !s.InRecovery })
}

// What is known of a server ends with it: a start that took the kept connection for one to
// the new postmaster would have come back before that lets anybody in.
func TestStartAfterCrashWaitsForConnections(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	for range 3 {
		must(t, p.Start(ctx, StartAs{Role: Primary}))
		if s, err := p.Observe(ctx); err != nil || !s.Accepting {
			t.Errorf("at once after the start: %+v, %v", s, err)
		}
		crash(t, p)
		must(t, p.killLeftovers(ctx)) // the kept connection's other end is closed
	}
}

// A backend that is killed takes all connections with it, while the postmaster lives.
func TestObserveAfterCrashOfABackend(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	if s, err := p.Observe(ctx); err != nil || !s.Accepting {
		t.Fatalf("%+v, %v", s, err)
	}
	victim, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(victim)
	must(t, syscall.Kill(int(victim.PgConn().PID()), syscall.SIGKILL))
	for again, err := p.dedicated(ctx); ; again, err = p.dedicated(ctx) {
		if err == nil {
			hangUpOn(again)
			if victim.Ping(ctx) != nil {
				break // it was let in after the crash
			}
		}
		must(t, ctx.Err())
	}
	if s, err := p.Observe(ctx); err != nil || !s.Accepting {
		t.Errorf("a broken connection is taken for trouble: %+v, %v", s, err)
	}
}

func TestKillLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	// Frozen processes, and a postmaster that nobody watches.
	pids, err := fence.Processes(a.dataDir)
	must(t, err)
	for _, pid := range pids {
		must(t, syscall.Kill(pid, syscall.SIGSTOP))
	}
	must(t, a.Kill(ctx))
	crash(t, b)
	must(t, b.Kill(ctx))
	for _, p := range []*Instance{a, b} {
		if pids, err := fence.Processes(p.dataDir); err != nil || len(pids) != 0 {
			t.Errorf("%s: %v %v", p.name, pids, err)
		}
	}
}

// A server that is called otherwise is PostgreSQL all the same, to be adopted and killed.
func TestAdoptAnotherName(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	programs, err := filepath.Glob(filepath.Join(s.Postgres.BinDir, "*"))
	must(t, err)
	bin := filepath.Join(dir, "programs") // a directory "bin" would have its "lib" beside it
	if root, version, found := strings.Cut(s.Postgres.BinDir, "/usr/lib/postgresql/"); found && root != "" {
		// It was unpacked elsewhere than it was built for: such a server looks for its files by where its program is.
		bin = filepath.Join(dir, "usr/lib/postgresql", version)
		must(t, os.MkdirAll(filepath.Dir(bin), 0o755))
		must(t, os.Symlink(filepath.Join(s.Postgres.BinDir, "../lib"), filepath.Join(bin, "../lib")))
		must(t, os.Symlink(filepath.Join(root, "usr/share"), filepath.Join(dir, "usr/share")))
	}
	must(t, os.Mkdir(bin, 0o755))
	for _, program := range programs {
		must(t, os.Symlink(program, filepath.Join(bin, filepath.Base(program))))
	}
	copyOf(t, filepath.Join(s.Postgres.BinDir, "postgres"), filepath.Join(bin, "edb-postgres"))
	s.Postgres.BinDir, s.Postgres.BinName = bin, map[string]string{"postgres": "edb-postgres"}
	p := newInstance(t, s)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	gone := p.Exited()
	again := newInstance(t, s)
	if running, err := again.Adopt(ctx); err != nil || !running {
		t.Fatalf("adopted: %v %v", running, err)
	}
	must(t, again.Kill(ctx))
	select {
	case <-gone:
	default:
		t.Error("it is said to be killed, and lives")
	}
}

// A restarted agent takes charge of what runs and forgets neither role nor
// upstream; what only looks like its PostgreSQL it leaves alone.
func TestAdopt(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	again := func(p *Instance) *Instance {
		second, err := New(Settings{Scope: "shard", Name: p.name, Postgres: *p.local.Load(), Launcher: &directLauncher{}, Log: zerolog.Nop()})
		must(t, err)
		return second
	}
	second := again(b)
	if running, err := second.Adopt(ctx); err != nil || !running {
		t.Fatalf("adopted: %v %v", running, err)
	}
	second.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{"work_mem": "7MB"}}})
	rewrite(ctx, t, second)
	var mem, conninfo string
	for mem != "7MB" && ctx.Err() == nil {
		conn, err := second.dedicated(ctx)
		must(t, err)
		must(t, conn.QueryRow(ctx, "SELECT current_setting('work_mem'), current_setting('primary_conninfo')").Scan(&mem, &conninfo))
		hangUpOn(conn)
	}
	if !strings.Contains(conninfo, fmt.Sprintf("port=%d", a.port)) || strings.Contains(conninfo, "s3cr") {
		t.Errorf("after rewriting: work_mem %s, primary_conninfo %q", mem, conninfo)
	}
	observe(ctx, t, second, "still streams", func(s State) bool { return s.ReplicationState == Streaming })
	must(t, second.Stop(ctx, Fast))
	<-b.Exited()

	t.Run("stale postmaster.pid", func(t *testing.T) {
		for _, content := range []string{fmt.Sprintf("%d\n", os.Getpid()), fmt.Sprintf("%d\n", a.process.pid()), "999999999\n", "x", ""} {
			put(t, b.inData("postmaster.pid"), content)
			give(t, b, b.inData("postmaster.pid"))
			if running, err := again(b).Adopt(ctx); err != nil || running {
				t.Errorf("postmaster.pid %q: %v %v", content, running, err)
			}
		}
		must(t, os.Remove(b.inData("postmaster.pid")))
	})
}

// A frozen PostgreSQL holds up nobody beyond the context.
func TestObserveFrozen(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, p, "accepts", func(s State) bool { return s.Accepting })
	thaw := freeze(t, p)
	for range 2 { // over the kept connection, and over a new one
		limit, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if s, err := p.Observe(limit); err == nil || !s.Running || s.Accepting {
			t.Errorf("frozen: %+v %v", s, err)
		}
		cancel()
	}
	thaw()
	observe(ctx, t, p, "thawed", func(s State) bool { return s.Accepting })

	// Nor does another user of the connection.
	conn, err := p.take(ctx)
	must(t, err)
	limit, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	looked := make(chan error, 1)
	go func() { _, err := p.Observe(limit); looked <- err }()
	select {
	case err := <-looked:
		if err == nil {
			t.Error("observed over a connection that was in use")
		}
	case <-ctx.Done():
		t.Error("it waits for ever")
	}
	p.give(conn)
}

// A postmaster that hangs lets nobody in, though the kept connection, whose backend goes
// on, answers well.
func TestObserveHungPostmaster(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, p, "accepts", func(s State) bool { return s.Accepting })
	must(t, p.signal(syscall.SIGSTOP))
	defer func() { must(t, p.signal(syscall.SIGCONT)) }()
	for {
		limit, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		s, err := p.Observe(limit)
		cancel()
		if err != nil {
			if !s.Running || s.Accepting || s.InRecovery || s.WriteLSN == 0 {
				t.Errorf("hung: %+v", s)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatal("it is taken to accept connections")
		}
		time.Sleep(pollEvery)
	}
	must(t, p.signal(syscall.SIGCONT))
	observe(ctx, t, p, "goes on", func(s State) bool { return s.Accepting })
}

// Commits wait only when the checkpointer has read who for. As long as it has
// not, no position may be promised.
func TestSynchronousAwaitsTheCheckpointer(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, _ := pair(ctx, t)
	conn, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	var checkpointer int
	must(t, conn.QueryRow(ctx, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").Scan(&checkpointer))
	must(t, syscall.Kill(checkpointer, syscall.SIGSTOP))
	staysOut(ctx, t, a, SyncSetting{Names: []string{"b"}}, "checkpointer")
	must(t, syscall.Kill(checkpointer, syscall.SIGCONT))
	set, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}})
	must(t, err)
	observe(ctx, t, a, "b is synchronous", func(s State) bool {
		return len(s.Standbys) == 1 && s.Standbys[0].SyncState == "sync" && s.Standbys[0].FlushLSN >= set.Since
	})
	// Nobody by that name is connected: commits wait, and the change itself works.
	if _, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"nobody"}}); err != nil {
		t.Error(err)
	}
	if _, err := a.SetSynchronous(ctx, SyncSetting{}); err != nil {
		t.Error(err)
	}
}

func TestDivergence(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	c := newInstance(t, settings(t, newDir(t), "c")) // of the first hour, so that it has all WAL that a rewind needs
	must(t, c.BaseBackup(ctx, upstream(a), nil))

	t.Run("a crashed primary of which the new one has everything", func(t *testing.T) {
		sql(ctx, t, a, "CREATE TABLE public.t AS SELECT 1")
		caughtUp(ctx, t, a, b)
		crash(t, a)
		must(t, a.killLeftovers(ctx)) // or the WAL would go on
		must(t, b.Promote(ctx, 0))
		if outcome, err := a.Rewind(ctx, upstream(b), false); err != nil || outcome != NotNeeded {
			t.Fatalf("%s %v", outcome, err)
		}
		keepSlots(ctx, t, b, "a")
		follow(ctx, t, a, b)
		caughtUp(ctx, t, b, a)
	})
	t.Run("a crashed standby", func(t *testing.T) {
		sql(ctx, t, b, "CREATE TABLE public.u AS SELECT 1")
		caughtUp(ctx, t, b, a)
		must(t, a.Kill(ctx))
		if outcome, err := a.Rewind(ctx, upstream(b), false); err != nil || outcome != NotNeeded {
			t.Fatalf("%s %v", outcome, err)
		}
		follow(ctx, t, a, b)
	})
	t.Run("a standby with WAL that it has not replayed", func(t *testing.T) {
		// a has received what the fork to come does not have.
		caughtUp(ctx, t, b, a)
		sql(ctx, t, a, "SELECT pg_wal_replay_pause()")
		observe(ctx, t, a, "paused", func(s State) bool { return s.ReplayPaused })
		keepSlots(ctx, t, b, "a", "c")
		follow(ctx, t, c, b)
		caughtUp(ctx, t, b, c)
		must(t, c.Stop(ctx, Fast)) // here c's timeline will begin
		sql(ctx, t, b, "CREATE TABLE public.lost AS SELECT generate_series(1, 1000)")
		s, err := b.Observe(ctx)
		must(t, err)
		observe(ctx, t, a, "received", func(r State) bool { return r.ReceivedLSN >= s.WriteLSN })
		must(t, b.Kill(ctx))
		must(t, a.Stop(ctx, Immediate))
		must(t, c.Start(ctx, StartAs{Role: Replica}))
		must(t, c.Promote(ctx, 0))
		if _, err := a.Rewind(ctx, upstream(c), false); err == nil {
			t.Error("taken as not diverged")
		}
		must(t, c.Checkpoint(ctx))
		if outcome, err := a.Rewind(ctx, upstream(c), true); err != nil || outcome != Rewound {
			t.Fatalf("%s %v", outcome, err)
		}
		keepSlots(ctx, t, c, "a")
		follow(ctx, t, a, c)
	})
}

// Two members were promoted to the same timeline, each without the other's
// knowledge. pg_rewind would call that well.
func TestTwoPrimariesOfOneTimeline(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	dir := newDir(t)
	c := newInstance(t, settings(t, dir, "c"))
	must(t, c.BaseBackup(ctx, upstream(a), nil))
	keepSlots(ctx, t, a, "b", "c")
	follow(ctx, t, c, a)
	caughtUp(ctx, t, a, b)
	caughtUp(ctx, t, a, c)
	must(t, a.Kill(ctx))
	must(t, b.Promote(ctx, 0))
	must(t, c.Promote(ctx, 0))
	sql(ctx, t, b, "CREATE TABLE public.only_here AS SELECT generate_series(1, 10000)")
	must(t, b.Stop(ctx, Fast))
	if _, err := b.Rewind(ctx, upstream(c), true); err == nil || !strings.Contains(err.Error(), "reinitialize") {
		t.Errorf("rewound: %v", err)
	}
}

// A PostgreSQL that works elsewhere than it was told to is not left running.
func TestDataDirectoryElsewhere(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	p := newInstance(t, s)
	bootstrapped(ctx, t, p)
	elsewhere := filepath.Join(dir, "elsewhere")
	if out, err := exec.Command("cp", "-a", p.dataDir, elsewhere).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.Launcher.(*directLauncher).extra = []string{"--data_directory=" + elsewhere}
	if err := p.Start(ctx, StartAs{Role: Primary}); !errors.Is(err, errElsewhere) || !strings.Contains(err.Error(), elsewhere) {
		t.Errorf("started elsewhere: %v", err)
	}
	if p.Running() {
		t.Error("it runs on")
	}
	if pids, err := fence.Processes(elsewhere); err != nil || len(pids) > 0 {
		t.Errorf("left: %v %v", pids, err)
	}
}

// postmaster.pid names a process of somebody else by now, as after the host was
// started again: it is left alone, and PostgreSQL starts.
func TestLockFileNamesSomebodyElse(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p, other := newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b"))
	bootstrapped(ctx, t, p)
	bootstrapped(ctx, t, other)
	must(t, other.Start(ctx, StartAs{Role: Primary}))
	// PostgreSQL believes a lock file when a process of its own user has that pid.
	bystander := exec.Command("sleep", "1000")
	bystander.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential}
	must(t, bystander.Start())
	t.Cleanup(func() { _ = bystander.Process.Kill(); _ = bystander.Wait() })
	socket := filepath.Join(dir, fmt.Sprintf(".s.PGSQL.%d.lock", p.port))
	for name, pid := range map[string]int{"a program": bystander.Process.Pid, "another PostgreSQL": other.process.pid()} {
		lock := fmt.Sprintf("%d\n%s\n%d\n%d\n%s\n127.0.0.1\n%12d %10d\nready   \n", pid, p.dataDir, time.Now().Unix(), p.port, dir, 1, 1)
		put(t, p.inData("postmaster.pid"), lock)
		put(t, socket, lock)
		give(t, p, p.inData("postmaster.pid"))
		give(t, p, socket)
		if err := p.Start(ctx, StartAs{Role: Primary}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		observe(ctx, t, p, "accepts", func(s State) bool { return s.Accepting })
		must(t, p.Stop(ctx, Fast))
	}
	if err := bystander.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a program of somebody else's was killed: %v", err)
	}
	observe(ctx, t, other, "another PostgreSQL runs on", func(s State) bool { return s.Accepting })

	// A socket of one that lives is its own.
	must(t, other.clearLocks(ctx))
	if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf(".s.PGSQL.%d.lock", other.port))); err != nil {
		t.Error("the lock file of a socket in use was removed")
	}
}
