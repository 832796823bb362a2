package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// initialized makes the key initialize name a cluster; empty: there is no key.
func initialized(id string) func(*View) {
	return func(v *View) {
		v.Cluster.Initialize = cluster.Entry[string]{}
		if id != "" {
			v.Cluster.Initialize = cluster.Entry[string]{Value: id, ModifyIndex: 60}
		}
	}
}

// routed makes the route that of a cluster which succeeds others.
func routed(id string, succeeds ...string) func(*View) {
	return func(v *View) {
		v.Cluster.Route = cluster.Entry[cluster.Route]{ModifyIndex: 61, Value: cluster.Route{SystemIdentifier: id, Succeeds: succeeds, Timeline: 1}}
	}
}

// ofCluster is a peer whose data have that system identifier.
func ofCluster(p Peer, id string) Peer {
	p.SystemIdentifier = id
	return p
}

func TestOtherCluster(t *testing.T) {
	for _, tt := range []struct {
		name string
		view View
		id   string
		ok   bool
	}{
		{"the shard's", view(), "77", true},
		{"not known", view(routed("88", "77")), "", true},
		{"another shard's", view(), "88", false},
		{"no key, no route", view(initialized("")), "77", true},
		{"from before an upgrade", view(initialized("88"), routed("88", "77")), "77", false},
		{"after it", view(initialized("88"), routed("88", "77")), "88", true},
		{"the key is from before it", view(routed("88", "77")), "77", false},
		{"the key is gone", view(initialized(""), routed("88", "77")), "77", false},
		{"two upgrades ago", view(routed("99", "88", "77")), "77", false},
		{"a route of another cluster that announces nothing", view(routed("88")), "77", true},
		{"a route that is not understood", view(routed("88", "77"), func(v *View) { v.Cluster.Route.Err = cluster.ErrConflict }), "77", true},
	} {
		if why := tt.view.otherCluster(tt.id); (why == "") != tt.ok {
			t.Errorf("%s: %q", tt.name, why)
		}
	}
}

// Who has data of another cluster neither leads nor counts, however far ahead it is.
func TestDataOfAnotherCluster(t *testing.T) {
	expired := leads("b", ttl+ttl/40+time.Second)
	forced := request(cluster.Failover{Candidate: "a"})
	upgraded := func(v *View) { initialized("88")(v); routed("88", "77")(v) }
	far := peer("c", 9, 900000)
	key := quorumKey("x", 1, "a", "b", "c")
	runSituations(t, []situationTest{
		{"a replica from before an upgrade does not lead", view(expired, upgraded, asked()), "", "its system identifier is 77"},
		{"not even where the operator says so", view(expired, upgraded, forced, asked()), "", "its system identifier is 77"},
		{"nor where the key is from before it", view(expired, routed("88", "77"), asked()), "", "from before a major upgrade"},
		{"nor when PostgreSQL is down", view(expired, routed("88", "77"), down, asked()), "", "from before a major upgrade"},
		{"nor as what led last", view(leads("a", ttl+ttl/40+time.Second), routed("88", "77"), down, primary, asked()), "", "from before a major upgrade"},
		{"it follows nobody", view(leads("b", time.Second), routed("88", "77"), func(v *View) { v.Postgres.Upstream = "c" }), "", "from before a major upgrade"},
		{"one that is ahead is not waited for", view(expired, asked(ofCluster(far, "88"))), "take over (status at 45)", "best"},
		{"nor one that replays", view(expired, asked(ofCluster(replaying(far), "88"))), "take over (status at 45)", "best"},
		{"one of the shard is", view(expired, asked(ofCluster(far, "77"))), "", "c is ahead"},
		{"one that does not say is", view(expired, asked(far)), "", "c is ahead"},
	})
	if v := view(upgraded); v.unelectable() == "" || v.electable(ofCluster(far, "77")) == "" || v.electable(ofCluster(far, "88")) != "" {
		t.Error("whom a lease is given to")
	}
	if v := view(forced, upgraded); v.unelectable() == "" {
		t.Error("an operator's word makes other data the shard's")
	}
	// Its position says nothing of the commits that a quorum has acknowledged.
	if v := view(key, asked(ofCluster(peer("c", 1, 4000), "88"))); v.quorumProblem() == "" {
		t.Error("counted in a quorum")
	}
	if v := view(key, asked(ofCluster(peer("c", 1, 4000), "77"))); v.quorumProblem() != "" {
		t.Errorf("not counted: %s", v.quorumProblem())
	}
	runSituations(t, []situationTest{
		{
			"in a takeover by quorum neither", view(silentLeader(2*time.Second, 1), attempting(ofCluster(detachedFor(peer("c", 1, 5000), "one"), "88"))),
			"end the attempt to take over", "another cluster",
		},
	})
}
