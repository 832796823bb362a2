package ha

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// As guards_test.go, for a leader and what it does to data.

func replica(v *View) { v.Postgres.Primary = false }

func crashed(v *View) { down(v); v.Postgres.DownSince = now.Add(-time.Second) }

func TestHandoverNeedsEachCondition(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	to := request(cluster.Failover{Leader: "a", Candidate: "b"})
	b := asked(peer("b", 1, 5000))
	fresh := func(v *View) { v.PeersAsked = now.Add(-time.Second) }
	unfinished := func(v *View) { v.PeersDone = false }
	unknown := peer("b", 0, 5000)
	another := peer("b", 1, 5000)
	another.Primary = true
	runSituations(t, []situationTest{
		{"it can", view(lease, to, b), "hand over to b", ""},
		{"Consul has not renewed the lease lately", view(lease, to, b, func(v *View) {
			v.Lease.Renewed, v.Lease.BeatSent, v.Lease.InFlight = now.Add(-5*time.Second), now, true
		}), "", "with the lock"},
		{"old answers", view(lease, to), "ask the other members", "asked to switch over"},
		{"not all have answered", view(lease, to, b, unfinished), "", "asked to switch over"},
		{"the key is not understood", view(lease, to, b, func(v *View) { v.Cluster.Failover.Err = errors.New("x") }), "clear the failover key", "not understood"},
		{"nothing is asked for", view(lease, request(cluster.Failover{}), b), "", "with the lock"},
		{"no leader named, this member is the candidate: done", view(lease, request(cluster.Failover{Candidate: "a"}), b), "clear the failover key", "failover to a is done"},
		{"from this member to itself", view(lease, request(cluster.Failover{Leader: "a", Candidate: "a"}), b), "clear the failover key", "leads already"},
		{"from another to another", view(lease, request(cluster.Failover{Leader: "c", Candidate: "b"}), b), "clear the failover key", "refused: it names c"},
		{"paused, a candidate is named", view(lease, paused_, to, b), "hand over to b", ""},
		{"the candidate's timeline is not known", view(lease, to, asked(unknown)), "hand over to b", ""},
		{"ours is not known", view(lease, to, asked(peer("b", 2, 5000)), func(v *View) { v.Postgres.Timeline = 0 }), "hand over to b", ""},
		{"the candidate is a primary", view(lease, to, asked(another)), "clear the failover key", "runs as a primary"},
		{"the better of two, the better first", view(lease, request(cluster.Failover{Leader: "a"}), asked(peer("c", 1, 5000), peer("b", 1, 4000))), "hand over to c", ""},
		{"answers from before", view(lease, to, b, func(v *View) { v.PeersAsked = now.Add(-3 * time.Second) }), "ask the other members", "asked to switch over"},
		{"a segment was switched after it was asked", view(lease, to, b, func(v *View) {
			v.PeersAskedLSN, v.Postgres.LSN, v.Cluster.Status.Value.OpTime = 5000, 16<<20, 16<<20
		}), "hand over to b", ""},
		{"it lags, and nobody knows where we were when it was asked", view(lease, to, asked(peer("b", 1, 1<<20)), func(v *View) {
			v.Postgres.LSN, v.Cluster.Status.Value.OpTime = 16<<20, 16<<20
		}), "clear the failover key", "lags"},
		{"from another to this member: done", view(lease, request(cluster.Failover{Leader: "b", Candidate: "a"}), b), "clear the failover key", "is done"},
		{"it lags, as it was when asked", view(lease, to, asked(peer("b", 1, 5000)), fresh, func(v *View) {
			v.PeersAskedLSN, v.Postgres.LSN, v.Cluster.Status.Value.OpTime = 5000+2<<20, 5000, 5000
		}), "hand over to b", ""},
	})
	d := Decide(view(lease, request(cluster.Failover{Leader: "a", OnBusy: cluster.OnBusyRefuse}), b))
	if h, ok := findAction[Handover](d); !ok || h.OnBusy != cluster.OnBusyRefuse {
		t.Errorf("%+v", h)
	}
}

