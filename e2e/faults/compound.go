package faults

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// compounds are faults that come one upon another, or again and again.
func compounds() []Fault {
	nothing := Expect{Leader: Stays, Writes: Nothing}
	return []Fault{
		{Name: "agent-crash-loop", Inject: agentCrashLoop, Expect: nothing},
		{Name: "upgrade-agent", Inject: upgradeAgent, Hold: briefly, Expect: nothing},
		{Name: "consul-down-then-kill-agent", Inject: withoutConsul(killAgent), Hold: pastLease, Expect: nothing},
		{
			// Nobody may lead: the primary cannot ask the others, and they cannot
			// take the lock.
			Name: "consul-down-then-partition-primary", Inject: withoutConsul(isolate(primary)), Hold: pastLease,
			Expect: Expect{Leader: MayChange, Writes: Outage, AsyncLoss: true},
		},
		{
			Name: "consul-down-then-host-loss", Inject: withoutConsul(losePrimary), Hold: consulReturns,
			Expect: Expect{Leader: MustChange, Writes: Outage, AsyncLoss: true},
		},
		{
			// The leader needs the word of every member: without one it gives up.
			Name: "consul-down-then-replica-loss", Inject: withoutConsul(loseStandby), Hold: pastLease,
			Expect: Expect{Leader: MayChange, Writes: Outage, AsyncLoss: true},
		},
		{
			Name: "consul-down-then-switchover", Inject: withoutConsul(refusedSwitchover), Hold: briefly,
			Expect: nothing,
		},
		{
			Name: "cascading-loss", Inject: cascade, Hold: pastLease,
			Expect: Expect{Leader: MustChange, Writes: Outage, AsyncLoss: true},
		},
		{
			// It was a synchronous standby once, and is back just as another is
			// needed: it must not be the one.
			Name: "stale-standby", Inject: staleStandby, Hold: failover,
			Expect: Expect{Leader: MustChange, Writes: Outage, AsyncLoss: true},
		},
		{
			Name: "partition-flapping", Inject: flap,
			Expect: Expect{Leader: MayChange, Writes: Outage, AsyncLoss: true},
		},
		{
			Name: "switchover-agent-killed", Inject: switchoverDisturbed,
			Expect: Expect{Leader: MayChange, Writes: Failover},
		},
		{
			// All processes stand still and go on later, as on a virtual machine
			// that was paused: without a watchdog, what was under way may be
			// committed after another member has taken over.
			Name: "freeze-host", Inject: freezeHost, Hold: failover,
			Expect: Expect{Leader: MustChange, Writes: Failover, AsyncLoss: true, Frozen: true},
		},
	}
}

// withoutConsul runs a fault when Consul has been gone for longer than a lease.
func withoutConsul(then func(context.Context, *Stage) error) func(context.Context, *Stage) error {
	return func(ctx context.Context, s *Stage) error {
		if err := consulKilled(ctx, s); err != nil {
			return err
		}
		if err := pause(ctx, s.Timing.TTL+s.Timing.TTL/4); err != nil {
			return err
		}
		return then(ctx, s)
	}
}

// consulReturns starts Consul again on the hosts that are there, and waits for
// another leader.
func consulReturns(ctx context.Context, s *Stage) error {
	if err := briefly(ctx, s); err != nil {
		return err
	}
	s.say("starting Consul again where there is power")
	for _, server := range s.Lab.ConsulServers() {
		if server.Host == s.Primary.Host {
			continue
		}
		if err := server.Consul().Start(); err != nil {
			return err
		}
	}
	if err := s.Lab.AwaitConsul(ctx); err != nil {
		return err
	}
	return failover(ctx, s)
}

func loseStandby(ctx context.Context, s *Stage) error { return s.powerOff(ctx, s.Standby.Host) }

// cascade loses the primary, and then, a moment after its promotion, the host of
// the one that took over, while the first is back: of the two that are there, one
// has not seen what was acknowledged last.
func cascade(ctx context.Context, s *Stage) error {
	if err := s.loseMember(s.Primary); err != nil {
		return err
	}
	next, err := s.Shard.AwaitLeader(ctx, s.Primary)
	if err != nil {
		return err
	}
	s.say(next.Name + " leads")
	if err := pause(ctx, time.Duration(s.Rand.Int64N(int64(5*time.Second)))); err != nil {
		return err
	}
	if err := s.powerOff(ctx, next.Host); err != nil {
		return err
	}
	s.say("starting " + s.Primary.Name)
	return s.Primary.Start(ctx)
}

