package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// askedToDetach: the peers were asked to detach under the status at index, and have.
func askedToDetach(index uint64, peers ...Peer) func(*View) {
	for i := range peers {
		peers[i].Detached = index
	}
	return func(v *View) {
		asked(peers...)(v)
		v.PeersDetached = index
	}
}

// replaying: the peer has more WAL than it says, or may have.
func replaying(p Peer) Peer {
	p.Replaying = true
	return p
}

func quorumOfB(v *View) {
	value := cluster.NewSync("b", []string{"a", "c"})
	value.Quorum = 1
	v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: value, ModifyIndex: 47}
}

// The word of a voter that may still acknowledge commits of the old leader is worth
// nothing.
func TestCandidateCountsDetachedVoters(t *testing.T) {
	expired := leads("b", ttl+ttl/40+time.Second)
	stays := peer("c", 1, 5000)
	earlier := stays
	earlier.Detached = 44
	primary := peer("b", 1, 4000)
	primary.Primary = true
	unfinished := func(ago time.Duration) func(*View) {
		return func(v *View) { v.PeersDone, v.PeersAsked = false, now.Add(-ago) }
	}
	const ask = "ask the other members, detached from the old leader (status at 45)"
	refused := func(ago time.Duration) func(*View) {
		return func(v *View) {
			askedToDetach(45)(v)
			v.Peers, v.PeersAsked = []Peer{stays}, now.Add(-ago)
		}
	}
	runSituations(t, []situationTest{
		{"parted", view(expired, quorumOfB, askedToDetach(45, stays)), "take over (status at 45)", "best"},
		{"not asked to", view(expired, quorumOfB, asked(stays)), ask, "positions"},
		{"under an earlier status", view(expired, quorumOfB, asked(earlier), func(v *View) { v.PeersDetached = 44 }), ask, "positions"},
		{"replays still", view(expired, quorumOfB, askedToDetach(45, replaying(stays))), "", "c still replays the WAL that it has"},
		{"replays still, asked a while ago", view(expired, quorumOfB, askedToDetach(45, replaying(stays)), func(v *View) { v.PeersAsked = now.Add(-askAgain) }), ask, "positions"},
		{"replays still, one of two that suffice", view(expired, quorumOfB, askedToDetach(45, replaying(stays), peer("b", 1, 5000))), "take over (status at 45)", "best"},
		{"we replay still: what we have at least will do", view(expired, quorumOfB, askedToDetach(45, stays), func(v *View) { v.Postgres.Replaying = true }), "take over (status at 45)", "best"},
		{"did not, just now", view(expired, quorumOfB, refused(50*time.Millisecond)), "", "not all synchronous standbys have detached"},
		{"did not, a while ago", view(expired, quorumOfB, refused(detachAgain)), ask, "positions"},
		{"a silent member is not waited for, with a quorum", view(expired, quorumOfB, askedToDetach(45, stays), unfinished(enoughTime)), "take over (status at 45)", "best"},
		{"but given the time that others need", view(expired, quorumOfB, askedToDetach(45, stays), unfinished(enoughTime-1)), "", "waiting for the others"},
		{"and waited for without a quorum", view(expired, quorumOfB, askedToDetach(45), unfinished(enoughTime)), "", "waiting for the others"},
		{"or where none is needed", view(expired, asked(stays), unfinished(enoughTime)), "", "waiting for the others"},
		{
			"not asked, as the leader has stopped", view(leads("b", 0), quorumOfB, released(""), asked(stays), func(v *View) { v.StatusSeen = now.Add(-time.Second) }),
			"take over (status at 45)", "best",
		},
		{
			"not asked, as somebody has released the lock who was never promoted", view(leads("c", 0), quorumOfB, released(""), asked(stays), func(v *View) { v.StatusSeen = now.Add(-time.Second) }),
			ask, "positions",
		},
		{"does not matter without a quorum", view(expired, asked(stays)), "take over (status at 45)", "best"},
	})
	v := view(expired, quorumOfB, askedToDetach(45, primary))
	if problem := v.quorumProblem(); problem == "" {
		t.Error("the position of a member that runs as a primary was counted")
	}
}

// Whom the operator has chosen, and who cannot lead, is not waited for.
func TestChosenCandidateThatCannotLead(t *testing.T) {
	expired := leads("b", ttl+ttl/40+time.Second)
	chosen := request(cluster.Failover{Leader: "b", Candidate: "c"})
	behind := func(v *View) { askedToDetach(45, peer("c", 1, 4000))(v) }
	level := func(v *View) { askedToDetach(45, peer("c", 1, v.Postgres.LSN))(v) }
	ours := func(v *View) { v.Cluster.Status.Value.Lictor.Owner, v.Cluster.Status.Value.Lictor.Paused = "a", true }
	runSituations(t, []situationTest{
		{"it is behind, and a quorum is needed", view(expired, quorumOfB, chosen, behind), "take over (status at 45)", "best"},
		{"it is level", view(expired, quorumOfB, chosen, level), "", "c was chosen by the operator"},
		{"it is behind, without a quorum", view(expired, chosen, behind), "", "c was chosen by the operator"},
		{"this member led in pause", view(expired, chosen, behind, ours), "take over (status at 45)", "best"},
	})
	// A promise that its leader has voided by a release need not be waited for.
	void := func(v *View) { v.Promise = &Promise{Leader: "b", Until: now.Add(time.Minute), Index: 44} }
	v := view(leads("b", 0), quorumOfB, released(""), asked(peer("c", 1, 4000)), void, func(v *View) { v.StatusSeen = now.Add(-time.Second) })
	if d, first := v.quorumFirst(v.StatusSeen); first {
		t.Errorf("a void promise: %s %v", d.Reason, d.Actions)
	}
}

