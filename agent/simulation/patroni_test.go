package simulation

import "testing"

// TestMutantPatroniIgnored: a leader's session is lost, and a member that runs Patroni takes the
// lock at once. Nothing forbids it to accept commits; the leader ceases to as soon as it hears
// of it, long before its lease is over.
func TestMutantPatroniIgnored(t *testing.T) {
	t.Parallel()
	const lost = 40
	s := directed(3, map[string]any{"ttl": 30, "failsafe_mode": false}, ev(lost, SessionLoss, a))
	s.Patroni, s.Calm = []int{b, c}, true
	writes := func(m Mutant) (n int) {
		for seed := uint64(1); seed <= 30; seed++ {
			s.Seed = seed
			w := newWorld(s, Options{Mutant: m})
			for _, e := range s.Events {
				w.at(e.At, func() { w.inject(e) })
			}
			w.run(sec(lost + 6))
			if w.judge.violation != nil {
				t.Fatal(seed, w.judge.violation)
			}
			if holder := w.consul.leaderNamed(); holder != "a" && w.hosts[a].pg.writable {
				n++
			}
		}
		return n
	}
	if n := writes(Mutant{}); n > 0 {
		t.Errorf("it accepted commits 6 s later in %d of 30 runs", n)
	}
	n := writes(Mutant{PatroniIgnored: true})
	if n == 0 {
		t.Error("the rule can be left out without any of 30 runs noticing")
	}
	t.Logf("noticed in %d of 30 runs", n)
}

// Leaders change between Patroni and Lictor, whatever each knows of the other.
func TestPatroniInTheShard(t *testing.T) {
	s := directed(4, alone(8), ev(30, SessionLoss, a), during(50, 30, HostLoss, c), during(60, 20, HostLoss, d), during(90, 20, CutBoth, a).to(4), ev(100, KillPostmaster, b))
	s.Patroni = []int{c, d}
	survived(t, s)
}
