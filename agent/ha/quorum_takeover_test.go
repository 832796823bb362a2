package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// silentLeader: b leads, consents, and was heard last that long ago. a and c are its standbys.
func silentLeader(ago time.Duration, quorum int) func(*View) {
	return func(v *View) {
		leads("b", time.Second)(v)
		v.Config.Takeover, v.Config.SynchronousMode, v.Config.SuspectAfter = cluster.TakeoverQuorum, cluster.SyncQuorum, time.Second
		v.Cluster.Status.Value.Lictor.Takeover = cluster.TakeoverQuorum
		value := cluster.NewSync("b", []string{"a", "c"})
		value.Quorum = quorum
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: value, ModifyIndex: 47}
		v.Postgres.Durable.Fsync = true
		v.Takeover.Heard, v.Confirmed = now.Add(-ago), now
	}
}

// attempting: a's own attempt has come to where it has detached, and these have answered.
func attempting(answers ...Peer) func(*View) {
	return func(v *View) {
		t := &v.Takeover
		t.Attempt, t.Index, t.Witness, t.WitnessesDone, t.Asked, t.Done, t.Detached, t.Answers = "one", 45, "c", true, true, true, true, answers
		v.Postgres.Upstream, v.Postgres.Streaming, v.Detached = "", false, 45
	}
}

// detachedFor: a peer has detached for these attempts.
func detachedFor(p Peer, attempts ...string) Peer {
	p.Attempts = attempts
	return p
}

func TestTakeoverByQuorum(t *testing.T) {
	const take = "take over by quorum (status at 45)"
	c := detachedFor(peer("c", 1, 5000), "one")
	ahead, restoring := c, c
	ahead.LSN, restoring.Restoring = 5001, true
	ofB, primaryC := c, c
	ofB.Name, primaryC.Primary = "b", true
	long := silentLeader(2*time.Second, 1)
	with := func(change func(*View)) View { return view(long, attempting(c), change) }
	ends := func(reason string, change func(*View)) situationTest {
		return situationTest{reason, with(change), "end the attempt to take over", reason}
	}
	runSituations(t, []situationTest{
		{"lease", view(long, func(v *View) { v.Config.Takeover = cluster.TakeoverLease }), "", "following b"},
		{"no consent", view(long, func(v *View) { v.Cluster.Status.Value.Lictor.Takeover = "" }), "", "following b"},
		{"heard lately", view(silentLeader(900*time.Millisecond, 1)), "", "following b"},
		{"silent", view(long), "begin to take over by quorum (status at 45)", "witness"},
		{"too early", view(long, func(v *View) { v.Takeover.NotBefore = now.Add(1) }), "", "following b"},
		{"just after a takeover", view(long, func(v *View) { v.OwnerChangedAt = now.Add(1 - 3*ttl) }), "", "following b"},
		ends("has beaten since", func(v *View) { v.Takeover.Index = 44 }),
		{"no witness yet", with(func(v *View) { v.Takeover.Witness, v.Takeover.WitnessesDone = "", false }), "", "waiting for a witness"},
		ends("no other member says so", func(v *View) { v.Takeover.Witness = "" }),
		{"a witness", with(func(v *View) { v.Takeover.Asked = false }), "detach, with the others", "detaching"},
		{"enough", with(func(*View) {}), take, "enough standbys"},
		{"enough, by an old reading", with(func(v *View) { v.Confirmed = now.Add(-201 * time.Millisecond) }), "read Consul again", "reading Consul"},
		{"has not detached itself", with(func(v *View) { v.Takeover.Detached, v.Takeover.Done = false, false }), "", "waiting for the standbys"},
		{"mode on needs nobody else", view(silentLeader(2*time.Second, 0), attempting()), take, "enough standbys"},
		{"too few", view(long, attempting()), "end the attempt to take over", "1 of its standbys"},
		{"detached for another attempt", view(long, attempting(detachedFor(c, "two"))), "end the attempt to take over", "0 have"},
		{"detached for both", view(long, attempting(detachedFor(c, "two", "one"))), take, "enough"},
		{"no voter", view(long, attempting(detachedFor(peer("d", 1, 5000), "one"))), "end the attempt to take over", "0 have"},
		{"the leader's word", view(long, attempting(ofB)), "end the attempt to take over", "0 have"},
		{"one that answers twice", view(silentLeader(2*time.Second, 2), attempting(c, c)), "end the attempt to take over", "1 have"},
		{"one that replays", view(long, attempting(replaying(c))), "end the attempt to take over", "replays"},
		{"one that was rebuilt", view(long, attempting(restoring)), "end the attempt to take over", "removed, rewound or cloned"},
		{"a primary", view(long, attempting(primaryC)), "end the attempt to take over", "0 have"},
		{"one is ahead", view(long, attempting(ahead)), "leave the takeover to c", "c is ahead"},
		ends("fsync is off", func(v *View) { v.Postgres.Durable.Fsync = false }),
		ends("replay is paused", func(v *View) { v.Postgres.Durable.ReplayPaused = true }),
		ends("heard lately", func(v *View) { v.Takeover.Heard = now }),
		ends("promised", func(v *View) { v.Promise = &Promise{Leader: "b", Until: now.Add(1), Index: 45} }),
		ends("as a standby of b", func(v *View) {
			value := cluster.NewSync("b", []string{"c"})
			v.Cluster.Sync.Value = value
		}),
		ends("removed, rewound or cloned", func(v *View) { v.Postgres.Restoring = true }),
		ends("could not be taken", func(v *View) { v.Takeover.Sent = true }),
	})
	d := Decide(with(func(*View) {}))
	if to, is := d.Actions[0].(TakeOver); !is || to.Sync == nil || to.Sync.Leader != "a" || len(to.Sync.Standbys()) != 0 || to.SyncIndex != 47 || to.Status != 45 {
		t.Errorf("%+v", d.Actions)
	}
}