// loseMember ends agent, guard and PostgreSQL of a member until the fault is
// healed. Its Consul server stays: Consul removes one that is lost (autopilot), and
// would have no majority once another is lost, too.
func (s *Stage) loseMember(m *lab.Member) error {
	guard, err := guardOf(m)
	if err != nil {
		return err
	}
	postmaster, err := m.Postmaster()
	if err != nil {
		return err
	}
	agent, err := processOf(m, agent(m))
	if err != nil {
		return err
	}
	s.Target("killing agent, guard and postmaster of", m.Name)
	s.startHost(m.Host)
	return strike(agent, guard, postmaster)
}

func staleStandby(ctx context.Context, s *Stage) error {
	if err := s.loseMember(s.Standby); err != nil {
		return err
	}
	if err := pastLease(ctx, s); err != nil {
		return err
	}
	s.say("starting " + s.Standby.Name)
	if err := s.Standby.Start(ctx); err != nil {
		return err
	}
	return losePrimary(ctx, s)
}

// refusedSwitchover asks for what cannot be had without Consul.
func refusedSwitchover(ctx context.Context, s *Stage) error {
	s.Target("asking for a switchover from", s.Primary.Name)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := s.Shard.Switchover(ctx, s.Primary, s.Standby); err == nil {
		return errors.New("a switchover is said to have succeeded without Consul")
	}
	return nil
}

// agentCrashLoop kills the agent again as soon as it is back.
func agentCrashLoop(ctx context.Context, s *Stage) error {
	s.startHost(s.Primary.Host)
	for range 6 {
		if err := killAgent(ctx, s); err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(s.Rand.Int64N(int64(time.Second)))); err != nil {
			return err
		}
	}
	return nil
}

// upgradeAgent lets the agent replace itself by the binary that is installed.
func upgradeAgent(_ context.Context, s *Stage) error {
	s.Target("upgrading in place (SIGUSR2) the agent of", s.Primary.Name)
	return agent(s.Primary).Signal(syscall.SIGUSR2)
}

// flap cuts the primary off and lets it back, for anything up to a lease each.
func flap(ctx context.Context, s *Stage) error {
	s.Target("cutting off, again and again,", s.Primary.Name)
	s.Undo(s.Primary.Heal)
	for range 6 {
		if err := s.Primary.Isolate(ctx); err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(s.Rand.Int64N(int64(s.Timing.TTL)))); err != nil {
			return err
		}
		if err := s.Primary.Heal(ctx); err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(s.Rand.Int64N(int64(s.Timing.TTL/2)))); err != nil {
			return err
		}
	}
	return nil
}

// switchoverDisturbed kills, at some moment of a switchover, the agent of one of
// the two members, which is started again at once.
func switchoverDisturbed(ctx context.Context, s *Stage) error {
	victim := []*lab.Member{s.Primary, s.Standby}[s.Rand.IntN(2)]
	delay := time.Duration(s.Rand.Int64N(int64(1500 * time.Millisecond)))
	s.Target(fmt.Sprintf("switching over, and killing the agent of %s after %v, from, to", victim.Name, delay), s.Primary.Name, s.Standby.Name)
	s.startHost(victim.Host)
	var work errgroup.Group
	work.Go(func() error {
		asked, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		// Whether it is carried out, and who is still there to say so, is open.
		if err := s.Shard.Switchover(asked, s.Primary, s.Standby); err != nil {
			s.say("the switchover's answer: " + err.Error())
		}
		return nil
	})
	work.Go(func() error {
		if err := pause(ctx, delay); err != nil {
			return err
		}
		if err := agent(victim).Kill(ctx); err != nil {
			return err
		}
		return victim.Start(ctx)
	})
	return work.Wait()
}

func freezeHost(ctx context.Context, s *Stage) error {
	s.Target("freezing every process of", s.Primary.Name)
	s.Undo(s.Primary.Thaw)
	return s.Primary.Freeze(ctx)
}