func TestGivingNeedsEachCondition(t *testing.T) {
	given := func(v *View) { v.Giving = &Giving{Successor: "b"} }
	ours := []func(*View){leads("a", 0), down, given}
	with := func(more ...func(*View)) View { return view(append(slices.Clone(ours), more...)...) }
	stop := func(v *View) { v.Stopping = true }
	runSituations(t, []situationTest{
		{"released next", with(), "release the lease to b", ""},
		{"under way", with(inFlight), "", "giving the lease up"},
		{"refused just now", with(func(v *View) { v.Lease.NotBefore = now.Add(1) }), "", "giving the lease up"},
		{"Consul shows it", with(released("b")), "start as replica of nobody", ""},
		{"Consul shows it, with the lock", with(func(v *View) { v.Cluster.Status.Value.Lictor.Released = true }), "start as replica of nobody", ""},
		{"another leads", with(leads("b", 0)), "rejoin as replica of b", ""},
		{"the lock is gone", with(lockGone), "start as replica of nobody", ""},
		{"no beat", with(func(v *View) { v.Cluster.Status.Value.Lictor = nil }), "start as replica of nobody", ""},

		{"told to end", with(stop), "release the lease to b", ""},
		{"told to end, Consul is silent for less than a lease", with(stop, silentFor(ttl-1)), "release the lease to b", ""},
		{"told to end, Consul is silent for a lease", with(stop, silentFor(ttl+1)), "exit", "runs out there"},
		{"told to end, Consul is silent for a lease, the outcome of the release is unknown", with(stop, silentFor(ttl+1), func(v *View) { v.Lease.Uncertain = true }), "exit", "runs out there"},
		{"told to end, the outcome of the release is unknown", with(stop, func(v *View) { v.Lease.Uncertain = true }), "read Consul again", "unknown"},
		{"told to end, Consul is silent for a lease, PostgreSQL is back as a replica", view(leads("a", 0), given, stop, silentFor(ttl+1)), "demote", "stopping"},
		{"told to end, Consul is silent for a lease, nothing was given, a task runs", view(leads("b", 0), down, stop, silentFor(ttl+1), doingTask(TaskRejoin)), "", "after: rejoin"},
		{"told to end, given, another leads, a task runs", with(leads("b", 0), stop, doingTask(TaskRejoin)), "", "after: rejoin"},
		{"told to end, another leads, Consul is silent for a lease", view(leads("b", 0), down, given, stop, silentFor(ttl+1)), "exit", "runs out there"},
	})
}

func TestStoppingNeedsEachCondition(t *testing.T) {
	stop := func(v *View) { v.Stopping = true }
	lease := holdsLease(7 * time.Second)
	before := func(v *View) { v.SyncBefore = &cluster.Entry[cluster.Sync]{} }
	runSituations(t, []situationTest{
		{"interrupted, and down", view(leads("b", 0), stop, down, doingTask(TaskInterrupted)), "exit", "does not end"},
		{"interrupted, PostgreSQL runs", view(leads("b", 0), stop, doingTask(TaskInterrupted)), "", "after: interrupted"},
		{"interrupted, a lease is held", view(lease, stop, down, doingTask(TaskInterrupted)), "", "after: interrupted"},
		{"a task runs, down", view(leads("b", 0), stop, down, doingTask(TaskRejoin)), "", "after: rejoin"},
		{"a task runs, no lease", view(leads("a", 20*time.Second), stop, doingTask(TaskRejoin)), "", "after: rejoin"},
		{"a promotion that failed, a beat is due", view(holdsLease(6*time.Second), stop, replica, before, syncKey("a")), "beat; delete the sync key", "promotion has failed"},
		{"no lease: nothing to give back to", view(leads("b", 0), stop, before, syncKey("a")), "demote", "stopping"},
	})
}

