package simulation

import (
	"testing"
	"time"
)

// lostWAL is a schedule in which c is cut off from the leader for longer than WAL is kept for it.
func lostWAL(rebuild string, members int, more ...Event) Schedule {
	s := directed(members, map[string]any{"ttl": 8, "rebuild": rebuild}, append([]Event{during(30, 60, CutBoth, a).to(c)}, more...)...)
	s.Keeps, s.SlotKeeps = 100<<10, 200<<10
	return s
}

func synchronous(s Schedule) Schedule {
	s.Config["synchronous_mode"] = true
	return s
}

// c and d have lost their WAL; c is cut off again while d has its turn.
func TestMutantRebuildUnanswered(t *testing.T) {
	s := synchronous(lostWAL("auto", 4, during(30, 60, CutBoth, a).to(d), during(103, 50, CutBoth, a).to(c)))
	s.Length = 3 * time.Minute
	killed(t, Mutant{RebuildUnanswered: true}, s, "I7")
}

// c is cut off for longer than its slot keeps WAL. Nobody clones it anew but its own agent, where
// the policy says so; also when that is killed in the middle, when Consul is away, or another has
// its turn first.
func TestRebuiltByPolicy(t *testing.T) {
	lost := lostWAL
	for name, s := range map[string]Schedule{
		"agent killed":   lost("auto", 3, during(100, 0.5, KillAgent, c), during(102, 0.5, KillAgent, c)),
		"Consul is away": lost("auto", 3, during(92, 20, ConsulDown, a)),
		"two of them":    lost("auto", 4, during(30, 60, CutBoth, a).to(d), during(101, 0.5, KillAgent, c)),
		"session lost":   lost("auto", 4, during(30, 60, CutBoth, a).to(d), ev(101, SessionLoss, c), ev(102, SessionLoss, d), ev(104, SessionLoss, c)),
		"synchronous":    synchronous(lost("auto", 3, ev(100, Switchover, b))),
		"leader lost":    synchronous(lost("auto", 3, during(101, 15, HostLoss, a))),
	} {
		t.Run(name, func(t *testing.T) { survived(t, s) })
	}
	t.Run("ask", func(t *testing.T) {
		t.Parallel()
		s := lost("ask", 3)
		for seed := uint64(1); seed <= 10; seed++ {
			s.Seed = seed
			if v := Run(s, Options{}).Violation; v != nil && v.Invariant == "I4" {
				return
			}
		}
		t.Error("nothing is lost: this tests nothing")
	})
}

// An operator asks for a member anew whose host stands still: it hears of the primary as soon as the
// host goes on, and of nothing before (seed 21000188: the judge was wrong).
func TestFoundAnewAfterStandingStill(t *testing.T) {
	s := directed(4, map[string]any{"ttl": 30, "synchronous_mode": "quorum", "failsafe_mode": true},
		during(34, 50, PauseVM, d), ev(60, Reinit, d), ev(64, KillPostmaster, d))
	survived(t, s)
}
