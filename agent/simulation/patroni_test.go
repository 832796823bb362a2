package simulation

import (
	"slices"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

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

// A Patroni leader that could not reach Consul goes on as a replica of nobody, and takes the free
// lock afterwards; the key history names the timelines that it has left.
func TestPatroniLeadsAgain(t *testing.T) {
	t.Parallel()
	s := directed(3, alone(8), ev(30, SessionLoss, a), during(50, 200, HostLoss, a), during(60, 40, ConsulDown, a))
	s.Patroni, s.NoFailover, s.Calm = []int{b}, []int{c}, true
	led := 0
	for seed := uint64(1); seed <= 30; seed++ {
		s.Seed = seed
		w := newWorld(s, Options{})
		for _, e := range s.Events {
			w.at(e.At, func() { w.inject(e) })
		}
		w.run(sec(55))
		if w.hosts[b].pg.at.branch == w.root {
			continue // a has taken its lock again before Patroni could
		}
		w.run(sec(95))
		if pg := w.hosts[b].pg; !pg.running || pg.primary {
			t.Fatalf("seed %d: while Consul is away it is no replica", seed)
		}
		w.run(sec(120))
		at := w.hosts[b].pg.at
		told, _ := w.consul.keys[keyHistory].value.(cluster.History)
		if !w.hosts[b].pg.writable || !slices.Equal(told, at.history()) {
			t.Fatalf("seed %d: it accepts commits: %t; the key history: %v, PostgreSQL's: %v", seed, w.hosts[b].pg.writable, told, at.history())
		}
		led++
	}
	if led == 0 {
		t.Fatal("Patroni took the lock in none of 30 runs")
	}
}