func TestLeadingNeedsEachCondition(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	b := asked(peer("b", 1, 5000))
	failed := func(kind TaskKind, n int) func(*View) {
		return func(v *View) { v.Attempt = Attempt{Kind: kind, Failures: n} }
	}
	before := func(v *View) { v.SyncBefore = &cluster.Entry[cluster.Sync]{} }
	unserved := func(v *View) {
		v.Postgres.Accepting, v.Postgres.UnservedSince, v.Postgres.Hung = false, now.Add(-301*time.Second), true
	}
	outOfReach := func(v *View) {
		v.Lease.Renewed, v.Lease.BeatSent, v.Lease.InFlight = now.Add(-5*time.Second), now, true
	}
	unread := func(v *View) { newShard(v); v.Read = 0 }
	noWatchdog := func(v *View) { v.WatchdogOK = false }
	old := func(v *View) { v.PeersAsked = now.Add(-5 * time.Second) }
	shutDownNow := func(v *View) { v.Postgres.ShutDown, v.Postgres.Accepting = now, false }
	runSituations(t, []situationTest{
		{"a promotion that failed, in pause", view(lease, replica, before, syncKey("a"), paused_), "", "with the lock"},
		{"in pause commits wait as they should", view(lease, paused_, func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }), "sync key: a with []", ""},
		{"in pause a replica is not promoted", view(lease, replica, paused_), "", "with the lock"},
		{"a leader that is down and was watched", view(lease, noWatchdog, crashed, b), "start as primary", "started again"},
		{"down for less than its time", view(lease, crashed, b), "start as primary", ""},
		{"starting for less than its time", view(lease, b, func(v *View) { v.Postgres.Accepting, v.Postgres.DownSince = false, now.Add(-time.Second) }), "", "is starting"},
		{"Consul was not read yet", view(lease, unread, replica), "", "earlier run"},
		{"another task has failed thrice", view(lease, replica, failed(TaskStart, 3), b), "promote", ""},
		{"the promotion has failed once", view(lease, replica, failed(TaskPromote, 1), b), "promote", ""},
		{"down, another task has failed thrice", view(lease, crashed, failed(TaskPromote, 3), b), "start as primary", ""},
		{"down, the start has failed once", view(lease, crashed, failed(TaskStart, 1), b), "start as primary", ""},
		{"hangs, and an interrupted task has not ended", view(lease, unserved, doingTask(TaskInterrupted), asked()), "", "busy: interrupted"},
		{"hangs, and Consul is away", view(lease, unserved, outOfReach, b), "kill the PostgreSQL that hangs", "nobody else can lead"},
		{"hangs, not all have answered", view(lease, unserved, asked(), func(v *View) { v.PeersDone = false }), "", "is starting"},
		{"down, not all have answered", view(lease, crashed, b, func(v *View) { v.PeersDone, v.Config.PrimaryStartTimeout = false, 0 }), "start as primary", ""},
		{"long unserved, with nothing that ends it", view(holdsLease(6*time.Second), unserved, asked(), func(v *View) {
			v.Postgres.Hung, v.Postgres.UnservedSince = false, now.Add(-time.Hour)
		}), "beat", "is starting"},
		{"refused just now", view(holdsLease(6*time.Second), func(v *View) { v.Lease.NotBefore = now.Add(1) }), "", "with the lock"},
		{"the lock went with the session, and there is none", view(lease, lockGone, session("")), "", "waiting for a Consul session"},
		{"the lock has no session and neither have we", view(lease, session(""), func(v *View) { v.Cluster.Leader.Session = "" }), "", "waiting for a Consul session"},
		{"patrol is due", view(lease, old), "ask the other members", "with the lock"},
		{"patrol is due, and they are asked already", view(lease, old, request(cluster.Failover{Leader: "a"})), "ask the other members", ""},
		{"shut down from outside", view(lease, shutDownNow), "", "waiting for its processes"},
		{"shut down from outside, a task runs", view(lease, shutDownNow, doingTask(TaskRestart)), "", "busy: restart"},
		{"a replica is shut down from outside, a task runs", view(leads("b", 0), shutDownNow, doingTask(TaskRestart)), "", "busy: restart"},
	})
	soon := view(lease, b, request(cluster.Failover{Leader: "a", Candidate: "b", ScheduledAt: func() *time.Time { w := view().Wall.Add(300 * time.Millisecond); return &w }()}))
	if d := Decide(soon); d.Wake != now.Add(300*time.Millisecond) {
		t.Errorf("a switchover in 0.3 s, and it wakes in %s", d.Wake.Sub(now))
	}
	if d := Decide(view(holdsLease(4*time.Second), inFlight, func(v *View) { v.PeersAsked = now })); d.Wake != now.Add(2*time.Second) {
		t.Errorf("it demotes in 2 s, and wakes in %s", d.Wake.Sub(now))
	}
	if d := Decide(view(lease, old, func(v *View) { v.Config.LoopWait, v.Config.TTL = 10*time.Second, 40*time.Second })); len(d.Actions) > 0 {
		t.Errorf("patrol each 10 s, and after 5: %v", d.Actions)
	}
	patrol := view(lease, func(v *View) { v.PeersAsked, v.Lease.BeatSent = now.Add(-patrolEvery+300*time.Millisecond), now })
	if d := Decide(patrol); d.Wake != now.Add(300*time.Millisecond) {
		t.Errorf("patrol in 0.3 s, and it wakes in %s", d.Wake.Sub(now))
	}
}

