package simulation

import "testing"

// TestBootstrap is I4 for a shard that nobody has made yet: whatever happens to whom while
// it is made, it is made once, and becomes whole.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{
		KillAgent, StopAgent, EndAgent, KillAgentAndGuard, HostLoss, SessionLoss, Isolate, SlowNetwork, ConsulHang, ConsulDown, ConsulLeaderLoss,
		HangDisk, HangWork, DiskFull, FailPostgres, ConsulError, FreezeHost, LateWatch,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			for _, at := range []float64{0.3, 1, 2, 3, 4, 5} {
				var events []Event
				for _, member := range []int{a, b, c} {
					e := during(at, 20, kind, member).with(map[Kind]int{ConsulError: 500, SlowNetwork: 1500}[kind])
					events = append(events, e)
					if kind == KillAgent || kind == SessionLoss { // again and again
						e.At, e.For = e.At+sec(2), sec(0.1)
						events[len(events)-1].For = sec(0.1)
						events = append(events, e)
					}
				}
				s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": true}, events...)
				s.Fresh, s.Length = true, sec(30)
				for seed := uint64(1); seed <= 4; seed++ {
					s.Seed = seed
					if r := Run(s, Options{}); r.Violation != nil || r.Tally.Commits == 0 {
						t.Errorf("%v, %+v", r.Violation, r.Tally)
						report(t, s, Options{})
						return
					}
				}
			}
		})
	}
}