func TestMayDetachFor(t *testing.T) {
	may := silentLeader(2*time.Second, 1)
	for _, tt := range []struct {
		name  string
		view  View
		index uint64
		free  cluster.Instant
		want  bool
	}{
		{"silent", view(may), 45, 0, true},
		{"heard", view(silentLeader(0, 1)), 45, 0, false},
		{"a status that was not seen", view(may), 46, 0, false},
		{"no consent", view(may, func(v *View) { v.Cluster.Status.Value.Lictor.Takeover = "" }), 45, 0, false},
		{"busy", view(may, func(v *View) { v.Task = TaskRejoin }), 45, 0, false},
		{"promised", view(may, func(v *View) { v.Promise = &Promise{Leader: "b", Until: now.Add(1), Index: 45} }), 45, 0, false},
		{"fsync off", view(may, func(v *View) { v.Postgres.Durable.Fsync = false }), 45, 0, false},
		{"free just before", view(may), 45, now.Add(-time.Second), false},
		{"has already", view(may, func(v *View) { v.Detached = 45 }), 45, now.Add(-time.Second), true},
		{"just after a takeover", view(may, func(v *View) { v.OwnerChangedAt = now.Add(1 - 3*ttl) }), 45, 0, false},
	} {
		if err := MayDetachFor(tt.view, tt.index, "one", tt.free); (err == nil) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if v := view(may); !Misses(v, 45) || Misses(v, 46) || Misses(v, 0) {
		t.Error("who has not seen a status is no witness")
	}
}

// A beat consents only where what PostgreSQL shows keeps the old leader from acknowledging alone.
func TestConsent(t *testing.T) {
	consents := func(v *View) {
		holdsLease(7 * time.Second)(v)
		v.Config.Takeover, v.Config.SynchronousMode = cluster.TakeoverQuorum, cluster.SyncQuorum
		value := cluster.NewSync("a", []string{"b", "c"})
		value.Quorum = 1
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: value, ModifyIndex: 47}
		primary(v)
		v.Postgres.SynchronousCommit, v.Postgres.Durable = "on", Durability{SynchronousCommit: "on", Fsync: true}
		v.Postgres.SyncNames, v.Postgres.SyncAny = []string{"b", "c"}, 1
		v.Postgres.Standbys = []Standby{{Name: "b", Streaming: true}, {Name: "c", Streaming: true}}
	}
	if v := view(consents); !(bid{v}).consents() {
		t.Fatal("it does not consent")
	}
	for name, change := range map[string]func(*View){
		"lease":              func(v *View) { v.Config.Takeover = cluster.TakeoverLease },
		"paused":             func(v *View) { v.Config.Pause = true },
		"a switchover":       request(cluster.Failover{Leader: "a", Candidate: "b"}),
		"a task":             func(v *View) { v.Task = TaskRestart },
		"configured off":     func(v *View) { v.Postgres.SynchronousCommit = "off" },
		"shown local":        func(v *View) { v.Postgres.Durable.SynchronousCommit = "local" },
		"shown remote_write": func(v *View) { v.Postgres.Durable.SynchronousCommit = "remote_write" },
		"fsync off":          func(v *View) { v.Postgres.Durable.Fsync = false },
		"the start race":     func(v *View) { v.Postgres.Durable.StartRace = true },
		"names unsure":       func(v *View) { v.Postgres.SyncUnsure = true },
		"key being written":  func(v *View) { v.SyncWriting = true },
		"key uncertain":      func(v *View) { v.SyncUncertain = true },
		"key another's":      func(v *View) { v.Cluster.Sync.Value.Leader = "b" },
		"a voter gone":       func(v *View) { v.Postgres.Standbys = v.Postgres.Standbys[:1] },
		"a voter twice":      func(v *View) { v.Postgres.Standbys = append(v.Postgres.Standbys, v.Postgres.Standbys[0]) },
		"from elsewhere":     func(v *View) { v.Postgres.Standbys[1].Foreign = true },
		"waits for too few":  func(v *View) { v.Postgres.SyncAny, v.Cluster.Sync.Value.Quorum = 1, 0 },
	} {
		v := view(consents, change)
		if (bid{v}).consents() {
			t.Errorf("%s: it consents", name)
		}
		if v.Lease.Consented = true; !(bid{v}).mustWithdraw() {
			t.Errorf("%s: what it said is not taken back at once", name)
		}
	}
}

