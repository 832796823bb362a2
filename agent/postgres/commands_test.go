package postgres

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// scriptFile is one of the operator's commands, which does what a test wants of it.
type scriptFile struct{ path string }

// scripted gives a replica that is stopped a script for a parameter. It fails at first.
func scripted(t *testing.T, p *Instance, parameter, arguments string) *scriptFile {
	t.Helper()
	s := &scriptFile{filepath.Join(newDir(t), "command")}
	must(t, os.WriteFile(s.path+".calls", nil, 0o600))
	must(t, os.Chmod(s.path+".calls", 0o666))
	s.does(t, "exit 1")
	local := *p.local.Load()
	local.RecoveryConf = maps.Clone(local.RecoveryConf)
	if local.RecoveryConf == nil {
		local.RecoveryConf = map[string]any{}
	}
	local.RecoveryConf[parameter] = s.path + " " + arguments
	p.Reconfigure(local)
	return s
}

// does says what the script does from its next call on.
func (s *scriptFile) does(t *testing.T, what string) {
	t.Helper()
	must(t, os.WriteFile(s.path+".new", []byte("#!/bin/sh\necho \"$@\" >> "+s.path+".calls\n"+what+"\n"), 0o600))
	must(t, os.Chmod(s.path+".new", 0o755))
	must(t, os.Rename(s.path+".new", s.path))
}

func (s *scriptFile) calls(t *testing.T) int {
	t.Helper()
	calls, err := os.ReadFile(s.path + ".calls")
	must(t, err)
	return strings.Count(string(calls), "\n")
}

// called waits until the script was called more often than before.
func (s *scriptFile) called(ctx context.Context, t *testing.T, before int) {
	t.Helper()
	testkit.Await(ctx, t, "the command is called", func() error {
		if s.calls(t) <= before {
			return errors.New("it is not")
		}
		return nil
	})
}

// busy is what the machine may take beside.
const busy = 30 * time.Second

// hangingScripts are commands that do not end.
func hangingScripts() map[string]string {
	return map[string]string{
		"hangs":                     "exec sleep 1234",
		"hangs and heeds no signal": "trap '' TERM INT QUIT HUP USR1; while :; do sleep 1; done",
	}
}

// A restore_command that hangs, is slow or fails holds a promotion up no longer than
// commandPatience, and does not end PostgreSQL.
func TestPromotionWithARestoreCommand(t *testing.T) {
	t.Parallel()
	cases := map[string]string{"fails": "exit 1", "fails as ssh does": "exit 255", "is slow": "sleep 20; exit 1"}
	maps.Copy(cases, hangingScripts())
	for what, does := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			a, b := pair(ctx, t)
			must(t, b.Stop(ctx, Fast))
			restore := scripted(t, b, restoreCommand, "%f %p")
			follow(ctx, t, b, a)
			sql(ctx, t, a, "CREATE TABLE public.t ()")
			caughtUp(ctx, t, a, b)
			before := restore.calls(t)
			restore.does(t, does)
			must(t, a.Kill(ctx))
			restore.called(ctx, t, before)
			began := time.Now()
			must(t, b.Promote(ctx, 0))
			took := time.Since(began)
			t.Logf("%s, %d calls", took, restore.calls(t))
			// PostgreSQL alone waits for four calls and more.
			if took > commandPatience+busy {
				t.Errorf("%s, want at most %s and what the promotion itself takes", took, commandPatience)
			}
			sql(ctx, t, b, "DROP TABLE public.t")
		})
	}
}

// A restore_command that gives WAL is let go on, however long all of it takes.
func TestPromotionWithASlowArchive(t *testing.T) {
	t.Parallel()
	ctx, archive := within(t), newDir(t)
	a, b := pair(ctx, t)
	local := *a.local.Load()
	local.Parameters = maps.Clone(local.Parameters)
	local.Parameters["archive_mode"], local.Parameters["archive_command"] = "on", "cp %p "+archive+"/%f"
	a.Reconfigure(local)
	must(t, b.Stop(ctx, Fast))
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	restore := scripted(t, b, restoreCommand, "%f %p")
	must(t, b.Start(ctx, StartAs{Role: Replica})) // it follows nobody
	restore.called(ctx, t, 0)
	for n := range 4 {
		sql(ctx, t, a, "CREATE TABLE public.t"+string(rune('0'+n))+" ()")
		sql(ctx, t, a, "SELECT pg_switch_wal()")
	}
	testkit.Await(ctx, t, "it is archived", func() error {
		if value(ctx, t, a, "SELECT (archived_count >= 4)::text FROM pg_stat_archiver") != "true" {
			return errors.New(value(ctx, t, a, "SELECT pg_stat_archiver::text FROM pg_stat_archiver"))
		}
		return nil
	})
	must(t, a.Kill(ctx))
	restore.does(t, "test -e "+archive+"/$1 || exit 1\nsleep 3\ncp "+archive+"/$1 $2")
	restore.called(ctx, t, restore.calls(t))
	began := time.Now()
	must(t, b.Promote(ctx, 0))
	t.Logf("%s, %d calls", time.Since(began), restore.calls(t))
	sql(ctx, t, b, "DROP TABLE public.t0, public.t1, public.t2, public.t3")
}

