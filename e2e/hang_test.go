package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// hangTTL is the lease of these tests: a leader may serve nobody for that long.
const hangTTL = 5

func hanging(members int) lab.Options {
	return lab.Options{
		Bouncers: -1, ConsulServers: 1, Members: members, Async: true, TTL: hangTTL, LoopWait: 1, RetryTimeout: 2,
		Dynamic: map[string]any{"primary_start_timeout": hangTTL},
	}
}

// A leader whose postmaster hangs gives up; where nobody else can lead, it is killed and
// started in place.
func TestPostmasterThatHangs(t *testing.T) {
	l := start(t, hanging(2))
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.Leader(ctx))(t)
	must(t, got(leader.Postmaster())(t).Signal(syscall.SIGSTOP))
	other := got(s.AwaitLeader(ctx, leader))(t)
	got(s.AwaitHealthy(ctx))(t) // it was killed, and follows

	must(t, leader.Process("agent").Kill(ctx))
	before := got(other.Postmaster())(t)
	must(t, before.Signal(syscall.SIGSTOP))
	await(ctx, t, "the postmaster that hangs is not started again", func() error {
		now, err := other.Postmaster()
		if err == nil && now.PID == before.PID {
			err = fmt.Errorf("process %d still runs", now.PID)
		}
		if err == nil {
			var status int
			if status, _, err = other.Get(ctx, "/primary"); err == nil && status != http.StatusOK {
				err = fmt.Errorf("it does not serve: %d", status)
			}
		}
		return err
	})
	must(t, leader.Process("agent").Start())
	if now := got(s.AwaitHealthy(ctx))(t); now != other {
		t.Errorf("%s leads, not %s", now.Name, other.Name)
	}
}

// A guard that stands still for good does not keep its member from leading on: its watcher
// has killed PostgreSQL, and another guard starts it.
func TestGuardThatHangs(t *testing.T) {
	l := start(t, hanging(1))
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.Leader(ctx))(t)
	guards := got(leader.Find(func(i lab.ProcessInfo) bool {
		return len(i.Args) > 1 && i.Args[1] == "guard" && !slices.Contains(i.Args, "--watch")
	}))(t)
	if len(guards) != 1 {
		t.Fatalf("%d guards, not one", len(guards))
	}
	before := got(leader.Postmaster())(t)
	must(t, guards[0].Signal(syscall.SIGSTOP))
	await(ctx, t, "PostgreSQL is not started again", func() error {
		now, err := leader.Postmaster()
		if err == nil && now.PID == before.PID {
			err = fmt.Errorf("process %d still runs", now.PID)
		}
		return err
	})
	got(s.AwaitHealthy(ctx))(t)
	if err := guards[0].Signal(0); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the guard that hangs is there still: %v", err)
	}
}

// A guard whose watcher is killed gets another one, its primary goes on, and the shard
// remembers it.
func TestGuardsWatcherThatIsKilled(t *testing.T) {
	l := start(t, hanging(1))
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.Leader(ctx))(t)
	watchers := func() []lab.ProcessInfo {
		return got(leader.Find(func(i lab.ProcessInfo) bool {
			return len(i.Args) > 1 && i.Args[1] == "guard" && slices.Contains(i.Args, "--watch")
		}))(t)
	}
	first, postmaster := watchers(), got(leader.Postmaster())(t)
	if len(first) != 1 {
		t.Fatalf("%d watchers, not one", len(first))
	}
	must(t, first[0].Signal(syscall.SIGKILL))
	await(ctx, t, "nobody tells of the watcher that was lost", func() error {
		out, err := l.Command(ctx, os.Getenv("LICTOR_BIN"), "events", s.Name, "--consul", l.ConsulServers()[0].HTTP).CombinedOutput()
		if err != nil || !strings.Contains(string(out), string(events.WatcherLost)) {
			return fmt.Errorf("the events do not show it (%v): %s", err, out) //nolint:errorlint // it may be nil
		}
		return nil
	})
	if now := watchers(); len(now) != 1 || now[0].PID == first[0].PID {
		t.Errorf("after watcher %d: %v", first[0].PID, now)
	}
	if now := got(leader.Postmaster())(t); now.PID != postmaster.PID {
		t.Errorf("PostgreSQL was restarted: process %d, before %d", now.PID, postmaster.PID)
	}
	if !strings.Contains(l.LogTail(1000), "the guard's watcher has ended") {
		t.Error("the agent's log does not tell")
	}
}

// A start that hangs with its disk does not keep the leader from giving up, wherever the
// agent's own files are. What was interrupted does not come up when the disk goes on.
func TestStartOnADiskThatHangs(t *testing.T) {
	for _, where := range []string{"state on the same disk", "state on a sound disk"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			if err := lab.CanMakeVolumes(ctx); err != nil {
				t.Skip(err)
			}
			options := hanging(2)
			options.VolumeMB = 300
			if where == "state on a sound disk" {
				options.Database = lab.Lictor{Edit: func(m *lab.Member, config map[string]any) {
					own := config["lictor"].(map[string]any) // volumes need root
					own["state_dir"] = filepath.Join(m.Dir, "state")
				}}
			}
			l := start(t, options)
			s := l.Shard(0)
			leader := got(s.Leader(ctx))(t)
			// The disk hangs when nothing is left of PostgreSQL, so that the start waits for
			// the disk and for nothing else.
			agent := leader.Process("agent")
			must(t, agent.Signal(syscall.SIGSTOP))
			must(t, got(leader.Postmaster())(t).Signal(syscall.SIGKILL))
			await(ctx, t, "PostgreSQL outlives its postmaster", func() error {
				left, err := leader.Find(func(i lab.ProcessInfo) bool { return i.Comm == "postgres" })
				if err == nil && len(left) > 0 {
					err = fmt.Errorf("%d processes", len(left))
				}
				return err
			})
			must(t, leader.Volume.Freeze())
			t.Cleanup(func() { _ = leader.Volume.Thaw() })
			must(t, agent.Signal(syscall.SIGCONT))
			other := got(s.AwaitLeader(ctx, leader))(t)
			must(t, leader.Volume.Thaw())
			if now := got(s.AwaitHealthy(ctx))(t); now != other {
				t.Errorf("%s leads, not %s", now.Name, other.Name)
			}
		})
	}
}
