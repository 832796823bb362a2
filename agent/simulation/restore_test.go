package simulation

import "testing"

// TestRestore puts a shard back to an earlier moment, and something happens to the leader, or
// to another member, in each step of that: no member ever leads with what was discarded, and
// the shard becomes whole, restored or as it was.
func TestRestore(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{
		"", KillAgent, StopAgent, StarveAgent, EndAgent, KillGuard, StopGuard, KillAgentAndGuard, HostLoss, SessionLoss, Isolate, SlowNetwork, CutFromMembers,
		ConsulHang, ConsulDown, ConsulLeaderLoss, ConsulError, HangDisk, FailPostgres, FreezeHost, LateWatch, Switchover, Reinit,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			restored, cell := 0, 0
			modes := []any{false, true, "quorum"}
			for _, at := range []float64{30, 30.1, 30.3, 30.6, 31, 33, 36, 40, 45} {
				for _, member := range []int{a, b} {
					events := []Event{ev(30, Restore, a).with(200)}
					if kind != "" {
						events = append(events, during(at, 20, kind, member).with(map[Kind]int{ConsulError: 500, SlowNetwork: 1500}[kind]))
					}
					tried := modes[cell%len(modes):][:1]
					if *simSeeds > 0 { // all, and with other seeds: minutes
						tried = modes
					}
					cell++
					if few() && cell%3 != 0 && *simSeeds == 0 {
						continue
					}
					for _, mode := range tried {
						s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": mode}, events...)
						for seed := range max(1, min(3, *simSeeds)) {
							s.Seed = *simFirst + seed
							r := Run(s, Options{})
							if restored += r.Tally.Restores; r.Violation != nil || r.Tally.Commits == 0 {
								t.Errorf("%v, %+v", r.Violation, r.Tally)
								report(t, s, Options{})
								return
							}
						}
					}
				}
			}
			if restored == 0 {
				t.Error("no restore has come to its end")
			}
			t.Logf("%d restores have come to their end", restored)
		})
	}
}

// The restored primary is lost before another member has its WAL.
func TestMutantDiscardedLeads(t *testing.T) {
	s := directed(3, map[string]any{"ttl": 8}, during(29, 90, CutFromMembers, a), ev(30, Restore, a).with(200), during(55, 40, HostLoss, a))
	killed(t, Mutant{DiscardedLeads: true}, s, "I2")
}
