package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// crashes are faults of processes on the primary's host. Lictor's own are
// started again at once where the name says that one was killed, as systemd does
// (Restart=always), and stay away where it says that one was lost.
func crashes() []Fault {
	crash := Expect{Leader: MayChange, Writes: Failover, AsyncLoss: true}
	lost := Expect{Leader: MustChange, Writes: Failover, AsyncLoss: true}
	unfenced := Expect{Leader: MustChange, Writes: Failover, AsyncLoss: true, Frozen: true}
	return []Fault{
		{Name: "kill-postmaster", Inject: killPostmaster, Hold: newPostmaster, Expect: crash},
		{Name: "kill-agent", Inject: killAgent, Expect: Expect{Leader: Stays, Writes: Nothing}},
		{Name: "lose-agent", Inject: loseAgent, Hold: failover, Expect: lost},
		{Name: "stop-agent", Inject: stopAgent, Hold: pastLease, Expect: lost},
		{Name: "kill-guard", Inject: killGuard, Hold: newPostmaster, Expect: crash},
		{Name: "stop-guard", Inject: stopGuard, Hold: pastLease, Expect: crash},
		{Name: "stop-agent-and-guard", Inject: stopAgentAndGuard, Hold: failover, Expect: lost},
		{Name: "stop-agent-guard-and-watcher", Inject: stopAgentGuardAndWatcher, Hold: failover, Expect: unfenced},
		{Name: "kill-agent-and-guard-postmaster-stopped", Inject: killAgentAndGuardPostmasterStopped, Hold: failover, Expect: lost},
		{Name: "kill-agent-and-guard", Inject: killAgentAndGuard, Hold: failover, Expect: lost},
		{Name: "kill-postmaster-and-guard", Inject: killPostmasterAndGuard, Hold: newPostmaster, Expect: crash},
	}
}

func killPostmaster(_ context.Context, s *Stage) error {
	postmaster, err := s.Primary.Postmaster()
	if err != nil {
		return err
	}
	s.Target(fmt.Sprintf("killing process %d, the postmaster of", postmaster.PID), s.Primary.Name)
	s.postmaster = postmaster.PID
	return postmaster.Signal(syscall.SIGKILL)
}

// newPostmaster holds a fault until the member runs another postmaster, or
// another member leads.
func newPostmaster(ctx context.Context, s *Stage) error {
	return await(ctx, "no new postmaster", func(ctx context.Context) error {
		now, err := s.Primary.Postmaster()
		if err == nil && now.PID != s.postmaster {
			return nil
		}
		leader, err2 := s.Shard.Leader(ctx)
		if err2 == nil && leader != s.Primary {
			return nil
		}
		return errors.Join(fmt.Errorf("%s runs postmaster %d, as before", s.Primary.Name, now.PID), err, err2)
	})
}

func killAgent(ctx context.Context, s *Stage) error {
	s.Target("killing and starting again the agent of", s.Primary.Name)
	s.startHost(s.Primary.Host)
	if err := agent(s.Primary).Kill(ctx); err != nil {
		return err
	}
	return s.Primary.Start(ctx)
}

func loseAgent(ctx context.Context, s *Stage) error {
	s.Target("killing the agent of", s.Primary.Name)
	s.startHost(s.Primary.Host)
	return agent(s.Primary).Kill(ctx)
}

func stopAgent(_ context.Context, s *Stage) error {
	s.Target("stopping (SIGSTOP) the agent of", s.Primary.Name)
	return s.freeze(agent(s.Primary))
}

func killGuard(_ context.Context, s *Stage) error {
	guard, err := guardOf(s.Primary)
	if err != nil {
		return err
	}
	postmaster, err := s.Primary.Postmaster()
	if err != nil {
		return err
	}
	s.Target(fmt.Sprintf("killing process %d, the guard of", guard.PID), s.Primary.Name)
	s.postmaster = postmaster.PID
	return guard.Signal(syscall.SIGKILL)
}

func stopGuard(ctx context.Context, s *Stage) error {
	guard, err := guardOf(s.Primary)
	if err != nil {
		return err
	}
	s.Target(fmt.Sprintf("stopping (SIGSTOP) process %d, with a statement running, the guard of", guard.PID), s.Primary.Name)
	if err := s.Witness.LongStatement(ctx, s.Primary, s.pastLease()); err != nil {
		return err
	}
	s.Undo(func(context.Context) error {
		// An agent that noticed may have replaced it meanwhile.
		if err := guard.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return nil
	})
	return guard.Signal(syscall.SIGSTOP)
}

// stopAgentAndGuard leaves a primary that only the guard's watcher fences.
func stopAgentAndGuard(_ context.Context, s *Stage) error {
	guard, err := guardOf(s.Primary)
	if err != nil {
		return err
	}
	s.Target("stopping (SIGSTOP) agent and guard of", s.Primary.Name)
	return errors.Join(s.freeze(agent(s.Primary)), s.freeze(guard))
}