// A recovery_end_command that hangs is given as long, and holds up nothing beyond that.
func TestPromotionWithARecoveryEndCommand(t *testing.T) {
	t.Parallel()
	for what, does := range hangingScripts() {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			a, b := pair(ctx, t)
			must(t, b.Stop(ctx, Fast))
			end := scripted(t, b, recoveryEndCommand, "%r")
			follow(ctx, t, b, a)
			end.does(t, does)
			began := time.Now()
			must(t, b.Promote(ctx, 0))
			if took := time.Since(began); took < commandPatience || took > commandPatience+busy {
				t.Errorf("%s, want %s and what the promotion itself takes", took, commandPatience)
			}
			if n := end.calls(t); n != 1 {
				t.Errorf("called %d times", n)
			}
			sql(ctx, t, b, "CREATE TABLE public.t ()")
		})
	}
}

// An archive_cleanup_command that hangs keeps a replica from no shutdown checkpoint, and the
// primary that it becomes from no checkpoint at all.
func TestStopWithAnArchiveCleanupCommand(t *testing.T) {
	t.Parallel()
	for what, does := range hangingScripts() {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			a, b := pair(ctx, t)
			must(t, b.Stop(ctx, Fast))
			cleanup := scripted(t, b, cleanupCommand, "%r")
			cleanup.does(t, does)
			stop := func() {
				t.Helper()
				began := time.Now()
				must(t, b.Stop(ctx, Fast))
				if took := time.Since(began); took > archiverPatience+busy {
					t.Errorf("the stop took %s", took)
				}
				if c, err := b.control(ctx); err != nil || !c.IsShutDown() {
					t.Errorf("%+v %v", c, err)
				}
			}
			hang := func() {
				t.Helper()
				follow(ctx, t, b, a)
				sql(ctx, t, a, "CHECKPOINT")
				caughtUp(ctx, t, a, b)
				conn, err := b.dedicated(ctx)
				must(t, err)
				before := cleanup.calls(t)
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, _ = conn.Exec(ctx, "CHECKPOINT") // it waits for the command
				}()
				t.Cleanup(func() { hangUpOn(conn); <-done })
				cleanup.called(ctx, t, before)
			}
			hang()
			stop()
			hang()
			must(t, b.Promote(ctx, 0))
			sql(ctx, t, b, "CHECKPOINT")
			stop()
		})
	}
}

// PostgreSQL cuts off what is long of a command. With the shell around it, one that is short enough by itself would
// be cut in the middle of that, and always fail.
func TestCleanupCommandAtItsLongest(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	must(t, b.Stop(ctx, Fast))
	longest := maxCommand - len(scripted(t, b, cleanupCommand, "").path) - len(" ") - 20 // its directory's name has a number at its end
	cleanup := scripted(t, b, cleanupCommand, strings.Repeat("x", longest))
	follow(ctx, t, b, a)
	before := cleanup.calls(t)
	sql(ctx, t, a, "CHECKPOINT")
	caughtUp(ctx, t, a, b)
	must(t, b.Checkpoint(ctx))
	cleanup.called(ctx, t, before)
}

func TestIsCutOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, command string
		major         int
		want          bool
	}{
		{cleanupCommand, strings.Repeat("x", maxCommand), 15, false},
		{cleanupCommand, strings.Repeat("x", maxCommand+1), 15, true},
		{cleanupCommand, strings.Repeat("x", maxCommand+1), 16, false},
		{recoveryEndCommand, strings.Repeat("x", maxCommand) + "%r", 14, true},
		{"archive_command", strings.Repeat("x", maxCommand-10) + "%p", 15, true},
		{"archive_command", strings.Repeat("x", maxCommand-1) + "%%", 15, false},
		{restoreCommand, strings.Repeat("x", maxCommand+1), 12, true},
		{restoreCommand, strings.Repeat("x", maxCommand+1), 13, false},
		{"work_mem", strings.Repeat("x", maxCommand+1), 12, false},
	} {
		if got := isCutOff(c.name, c.command, c.major); got != c.want {
			t.Errorf("%s of %d bytes, PostgreSQL %d: %v", c.name, len(c.command), c.major, got)
		}
	}
}
