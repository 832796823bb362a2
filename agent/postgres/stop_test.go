package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// hanging are parameters of a PostgreSQL whose archive_command does not end.
func hanging(s Settings) Settings {
	s.Postgres.Parameters["archive_mode"] = "on"
	s.Postgres.Parameters["archive_command"] = "exec sleep 1234"
	return s
}

// An archive_command that hangs keeps the postmaster alive when all that matters is
// done; a bootstrap, a stop and a handover end nevertheless, and leave nothing behind.
func TestStopWithAnArchiveThatHangs(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a, b := newInstance(t, hanging(settings(t, dir, "a"))), newInstance(t, settings(t, dir, "b"))
	hook := "/bin/sh -c 'psql -X \"$0\" -c \"CREATE TABLE t ()\" -c \"SELECT pg_switch_wal()\"'"
	_, err := a.Bootstrap(ctx, config.Bootstrap{PostBootstrap: hook})
	must(t, err)
	must(t, a.FinishBootstrap())

	start := func() {
		t.Helper()
		must(t, a.Start(ctx, StartAs{Role: Primary}))
		sql(ctx, t, a, "CREATE TABLE IF NOT EXISTS public.t ()")
		sql(ctx, t, a, "DROP TABLE public.t")
		sql(ctx, t, a, "SELECT pg_switch_wal()")
		awaitArchiver(ctx, t, a)
	}
	ended := func() {
		t.Helper()
		if a.Running() {
			t.Fatal("the postmaster runs")
		}
		if c, err := a.control(ctx); err != nil || c.State != "shut down" {
			t.Errorf("the control file says %q: %v", c.State, err)
		}
		if pids, err := a.target.Processes(); err != nil || len(pids) > 0 {
			t.Errorf("processes are left: %v %v", pids, err)
		}
		if archives(t, a) {
			t.Error("archive_command is left")
		}
	}
	start()
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	must(t, a.Stop(ctx, Fast))
	ended()

	start()
	observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	var checkpoint int64
	must(t, a.StopWhen(ctx, Fast, func(ctx context.Context, at int64) error {
		checkpoint = at
		for {
			if s, err := b.Observe(ctx); err == nil && s.ReceivedLSN > at {
				return nil
			} else if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}))
	ended()
	if c, err := a.control(ctx); err != nil || c.CheckpointLSN != checkpoint || checkpoint == 0 {
		t.Errorf("told of a checkpoint at %d, it is at %d: %v", checkpoint, c.CheckpointLSN, err)
	}

	// Nobody has what it must have: the deadline ends it, clean, and tells.
	start()
	limit, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := a.StopWhen(limit, Fast, func(ctx context.Context, _ int64) error { <-ctx.Done(); return ctx.Err() }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stop that came too late: %v", err)
	}
	ended()

	// So it is when whoever asked breaks it off because its own time is over.
	start()
	broken, breakOff := context.WithCancelCause(ctx)
	if err := a.StopWhen(broken, Fast, func(ctx context.Context, _ int64) error {
		breakOff(context.DeadlineExceeded)
		<-ctx.Done()
		return ctx.Err()
	}); err == nil {
		t.Error("a stop that was broken off has succeeded")
	}
	ended()

	// Stopped by somebody else: that is not a start.
	start()
	stop := exec.CommandContext(ctx, "kill", "-INT", "--", strconv.Itoa(a.process.pid()))
	must(t, stop.Run())
	observe(ctx, t, a, "is stopping", func(s State) bool { return s.Running && !s.Accepting && s.Stopping && s.ShutDown })
	must(t, a.EndShutDown(ctx))
	ended()

	must(t, a.Start(ctx, StartAs{Role: Primary}))
	must(t, a.EndShutDown(ctx))
	if s, err := a.Observe(ctx); err != nil || !s.Accepting {
		t.Errorf("one that serves was ended: %+v %v", s, err)
	}
}

// A standby that does not answer holds up a stop only until those that matter are
// served.
func TestStopWithASilentStandby(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	silent := func() (speak func()) {
		t.Helper()
		observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
		caughtUp(ctx, t, a, b)
		var receiver int
		for receiver == 0 {
			told := true
			var err error
			receiver, err = b.walReceiver(ctx, &told)
			must(t, err)
		}
		must(t, syscall.Kill(receiver, syscall.SIGSTOP))
		return func() { _ = syscall.Kill(receiver, syscall.SIGCONT) }
	}
	stopped := func() {
		t.Helper()
		must(t, a.StopWhen(ctx, Fast, func(context.Context, int64) error { return nil }))
		if c, err := a.control(ctx); err != nil || c.State != "shut down" || a.Running() {
			t.Errorf("%+v %v", c, err)
		}
	}
	speak := silent()
	stopped()
	speak()

	// With more WAL on its way than the connection holds, the WAL sender does not even
	// notice that PostgreSQL is to stop.
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, a, "ALTER SYSTEM SET wal_sender_timeout = 0")
	sql(ctx, t, a, "SELECT pg_reload_conf()")
	speak = silent()
	defer speak()
	sql(ctx, t, a, "CREATE TABLE public.much AS SELECT repeat(md5(g::text), 20) FROM generate_series(1, 60000) g")
	last := int64(-1)
	testkit.Await(ctx, t, "the WAL sender is stuck", func() error {
		all, err := a.senders()
		if err != nil || len(all) != 1 {
			return errors.Join(err, fmt.Errorf("%+v", all))
		}
		if before := last; before != all[0].sent {
			last = all[0].sent
			time.Sleep(200 * time.Millisecond) // the next look is to tell
			return fmt.Errorf("at %d, was at %d", last, before)
		}
		return nil
	})
	if written := a.writtenBeforeStop(ctx); last == 0 || last >= written {
		t.Fatalf("it has sent %d of %d", last, written)
	}
	stopped()
}

