package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watcherOf is the process that watches a guard.
func watcherOf(t *testing.T, guard int) int {
	t.Helper()
	watcher, alive := parentOf(guard)
	if !alive || watcher <= 1 {
		t.Fatalf("guard %d has nobody who watches it (parent %d)", guard, watcher)
	}
	return watcher
}

// Of agent, guard and postmaster, any may be killed or stopped, and no backend outlives
// the lease: what the guard cannot do, who watches it does.
func TestDoubleFaults(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault func(t *testing.T, guard, postmaster int)
	}{
		{"guard killed, postmaster stopped", func(t *testing.T, guard, postmaster int) {
			must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
			must(t, syscall.Kill(guard, syscall.SIGKILL))
		}},
		{"guard and postmaster killed", func(t *testing.T, guard, postmaster int) {
			must(t, syscall.Kill(guard, syscall.SIGSTOP))
			must(t, syscall.Kill(postmaster, syscall.SIGKILL))
			must(t, syscall.Kill(guard, syscall.SIGKILL))
		}},
		{"guard stopped", func(t *testing.T, guard, _ int) {
			must(t, syscall.Kill(guard, syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(guard, syscall.SIGCONT) })
		}},
		{"guard and postmaster stopped", func(t *testing.T, guard, postmaster int) {
			must(t, syscall.Kill(guard, syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(guard, syscall.SIGCONT) })
			must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
		}},
		{"who watches the guard killed, postmaster stopped", func(t *testing.T, guard, postmaster int) {
			must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
			must(t, syscall.Kill(watcherOf(t, guard), syscall.SIGKILL))
		}},
		{"who watches the guard stopped", func(t *testing.T, guard, _ int) {
			watcher := watcherOf(t, guard)
			must(t, syscall.Kill(watcher, syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(watcher, syscall.SIGCONT) })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, p, other := within(t), newInstance(t), newInstance(t)
			postmaster := p.start(ctx, t)
			bystanders := processes(t, other.start(ctx, t))
			p.busy(ctx, t)
			pids := processes(t, postmaster)
			guard := p.client.PID()
			must(t, p.client.Grant(ctx, Now().Add(soon), nil))
			p.client.Close() // the agent is gone, too
			test.fault(t, guard, postmaster)
			await(ctx, t, "processes outlive the lease", func() bool { return len(live(pids)) == 0 })
			if left := live(bystanders); other.gone(t) || len(left) == 0 {
				t.Error("another PostgreSQL was killed")
			}
		})
	}
}

// A watcher that was killed has a successor at once, which does all that it did: no process
// outlives the lease, nor a guard that has died.
func TestWatcherIsReplaced(t *testing.T) {
	for _, test := range []struct {
		name  string
		lease time.Duration
		kills int
		fault func(t *testing.T, guard, postmaster int)
	}{
		{"guard hangs", soon, 1, func(t *testing.T, guard, _ int) {
			must(t, syscall.Kill(guard, syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(guard, syscall.SIGCONT) })
		}},
		{"guard and postmaster hang, for the second time", soon, 2, func(t *testing.T, guard, postmaster int) {
			must(t, syscall.Kill(guard, syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(guard, syscall.SIGCONT) })
			must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
		}},
		{"guard killed, postmaster stopped", time.Hour, 1, func(t *testing.T, guard, postmaster int) {
			must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
			must(t, syscall.Kill(guard, syscall.SIGKILL))
		}},
		{"guard and postmaster killed", time.Hour, 1, func(t *testing.T, guard, postmaster int) {
			must(t, syscall.Kill(guard, syscall.SIGSTOP))
			must(t, syscall.Kill(postmaster, syscall.SIGKILL))
			must(t, syscall.Kill(guard, syscall.SIGKILL))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, p, other := within(t), newInstance(t), newInstance(t)
			postmaster := p.start(ctx, t)
			bystanders := processes(t, other.start(ctx, t))
			guard := p.client.PID()
			for n := range test.kills {
				p.killWatcher(ctx, t, n)
			}
			p.busy(ctx, t)
			pids := processes(t, postmaster)
			p.grant(ctx, t, test.lease)
			watcher := p.watcher(ctx, t)
			p.client.Close() // the agent is gone, too
			test.fault(t, guard, postmaster)
			await(ctx, t, "processes outlive the lease", func() bool { return len(live(pids)) == 0 })
			if left := live(bystanders); other.gone(t) || len(left) == 0 {
				t.Error("another PostgreSQL was killed")
			}
			if test.lease == time.Hour {
				await(ctx, t, "the watcher outlives its guard", func() bool { return len(live([]int{watcher})) == 0 })
			}
		})
	}
}

