package simulation

import (
	"testing"
	"time"
)

// TestQuietShard: without faults nothing changes hands.
func TestQuietShard(t *testing.T) {
	for _, mode := range []any{false, true, "quorum"} {
		s := Schedule{Seed: 1, Members: 3, Length: 2 * time.Minute, Rest: time.Minute, Config: map[string]any{"ttl": 8, "synchronous_mode": mode}}
		r := Run(s, Options{})
		if r.Violation != nil || r.Tally.Takeovers != 1 || r.Tally.Promotions != 0 || r.Tally.Commits < 300 {
			t.Errorf("synchronous_mode %v: %v, %+v", mode, r.Violation, r.Tally)
			replay(t, s, Options{})
		}
	}
}