// A process that does not react keeps PostgreSQL from stopping: it is killed.
func TestStopWithinALimit(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	must(t, syscall.Kill(int(conn.PgConn().PID()), syscall.SIGSTOP))
	must(t, p.StopWithin(ctx, time.Second, nil))
	if pids, err := p.target.Processes(); err != nil || len(pids) > 0 || p.Running() {
		t.Errorf("processes are left: %v %v", pids, err)
	}
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	must(t, p.StopWithin(ctx, time.Hour, nil))
	if c, err := p.control(ctx); err != nil || !c.IsShutDown() {
		t.Errorf("the control file says %q: %v", c.State, err)
	}
}

// A primary that is killed while it stops has stopped, and its last checkpoint says nothing
// of what it wrote after that: nobody may take it for one that was shut down.
func TestKilledWhileItStops(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	must(t, syscall.Kill(int(conn.PgConn().PID()), syscall.SIGSTOP)) // which holds the stop up
	postmaster, stopped := p.PID(), make(chan error, 1)
	go func() {
		stopped <- p.StopWhen(ctx, Fast, func(context.Context, int64) error { return errors.New("it was shut down") })
	}()
	observe(ctx, t, p, "is stopping", func(s State) bool { return s.Stopping })
	must(t, syscall.Kill(postmaster, syscall.SIGKILL))
	must(t, <-stopped)
	d, err := p.DataDir(ctx)
	must(t, err)
	if d.Control.IsShutDown() || d.Control.CheckpointLSN == 0 {
		t.Errorf("the control file says %q, with a checkpoint at %d", d.Control.State, d.Control.CheckpointLSN)
	}
}

// awaitArchiver waits until the archive_command that hangs runs.
func awaitArchiver(ctx context.Context, t *testing.T, p *Instance) {
	t.Helper()
	testkit.Await(ctx, t, "archive_command", func() error {
		if !archives(t, p) {
			return errors.New("it does not run")
		}
		return nil
	})
}

// archives reports whether the archive_command that hangs runs.
func archives(t *testing.T, p *Instance) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range files {
		command, _ := os.ReadFile(file)
		dir, _ := os.Readlink(filepath.Join(filepath.Dir(file), "cwd"))
		if strings.HasPrefix(string(command), "sleep\x001234") && dir == p.dataDir {
			return true
		}
	}
	return false
}