// What a guard starts after its watcher was replaced is that one's, too, and what the next
// guard starts is not.
func TestNextWatcherKnowsWhatIsStarted(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	p.start(ctx, t)
	p.killWatcher(ctx, t, 0)
	must(t, p.client.Disarm(ctx))
	must(t, KillProcesses(ctx, p.data))
	postmaster := p.start(ctx, t) // the second one of this guard
	p.busy(ctx, t)
	pids, guard, watcher := processes(t, postmaster), p.client.PID(), p.watcher(ctx, t)
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil))
	must(t, syscall.Kill(watcher, syscall.SIGSTOP)) // it comes late
	must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
	must(t, syscall.Kill(guard, syscall.SIGKILL))
	before := live(pids)
	if len(before) == 0 {
		t.Fatal("this test should see a PostgreSQL that has outlived its guard")
	}
	must(t, KillProcesses(ctx, p.data)) // by the agent
	must(t, os.RemoveAll(filepath.Join(p.data, "postmaster.pid")))
	must(t, os.RemoveAll(filepath.Join(p.dir, fmt.Sprintf(".s.PGSQL.%d.lock", p.port))))
	next := processes(t, p.start(ctx, t))
	must(t, syscall.Kill(watcher, syscall.SIGCONT))
	await(ctx, t, "it does not end", func() bool { return len(live([]int{watcher})) == 0 })
	if left := live(next); len(left) == 0 || p.gone(t) {
		t.Error("what the next guard has started was killed")
	}
	// The end of a guard that has nothing left to guard is that of such a watcher, too.
	p.killWatcher(ctx, t, 0)
	watcher = p.watcher(ctx, t)
	must(t, p.client.Disarm(ctx))
	must(t, KillProcesses(ctx, p.data))
	must(t, p.client.Quit(ctx))
	await(ctx, t, "the watcher stays", func() bool { return len(live([]int{watcher})) == 0 })
}

// A guard that cannot open any file says that it has no watcher, lives, and goes on trying.
func TestUnwatchedGuardSaysSo(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	watcher, guard := p.watcher(ctx, t), p.client.PID()
	var had unix.Rlimit
	must(t, unix.Prlimit(guard, unix.RLIMIT_NOFILE, nil, &had))
	must(t, unix.Prlimit(guard, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: had.Max}, nil))
	_ = p.newClient().PID() // knocks
	must(t, syscall.Kill(watcher, syscall.SIGKILL))
	await(ctx, t, "nobody tells that the guard is not watched", func() bool {
		s, err := p.client.Status(ctx) // on the connection that there is
		must(t, err)
		return s.Watched.By == 0 && s.Watched.Lost == 1 && strings.Contains(s.Watched.Why, "too many open files")
	})
	if w := p.client.Watched(); w.Why == "" {
		t.Errorf("the client says %+v", w)
	}
	// Nor can it make a timer: it looks at the clock now and then, and not all the time.
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil))
	used := func() time.Duration {
		var ts unix.Timespec
		must(t, unix.ClockGettime(^int32(guard)<<3|2, &ts)) // CPUCLOCK_SCHED of the process (clock_getcpuclockid(3))
		return time.Duration(ts.Nano())
	}
	before, from := used(), Now()
	await(ctx, t, "", func() bool { return !Now().Before(from.Add(soon)) })
	if cpu := used() - before; cpu > soon/10 {
		t.Errorf("the guard used the CPU for %s of %s", cpu, soon)
	}
	must(t, p.client.Disarm(ctx))
	must(t, unix.Prlimit(guard, unix.RLIMIT_NOFILE, &had, nil))
	await(ctx, t, "no other watcher is started", func() bool {
		s, err := p.client.Status(ctx)
		must(t, err)
		return s.Watched.By != 0 && s.Watched.Why == ""
	})
	if now := p.client.PID(); now != guard {
		t.Errorf("guard %d, before %d", now, guard)
	}
}

