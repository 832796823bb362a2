package simulation

import "testing"

// TestMutantNotDeposed: a virtual machine goes on with a lease that is over by everybody
// else's clock, and does not reach Consul. The one who has taken its lock tells it.
func TestMutantNotDeposed(t *testing.T) {
	t.Parallel()
	const thaw = 48
	s := directed(3, alone(8), during(30, thaw-30, PauseVM, a), during(29, 60, CutBoth, a).to(3))
	writes := func(m Mutant) (n int) {
		for seed := uint64(1); seed <= 30; seed++ {
			s.Seed = seed
			w := newWorld(s, Options{Mutant: m})
			for _, e := range s.Events {
				w.at(e.At, func() { w.inject(e) })
			}
			w.run(sec(thaw + 2.5))
			if w.judge.violation != nil {
				t.Fatal(seed, w.judge.violation)
			}
			if w.judge.tally.Promotions == 1 && w.hosts[a].pg.writable {
				n++
			}
		}
		return n
	}
	if n := writes(Mutant{}); n > 0 {
		t.Errorf("it accepted commits 2.5 s later in %d of 30 runs", n)
	}
	n := writes(Mutant{NotDeposed: true})
	if n == 0 {
		t.Error("the rule can be left out without any of 30 runs noticing")
	}
	t.Logf("noticed in %d of 30 runs", n)
}
