package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// outageTTL keeps these tests short: an outage must outlast the lease.
const outageTTL = 5 * time.Second

// Without Consul the leader goes on as long as the members see each other, and
// not a moment longer.
func TestConsulOutage(t *testing.T) {
	l := start(t, lab.Options{TTL: int(outageTTL / time.Second)})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))

	each := func(ctx context.Context, do func(*lab.ConsulServer, context.Context) error) {
		t.Helper()
		for _, c := range l.ConsulServers() {
			must(t, do(c, ctx))
		}
	}
	kill := func(c *lab.ConsulServer, ctx context.Context) error { return c.Kill(ctx) }
	freeze := func(c *lab.ConsulServer, ctx context.Context) error { return c.Freeze(ctx) }
	thaw := func(c *lab.ConsulServer, ctx context.Context) error { return c.Thaw(ctx) }

	t.Run("killed: no write fails, though the leader's agent is restarted meanwhile", func(t *testing.T) {
		leader := got(s.Leader(ctx))(t)
		before := got(leader.Postmaster())(t)
		w := clients(t, s, func(ctx context.Context) {
			each(ctx, kill)
			awaitFailsafe(ctx, t, leader)
			agent := leader.Processes()[0]
			must(t, agent.Kill(ctx))
			must(t, leader.Start(ctx))
			awaitFailsafe(ctx, t, leader)
			holdFor(ctx, t, 2*outageTTL)
			awaitFailsafe(ctx, t, leader)
			must(t, l.StartConsul(ctx))
			awaitConsulLease(ctx, t, leader)
		})
		unharmed(t, s, leader, before, w)
	})

	t.Run("hanging: no write fails", func(t *testing.T) {
		leader := got(s.Leader(ctx))(t)
		before := got(leader.Postmaster())(t)
		w := clients(t, s, func(ctx context.Context) {
			each(ctx, freeze)
			awaitFailsafe(ctx, t, leader)
			holdFor(ctx, t, 2*outageTTL)
			awaitFailsafe(ctx, t, leader)
			each(ctx, thaw)
			awaitConsulLease(ctx, t, leader)
		})
		unharmed(t, s, leader, before, w)
	})

	t.Run("told to end: the leader's agent does, and leaves nothing behind", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(within(t), time.Minute)
		defer cancel()
		leader := got(s.Leader(ctx))(t)
		each(ctx, freeze)
		awaitFailsafe(ctx, t, leader)
		agent := leader.Processes()[0]
		must(t, agent.Signal(syscall.SIGTERM))
		await(ctx, t, "the agent goes on", func() error {
			if agent.Running() {
				return errors.New("it runs")
			}
			return nil
		})
		if log := got(os.ReadFile(agent.LogPath()))(t); strings.Contains(string(log), "could not stop in an orderly way") {
			t.Error("it did not stop by its own decision")
		}
		if pid, err := leader.Postmaster(); err == nil {
			t.Errorf("its PostgreSQL runs on as process %v", pid)
		}
		each(ctx, thaw)
		must(t, leader.Start(ctx))
		_ = got(s.AwaitHealthy(within(t)))(t)
		must(t, s.AwaitSync(within(t)))
	})

	t.Run("a member that does not answer: the leader gives up in time", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.Leader(ctx))(t)
		replica := got(s.Replicas(ctx))(t)[0]
		each(ctx, kill)
		awaitFailsafe(ctx, t, leader)
		must(t, replica.Kill(ctx))
		await(ctx, t, "the leader goes on", func() error {
			status, err := leader.Status(ctx)
			if err == nil && (status.Primary() || status.Lictor.LeaseLeftMS != nil) {
				err = fmt.Errorf("%s says that it is %s", leader.Name, status.Role)
			}
			return err
		})
		must(t, l.StartConsul(ctx))
		must(t, replica.Start(ctx))
		_ = got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx))
	})
}

// A new binary takes the agent's place: same process, same PostgreSQL, same lease.
func TestUpgradeInPlace(t *testing.T) {
	l := start(t, lab.Options{})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))
	leader := got(s.Leader(ctx))(t)
	before := got(leader.Postmaster())(t)
	agent := leader.Processes()[0]
	pid := agent.PID()
	w := clients(t, s, func(ctx context.Context) {
		for _, m := range s.Members() {
			must(t, m.Processes()[0].Signal(syscall.SIGUSR2))
		}
		await(ctx, t, "the leader's agent did not take up its own lease", func() error {
			log, err := os.ReadFile(agent.LogPath())
			if err == nil && !strings.Contains(string(log), "going on with the lease of the agent's earlier run") {
				err = errors.New("its log does not say so")
			}
			return err
		})
		holdFor(ctx, t, lictorTTL)
	})
	unharmed(t, s, leader, before, w)
	if agent.PID() != pid || !agent.Running() {
		t.Errorf("the agent was process %d and is %d, running: %v", pid, agent.PID(), agent.Running())
	}
}

// lictorTTL is the default ttl (design 5.12).
const lictorTTL = 8 * time.Second

// awaitFailsafe waits until the leader says that it goes on without Consul.
func awaitFailsafe(ctx context.Context, t *testing.T, leader *lab.Member) {
	t.Helper()
	awaitLease(ctx, t, leader, true)
}

// awaitConsulLease waits until the leader's lease rests on Consul again.
func awaitConsulLease(ctx context.Context, t *testing.T, leader *lab.Member) {
	t.Helper()
	awaitLease(ctx, t, leader, false)
}