// The disk of the guard's log hangs, and the lease ends: guard and watcher, each alone, kill
// all the same, and do not wait to say so.
func TestKillWhileTheLogHangs(t *testing.T) {
	for _, stopped := range []string{"guard", "watcher"} {
		t.Run(stopped+" stopped", func(t *testing.T) {
			t.Parallel()
			ctx, p := within(t), newInstance(t)
			must(t, unix.Mkfifo(filepath.Join(p.dir, "guard.log"), 0o600))
			log, err := os.OpenFile(filepath.Join(p.dir, "guard.log"), os.O_RDWR|unix.O_NONBLOCK, 0)
			must(t, err)
			defer log.Close()
			raw, err := log.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				for err = nil; err == nil; { // until it is full
					_, err = unix.Write(int(fd), make([]byte, 4096))
				}
			}))
			pids := processes(t, p.start(ctx, t))
			must(t, p.client.Grant(ctx, Now().Add(soon), nil))
			pid := map[string]int{"guard": p.client.PID(), "watcher": p.watcher(ctx, t)}[stopped]
			must(t, syscall.Kill(pid, syscall.SIGSTOP))
			defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
			await(ctx, t, "PostgreSQL outlives its lease", func() bool { return len(live(pids)) == 0 })
		})
	}
}

// killWatcher kills the watcher, of which there were n before, and waits for the next.
func (p *instance) killWatcher(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	watcher := p.watcher(ctx, t)
	must(t, syscall.Kill(watcher, syscall.SIGKILL))
	await(ctx, t, "no other watcher is started", func() bool {
		s, err := p.client.Status(ctx)
		must(t, err)
		return s.Watched.Lost == n+1 && s.Watched.By != 0 && s.Watched.By != watcher && s.Watched.Why == ""
	})
}

// watcher is the process that watches the guard, as that says itself.
func (p *instance) watcher(ctx context.Context, t *testing.T) int {
	t.Helper()
	s, err := p.client.Status(ctx)
	must(t, err)
	if s.Watched.By == 0 {
		t.Fatalf("nobody watches the guard: %+v", s)
	}
	return s.Watched.By
}

func (p *instance) grant(ctx context.Context, t *testing.T, lease time.Duration) {
	t.Helper()
	must(t, p.client.Grant(ctx, Now().Add(lease), nil))
}

// A guard that does not answer is ended, so that the next one can start PostgreSQL; one
// that answers is not.
func TestGuardThatHangsIsEnded(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	ends := func(want bool) {
		t.Helper()
		if did, err := p.client.EndHung(ctx); did != want || err != nil {
			t.Fatalf("ended: %v, %v", did, err)
		}
	}
	ends(false) // none runs
	p.start(ctx, t)
	guard := p.client.PID()
	ends(false)
	if now := p.client.PID(); now != guard || p.gone(t) {
		t.Fatalf("guard %d was ended, which answers: now it is %d", guard, now)
	}
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil))
	watcher := watcherOf(t, guard)
	must(t, syscall.Kill(guard, syscall.SIGSTOP))
	must(t, KillProcesses(ctx, p.data)) // by the agent
	ends(true)
	for _, pid := range []int{guard, watcher} {
		await(ctx, t, fmt.Sprintf("process %d stays", pid), func() bool { return len(live([]int{pid})) == 0 })
	}
	must(t, p.client.Disarm(ctx))
	// They name a process that nobody may have waited for yet. (The agent does not believe them.)
	must(t, os.RemoveAll(filepath.Join(p.data, "postmaster.pid")))
	must(t, os.RemoveAll(filepath.Join(p.dir, fmt.Sprintf(".s.PGSQL.%d.lock", p.port))))
	p.start(ctx, t)
	if now := p.client.PID(); now == guard || now == 0 {
		t.Errorf("guard %d after guard %d", now, guard)
	}
	must(t, p.client.Disarm(ctx))
	must(t, KillProcesses(ctx, p.data))
}