func TestFollowingNeedsEachCondition(t *testing.T) {
	broken := func(v *View) { v.Cluster.Members[1].Err = errors.New("x") }
	notPrimary := func(v *View) { v.Cluster.Members[1].Value.Role = cluster.RoleReplica }
	ahead := func(v *View) { v.Postgres.Timeline, v.Postgres.Streaming = 2, false }
	behind := func(v *View) { v.Cluster.Members[1].Value.Timeline, v.Postgres.Streaming = 2, false }
	starting := func(v *View) { v.Postgres.Accepting = false }
	outset := func(leader string, timeline int) func(*View) {
		return func(v *View) { v.Postgres.Outset = Line{Leader: leader, Timeline: timeline} }
	}
	history := func(h cluster.History, err error) func(*View) {
		return func(v *View) { v.Cluster.History = cluster.Entry[cluster.History]{ModifyIndex: 41, Value: h, Err: err} }
	}
	runSituations(t, []situationTest{
		{"the leader's key is not understood", view(leads("b", 0), broken), "", "missing or not understood"},
		{"the leader's key is not understood, down", view(leads("b", 0), broken, down), "start as replica of nobody", "is missing"},
		{"starting", view(leads("b", 0), starting), "", "PostgreSQL is starting"},
		{"starting, with the WAL of an earlier leader", view(leads("c", 0), starting), "follow c", "WAL for which a start waits"},
		{"starting, with nobody's WAL", view(leads("b", 0), starting, follows("")), "follow b", "WAL for which a start waits"},
		{"starting, with nobody's WAL, which has just failed", view(leads("b", 0), starting, follows(""), func(v *View) {
			v.Attempt = Attempt{Kind: TaskStart, Failures: 1, NotUntil: now.Add(time.Second)}
		}), "", "waiting to try again"},
		{"starting, and is to stream from nobody", view(leads("b", 0), starting, follows(""), func(v *View) { v.Tags = map[string]any{"nostream": true} }), "", "PostgreSQL is starting"},
		{"starting since this leader leads", view(leads("b", 0), starting, outset("b", 1)), "", "PostgreSQL is starting"},
		{"starting since another led", view(leads("b", 0), starting, outset("c", 1)), "rejoin as replica of b", "may be nobody's"},
		{"starting since it led on another timeline", view(leads("b", 0), starting, outset("b", 2)), "rejoin as replica of b", "may be nobody's"},
		{"starting since another led, this one is no primary yet", view(leads("b", 0), starting, outset("c", 1), notPrimary), "", "PostgreSQL is starting"},
		{"started while another led, it answers", view(leads("b", 0), outset("c", 1)), "", "a replica, following b"},
		{"a synchronous standby, and another leads", view(leads("c", 0), syncKey("c", "a")), "follow c", ""},
		{"on a timeline of its own, the leader is none yet", view(leads("b", 0), ahead, notPrimary), "", "following b"},
		{"on a timeline of its own", view(leads("b", 0), ahead), "rejoin as replica of b", "is another's"},
		{"behind, the history is not understood", view(leads("b", 0), behind, history(cluster.History{{Timeline: 1, LSN: 1}}, errors.New("x"))), "", "following b"},
		{"behind, the history is empty", view(leads("b", 0), behind, history(cluster.History{}, nil)), "", "following b"},
		{"its own timeline is not known", view(leads("b", 0), behind, history(cluster.History{{Timeline: 0, LSN: 1}}, nil), func(v *View) { v.Postgres.Timeline = 0 }), "", "following b"},
		{"the leader's lease nearly over, promised for longer", view(leads("b", 7500*time.Millisecond), func(v *View) {
			v.Promise = &Promise{Leader: "b", Until: now.Add(5 * time.Second), Index: 45}
		}), "", "following b"},
	})
}