// A takeover by quorum whose outcome is unknown keeps from promising until there is a newer status.
func TestLateTakeoverByQuorum(t *testing.T) {
	asks := FailsafeRequest{Leader: "b", Lease: ttl, Index: 45}
	v := view(leads("b", time.Second))
	var s LeaseState
	s.BeginTakeOver(now, ttl)
	s.BeginTakeoverByQuorum(45)
	s.WriteFailed(Unknown, now, time.Second)
	s.Reread(s.Failures())
	if s.Agree(v, asks) == nil {
		t.Error("promised, though the takeover may still land")
	}
	v.Cluster.Status.ModifyIndex = 46
	if err := s.Agree(v, asks); err != nil {
		t.Errorf("a newer status settles it: %v", err)
	}
	var refused LeaseState
	refused.BeginTakeOver(now, ttl)
	refused.BeginTakeoverByQuorum(45)
	refused.WriteFailed(Refused, now, time.Second)
	refused.Reread(refused.Failures())
	if err := refused.Agree(view(leads("b", time.Second)), asks); err != nil {
		t.Errorf("it was refused: %v", err)
	}
	var begun LeaseState
	begun.MayLandLate(45)
	if begun.Agree(view(leads("b", time.Second)), asks) == nil {
		t.Error("promised, though the earlier run's may still land")
	}
}