func awaitLease(ctx context.Context, t *testing.T, leader *lab.Member, failsafe bool) {
	t.Helper()
	await(ctx, t, "failsafe of "+leader.Name, func() error {
		status, err := leader.Status(ctx)
		switch {
		case err != nil:
			return err
		case status.Lictor.LeaseLeftMS == nil || status.FailsafeActive != failsafe:
			return fmt.Errorf("failsafe active: %v, lease: %v", status.FailsafeActive, status.Lictor.LeaseLeftMS)
		}
		return nil
	})
}

// holdFor lets a fault last: the one wait here that nothing can tell the end of.
func holdFor(ctx context.Context, t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
}

// unharmed checks that the same PostgreSQL leads and no client saw an error.
func unharmed(t *testing.T, s *lab.Shard, leader *lab.Member, before lab.ProcessInfo, w *lab.Workload) {
	t.Helper()
	ctx := within(t)
	if now := got(s.Leader(ctx))(t); now != leader {
		t.Errorf("%s leads, %s did before", now.Name, leader.Name)
	}
	if now := got(leader.Postmaster())(t); now.PID != before.PID {
		t.Errorf("PostgreSQL was restarted: process %d, was %d", now.PID, before.PID)
	}
	if n := w.Writes.ErrorCount(); n > 0 {
		t.Errorf("%d writes failed: %v", n, w.Writes.Errors(time.Time{}, time.Now())[0])
	}
}

// In pause nothing is killed, demoted or promoted on its own (I5): not even the
// PostgreSQL of a leader whose agent is gone for longer than its lease.
func TestPause(t *testing.T) {
	l := start(t, lab.Options{TTL: int(outageTTL / time.Second)})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))
	leader := got(s.Leader(ctx))(t)
	before := got(leader.Postmaster())(t)
	pause := func(on any) {
		t.Helper()
		status, text, err := leader.Patch(ctx, "/config", map[string]any{"pause": on})
		must(t, err)
		if status != 200 {
			t.Fatalf("pause %v: %d %s", on, status, text)
		}
	}
	w := clients(t, s, func(ctx context.Context) {
		pause(true)
		await(ctx, t, "the pause is not seen by all", func() error {
			snapshot, err := s.Snapshot(ctx)
			for _, m := range snapshot.Members {
				if err == nil && !m.Value.Pause {
					err = fmt.Errorf("%s is not paused", m.Value.Name)
				}
			}
			return err
		})
		must(t, leader.Processes()[0].Kill(ctx))
		holdFor(ctx, t, 2*outageTTL)
		must(t, leader.Start(ctx))
		awaitLease(ctx, t, leader, false)

		// The same while nobody could tell the agent of the pause.
		for _, c := range l.ConsulServers() {
			must(t, c.Kill(ctx))
		}
		must(t, leader.Processes()[0].Kill(ctx))
		must(t, leader.Start(ctx))
		holdFor(ctx, t, 2*outageTTL)
		must(t, l.StartConsul(ctx))
		awaitLease(ctx, t, leader, false)

		// The same with a guard and its watcher that stand still.
		guards := got(leader.Find(func(i lab.ProcessInfo) bool { return len(i.Args) > 1 && i.Args[1] == "guard" }))(t)
		for _, g := range guards {
			must(t, g.Signal(syscall.SIGSTOP))
		}
		must(t, leader.Processes()[0].Kill(ctx))
		must(t, leader.Start(ctx))
		holdFor(ctx, t, 2*outageTTL)
		for _, g := range guards {
			must(t, g.Signal(syscall.SIGCONT))
		}
		awaitLease(ctx, t, leader, false)
		pause(nil)
	})
	unharmed(t, s, leader, before, w)
}

// A ttl that is changed at run time, to both sides, harms nobody.
func TestChangeOfTTL(t *testing.T) {
	l := start(t, lab.Options{TTL: int(outageTTL / time.Second), Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
		lictor, _ := config["lictor"].(map[string]any)
		if lictor == nil {
			lictor = map[string]any{}
			config["lictor"] = lictor
		}
		lictor["compat"] = "patroni-3" // takes sets that do not fit together
	}}})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))
	leader := got(s.Leader(ctx))(t)
	before := got(leader.Postmaster())(t)
	change := func(ttl, loopWait, retry int, within func(left time.Duration) bool) {
		t.Helper()
		status, text, err := leader.Patch(ctx, "/config", map[string]any{"ttl": ttl, "loop_wait": loopWait, "retry_timeout": retry})
		must(t, err)
		if status != 200 {
			t.Fatalf("ttl %d: %d %s", ttl, status, text)
		}
		await(ctx, t, "the lease follows the ttl", func() error {
			n, err := leader.Status(ctx)
			if err == nil && (n.Lictor.LeaseLeftMS == nil || !within(time.Duration(*n.Lictor.LeaseLeftMS)*time.Millisecond)) {
				err = fmt.Errorf("lease: %v", n.Lictor.LeaseLeftMS)
			}
			return err
		})
	}
	w := clients(t, s, func(ctx context.Context) {
		change(30, 10, 10, func(left time.Duration) bool { return left > 2*outageTTL })
		change(20, 2, 10, func(left time.Duration) bool { return left > 10*time.Second && left <= 20*time.Second })
		_, config, err := leader.Get(ctx, "/config")
		if must(t, err); !strings.Contains(string(config), `"retry_timeout":10`) {
			t.Errorf("what was given was not kept: %s", config)
		}
		change(5, 1, 2, func(left time.Duration) bool { return left <= outageTTL })
		holdFor(ctx, t, outageTTL)
	})
	unharmed(t, s, leader, before, w)
}