// A promise that ends before the lease shortens nothing.
func TestShortPromiseShortensNothing(t *testing.T) {
	v := view(leads("b", 0), func(v *View) { v.Promise = &Promise{Leader: "b", Until: now.Add(2 * time.Second), Index: 45} })
	if d := Decide(v); len(d.Actions) > 0 || d.Wake != now.Add(ttl+ttl/40-askAhead) {
		t.Errorf("%v, wakes in %s", d.Actions, d.Wake.Sub(now))
	}
}

// I7: whose data may be cleared away, and from whom a copy is made.
func TestStartingNeedsEachCondition(t *testing.T) {
	made := func(v *View) { down(v); v.Postgres.Data = DataBootstrapped }
	keyOf := func(session string) func(*View) {
		return func(v *View) { v.Cluster.Initialize = cluster.Entry[string]{Session: session, ModifyIndex: 4} }
	}
	cloneFrom := func(i int, change func(*cluster.Entry[cluster.Member])) func(*View) {
		return func(v *View) {
			v.Cluster.Members[i].Value.Tags = map[string]any{"clonefrom": true}
			change(&v.Cluster.Members[i])
		}
	}
	as := func(*cluster.Entry[cluster.Member]) {}
	alone := func(v *View) { v.Postgres.RestoresAlone = true }
	half := func(v *View) { empty(v); v.Postgres.Data, v.Postgres.Resumable = DataIncomplete, true }
	noKey := func(v *View) { v.Cluster.Initialize = cluster.Entry[string]{} }
	runSituations(t, []situationTest{
		{"bootstrapped, the key is there and nobody's", view(newShard, made, keyOf("")), "", "delete the key"},
		{"bootstrapped, a key of this identifier, nobody led", view(made), "finish the bootstrap", "is registered"},
		{"bootstrapped, somebody holds the lock without a beat", view(made, leads("b", 0), func(v *View) { v.Cluster.Status.Value.Lictor = nil }), "clear away the unfinished data directory", "another member"},

		{"empty, this member held the lock last", view(empty, leads("a", 0)), "", "waiting for a leader to clone"},
		{"empty, can be restored alone", view(empty, alone), "clone from ", "no_leader"},
		{"empty, can be restored alone, somebody makes the shard", view(empty, alone, keyOf("sb")), "", "member that bootstraps"},
		{"empty, can be restored alone, a key that nobody holds", view(empty, alone, keyOf("")), "", "delete the key"},
		{"empty, can be restored alone, no shard", view(empty, alone, noKey), "bootstrap", "does not exist"},
		{"an unfinished clone that is gone on with", view(half, leads("b", 0)), "clone from b", "clone that was not finished and b leads"},
		{"an unfinished clone that is gone on with, no leader", view(half), "", "waiting for a leader to clone"},
		{"an unfinished clone that is gone on with, alone", view(half, alone), "clone from ", "no_leader"},
		{"an unfinished clone that is gone on with, it failed", view(half, leads("b", 0), func(v *View) { v.Attempt = Attempt{Kind: TaskClone, Failures: 1, NotUntil: now.Add(time.Second)} }), "", "after 1 failures"},
		{"an unfinished clone, no shard", view(half, noKey), "clear away the unfinished data directory", ""},
		{"an unfinished clone that nobody goes on with", view(half, leads("b", 0), func(v *View) { v.Postgres.Resumable = false }), "clear away the unfinished data directory", ""},
		{"clonefrom, itself", view(empty, leads("b", 0), cloneFrom(0, as)), "clone from b", ""},
		{"clonefrom, the leader, not primary yet", view(empty, leads("b", 0), cloneFrom(1, as), func(v *View) { v.Cluster.Members[1].Value.Role = cluster.RoleReplica }), "", "running primary"},
		{"clonefrom, stopped", view(empty, leads("b", 0), cloneFrom(2, func(m *cluster.Entry[cluster.Member]) { m.Value.State = cluster.StateStopped })), "clone from b", ""},
		{"clonefrom, says that it is a primary", view(empty, leads("b", 0), cloneFrom(2, func(m *cluster.Entry[cluster.Member]) { m.Value.Role = cluster.RolePrimary })), "clone from b", ""},
		{"clonefrom, has led before", view(empty, leads("b", 0), cloneFrom(2, func(m *cluster.Entry[cluster.Member]) { m.Value.Timeline++ })), "clone from b", ""},
		{"clonefrom, cannot go on itself", view(empty, leads("b", 0), cloneFrom(2, func(m *cluster.Entry[cluster.Member]) {
			m.Value.Lictor = &cluster.MemberLictor{Stranded: "its WAL is gone"}
		})), "clone from b", ""},
		{"clonefrom, not understood", view(empty, leads("b", 0), cloneFrom(2, func(m *cluster.Entry[cluster.Member]) { m.Err = errors.New("x") })), "clone from b", ""},
		{"the leader's key is not understood", view(empty, leads("b", 0), func(v *View) { v.Cluster.Members[1].Err = errors.New("x") }), "", "missing or not understood"},
		{"the leader does not run", view(empty, leads("b", 0), func(v *View) { v.Cluster.Members[1].Value.State = cluster.StateStopped }), "", "running primary"},
		{"a standby leader", view(empty, leads("b", 0), func(v *View) { v.Cluster.Members[1].Value.Role = "standby_leader" }), "clone from b", ""},
	})
	d := Decide(view(newShard, made, primary, keyOf("sa"), func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }, func(v *View) { v.Cluster.Index, v.Cluster.Failsafe.ModifyIndex = 9, 8 }))
	if r, ok := findAction[Register](d); !ok || r.Failsafe != 8 || r.Sync != nil {
		t.Errorf("%+v", d.Actions)
	}
	for _, tt := range []struct {
		name string
		view View
		want bool
	}{
		{"as it should be", view(made, leads("a", 0)), true},
		{"nobody led yet", view(made), true},
		{"another led", view(made, leads("b", 0)), false},
		{"no key", view(made, noKey), false},
		{"no key, no identifier", view(made, noKey, func(v *View) { v.Postgres.SystemIdentifier = "" }), false},
		{"another's identifier", view(made, func(v *View) { v.Cluster.Initialize.Value = "99" }), false},
		{"not made by this member", view(down), false},
	} {
		if got := tt.view.registered(); got != tt.want {
			t.Errorf("%s: registered %v", tt.name, got)
		}
	}
}

