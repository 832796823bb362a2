package simulation

import "testing"

// TestUpgrade makes a shard's data those of another version, and something happens to the leader, or to another member,
// in each step of that: nobody leads with the old data once the new ones may have been written to, nothing that was
// acknowledged is lost, and the shard becomes whole, upgraded or as it was.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{
		"", KillAgent, StopAgent, StarveAgent, EndAgent, KillGuard, StopGuard, KillAgentAndGuard, HostLoss, SessionLoss, Isolate, SlowNetwork, CutFromMembers,
		ConsulHang, ConsulDown, ConsulLeaderLoss, ConsulError, HangDisk, FailPostgres, KillPostmaster, FreezeHost, LateWatch, Switchover, Reinit,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			upgraded, cell := 0, 0
			modes := []any{false, true, "quorum"}
			for _, at := range []float64{30, 30.5, 32, 33, 34, 35, 36, 37, 38, 40, 42, 45} {
				for _, member := range []int{a, b} {
					events := []Event{ev(30, Upgrade, a)}
					if kind != "" {
						events = append(events, during(at, 20, kind, member).with(map[Kind]int{ConsulError: 500, SlowNetwork: 1500}[kind]))
					}
					tried := modes[cell%len(modes):][:1]
					if *simSeeds > 0 { // all, and with other seeds: minutes
						tried = modes
					}
					cell++
					for _, mode := range tried {
						s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": mode}, events...)
						s.Operator = true // nobody else makes data anew that are of before an upgrade
						for seed := range max(1, min(3, *simSeeds)) {
							s.Seed = *simFirst + seed
							r := Run(s, Options{})
							if upgraded += r.Tally.Upgrades; r.Violation != nil || r.Tally.Commits == 0 {
								t.Errorf("%v, %+v", r.Violation, r.Tally)
								report(t, s, Options{})
								return
							}
						}
					}
				}
			}
			if upgraded == 0 {
				t.Error("no upgrade has come to its end")
			}
			t.Logf("%d upgrades have come to their end", upgraded)
		})
	}
}

// upgradedAlone is a shard whose leader was upgraded and is lost before another member has its data.
func upgradedAlone() Schedule {
	s := directed(3, map[string]any{"ttl": 8}, during(29, 70, CutFromMembers, a), ev(30, Upgrade, a), during(60, 40, HostLoss, a))
	s.Operator = true
	return s
}

func TestMutantAnnouncedUndone(t *testing.T) {
	killed(t, Mutant{AnnouncedUndone: true}, upgradedAlone(), "I1", "I2", "I4")
}

func TestMutantOldClusterLeads(t *testing.T) {
	killed(t, Mutant{OldClusterLeads: true}, upgradedAlone(), "I1", "I2")
}
