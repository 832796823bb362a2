package simulation

import "testing"

// A member that gets WAL from the archive alone is now behind and now not; leaders change
// beside it, and it may become one. It never acknowledges a commit, is never waited for
// and, when all is over, follows the leader by the archive.
func TestNoStream(t *testing.T) {
	for name, config := range map[string]map[string]any{
		"asynchronous": {"ttl": 8},
		"synchronous":  {"ttl": 8, "synchronous_mode": true},
		"quorum":       {"ttl": 8, "synchronous_mode": "quorum"},
	} {
		s := directed(4, config, ev(20, Switchover, b), during(40, 15, HostLoss, b), during(60, 8, HostLoss, c),
			ev(75, Reinit, c), during(85, 10, Isolate, a), ev(96, LoseData, c), during(105, 10, KillPostmaster, c))
		s.NoStream = []int{c}
		t.Run(name, func(t *testing.T) { survived(t, s) })
	}
}

// The others are lost: only the member is left that does not stream.
func TestNoStreamIsLeft(t *testing.T) {
	s := directed(3, alone(8), during(40, 60, HostLoss, a), during(40, 60, HostLoss, b))
	s.NoStream = []int{c}
	survived(t, s)
}
