package simulation

import (
	"strings"
	"testing"
	"time"
)

// TestPromotionThatFails: a member that takes the lock and cannot be promoted gives it
// to one that can, also in synchronous mode: what its promotions took from the key sync
// it gives back.
func TestPromotionThatFails(t *testing.T) {
	t.Parallel()
	s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": true, "synchronous_node_count": 2},
		during(29, 600, FailPostgres, b), during(29, 600, FailPostgres, b), during(30, 600, HostLoss, a))
	served := func(m Mutant) (n int) {
		for seed := uint64(1); seed <= 30; seed++ {
			s.Seed = seed
			found := 0
			r := Run(s, Options{Mutant: m, Trace: func(at time.Duration, line string) {
				if at > 31*time.Second && at < s.Length && strings.Contains(line, ": accepts commits") {
					found = 1
				}
			}})
			if r.Violation != nil {
				report(t, s, Options{Mutant: m})
			}
			n += found
		}
		return n
	}
	if n := served(Mutant{}); n < 30 {
		t.Errorf("a member was promoted in %d of 30 runs", n)
	}
	if n := served(Mutant{PromiseKept: true}); n == 30 {
		t.Error("the rule can be left out without any of 30 runs noticing")
	}
}
