package simulation

import "testing"

// c is cut off for longer than its slot keeps WAL. Nobody clones it anew but its own agent, where
// the policy says so; also when that is killed in the middle, when Consul is away, or another has
// its turn first.
func TestRebuiltByPolicy(t *testing.T) {
	lost := func(rebuild string, members int, more ...Event) Schedule {
		s := directed(members, map[string]any{"ttl": 8, "rebuild": rebuild}, append([]Event{during(30, 60, CutBoth, a).to(c)}, more...)...)
		s.Keeps, s.SlotKeeps = 100<<10, 200<<10
		return s
	}
	for name, s := range map[string]Schedule{
		"agent killed":   lost("auto", 3, during(100, 0.5, KillAgent, c), during(102, 0.5, KillAgent, c)),
		"Consul is away": lost("auto", 3, during(92, 20, ConsulDown, a)),
		"two of them":    lost("auto", 4, during(30, 60, CutBoth, a).to(d), during(101, 0.5, KillAgent, c)),
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
