package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func restoring(p Peer) Peer {
	p.Restoring = true
	return p
}

// A member that is named in the key sync, and whose data were replaced, has not what
// the key says of it until it has got everything again.
func TestMemberWhoseDataWereReplaced(t *testing.T) {
	expired := leads("b", ttl+ttl/40+time.Second)
	key := func(v *View) {
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"a", "c"}), ModifyIndex: 47}
	}
	here := func(v *View) { v.Postgres.Restoring = true }
	c := restoring(peer("c", 1, 9000))
	forced := request(cluster.Failover{Candidate: "a"})
	ours := func(v *View) { down(v); primary(v); v.Postgres.Restoring = true }
	runSituations(t, []situationTest{
		{"does not lead", view(expired, key, here, asked()), "", "its data were removed, rewound or cloned"},
		{"is not waited for", view(expired, key, asked(c)), "take over (status at 45)", "best"},
		{"does not count for a quorum", view(expired, quorumOfB, askedToDetach(45, restoring(peer("c", 1, 4000)))), "", "c: its data were removed"},
		{"leads where nothing was promised", view(expired, here, asked()), "take over (status at 45)", "best"},
		{"leads where the operator says so", view(expired, key, here, forced, asked()), "take over (status at 45)", "best"},
		{"the last leader, down, does not start them as a primary", view(leads("a", time.Minute), lockGone, ours, asked()), "start as replica of nobody", ""},
		{"the last leader, down, whose data are its own", view(leads("a", time.Minute), lockGone, down, primary, asked()), "take over (status at 45)", "our own lock"},
	})
	v := view(holdsLease(7*time.Second), syncKey("a", "c"), asked(c))
	if v.electable(c) == "" {
		t.Error("a lease would be given to a member whose data were replaced")
	}
}

func TestGoal(t *testing.T) {
	at := func(timeline int, lsn int64) Postgres {
		return Postgres{Running: true, Accepting: true, Timeline: timeline, LSN: lsn}
	}
	replays := at(1, 1000)
	replays.Replaying = true
	starts := at(1, 1000)
	starts.Accepting = false
	for _, tt := range []struct {
		name    string
		goal    Goal
		pg      Postgres
		reached bool
	}{
		{"there", Goal{1, 1000}, at(1, 1000), true},
		{"not yet", Goal{1, 1000}, at(1, 999), false},
		{"on a later timeline", Goal{1, 1000}, at(2, 1000), true},
		{"on a later timeline, before it", Goal{1, 1000}, at(2, 999), false},
		{"on an earlier timeline", Goal{2, 1000}, at(1, 2000), false},
		{"not known", Goal{}, at(1, 1000), false},
		{"replays", Goal{1, 1000}, replays, false},
		{"does not answer", Goal{1, 1000}, starts, false},
	} {
		if got := tt.goal.Reached(tt.pg); got != tt.reached {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if !(Goal{}).Outdated(1) || !(Goal{1, 1000}).Outdated(2) || (Goal{1, 1000}).Outdated(1) {
		t.Error("when the leader is asked")
	}
}
