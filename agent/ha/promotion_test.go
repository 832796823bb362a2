package ha

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

var errBad = errors.New("bad")

// A promotion that failed when it had replaced the key sync gives the promise of before
// back: else nobody could lead when this member dies.
func TestFailedPromotionGivesTheKeyBack(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	replica := func(v *View) { v.Postgres.Primary = false }
	stopped := func(v *View) { replica(v); down(v) }
	old := cluster.NewSync("b", []string{"a", "c"})
	before := func(v *View) { v.SyncBefore = &cluster.Entry[cluster.Sync]{Value: old, ModifyIndex: 40} }
	absent := func(v *View) { v.SyncBefore = &cluster.Entry[cluster.Sync]{} }
	writing := func(v *View) { v.SyncWriting = true }
	uncertain := func(v *View) { v.SyncUncertain = true }
	leaving := func(v *View) { v.Stopping = true }
	runSituations(t, []situationTest{
		{"it runs", view(lease, replica, before, syncKey("a")), "sync key: b with [a c]", "promotion has failed"},
		{"it is down", view(lease, stopped, before, syncKey("a")), "sync key: b with [a c]", "promotion has failed"},
		{"there was no key", view(lease, replica, absent, syncKey("a")), "delete the sync key", "promotion has failed"},
		{"being written", view(lease, replica, before, syncKey("a"), writing), "", "being written"},
		{"the replacement may still land", view(lease, replica, before, uncertain, syncKey("b", "a", "c")), "sync key: b with [a c]", "promotion has failed"},
		{"given back", view(lease, replica, syncKey("b", "a", "c")), "promote", ""},
		{"promoted after all", view(lease, before, syncKey("a"), func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }), "", ""},
		{"the key is another's", view(lease, replica, before, syncKey("c", "b")), "promote", ""},
		{"the agent is to stop", view(lease, replica, before, syncKey("a"), leaving), "sync key: b with [a c]", "promotion has failed"},
		{"no promotion while the key is written", view(lease, replica, syncKey("a"), writing), "", "being written"},
	})
}

// The window of a promotion: its key names only the one that promotes. If that is lost for
// ever nobody knows whether it acknowledged a commit, so nobody leads by himself; an
// operator may choose (docs/runbooks/no-leader.md).
func TestLeaderLostInItsPromotion(t *testing.T) {
	lost := []func(*View){leads("c", 2*ttl), lockGone, syncKey("c"), asked(peer("b", 1, 5000))}
	forced := append(slices.Clone(lost), request(cluster.Failover{Candidate: "a"}))
	runSituations(t, []situationTest{
		{"nobody leads", view(lost...), "", "is not a synchronous standby of c"},
		{"the operator's choice leads", view(forced...), "take over (status at 45)", ""},
	})
}

// Whoever fails again and again gives the lease up to one that the old promise names.
func TestGivesUpWhenThePromotionFails(t *testing.T) {
	v := view(holdsLease(7*time.Second), asked(peer("c", 1, 5000)), syncKey("b", "a", "c"), func(v *View) {
		v.Postgres.Primary, v.Attempt = false, Attempt{Kind: TaskPromote, Failures: crashLoop}
	})
	runSituations(t, []situationTest{{"to c", v, "give the lease up to c", "promotion fails"}})
}

// A primary starts with a setting that fits the key sync, or not at all.
func TestPrimaryStartsAsTheKeySays(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	mode := func(mode cluster.SyncMode) func(*View) { return func(v *View) { v.Config.SynchronousMode = mode } }
	strict := func(v *View) { v.Config.SynchronousStrict = true }
	out := func(v *View) { v.Lease.Renewed = now.Add(-ttl) }
	const keep = "[start as primary] as before"
	for _, tt := range []struct {
		name string
		view View
		want string
	}{
		{"asynchronous", view(lease, down), keep},
		{"one standby", view(lease, down, mode(cluster.SyncOn), syncKey("a", "b")), "[start as primary] commits wait for [b]"},
		{"none", view(lease, down, mode(cluster.SyncOn), syncKey("a")), "[start as primary] commits wait for []"},
		{"none, strict", view(lease, down, mode(cluster.SyncOn), strict, syncKey("a")), "[start as primary] commits wait for [*]"},
		{"none, strict quorum", view(lease, down, mode(cluster.SyncQuorum), strict, syncKey("a")), "[start as primary] commits wait for any 1 of [*]"},
		{"quorum", view(lease, down, mode(cluster.SyncQuorum), quorumKey("a", 1, "b", "c")), "[start as primary] commits wait for any 1 of [b c]"},
		{"quorum key, mode on", view(lease, down, mode(cluster.SyncOn), quorumKey("a", 1, "b", "c")), "[start as primary] commits wait for any 1 of [b c]"},
		{"mode off, the key is there still", view(lease, down, syncKey("a", "b")), "[start as primary] commits wait for [b]"},
		{"the key is another's", view(lease, down, mode(cluster.SyncOn), syncKey("b", "c")), "[sync key: a with []]"},
		{"no key", view(lease, down, mode(cluster.SyncOn)), "[sync key: a with []]"},
		{"not understood", view(lease, down, mode(cluster.SyncOn), func(v *View) {
			v.Cluster.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 4, Err: errBad}
		}), "[sync key: a with []]"},
		{"being written", view(lease, down, mode(cluster.SyncOn), syncKey("a", "b"), func(v *View) { v.SyncWriting = true }), "[]"},
		{"a write may still land", view(lease, down, mode(cluster.SyncOn), syncKey("a", "b"), func(v *View) { v.SyncUncertain = true }), "[sync key: a with [b]]"},
		{"Consul is silent", view(lease, down, out, mode(cluster.SyncOn), syncKey("a", "b")), keep},
	} {
		d := duty(tt.view)
		got := fmt.Sprint(d.Actions)
		if start, ok := findAction[StartPrimary](d); ok {
			got += " as before"
			if start.Sync != nil {
				got = fmt.Sprintf("%v %v", d.Actions, *start.Sync)
			}
		}
		if got != tt.want {
			t.Errorf("%s: %s (%s), want %s", tt.name, got, d.Reason, tt.want)
		}
	}
}

// A replica whose own promotion came to nothing is on a timeline that its leader does
// not have: it would follow for ever and receive nothing.
func TestReplicaOnATimelineOfItsOwn(t *testing.T) {
	on := func(leader, own int, streaming bool) func(*View) {
		return func(v *View) {
			v.Postgres.Timeline, v.Postgres.Streaming = own, streaming
			for i := range v.Cluster.Members {
				v.Cluster.Members[i].Value.Timeline = leader
			}
		}
	}
	runSituations(t, []situationTest{
		{"receives nothing", view(leads("b", 0), on(4, 5, false)), "rejoin as replica of b", "is another's"},
		{"streams: the leader's key is late", view(leads("b", 0), on(4, 5, true)), "", "following b"},
		{"the leader's timeline is not known", view(leads("b", 0), on(0, 5, false)), "", "following b"},
		{"on the same", view(leads("b", 0), on(5, 5, false)), "", "following b"},
	})
}
