package simulation

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// byStandbys is a shard whose standbys may stand in for the lease.
func byStandbys(mode any, ttl int) map[string]any {
	return map[string]any{"ttl": ttl, "synchronous_mode": mode, "takeover": "quorum"}
}

// modes are both synchronous modes, by name.
func modes() map[string]any { return map[string]any{"on": true, "quorum": "quorum"} }

// A host that is lost costs seconds, not the lease.
func TestTakeoverByQuorum(t *testing.T) {
	for name, mode := range modes() {
		for _, members := range []int{3, 5} {
			t.Run(fmt.Sprint(name, members), func(t *testing.T) {
				t.Parallel()
				for seed := uint64(1); seed <= *simTimings; seed++ {
					s := directed(members, byStandbys(mode, 30), during(60, 50, HostLoss, a))
					s.Seed, s.Calm = seed, true
					var took time.Duration
					r := Run(s, Options{Trace: func(at time.Duration, line string) {
						if took == 0 && at > sec(60) && strings.Contains(line, "accepts commits") {
							took = at - sec(60)
						}
					}})
					if r.Violation != nil {
						report(t, s, Options{})
						return
					}
					if r.Tally.ByQuorum != 1 || took > sec(6) {
						t.Errorf("seed %d: %d takeovers by quorum; commits are accepted again after %s", seed, r.Tally.ByQuorum, took)
					}
				}
			})
		}
	}
}

func TestTellTakeover(t *testing.T) {
	s := directed(3, byStandbys(true, 30), during(60, 50, HostLoss, a))
	s.Seed, s.Calm = max(*simSeed, 1), true
	tell(t, s, Options{})
}
