package ha

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// The rows of this file each need one condition of a rule: `make mutants` left it out, and
// no other test noticed.

func session(id string) func(*View) { return func(v *View) { v.Session = id } }

func doingTask(kind TaskKind) func(*View) { return func(v *View) { v.Task = kind } }

func inFlight(v *View) { v.Lease.InFlight = true }

func adopted(until time.Duration) func(*View) {
	return func(v *View) { v.Adopted, v.AdoptedUntil = now, now.Add(until) }
}

// expiredLease: b's lease is over by this member's clock, and nobody holds the lock.
func expiredLease(v *View) { leads("b", 20*time.Second)(v); lockGone(v) }

// ledOn makes the last beat tell of a timeline.
func ledOn(timeline int) func(*View) {
	return func(v *View) { v.Cluster.Status.Value.Lictor.Timeline = timeline }
}

func TestFencingNeedsEachCondition(t *testing.T) {
	deposed := func(v *View) { v.Lease.Deposed = 46 }
	runSituations(t, []situationTest{
		{"a former primary that is down, another leads", view(leads("b", 0), primary, down), "rejoin as replica of b", "b leads"},
		{"deposed, without a lease", view(leads("b", 0), deposed), "", "following b"},
		{"a primary without a lease that is being stopped", view(leads("a", 0), primary, doingTask(TaskDemote)), "", "busy: demote"},
		{"a primary without a lease, its task interrupted", view(leads("a", 0), primary, doingTask(TaskInterrupted)), "kill PostgreSQL", "without a lease"},
		{"a primary without a lease, a takeover under way", view(leads("a", 0), primary, inFlight), "", "taking the lock"},
		{"a primary without a lease, a release under way", view(leads("a", 0), primary, inFlight, func(v *View) { v.Giving = &Giving{} }), "kill PostgreSQL", "without a lease"},
		{"adopted, another's lease runs without its lock", view(leads("b", 0), lockGone, primary, func(v *View) { v.Adopted = now }), "kill PostgreSQL", "without a lease"},
		{"adopted, never led here, another's lease runs without its lock", view(leads("b", 0), lockGone, primary, func(v *View) {
			v.Adopted, v.AdoptedUnled = now, true
		}), "kill PostgreSQL", "without a lease"},
		{"adopted, its deadline runs, own lease released", view(leads("a", 0), primary, released(""), adopted(ttl/2)), "kill PostgreSQL", "without a lease"},
		{"adopted a lease ago, Consul answers now", view(primary, func(v *View) {
			v.Adopted, v.FirstRead = now.Add(-2*ttl), now
		}), "kill PostgreSQL", "without a lease"},
		{"started by hand long after Consul answered, never led here", view(primary, func(v *View) {
			v.Adopted, v.FirstRead, v.AdoptedUnled = now, now.Add(-time.Hour), true
		}), "take over (status at 0)", "our own lock"},
		{"Consul is away, the guard remembers a pause, the settings do not", view(primary, newShard, func(v *View) {
			v.Read, v.Adopted, v.AdoptedPaused = 0, now.Add(-time.Hour), true
		}), "", "Consul has not answered"},
		{"Consul is away, the settings say pause, the guard does not", view(primary, newShard, func(v *View) {
			v.Read, v.Adopted, v.Config.Pause = 0, now.Add(-time.Hour), true
		}), "kill PostgreSQL", "without a lease"},
		{"in pause, nobody ever beat", view(primary, paused_), "take over (status at 0)", "paused"},
	})
}

func TestUncertainNeedsEachCondition(t *testing.T) {
	uncertain := func(v *View) { v.Lease.Uncertain = true }
	fenced := []func(*View){leads("a", 0), down, uncertain, silentFor(11 * time.Second)}
	with := func(more ...func(*View)) View { return view(append(slices.Clone(fenced), more...)...) }
	runSituations(t, []situationTest{
		{"a leader goes on with its duty", view(holdsLease(7*time.Second), uncertain, down), "read Consul again; start as primary", "started again"},
		{"Consul silent for a lease, a task runs", with(doingTask(TaskRejoin)), "read Consul again", "unknown"},
		{"Consul silent for a lease, told to end", with(func(v *View) { v.Stopping = true }), "exit", "stopped"},
		{"Consul silent for a lease, told to end, a replica runs", view(leads("b", 0), uncertain, silentFor(11*time.Second), func(v *View) { v.Stopping = true }), "demote", "stopping"},
		{"Consul silent for a lease, told to end, in pause", view(leads("a", 0), primary, paused_, uncertain, silentFor(11*time.Second), func(v *View) { v.Stopping = true }), "exit", "stay"},
		{"Consul silent for a lease, the start has just failed", with(func(v *View) { v.Attempt.NotUntil = now.Add(1) }), "read Consul again", "unknown"},
	})
}