// stopAgentGuardAndWatcher leaves a primary that nobody fences, as long as there is no
// watchdog.
func stopAgentGuardAndWatcher(ctx context.Context, s *Stage) error {
	watcher, err := watcherOf(s.Primary)
	if err != nil {
		return err
	}
	err = errors.Join(s.freeze(watcher), stopAgentAndGuard(ctx, s))
	s.Target("stopping (SIGSTOP) agent, guard and watcher of", s.Primary.Name)
	return err
}

// killAgentAndGuardPostmasterStopped leaves backends whose postmaster does not hear that
// its guard is dead.
func killAgentAndGuardPostmasterStopped(ctx context.Context, s *Stage) error {
	postmaster, err := s.Primary.Postmaster()
	if err != nil {
		return err
	}
	s.Target("stopping (SIGSTOP) the postmaster of", s.Primary.Name)
	if err := postmaster.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return killAgentAndGuard(ctx, s)
}

// killAgentAndGuard leaves PostgreSQL with nobody to look after it but the
// kernel: the agent comes back only when the fault is healed.
func killAgentAndGuard(_ context.Context, s *Stage) error {
	guard, err := guardOf(s.Primary)
	if err != nil {
		return err
	}
	agent, err := processOf(s.Primary, agent(s.Primary))
	if err != nil {
		return err
	}
	s.Target("killing agent and guard of", s.Primary.Name)
	s.startHost(s.Primary.Host)
	return strike(agent, guard)
}

// killPostmasterAndGuard leaves backends without a parent, one of them in a
// statement during which it does not notice (facts: a backend looks for its
// postmaster only where it waits for its client or a latch).
func killPostmasterAndGuard(ctx context.Context, s *Stage) error {
	guard, err := guardOf(s.Primary)
	if err != nil {
		return err
	}
	postmaster, err := s.Primary.Postmaster()
	if err != nil {
		return err
	}
	s.Target("killing postmaster and guard, with a statement running, of", s.Primary.Name)
	s.postmaster = postmaster.PID
	if err := s.Witness.LongStatement(ctx, s.Primary, s.pastLease()); err != nil {
		return err
	}
	return strike(postmaster, guard)
}

// otherFaults are those that fit nowhere else.
func otherFaults() []Fault {
	return []Fault{
		{
			Name: "host-loss", Inject: losePrimary, Hold: failover,
			Expect: Expect{Leader: MustChange, Writes: Failover, AsyncLoss: true},
		},
		{
			Name: "power-loss-and-return", Inject: losePrimary, Hold: briefly,
			Expect: Expect{Leader: MayChange, Writes: Outage, AsyncLoss: true},
		},
		{
			Name: "replica-loss", Inject: loseStandby, Hold: outage,
			Expect: Expect{Leader: Stays, Writes: Standby},
		},
		{
			Name: "pooler-loss", Inject: func(ctx context.Context, s *Stage) error {
				poolers := s.Lab.BouncerHosts()
				return s.powerOff(ctx, poolers[s.Rand.IntN(len(poolers))].Host)
			},
			Hold: outage, Expect: Expect{Leader: Stays, Writes: Handover},
		},
		{
			Name: "restart-everything", Inject: restartEverything, Hold: briefly,
			Expect: Expect{Leader: MayChange, Writes: Outage, AsyncLoss: true},
		},
		{
			Name: "cpu-saturation", Inject: saturate, Hold: outage,
			Expect: Expect{Leader: Stays, Writes: Outage},
		},
		{
			Name: "manual-switchover", Inject: switchover,
			Expect: Expect{Leader: MustChange, Writes: Handover},
		},
	}
}

// powerOff loses a host, silently, until the fault is healed.
func (s *Stage) powerOff(ctx context.Context, h *lab.Host) error {
	s.Target("cutting the power of", h.Name)
	s.startHost(h)
	return h.PowerOff(ctx)
}

func losePrimary(ctx context.Context, s *Stage) error { return s.powerOff(ctx, s.Primary.Host) }

// restartEverything cuts the power of every database and pooler host at once.
func restartEverything(ctx context.Context, s *Stage) error {
	s.Undo(s.Lab.Start)
	var off errgroup.Group
	for _, m := range s.Shard.Members() {
		s.Target("cutting the power of", m.Name)
		off.Go(func() error { return m.PowerOff(ctx) })
	}
	for _, b := range s.Lab.BouncerHosts() {
		s.Target("cutting the power of", b.Name)
		off.Go(func() error { return b.PowerOff(ctx) })
	}
	return off.Wait()
}

func switchover(ctx context.Context, s *Stage) error {
	s.Target("switching over from, to", s.Primary.Name, s.Standby.Name)
	if err := s.Shard.Switchover(ctx, s.Primary, s.Standby); err != nil {
		return err
	}
	_, err := s.Shard.AwaitLeader(ctx, s.Primary)
	return err
}
