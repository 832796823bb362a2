package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A member that was started anew tells of less WAL than it has until it has replayed it:
// it is waited for, and not for ever.
func TestMemberThatReplays(t *testing.T) {
	expired := leads("b", ttl+ttl/40+time.Second)
	long := leads("b", 2*ttl+ttl/40+time.Second)
	c := replaying(peer("c", 1, 10))
	nofailover := c
	nofailover.Tags = map[string]any{"nofailover": true}
	key := func(v *View) {
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"a", "c"}), ModifyIndex: 47}
	}
	lags := func(v *View) { v.Postgres.LSN, v.Postgres.Replaying, v.Cluster.Status.Value.OpTime = 10, true, 4<<20 }
	chosen := func(name string) func(*View) { return request(cluster.Failover{Candidate: name}) }
	runSituations(t, []situationTest{
		{"waited for", view(expired, asked(c)), "", "c still replays the WAL that it has, and may be ahead"},
		{"however far it seems to lag", view(expired, asked(c), func(v *View) { v.Cluster.Status.Value.OpTime = 4 << 20; v.Postgres.LSN = 4 << 20 }), "", "c still replays"},
		{"not for more than a ttl", view(long, asked(c)), "take over (status at 45)", "best"},
		{"not where it may not lead", view(expired, asked(nofailover)), "take over (status at 45)", "best"},
		{"not where this member has all that was acknowledged", view(expired, key, asked(c)), "take over (status at 45)", "best"},
		{"not where the operator has chosen this member", view(expired, chosen("a"), asked(c)), "take over (status at 45)", "best"},
		{"this member lags by what it has replayed", view(expired, lags, asked()), "", "it is still replaying"},
	})
	v := view(holdsLease(7*time.Second), asked(c))
	if v.electable(c) == "" {
		t.Error("a lease would be given to a member whose position is not known")
	}
}