func TestPromisesNeedEachCondition(t *testing.T) {
	ask := FailsafeRequest{Leader: "b", Lease: ttl, Index: 45}
	longer := func(v *View) { v.Cluster.Status.Value.Lictor.LeaseMS = 2 * ttl.Milliseconds() }
	unread := func(v *View) { newShard(v); v.Read = 0 }
	for _, tt := range []struct {
		name       string
		view       View
		leaseState *LeaseState
		ask        FailsafeRequest
		ok         bool
	}{
		{"holds a lease, and is no primary yet", view(leads("b", 0)), leader(), ask, false},
		{"was the primary and is down", view(leads("b", 0), primary, down), nil, ask, true},
		{"asked in its own name, which led last", view(leads("a", 0)), nil, FailsafeRequest{Leader: "a", Lease: ttl, Index: 45}, false},
		{"as long as the last beat's lease, longer than ttl", view(leads("b", 0), longer), nil, FailsafeRequest{Leader: "b", Lease: 2 * ttl, Index: 45}, true},
		{"as long as ttl, longer than the last beat's lease", view(leads("b", 0), func(v *View) { v.Config.TTL = 2 * ttl }), nil, FailsafeRequest{Leader: "b", Lease: 2 * ttl, Index: 45}, true},
		{"longer than our ttl, and Consul was never read", view(unread), nil, FailsafeRequest{Leader: "b", Lease: 4 * ttl, Index: 45}, true},
	} {
		l := tt.leaseState
		if l == nil {
			l = &LeaseState{}
		}
		if err := l.Agree(tt.view, tt.ask); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	// A promise is not shortened by a later one, and knows the latest status.
	l := &LeaseState{promise: &Promise{Leader: "b", Until: now.Add(time.Minute), Index: 45}}
	v := view(leads("b", 0))
	v.Promise = l.Promise()
	if err := l.Agree(v, ask); err != nil || l.Promise().Until != now.Add(time.Minute) {
		t.Errorf("%v: until %s", err, l.Promise().Until)
	}
	for _, index := range []uint64{44, 45, 46} {
		if err := l.Agree(v, FailsafeRequest{Leader: "b", Lease: ttl, Index: index}); err != nil || l.Promise().Index != max(45, index) {
			t.Errorf("asked with the status at %d: %v, index %d", index, err, l.Promise().Index)
		}
	}

	// Only a release by the one to whom it was promised voids it.
	promise := &Promise{Leader: "b", Until: now.Add(time.Second), Index: 44}
	for _, tt := range []struct {
		name  string
		view  View
		holds bool
	}{
		{"no beat", view(), true},
		{"a newer beat of his", view(leads("b", 0)), true},
		{"he has released", view(leads("b", 0), released("")), false},
		{"another has released", view(leads("c", 0), released("")), true},
	} {
		if tt.view.Promise = promise; (tt.view.promised() != nil) != tt.holds {
			t.Errorf("%s: holds %v", tt.name, !tt.holds)
		}
	}
}

func TestFailsafeNeedsEachCondition(t *testing.T) {
	cutOff := func(ago time.Duration) func(*View) {
		return func(v *View) {
			holdsLease(ttl - ago)(v)
			v.Config.FailsafeMode = true
			v.Lease.Renewed, v.Lease.BeatSent = now.Add(-ago), now.Add(-ago)
			v.Lease.InFlight, v.Lease.Failsafe = true, true
			v.Cluster.Failsafe = cluster.Entry[map[string]string]{Value: map[string]string{}, ModifyIndex: 30}
			for i := range v.Cluster.Members {
				v.Cluster.Members[i].Value.APIURL = "u"
				v.Cluster.Failsafe.Value[v.Cluster.Members[i].Value.Name] = "u"
			}
		}
	}
	fresh := func(v *View) { cutOff(0)(v); v.Lease.InFlight = false }
	runSituations(t, []situationTest{
		{"demoting: the lease is on its way out", view(cutOff(5*time.Second), doingTask(TaskDemote)), "", "busy: demote"},
		{"retry_timeout is shorter than a quarter of ttl", view(cutOff(3*time.Second), func(v *View) { v.Config.RetryTimeout = time.Second }), "ask the members to let the lease go on", ""},
		{"a member without an API", view(fresh, func(v *View) { v.Cluster.Members[2].Value.APIURL = "" }), "failsafe key: [a b]", ""},
		{"a member whose key is not understood", view(fresh, func(v *View) { v.Cluster.Members[2].Err = errors.New("x") }), "failsafe key: [a b]", ""},
	})
	if d := failsafe(view(leads("b", 0), func(v *View) {
		v.Config.FailsafeMode, v.Lease.Failsafe = true, true
	}), Decision{}); len(d.Actions) > 0 {
		t.Errorf("without a lease: %v", d.Actions)
	}
	for name, change := range map[string]func(*View){
		"off":   func(v *View) { v.Config.FailsafeMode = false },
		"grown": func(v *View) { delete(v.Cluster.Failsafe.Value, "c") },
	} {
		if write, ok := findAction[WriteFailsafe](Decide(view(fresh, change))); !ok || write.Index != 30 {
			t.Errorf("%s: %+v", name, write)
		}
	}

	l := leader()
	l.ListKnown(5, map[string]string{"a": "ua", "b": "ub"})
	if members := l.FailsafeMembers("a"); len(members) != 1 || members[0].URL != "ub" {
		t.Errorf("members %+v", members)
	}
	many := map[string]string{}
	for _, name := range []string{"h", "c", "g", "e", "b", "f", "d"} {
		many[name] = "u" + name
	}
	crowd := &LeaseState{}
	crowd.ListKnown(5, many)
	crowd.BeginList(map[string]string{"c": "another"})
	names := ""
	for _, m := range crowd.FailsafeMembers("a") {
		names += m.Name
	}
	if names != "bccdefgh" {
		t.Errorf("members in the order %s", names)
	}
	for _, tt := range []struct {
		pairs []string
		want  int
	}{{[]string{"a", "a", "u", "v"}, -1}, {[]string{"a", "a", "v", "u"}, 1}, {[]string{"b", "a", "u", "v"}, 1}, {[]string{"a", "a", "u", "u"}, 0}} {
		if got := compareStrings(tt.pairs...); got != tt.want {
			t.Errorf("%v: %d", tt.pairs, got)
		}
	}
	l.BeginFailsafe(at(104))
	if lease := l.Lease(); !lease.Asking || lease.Asked != at(104) || lease.Length != ttl {
		t.Errorf("asking: %+v", lease)
	}
	if err := l.FailsafeAnswered(at(105), at(104), ttl, true); err != nil || l.Lease().Asking || !l.OnFailsafe() {
		t.Errorf("answered: %v, %+v", err, l.Lease())
	}
	// An answer that brings nothing new takes nothing away.
	if err := l.FailsafeAnswered(at(105), at(103), ttl, true); err != nil || !l.OnFailsafe() {
		t.Errorf("an older answer: %v, on failsafe %v", err, l.OnFailsafe())
	}
	l.BeginBeat(at(106), ttl)
	if err := l.BeatSucceeded(at(107), at(106), ttl); err != nil || l.OnFailsafe() {
		t.Errorf("a beat: %v, on failsafe %v", err, l.OnFailsafe())
	}
	// A persisted state that says that a list is known, and has none.
	var next LeaseState
	if next.ResumeLists(PersistedState{Listed: true, ListedAt: 7}); next.Lease().Failsafe {
		t.Error("a list that is not there is usable")
	}
	next.ResumeLists(PersistedState{Listed: true, ListedAt: 7, Lists: []map[string]string{{"a": "ua"}}})
	if !next.Lease().Failsafe {
		t.Error("the list of the earlier run is not usable")
	}
}

func TestOtherPrimariesNeedsEachCondition(t *testing.T) {
	another := peer("b", 2, 5000)
	another.Primary = true
	silent, stopped := another, another
	silent.Answered, stopped.State = false, cluster.StateStopped
	for _, tt := range []struct {
		name string
		view View
		want int
	}{
		{"silent", view(holdsLease(7*time.Second), asked(silent)), 0},
		{"stopped", view(holdsLease(7*time.Second), asked(stopped)), 0},
		{"we were a primary and are down", view(leads("b", 0), primary, down, asked(another)), 0},
		{"we lead and are no primary yet", view(holdsLease(7*time.Second), asked(another), func(v *View) { v.Postgres.Primary = false }), 1},
	} {
		if got := tt.view.OtherPrimaries(); len(got) != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestClusterViewNeedsEachCondition(t *testing.T) {
	route := func(index, route uint64) cluster.Snapshot {
		return cluster.Snapshot{Index: index, Route: cluster.Entry[cluster.Route]{ModifyIndex: route}}
	}
	for _, tt := range []struct {
		name       string
		known      uint64
		reading    cluster.Snapshot
		consistent bool
		want       uint64
	}{
		{"a watch has no route", 5, route(11, 0), false, 5},
		{"a watch's route counts as none", 5, route(11, 9), false, 5},
		{"a newer route", 5, route(11, 9), true, 9},
		{"an older route", 15, route(11, 4), true, 15},
		{"an older route, in a reading from after it was written", 5, route(11, 4), true, 4},
		{"the route is gone", 5, route(11, 0), true, 0},
		{"the route is gone, it was the last of all that was written", 15, route(11, 0), true, 0},
		{"a newer route, both the last of all that was written", 15, route(11, 19), true, 19},
	} {
		o := ClusterView{Read: 1, FirstRead: 1, Snapshot: route(10, tt.known)}
		if o.Accept(2, tt.reading, tt.consistent); o.Snapshot.Route.ModifyIndex != tt.want {
			t.Errorf("%s: route at %d, want %d", tt.name, o.Snapshot.Route.ModifyIndex, tt.want)
		}
	}
	back := route(6, 3)
	back.Status = cluster.Entry[cluster.Status]{ModifyIndex: 4, Value: cluster.Status{Lictor: &cluster.Beat{LeaseMS: 8000}}}
	o := ClusterView{Read: 1, FirstRead: 1, Snapshot: route(10, 7)}
	o.Snapshot.Status.ModifyIndex = 8
	if o.Accept(2, back, true); o.Snapshot.Route.ModifyIndex != 3 {
		t.Errorf("Consul has gone back: route at %d, want 3", o.Snapshot.Route.ModifyIndex)
	}
	o = ClusterView{}
	o.Accept(at(3), route(10, 0), true)
	o.Accept(at(4), route(11, 0), true)
	if o.FirstRead != at(3) || o.Read != at(4) || o.StatusSeen != at(3) {
		t.Errorf("first read %s, read %s, status seen %s", o.FirstRead, o.Read, o.StatusSeen)
	}
	// A write of ours that took effect long ago makes no reading old.
	o.Wrote(20)
	o.Wrote(15)
	if got := o.Accept(at(5), route(17, 0), true); got != Stale {
		t.Errorf("a reading from before our write: %v", got)
	}

	o = ClusterView{}
	for _, tt := range []struct {
		own, told int
		promotes  bool
		want      int
	}{{3, 0, false, 3}, {3, 5, false, 5}, {5, 3, false, 5}, {5, 3, true, 6}, {3, 5, true, 6}} {
		o.Snapshot.Status.Value.Lictor = nil
		if tt.told > 0 {
			o.Snapshot.Status.Value.Lictor = &cluster.Beat{Timeline: tt.told}
		}
		if got := o.NextTimeline(tt.own, tt.promotes); got != tt.want || o.Timeline() != tt.told {
			t.Errorf("%+v: next %d, told %d", tt, got, o.Timeline())
		}
	}
}

func TestDetachingNeedsEachCondition(t *testing.T) {
	for name, tt := range map[string]struct {
		view  View
		index uint64
		may   bool
	}{
		"nothing to replace":                     {view(), 0, false},
		"holds a lease, and is no primary yet":   {view(holdsLease(time.Second), func(v *View) { v.Postgres.Primary = false }), 45, false},
		"a primary that is starting, as it says": {view(leads("b", 0), primary, func(v *View) { v.Postgres.Accepting = false }), 45, false},
	} {
		if err := tt.view.MayDetach(tt.index); (err == nil) != tt.may {
			t.Errorf("%s: %v", name, err)
		}
	}
	detached := func(v *View) { v.Detached = 45 }
	nobody := func(v *View) { v.Postgres.Upstream, v.Postgres.Streaming = "", false }
	runSituations(t, []situationTest{
		{"set up to follow, not connected", view(leads("b", 0), detached, func(v *View) { v.Postgres.Streaming = false }), "follow nobody", "counts on this member"},
		{"connected, set up to follow nobody", view(leads("b", 0), detached, func(v *View) { v.Postgres.Upstream = "" }), "follow nobody", "counts on this member"},
		{"PostgreSQL is starting", view(leads("b", 0), detached, func(v *View) { v.Postgres.Accepting = false }), "", "until b is seen to lead on"},
		{"follows nobody", view(leads("b", 0), detached, nobody), "", "until b is seen to lead on"},
		{"is the leader", view(leads("a", 0), detached, nobody, down), "start as replica of nobody", "how far our WAL goes"},
	})
	// A reading that began before cannot undo it.
	o := ClusterView{Read: 1, Snapshot: cluster.Snapshot{Index: 40}}
	o.Detach(50)
	o.Detach(45)
	if got := o.Accept(2, cluster.Snapshot{Index: 48}, false); o.Detached != 50 || got != Superseded {
		t.Errorf("detached under %d, the reading was %v", o.Detached, got)
	}
	o = ClusterView{Detached: 50, Snapshot: view(leads("b", 0), quorumOfB).Cluster}
	if o.Resume("a", false); o.Detached != 50 {
		t.Errorf("resumed under %d", o.Detached)
	}
}

func TestPauseNeedsEachCondition(t *testing.T) {
	own := []func(*View){leads("a", 0), primary, paused_}
	with := func(more ...func(*View)) View { return view(append(slices.Clone(own), more...)...) }
	listed := func(name string) func(*View) {
		return func(v *View) {
			v.Cluster.Failsafe = cluster.Entry[map[string]string]{Value: map[string]string{name: "u"}, ModifyIndex: 46}
		}
	}
	promised := func(left time.Duration) func(*View) {
		return func(v *View) { v.Promise = &Promise{Leader: "b", Until: now.Add(left), Index: 45} }
	}
	pause := func(v *View) { v.Config.Pause = true }
	runSituations(t, []situationTest{
		{"a primary without a lock", with(), "take over (status at 45)", "paused"},
		{"no session", with(session("")), "", "paused"},
		{"a takeover is under way", with(inFlight), "", "paused"},
		{"refused just now", with(func(v *View) { v.Lease.NotBefore = now.Add(1) }), "", "could not be taken"},
		{"a task runs", with(doingTask(TaskRestart)), "", "busy: restart"},
		{"down", with(down), "", "paused"},
		{"a replica, nobody leads", view(expiredLease, paused_, asked()), "", "paused"},
		{"another's lease is over, and its beats told of no pause", view(expiredLease, primary, func(v *View) { v.Config.Pause = true }), "take over (status at 45)", "paused"},
		{"another's lease runs without its lock", view(leads("b", 0), lockGone, primary, paused_), "", "beside the lease of b"},
		{"another led since, on a later timeline", view(leads("b", 10*time.Second), lockGone, ledOn(3), primary, paused_), "", "b has led since, on timeline 3: here it is 1"},
		{"another led since, on the same one", view(leads("b", 10*time.Second), lockGone, ledOn(1), primary, paused_), "", "b has led since"},
		{"another led before, and this one was promoted by hand", view(leads("b", 10*time.Second), lockGone, ledOn(1), primary, paused_, func(v *View) { v.Postgres.Timeline = 2 }), "take over (status at 45)", "paused"},
		{"it has led itself", view(leads("a", 10*time.Second), ledOn(3), primary, paused_), "take over (status at 45)", "paused"},
		{"another has released its lease", view(leads("b", 0), released(""), primary, paused_), "take over (status at 45)", "paused"},
		{"another may go on by the word of those in the list", view(expiredLease, primary, pause, listed("b")), "", "not in the failsafe list"},
		{"one that Consul tells nothing of may", view(primary, paused_, listed("b")), "", "not in the failsafe list"},
		{"not without this member's word", view(expiredLease, primary, pause, listed("a")), "take over (status at 45)", "paused"},
		{"the last leader itself is not in the list", with(listed("b")), "take over (status at 45)", "paused"},
		{"another that is in the list has released its lease", view(leads("b", 0), released(""), primary, paused_, listed("b")), "take over (status at 45)", "paused"},
		{"a replica that is not in the list", view(expiredLease, paused_, asked(), listed("b")), "", "paused"},
		{"promised", view(expiredLease, primary, pause, promised(1)), "", "promised to b"},
		{"promised, and that is over", view(expiredLease, primary, pause, promised(0)), "take over (status at 45)", "paused"},
		{"a replica, promised", view(expiredLease, paused_, asked(), promised(1)), "", "paused"},
	})
}

// A primary that was found running and has no lease yet is looked at when its time is over,
// whatever is waited for.
func TestPrimaryWithoutALeaseIsLookedAtInTime(t *testing.T) {
	adopted := func(v *View) { v.Adopted, v.AdoptedPaused = now.Add(-time.Second), true }
	ends := now.Add(-time.Second + ttl)
	for name, tt := range map[string]struct {
		view View
		want cluster.Instant
	}{
		"the outcome of its takeover is unknown": {view(leads("a", 0), primary, adopted, func(v *View) { v.Cluster.Status.Value.Lictor.Paused, v.Lease.Uncertain = true, true }), ends},
		"Consul has not answered":                {view(primary, adopted, func(v *View) { v.Read = 0 }), ends},
		"a replica":                              {view(leads("b", 0), adopted, func(v *View) { v.Lease.Uncertain = true }), 0},
	} {
		if d := Decide(tt.view); d.Wake != tt.want {
			t.Errorf("%s: looked at again at %s, want %s (%s)", name, d.Wake, tt.want, d.Reason)
		}
	}
}

// In pause a switchover that was asked for is carried out to its end, and nothing else.
func TestSwitchoverInPause(t *testing.T) {
	toA := request(cluster.Failover{Leader: "b", Candidate: "a"})
	given := []func(*View){leads("b", 0), released("a"), toA, paused_}
	with := func(more ...func(*View)) View { return view(append(slices.Clone(given), more...)...) }
	const take = "take over (status at 45)"
	leader := []func(*View){holdsLease(7 * time.Second), func(v *View) { v.Postgres.Primary = false }, paused_}
	leads_ := func(more ...func(*View)) View { return view(append(slices.Clone(leader), more...)...) }
	handedOver := []func(*View){leads("b", 0), down, primary, paused_, func(v *View) { v.HandedOver = 48 }}
	follows := func(more ...func(*View)) View { return view(append(slices.Clone(handedOver), more...)...) }
	replica := func(more ...func(*View)) View {
		return view(append([]func(*View){leads("b", 0), paused_, func(v *View) { v.Postgres.Upstream = "c" }}, more...)...)
	}
	runSituations(t, []situationTest{
		{"given to us", with(), take, "given to us by b"},
		{"given to us, whoever the candidate was to be", with(request(cluster.Failover{Leader: "b"})), take, "given to us by b"},
		{"given to us without a request", with(request(cluster.Failover{})), "", "paused"},
		{"another is asked for by now", with(request(cluster.Failover{Leader: "b", Candidate: "c"})), "", "paused"},
		{"asked for later", with(func(v *View) { later := v.Wall.Add(time.Hour); v.Cluster.Failover.Value.ScheduledAt = &later }), "", "paused"},
		{"asked for earlier", with(func(v *View) { due := v.Wall.Add(-time.Second); v.Cluster.Failover.Value.ScheduledAt = &due }), take, "given to us by b"},
		{"given to us, a primary already", with(primary), take, "paused; a primary without a lock"},
		{"given to another", with(released("c")), "", "paused"},
		{"not given", with(func(v *View) { v.Cluster.Status.Value.Lictor.Released = false }), "", "paused"},
		{"down", with(down), "", "paused"},
		{"starting", with(func(v *View) { v.Postgres.Accepting = false }), "", "paused"},
		{"replay waits for a restart", with(undersized), "", "paused"},
		{"a nofailover member", with(func(v *View) { v.Tags = map[string]any{"nofailover": true} }), "", "tagged nofailover"},

		{"with the lock", leads_(toA), "promote", "the leader"},
		{"with the lock, nothing is asked for", leads_(), "", "with the lock"},
		{"with the lock, asked to give it away", leads_(request(cluster.Failover{Leader: "a"})), "clear the failover key", "named candidate"},
		{"with the lock, asked for later", leads_(toA, func(v *View) { later := v.Wall.Add(time.Hour); v.Cluster.Failover.Value.ScheduledAt = &later }), "clear the failover key", "is done"},
		{"with the lock, the promotion fails again and again", leads_(toA, asked(peer("b", 1, 5000)), func(v *View) {
			v.Attempt = Attempt{Kind: TaskPromote, Failures: crashLoop}
		}), "promote", "the leader"},

		{"the old leader", follows(), "rejoin as replica of b", "b leads"},
		{"the old leader, before anybody leads", follows(released("a")), "", "paused"},
		{"the old leader, stopped by hand since", follows(func(v *View) { v.Postgres.DownSince = now }), "", "paused"},
		{"the old leader, running", follows(func(v *View) { v.Postgres.Running = true }), "kill PostgreSQL", "while b leads"},
		{"a replica", replica(), "follow b", "b leads"},
		{"a replica that leads by what Consul shows", view(leads("a", 0), paused_), "", "paused"},
		{"a primary beside a lease", view(leads("b", 0), lockGone, primary, paused_, func(v *View) { v.Postgres.Upstream = "" }), "", "beside the lease of b"},
		{"a replica that follows the leader", replica(func(v *View) { v.Postgres.Upstream = "b" }), "", "paused"},
		{"a replica that is starting", replica(func(v *View) { v.Postgres.Accepting = false }), "", "paused"},
		{"a replica, before the leader is a primary", replica(func(v *View) { v.Cluster.Members[1].Value.Role = cluster.RoleReplica }), "", "paused"},
		{"a replica that would have to be rewound", replica(strayed(41)), "", "paused"},
		{"a replica by the archive", replica(func(v *View) { v.Tags = map[string]any{"nostream": true} }), "", "paused"},
		{"the old leader of a switchover before the pause", follows(func(v *View) { v.Cluster.Config.ModifyIndex = 49 }), "", "paused"},
		{"one that was down", follows(func(v *View) { v.HandedOver = 0 }), "", "paused"},
		{"the old leader's data are gone", follows(func(v *View) { v.Postgres.Data = DataEmpty }), "", "paused"},
	})
}

func TestQuorumNeedsEachCondition(t *testing.T) {
	const askAgainDetached = "ask the other members, detached from the old leader (status at 45)"
	over := leads("b", ttl+ttl/40+time.Second)
	c := peer("c", 1, 5000)
	c.Detached = 45
	silent := c
	silent.Answered = false
	none := c
	none.Timeline = 0
	runSituations(t, []situationTest{
		{"enough have detached", view(over, quorumOfB, askedToDetach(45, c)), "take over (status at 45)", "best"},
		{"asked before the old leader gave up", view(over, quorumOfB, released(""), askedToDetach(45, c), func(v *View) {
			v.StatusSeen, v.PeersAsked = now.Add(-100*time.Millisecond), now.Add(-time.Second)
		}), "ask the other members", "positions"},
		{"not asked to detach from this status", view(over, quorumOfB, askedToDetach(44, c)), askAgainDetached, "positions"},
		{"the answers are old", view(over, quorumOfB, askedToDetach(45, c), func(v *View) { v.PeersAsked = now.Add(-3 * time.Second) }), "ask the other members", ""},
		{"a promise has run out since", view(over, quorumOfB, askedToDetach(45, c), func(v *View) {
			v.Promise = &Promise{Leader: "b", Until: now, Index: 45}
		}), askAgainDetached, "positions"},
		{"does not know its timeline", view(over, quorumOfB, askedToDetach(45, none)), "", "sees 0"},
		{"still waiting for answers", view(over, quorumOfB, askedToDetach(45, silent), func(v *View) { v.PeersDone = false }), "", "waiting for the others"},
	})
	key := quorumKey("x", 1, "a", "b", "c")
	long := now.Add(-time.Minute)
	old := func(v *View) { v.PeersAsked = now.Add(-3 * time.Second) }
	unfinished := func(v *View) { v.PeersDone = false }
	whole := asked(peer("b", 1, 4000))
	ahead := asked(peer("b", 1, 6000))
	for name, tt := range map[string]struct {
		view  View
		ended cluster.Instant
		asks  bool
	}{
		"answers of long ago":             {view(key, whole, old), long, true},
		"a promise of long ago":           {view(key, whole, func(v *View) { v.Promise = &Promise{Leader: "x", Until: long} }), now.Add(-50 * time.Millisecond), true},
		"not detached, and others answer": {view(leads("x", 0), key, ahead, unfinished, func(v *View) { v.PeersDetached = 45 }), long, false},
		"ahead, asked a while ago":        {view(key, ahead, func(v *View) { v.PeersAsked = now.Add(-600 * time.Millisecond) }), long, false},
	} {
		d, first := tt.view.quorumFirst(tt.ended)
		if _, asks := findAction[AskPeers](d); !first || asks != tt.asks {
			t.Errorf("%s: first %v, %v (%s)", name, first, d.Actions, d.Reason)
		}
	}
	if problem := view(over, quorumOfB, askedToDetach(45, silent)).quorumProblem(); problem == "" {
		t.Error("a member that did not answer counts for what it said last")
	}
}

func TestRestoringNeedsEachCondition(t *testing.T) {
	goal := Goal{Timeline: 2, LSN: 100}
	there := Postgres{Running: true, Accepting: true, Timeline: 2, LSN: 100}
	stopped := there
	stopped.Running = false
	if !goal.Reached(there) || goal.Reached(stopped) {
		t.Error("a stopped PostgreSQL has reached the goal")
	}
	if !(Goal{Timeline: 5}).Outdated(5) {
		t.Error("there is no position, and the leader is not asked")
	}
	broken := view(expiredLease, func(v *View) { v.Cluster.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 47, Err: errors.New("x")} })
	if broken.restoringForbids(true) == "" {
		t.Error("the key sync is not understood, and replaced data may lead")
	}
}

func TestLeaseStateNeedsEachStep(t *testing.T) {
	l := leader()
	if l.Lease().InFlight || l.Lease().Uncertain {
		t.Errorf("after a takeover: %+v", l.Lease())
	}
	if l.BeatSoon(); l.Lease().BeatSent != 0 {
		t.Error("no beat is due")
	}
	l.BeginBeat(at(102), ttl)
	if !l.Lease().InFlight {
		t.Error("a beat is not under way")
	}
	l.WriteFailed(Unknown, 0, 0)
	l.BeginTakeOver(at(103), ttl/2)
	l.TookOver(at(103), ttl/2)
	if got := l.Lease(); got.InFlight || got.Uncertain || got.Length != ttl/2 {
		t.Errorf("a takeover settles what was open: %+v", got)
	}
	l.BeginTakeOver(at(104), ttl)
	if lease := l.BeginFailsafe(at(104)); lease != ttl/2 {
		t.Errorf("members are asked for %s, and a beat in Consul may carry %s", lease, ttl/2)
	}

	// The lease is on its way to b until Consul shows it.
	l = leader()
	l.GiveTo("b")
	if g := l.Giving(); g == nil || g.Successor != "b" || l.Until() != 0 || l.Length() != 0 {
		t.Errorf("giving %+v, until %s", g, l.Until())
	}
	l.BeginRelease()
	if !l.Writing() {
		t.Error("a release is not under way")
	}
	if l.Released(); l.Writing() || l.Giving() != nil {
		t.Errorf("released: writing %v, giving %+v", l.Writing(), l.Giving())
	}
	l = leader()
	l.GiveTo("b")
	if l.Drop(); l.Giving() != nil {
		t.Errorf("dropped, and given to %+v", l.Giving())
	}

	// A takeover whose outcome is known no more keeps this member from no promise.
	v, ask := view(leads("b", 0)), FailsafeRequest{Leader: "b", Lease: ttl, Index: 45}
	var replica LeaseState
	replica.BeginTakeOver(now, ttl)
	replica.WriteFailed(Unknown, 0, 0)
	replica.BeginTakeOver(now, ttl)
	replica.Reread(replica.Failures())
	if err := replica.Agree(v, ask); !errors.Is(err, ErrDisagree) {
		t.Errorf("a second takeover is under way: %v", err)
	}
	replica.WriteFailed(Refused, 0, 0)
	if err := replica.Agree(v, ask); !errors.Is(err, ErrDisagree) {
		t.Errorf("before the reading: %v", err)
	}
	replica.Reread(replica.Failures())
	if err := replica.Agree(v, ask); err != nil {
		t.Errorf("after the reading: %v", err)
	}

	m := leader().PersistedState("session", 45)
	if m.Session != "session" || m.Index != 45 || m.Until != at(108) || m.Shortest != ttl {
		t.Errorf("memo %+v", m)
	}
}

func TestViewNeedsEachCondition(t *testing.T) {
	from := func(name any) func(*View) { return func(v *View) { v.Tags = map[string]any{"replicatefrom": name} } }
	for _, tt := range []struct {
		name string
		view View
		want string
	}{
		{"as tagged", view(leads("b", 0), from("c")), "c"},
		{"no name", view(leads("b", 0), from("")), "b"},
		{"no word", view(leads("b", 0), from(7)), "b"},
		{"itself", view(leads("b", 0), from("a")), "b"},
		{"nobody's name", view(leads("b", 0), from("z")), "b"},
		{"says that it is a primary", view(leads("b", 0), from("c"), func(v *View) { v.Cluster.Members[2].Value.Role = cluster.RoleMaster }), "b"},
		{"has led before", view(leads("b", 0), from("c"), func(v *View) { v.Cluster.Members[1].Value.Timeline++ }), "b"},
		{"stopped", view(leads("b", 0), from("c"), func(v *View) { v.Cluster.Members[2].Value.State = cluster.StateStopped }), "b"},
		{"one that replicates from it", view(leads("b", 0), from("c"), func(v *View) {
			v.Cluster.Members[0].Value.Tags = v.Tags
			v.Cluster.Members[2].Value.Tags = map[string]any{"replicatefrom": "a"}
		}), "b"},
		{"its key is not understood", view(leads("b", 0), from("c"), func(v *View) { v.Cluster.Members[2].Err = errors.New("x") }), "b"},
	} {
		if got := tt.view.upstream("b"); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	short := view(holdsLease(time.Second), func(v *View) { v.Config.TTL, v.Lease.Length = 2*ttl, ttl })
	if short.ttl() != ttl || short.beatInterval() != 2*time.Second {
		t.Errorf("a lease of %s: ttl %s, a beat each %s", ttl, short.ttl(), short.beatInterval())
	}
	often := view(holdsLease(time.Second), func(v *View) { v.Config.LoopWait = time.Second })
	if often.beatInterval() != time.Second {
		t.Errorf("loop_wait 1: a beat each %s", often.beatInterval())
	}
	// A lock that somebody without beats (Patroni) has just taken counts more than the last beat.
	if got := view(leads("b", 0), func(v *View) { v.Cluster.Leader.Value = "c" }).leader(); got != "c" {
		t.Errorf("c holds the lock, and %s leads", got)
	}
	longer := view(holdsLease(time.Second), func(v *View) { v.Config.TTL, v.Lease.Length = ttl/2, ttl })
	if longer.ttl() != ttl/2 || longer.beatInterval() != time.Second {
		t.Errorf("ttl was lowered to %s: ttl %s, a beat each %s", ttl/2, longer.ttl(), longer.beatInterval())
	}
	// Patroni's leader has no lease; a status that says nothing else counts as one.
	if got := view(leads("b", 0), func(v *View) { v.Cluster.Status.Value.Lictor = nil }).leaseExpires(); got != now {
		t.Errorf("Patroni's: %s", got)
	}
	broken := view(leads("b", 0), func(v *View) { v.Cluster.Status.Err = errors.New("x") })
	if got := broken.leaseExpires(); got != now.Add(ttl+ttl/40) || broken.beat() != nil {
		t.Errorf("not understood: %s, beat %+v", got, broken.beat())
	}
}