// The one who watches a guard kills what that guard had, not what its successor starts.
func TestGuardAfterAGuard(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	for range 2 {
		before := processes(t, p.start(ctx, t))
		p.busy(ctx, t)
		guard := p.client.PID()
		watcher := watcherOf(t, guard)
		must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil))
		must(t, syscall.Kill(watcher, syscall.SIGSTOP)) // it comes late
		must(t, syscall.Kill(guard, syscall.SIGKILL))
		must(t, KillProcesses(ctx, p.data)) // by the agent
		// They name a zombie, whose parent is stopped. (The agent does not believe them.)
		must(t, os.RemoveAll(filepath.Join(p.data, "postmaster.pid")))
		must(t, os.RemoveAll(filepath.Join(p.dir, fmt.Sprintf(".s.PGSQL.%d.lock", p.port))))
		p.start(ctx, t)
		pids := processes(t, p.client.held(ctx, t))
		must(t, syscall.Kill(watcher, syscall.SIGCONT))
		await(ctx, t, "it does not end", func() bool { return len(live([]int{watcher})) == 0 })
		if left := live(before); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}
		if slices.Equal(before, pids) || len(live(pids)) == 0 {
			t.Error("what the next guard has started was killed")
		}
		must(t, p.client.Disarm(ctx))
		must(t, KillProcesses(ctx, p.data))
	}
}

// A deadline that is moved or taken away is so for both.
func TestWhoWatchesKnowsTheDeadline(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	postmaster := p.start(ctx, t)
	pids := []int{postmaster}
	first := Now().Add(soon)
	must(t, p.client.Grant(ctx, first, nil))
	must(t, p.client.Arm(ctx, first.Add(soon), nil))
	await(ctx, t, "", func() bool { return !Now().Before(first.Add(2 * fireBehind)) })
	if len(live(pids)) != len(pids) {
		t.Fatal("killed at a deadline that was moved")
	}
	must(t, p.client.Disarm(ctx))
	await(ctx, t, "", func() bool { return !Now().Before(first.Add(soon + 2*fireBehind)) })
	if len(live(pids)) != len(pids) {
		t.Fatal("killed at a deadline that was taken away")
	}
	// A guard that has fired may start PostgreSQL again.
	must(t, p.client.Grant(ctx, Now().Add(soon), nil))
	await(ctx, t, "PostgreSQL outlives its lease", func() bool { return p.gone(t) })
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil))
	again := p.start(ctx, t)
	from := Now()
	await(ctx, t, "", func() bool { return !Now().Before(from.Add(2 * fireBehind)) })
	if len(live([]int{again})) == 0 {
		t.Fatal("killed under a new lease")
	}
	guard := p.client.PID()
	watcher := watcherOf(t, guard)
	must(t, p.client.Disarm(ctx))
	must(t, KillProcesses(ctx, p.data))
	must(t, p.client.Quit(ctx))
	for _, pid := range []int{guard, watcher} {
		await(ctx, t, fmt.Sprintf("process %d stays", pid), func() bool { return errors.Is(syscall.Kill(pid, 0), unix.ESRCH) })
	}
}

// A PostgreSQL that is started while the watcher kills would be killed with the last one.
func TestStartWaitsForWhoWatches(t *testing.T) {
	shared, err := newSharedDeadline()
	must(t, err)
	defer shared.file.Close()
	shared.awaitKill(time.Hour) // it does not kill
	shared.setKilling(true)
	waited := make(chan struct{})
	go func() { defer close(waited); shared.awaitKill(time.Hour) }()
	must(t, shared.set(5)) // that is something else
	select {
	case <-waited:
		t.Fatal("did not wait")
	case <-time.After(2 * pollMS * time.Millisecond):
	}
	shared.setKilling(false)
	<-waited
	if got := shared.get(); got != 5 {
		t.Errorf("the deadline is %d", got)
	}
	shared.setKilling(true)
	shared.awaitKill(time.Millisecond) // of one that stands still
}

func (c *GuardClient) held(ctx context.Context, t *testing.T) int {
	t.Helper()
	s, err := c.Status(ctx)
	must(t, err)
	return s.Postmaster
}