func TestDetachedFollowsNobody(t *testing.T) {
	under := func(v *View) { v.Detached = 45 }
	follows := func(v *View) { v.Postgres.Upstream, v.Postgres.Streaming = "b", true }
	receives := func(v *View) { v.Postgres.Upstream, v.Postgres.Streaming = "", true }
	nobody := func(v *View) { v.Postgres.Upstream, v.Postgres.Streaming = "", false }
	runSituations(t, []situationTest{
		{"follows still", view(leads("b", 0), under, follows), "follow nobody", "a candidate counts"},
		{"receives still", view(leads("b", 0), under, receives), "follow nobody", "a candidate counts"},
		{"follows nobody", view(leads("b", 0), under, nobody), "", "until b is seen to lead on"},
		{"is down", view(leads("b", 0), under, nobody, down), "start as replica of nobody", "detached"},
		{"has not detached", view(leads("b", 0), nobody), "follow b", "b leads"},
		{"may lead itself", view(leads("b", ttl+ttl/40+time.Second), under, nobody, asked()), "take over (status at 45)", "best"},
		{"in pause", view(leads("b", 0), under, follows, paused_), "", "paused"},
	})
}

func TestMayDetach(t *testing.T) {
	for _, tt := range []struct {
		name  string
		view  View
		index uint64
		may   bool
	}{
		{"a replica", view(leads("b", 0)), 45, true},
		{"a replica that is behind", view(leads("b", 0)), 46, true},
		{"a newer status was seen", view(leads("b", 0)), 44, false},
		{"no status", view(leads("b", 0)), 0, false},
		{"the leader", view(holdsLease(time.Second)), 45, false},
		{"a primary", view(leads("b", 0), primary), 45, false},
		{"promised", view(leads("b", 0), func(v *View) { v.Promise = &Promise{Leader: "b", Until: now.Add(1), Index: 45} }), 45, false},
		{"paused", view(leads("b", 0), paused_), 45, false},
		{"busy", view(leads("b", 0), func(v *View) { v.Task = TaskRejoin }), 45, false},
		{"down", view(leads("b", 0), down), 45, false},
	} {
		if err := tt.view.MayDetach(tt.index); (err == nil) != tt.may {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestDetachedUntilTheShardGoesOn(t *testing.T) {
	at := func(index, status uint64) cluster.Snapshot {
		return cluster.Snapshot{Index: index, Status: cluster.Entry[cluster.Status]{ModifyIndex: status}}
	}
	for _, tt := range []struct {
		name     string
		reading  cluster.Snapshot
		detached uint64
	}{
		{"the same status", at(46, 45), 45},
		{"an older status", at(45, 44), 45},
		{"a newer status", at(46, 46), 0},
	} {
		o := ClusterView{Snapshot: at(45, 44), Read: 1}
		o.Detach(45)
		if o.Accept(2, tt.reading, true); o.Detached != tt.detached {
			t.Errorf("%s: detached under %d, want %d", tt.name, o.Detached, tt.detached)
		}
	}
	o := ClusterView{Snapshot: at(45, 45), Read: 1}
	o.Detach(45)
	if o.Accept(2, at(30, 30), false) != Superseded || o.Detached != 45 {
		t.Error("a reading that was superseded counts")
	}
	for range maxStaleReads {
		o.Accept(3, at(30, 30), true)
	}
	if o.Detached != 0 {
		t.Error("detached for ever though Consul has gone back")
	}
}

// An agent that has just begun does not know what it has promised before.
func TestResumeDetached(t *testing.T) {
	for _, tt := range []struct {
		name      string
		self      string
		quorum    int
		receiving bool
		detached  uint64
	}{
		{"a voter that follows nobody", "a", 1, false, 45},
		{"a voter that follows", "a", 1, true, 0},
		{"the leader", "b", 1, false, 0},
		{"not a voter", "d", 1, false, 0},
		{"no quorum", "a", 0, false, 0},
	} {
		v := view(leads("b", 0), quorumOfB)
		v.Cluster.Sync.Value.Quorum = tt.quorum
		o := ClusterView{Snapshot: v.Cluster}
		if o.Resume(tt.self, tt.receiving); o.Detached != tt.detached {
			t.Errorf("%s: detached under %d, want %d", tt.name, o.Detached, tt.detached)
		}
	}
}