func TestSynchronousNeedsEachCondition(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	on := func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }
	strict := func(v *View) { v.Config.SynchronousStrict = true }
	broken := func(v *View) { v.Cluster.Sync.Err = errors.New("x") }
	lines := func(all ...Standby) func(*View) { return func(v *View) { v.Postgres.Standbys = all } }
	since := func(lsn int64) func(*View) { return func(v *View) { v.Postgres.SyncSince = lsn } }
	full := Standby{Name: "b", Streaming: true, Sync: true, WriteLSN: 90, FlushLSN: 80, ReplayLSN: 70}
	catching, potential := full, full
	catching.Streaming, potential.Sync = false, false

	// Two connections under one name are no further than the slower.
	slower := Standby{Name: "B", Streaming: true, Sync: true, WriteLSN: 60, FlushLSN: 50, ReplayLSN: 40}
	for _, all := range [][]Standby{{full, slower}, {slower, full}} {
		got := view(lines(all...)).Postgres.standbys()
		if len(got) != 1 || got[0].WriteLSN != 60 || got[0].FlushLSN != 50 || got[0].ReplayLSN != 40 || !got[0].Streaming || !got[0].Sync {
			t.Errorf("%+v", got)
		}
	}
	for _, other := range []Standby{catching, potential} {
		for _, all := range [][]Standby{{full, other}, {other, full}} {
			if got := view(lines(all...)).Postgres.standbys(); got[0].Streaming != other.Streaming || got[0].Sync != other.Sync {
				t.Errorf("%+v", got)
			}
		}
	}
	for name, tt := range map[string]struct {
		view View
		want int
	}{
		"beyond the position":       {view(lines(full), since(80)), 1},
		"not there yet":             {view(lines(full), since(81)), 0},
		"still catching up":         {view(lines(catching), since(80)), 0},
		"not waited for":            {view(lines(potential), since(80)), 0},
		"the position is not known": {view(lines(full)), 0},
	} {
		if got := tt.view.Postgres.caughtUp(); len(got) != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := view(lines(catching)).Postgres.connected([]string{"b"}); len(got) != 0 {
		t.Errorf("connected: %v", got)
	}
	if got := view(lines(catching)).syncCandidates(nil); len(got) != 0 {
		t.Errorf("candidates: %v", got)
	}
	own := full
	own.Name = "A"
	if got := view(lines(own)).syncCandidates(nil); len(got) != 0 {
		t.Errorf("this member is its own standby: %v", got)
	}

	// The invariant of keptBy, and what may be let in.
	if (syncPromise{voters: []string{"b"}}).keptBy(syncWait{names: []string{"*"}, num: 1}) {
		t.Error("anybody keeps a promise to b")
	}
	if !(syncPromise{}).keptBy(syncWait{names: []string{"*"}, num: 1}) || !(syncPromise{}).keptBy(syncWait{names: []string{"b"}}) {
		t.Error("a promise to nobody is broken")
	}
	if (syncWait{names: []string{"*", "b"}}).anybody() {
		t.Error("one of two is not anybody")
	}
	present := syncPromise{voters: []string{"b", "c"}, quorum: 1}
	if (syncPromise{voters: []string{"b", "c", "d"}, quorum: 1}).holdsOlder(present, nil) {
		t.Error("d is let in, and has nothing")
	}
	if !(syncPromise{voters: []string{"b", "c", "d"}, quorum: 1}).holdsOlder(present, []string{"d"}) {
		t.Error("d has caught up, and is not let in")
	}

	// A short lead in the WAL changes nothing, whoever is named first.
	further := Standby{Name: "c", Streaming: true, Sync: true, WriteLSN: 95, FlushLSN: 95, ReplayLSN: 95}
	for _, all := range [][]Standby{{full, further}, {further, full}} {
		if got := view(lines(all...)).syncCandidates([]string{"b"}); len(got) != 2 || got[0] != "b" {
			t.Errorf("candidates: %v, of whom b is promised", got)
		}
	}

	request := func(f cluster.Failover) View { return view(request(f)) }
	if v := request(cluster.Failover{Candidate: "b"}); v.forcedByOperator("a") || !v.forcedByOperator("b") {
		t.Error("the operator chose b")
	}
	before := func(v *View) {
		v.SyncBefore = &cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"a"}), ModifyIndex: 40}
	}
	for _, tt := range []struct {
		name string
		view View
		want bool
	}{
		{"replaced", view(replica, before, syncKey("a")), true},
		{"nothing was replaced", view(replica, syncKey("a")), false},
		{"nothing was replaced, a write is uncertain", view(replica, func(v *View) { v.SyncUncertain = true }), false},
		{"another's", view(replica, before, syncKey("b")), false},
		{"ours, with standbys", view(replica, before, syncKey("a", "b")), false},
		{"not understood", view(replica, before, syncKey("a"), broken), false},
	} {
		if got := tt.view.mustGiveBack(); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if d, ok := findAction[WriteSync](view(replica, before, syncKey("a")).giveBack()); !ok || d.Index != 47 || d.Value.After != 47 {
		t.Errorf("given back with %+v", d)
	}

	if p := view(lease, replica).promote(); p.Sync != nil || p.SyncIndex != 0 {
		t.Errorf("asynchronous: %+v", p)
	}
	if p := view(lease, replica, on).promote(); p.Sync == nil || p.SyncIndex != 0 {
		t.Errorf("no key yet: %+v", p)
	}
	if p := view(lease, replica, syncKey("b", "a")).promote(); p.Sync == nil || p.SyncIndex != 47 {
		t.Errorf("a key of before: %+v", p)
	}
	for name, tt := range map[string]struct {
		view  View
		first bool
	}{
		"off":             {view(lease, replica), false},
		"on":              {view(lease, replica, on, func(v *View) { v.Postgres.SyncUnsure = true }), false},
		"on, strict":      {view(lease, replica, on, strict), true},
		"off, yet strict": {view(lease, replica, strict, func(v *View) { v.Postgres.SyncUnsure = true }), false},
	} {
		if _, first := tt.view.syncBeforePromotion(); first != tt.first {
			t.Errorf("%s: first %v", name, first)
		}
	}
	// A restarted agent that has not read Consul starts with what the file says.
	if d, ok := findAction[StartPrimary](view(lease, crashed, on, syncKey("b"), func(v *View) { v.Read = 0 }).startPrimary()); !ok || d.Sync != nil {
		t.Errorf("%+v", d)
	}
	quorum := func(v *View) { v.Config.SynchronousMode = cluster.SyncQuorum }
	for name, tt := range map[string]struct {
		view View
		want SetSync
	}{
		"quorum, of one":                    {view(lease, crashed, quorum, syncKey("a", "b")), SetSync{Standbys: []string{"b"}, Any: 1}},
		"a quorum that makes no sense":      {view(lease, crashed, quorum, quorumKey("a", -1, "b")), SetSync{Standbys: []string{"b"}, Any: 1}},
		"off, strict, the key is there yet": {view(lease, crashed, strict, syncKey("a")), SetSync{}},
	} {
		if d, ok := findAction[StartPrimary](tt.view.startPrimary()); !ok || d.Sync == nil || !slices.Equal(d.Sync.Standbys, tt.want.Standbys) || d.Sync.Any != tt.want.Any {
			t.Errorf("%s: %+v", name, d.Sync)
		}
	}
	if d, ok := findAction[WriteSync](synchronous(view(lease, on, quorumKey("a", -1, "b"), func(v *View) { v.SyncUncertain = true }))); !ok || d.Value.Quorum != 0 {
		t.Errorf("a quorum that makes no sense: %+v", d)
	}
	if d, ok := findAction[WriteSync](synchronous(view(lease, on, syncKey("a"), broken))); !ok || d.Value == nil {
		t.Errorf("a key that is not understood: %+v", d)
	}
	for key, want := range map[string]string{"": "", "b": "not a synchronous standby of b"} {
		v := view(syncKey(key))
		if got := v.syncForbids("a"); (got == "") != (want == "") {
			t.Errorf("leader %q: %q", key, got)
		}
	}
}
