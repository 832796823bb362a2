package ha

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// leader is a lease state that has taken the lock with a takeover sent at second 100.
func leader() *LeaseState {
	var t LeaseState
	t.BeginTakeOver(at(100), ttl)
	t.TookOver(at(100), ttl)
	return &t
}

func TestLeaseStateBeats(t *testing.T) {
	l := leader()
	l.BeginBeat(at(102), ttl)
	if !l.Writing() {
		t.Fatal("not writing")
	}
	if err := l.BeatSucceeded(at(103), at(102), ttl); err != nil || l.Until() != at(110) || l.Writing() {
		t.Fatalf("%v, until %s", err, l.Until())
	}
	// The answer to a beat that comes after the end revives nothing.
	l.BeginBeat(at(104), ttl)
	if err := l.BeatSucceeded(at(110), at(104), ttl); !errors.Is(err, ErrLeaseOver) || l.Held(at(110)) {
		t.Errorf("late answer: %v, until %s", err, l.Until())
	}
}

func TestLeaseStateShorterTTL(t *testing.T) {
	l := leader()
	l.BeginBeat(at(102), 3*time.Second)
	if l.Until() != at(105) {
		t.Errorf("cut to %s before the beat is sent, want 105 s", l.Until())
	}
	// Whoever asks the members now must not ask for longer than an observer
	// counts who has seen that beat and forgotten its promise.
	if lease := l.BeginFailsafe(at(103)); lease != 3*time.Second {
		t.Errorf("failsafe for %s", lease)
	}
}

func TestLeaseStateFailures(t *testing.T) {
	for name, test := range map[string]struct {
		outcome   Outcome
		uncertain bool
	}{
		"no effect": {NoEffect, false},
		"refused":   {Refused, true},
		"unknown":   {Unknown, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := leader()
			l.BeginBeat(at(102), ttl)
			l.WriteFailed(test.outcome, at(103), 2*time.Second)
			got := l.Lease()
			if got.Uncertain != test.uncertain || got.InFlight || got.Until != at(108) {
				t.Errorf("%+v", got)
			}
			if got.NotBefore != at(103) || !test.uncertain && got.BeatSent != at(101) {
				t.Errorf("tried again: %+v", got)
			}
		})
	}
}

func TestRereadSettlesOnlyOlderFailures(t *testing.T) {
	l := leader()
	before := l.Failures()
	l.BeginBeat(at(102), ttl)
	l.WriteFailed(Unknown, 0, 0)
	l.Reread(before)
	if !l.Lease().Uncertain {
		t.Error("settled by a reading that began before the write failed")
	}
	l.Reread(l.Failures())
	if l.Lease().Uncertain {
		t.Error("not settled")
	}
}

func TestFailsafeLists(t *testing.T) {
	abc := map[string]string{"a": "ua", "b": "ub", "c": "uc"}
	ab := map[string]string{"a": "ua", "b": "ub"}
	abd := map[string]string{"a": "ua", "b": "ub", "d": "ud"}
	type step func(*LeaseState)
	known := func(index uint64, list map[string]string) step {
		return func(t *LeaseState) { t.ListKnown(index, list) }
	}
	begin := func(list map[string]string) step { return func(t *LeaseState) { t.BeginList(list) } }
	restart := func(t *LeaseState) {
		b, err := json.Marshal(t.PersistedState("s", 7))
		var m PersistedState
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		*t = LeaseState{}
		if err != nil || t.Resume(at(101), m) != nil {
			panic("cannot resume")
		}
	}
	for name, test := range map[string]struct {
		steps  []step
		usable bool
		asked  string // the others that have to agree
	}{
		"never read":                     {nil, false, ""},
		"absent":                         {[]step{known(0, nil)}, false, ""},
		"written, unknown":               {[]step{begin(abc)}, false, "bc"},
		"written and known":              {[]step{begin(abc), known(5, abc)}, true, "bc"},
		"found":                          {[]step{known(5, abc)}, true, "bc"},
		"replaced, unknown":              {[]step{known(5, abc), begin(abd)}, true, "bcd"},
		"replaced, read before":          {[]step{known(5, abc), begin(abd), known(5, abc)}, true, "bcd"},
		"replaced twice, unknown":        {[]step{known(5, ab), begin(abc), begin(abd)}, true, "bcd"},
		"replaced and known":             {[]step{known(5, abc), begin(ab), known(6, ab)}, true, "b"},
		"a later write settles all":      {[]step{known(5, ab), begin(abc), begin(abd), known(6, abd)}, true, "bd"},
		"deletion sent":                  {[]step{known(5, abc), begin(nil)}, false, "bc"},
		"deletion sent, still there":     {[]step{known(5, abc), begin(nil), known(5, abc)}, false, "bc"},
		"deleted":                        {[]step{known(5, abc), begin(nil), known(0, nil)}, false, ""},
		"deletion sent, written again":   {[]step{known(5, abc), begin(nil), begin(abc), known(6, abc)}, true, "bc"},
		"not understood":                 {[]step{known(5, abc), known(6, nil)}, false, ""},
		"restart":                        {[]step{known(5, abc), restart}, true, "bc"},
		"restart, replaced, unknown":     {[]step{known(5, ab), begin(abd), restart, known(5, ab)}, true, "bd"},
		"restart, first write unknown":   {[]step{begin(ab), restart}, false, "b"},
		"restart after a deletion":       {[]step{known(5, abc), begin(nil), restart, known(5, abc)}, false, "bc"},
		"restart, then seen as replaced": {[]step{known(5, ab), begin(abd), restart, known(6, abd)}, true, "bd"},
	} {
		t.Run(name, func(t *testing.T) {
			l := leader()
			for _, s := range test.steps {
				s(l)
			}
			asked := ""
			for _, m := range l.FailsafeMembers("a") {
				asked += m.Name
			}
			if l.Lease().Failsafe != test.usable || asked != test.asked {
				t.Errorf("usable %v, asks %q; want %v, %q", l.Lease().Failsafe, asked, test.usable, test.asked)
			}
		})
	}
}

func TestFailsafeAnswered(t *testing.T) {
	list := map[string]string{"a": "ua", "b": "ub"}
	for name, test := range map[string]struct {
		now    float64
		agreed bool
		before func(*LeaseState)
		until  float64
		err    bool
		active bool
	}{
		"all agree":                {now: 105, agreed: true, until: 112, active: true},
		"one does not":             {now: 105, until: 108},
		"after the lease":          {now: 108, agreed: true, until: 108, err: true},
		"the key is being deleted": {now: 105, agreed: true, until: 108, err: true, before: func(l *LeaseState) { l.BeginList(nil) }},
		"dropped meanwhile":        {now: 105, agreed: true, err: true, before: func(l *LeaseState) { l.Drop() }},
	} {
		t.Run(name, func(t *testing.T) {
			l := leader()
			l.ListKnown(5, list)
			lease := l.BeginFailsafe(at(104))
			if test.before != nil {
				test.before(l)
			}
			err := l.FailsafeAnswered(at(test.now), at(104), lease, test.agreed)
			if (err != nil) != test.err || l.Until() != at(test.until) || l.OnFailsafe() != test.active {
				t.Errorf("%v, until %s, on failsafe %v", err, l.Until(), l.OnFailsafe())
			}
		})
	}
}

func TestAgree(t *testing.T) {
	ask := FailsafeRequest{Leader: "b", Lease: ttl, Index: 45} // the status that leads("b") shows
	other := func(v *View) { leads("c", 0)(v); v.Cluster.Status.ModifyIndex = 46 }
	promised := func(to string, index uint64) func(*LeaseState) {
		return func(t *LeaseState) { t.promise = &Promise{Leader: to, Until: now.Add(time.Second), Index: index} }
	}
	for name, test := range map[string]struct {
		view       View
		leaseState func(*LeaseState)
		ask        FailsafeRequest
		ok         bool
	}{
		"a replica of the leader":               {view: view(leads("b", time.Second)), ask: ask, ok: true},
		"never heard of Consul":                 {view: view(newShard, func(v *View) { v.Read = 0 }), ask: ask, ok: true},
		"knows a beat that the leader does not": {view: view(leads("b", 0)), ask: FailsafeRequest{Leader: "b", Lease: ttl, Index: 44}, ok: true},
		"our own name":                          {view: view(leads("b", 0)), ask: FailsafeRequest{Leader: "a", Lease: ttl, Index: 45}},
		"no lease":                              {view: view(leads("b", 0)), ask: FailsafeRequest{Leader: "b", Index: 45}},
		"leads itself":                          {view: view(holdsLease(ttl)), ask: ask, leaseState: func(t *LeaseState) { *t = *leader() }},
		"runs as a primary":                     {view: view(leads("b", 0), primary), ask: ask},
		"a takeover is under way":               {view: view(leads("b", 0)), ask: ask, leaseState: func(t *LeaseState) { t.BeginTakeOver(now, ttl) }},
		"the outcome of a takeover is unknown": {view: view(leads("b", 0)), ask: ask, leaseState: func(t *LeaseState) {
			t.BeginTakeOver(now, ttl)
			t.WriteFailed(Unknown, 0, 0)
		}},
		"a takeover had no effect": {view: view(leads("b", 0)), ask: ask, ok: true, leaseState: func(t *LeaseState) {
			t.BeginTakeOver(now, ttl)
			t.WriteFailed(NoEffect, 0, 0)
		}},
		"somebody has led since":                {view: view(other), ask: ask},
		"who never led says that he does":       {view: view(leads("c", 0)), ask: FailsafeRequest{Leader: "b", Lease: ttl, Index: 1 << 60}},
		"no beat was ever seen":                 {view: view(newShard), ask: ask},
		"longer than any lease that was seen":   {view: view(leads("b", 0)), ask: FailsafeRequest{Leader: "b", Lease: ttl + 1, Index: 45}},
		"253 years":                             {view: view(newShard, func(v *View) { v.Read = 0 }), ask: FailsafeRequest{Leader: "b", Lease: 1 << 62, Index: 45}},
		"the leader has released since":         {view: view(leads("b", 0), released("")), ask: FailsafeRequest{Leader: "b", Lease: ttl, Index: 44}},
		"promised to another":                   {view: view(leads("b", 0)), ask: ask, leaseState: promised("c", 45)},
		"promised to another who lost it since": {view: view(leads("b", 0)), ask: ask, leaseState: promised("c", 44), ok: true},
		"promised to the same":                  {view: view(leads("b", 0)), ask: ask, leaseState: promised("b", 45), ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			var l LeaseState
			if test.leaseState != nil {
				test.leaseState(&l)
			}
			v := test.view
			v.Promise = l.Promise()
			err := l.Agree(v, test.ask)
			if (err == nil) != test.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil && !errors.Is(err, ErrDisagree) {
				t.Errorf("%v is not ErrDisagree", err)
			}
			if p := l.Promise(); test.ok && (p == nil || p.Leader != "b" || p.Until != now.Add(ttl+ttl/40)) {
				t.Errorf("promise %+v", p)
			}
		})
	}
}

func TestPromiseKept(t *testing.T) {
	promise := func(v *View) { v.Promise = &Promise{Leader: "b", Until: now.Add(time.Second), Index: 45} }
	over := func(v *View) { v.Promise = &Promise{Leader: "b", Until: now, Index: 45} }
	expired := []func(*View){leads("b", 20*time.Second), asked(peer("c", 1, 5000))}
	with := func(more ...func(*View)) View { return view(append(expired, more...)...) }
	runSituations(t, []situationTest{
		{"no promise", with(), "take over (status at 45)", "best"},
		{"promised", with(promise), "", "following b"},
		{"the promise has run out", with(over), "take over (status at 45)", "best"},
		{"released to us since", with(promise, released("a"), func(v *View) { v.Cluster.Status.ModifyIndex = 46 }), "take over (status at 46)", "given to us"},
		{"released before", with(promise, released("a")), "", "promised to b"},
		{"our own lock, promised away", view(holdsLease(time.Second), func(v *View) { v.Lease = Lease{}; v.Postgres.Primary = false }, promise), "", "promised to b"},
	})
}

// A member that lies may name the leader, and a status that nobody has written: the promise
// to it outlasts the leader's own release then, but not its lease.
func TestPromiseByALieEnds(t *testing.T) {
	var l LeaseState
	dead := view(leads("b", ttl))
	if err := l.Agree(dead, FailsafeRequest{Leader: "b", Lease: ttl, Index: 1 << 60}); err != nil {
		t.Fatal(err)
	}
	promise := func(v *View) { v.Promise = l.Promise() }
	given := []func(*View){leads("b", ttl), asked(peer("c", 1, 5000)), released("a"), func(v *View) { v.Cluster.Status.ModifyIndex = 46 }, promise}
	over := func(v *View) {
		at := l.Promise().Until
		v.Now, v.Read, v.StatusSeen, v.PeersAsked = at, at, at, at
	}
	runSituations(t, []situationTest{
		{"released to us, and promised", view(given...), "", "promised to b"},
		{"a lease later", view(append(given, over)...), "take over (status at 46)", "given to us"},
	})
	if limit := now.Add(ttl + ttl/40); l.Promise().Until > limit {
		t.Errorf("promised until %v, after %v", l.Promise().Until, limit)
	}
}

func TestFailsafeDecisions(t *testing.T) {
	// The last beat that succeeded was sent ago before now.
	cutOff := func(ago time.Duration) func(*View) {
		return func(v *View) {
			holdsLease(ttl - ago)(v)
			v.Config.FailsafeMode = true
			v.Lease.Renewed, v.Lease.BeatSent = now.Add(-ago), now.Add(-ago)
			v.Lease.InFlight, v.Lease.Failsafe = true, true
			list := map[string]string{}
			for i := range v.Cluster.Members {
				v.Cluster.Members[i].Value.APIURL = "u"
				list[v.Cluster.Members[i].Value.Name] = "u"
			}
			v.Cluster.Failsafe = cluster.Entry[map[string]string]{Value: list, ModifyIndex: 30}
		}
	}
	on := func(v *View) { v.Lease.InFlight, v.Lease.BeatSent = false, now.Add(-100*time.Millisecond) }
	const ask = "ask the members to let the lease go on"
	runSituations(t, []situationTest{
		{"the beat may still be answered", view(cutOff(3900 * time.Millisecond)), "", "with the lock"},
		{"the beat is not answered", view(cutOff(4 * time.Second)), ask, "with the lock"},
		{"asking", view(cutOff(4*time.Second), func(v *View) { v.Lease.Asking = true }), "", "with the lock"},
		{"asked just now", view(cutOff(4*time.Second), func(v *View) { v.Lease.Asked = now.Add(-100 * time.Millisecond) }), "", ""},
		{"somebody did not agree", view(cutOff(5*time.Second), func(v *View) { v.Lease.Asked = now.Add(-time.Second) }), ask, ""},
		{"all agreed lately", view(cutOff(9*time.Second), func(v *View) {
			v.Lease.Until, v.Lease.Asked = now.Add(7*time.Second), now.Add(-time.Second)
		}), "", "other members' word"},
		{"all agreed a while ago", view(cutOff(9*time.Second), func(v *View) {
			v.Lease.Until, v.Lease.Asked = now.Add(6*time.Second), now.Add(-2*time.Second)
		}), ask, "other members' word"},
		{"the list is not certain", view(cutOff(5*time.Second), func(v *View) { v.Lease.Failsafe = false }), "", ""},
		{"failsafe mode is off", view(cutOff(5*time.Second), func(v *View) { v.Config.FailsafeMode = false }), "", ""},
		{"failsafe mode was switched off", view(cutOff(0), on, func(v *View) { v.Config.FailsafeMode = false }), "delete the failsafe key", ""},
		{"demoting begins, and it is asked still", view(cutOff(6100 * time.Millisecond)), "demote; " + ask, ""},
		{"the lease is over", view(cutOff(7300 * time.Millisecond)), "kill PostgreSQL", ""},
		{"PostgreSQL is restarted meanwhile", view(cutOff(4*time.Second), down), "start as primary; " + ask, ""},
		{"a handover is under way", view(cutOff(4*time.Second), func(v *View) { v.Task, v.Postgres.UnservedSince = TaskHandover, now.Add(-9*time.Second) }), ask, "busy: handover"},
		{"a handover that does not end", view(cutOff(4*time.Second), func(v *View) { v.Task, v.Postgres.UnservedSince = TaskHandover, now.Add(-316*time.Second) }), "ask the other members", "busy: handover"},
		{"the outcome of the beat is unknown", view(cutOff(4*time.Second), on, func(v *View) { v.Lease.Uncertain = true }), "read Consul again; " + ask, ""},
		{"a restarted agent that has not heard of Consul", view(cutOff(4*time.Second), on, func(v *View) {
			v.Read, v.Cluster, v.Session = 0, cluster.Snapshot{}, ""
		}), ask, "earlier run"},

		{"the list lacks a member", view(cutOff(0), on, func(v *View) { delete(v.Cluster.Failsafe.Value, "c") }), "failsafe key: [a b c]", ""},
		{"the list has a member that left", view(cutOff(0), on, func(v *View) { v.Cluster.Members = v.Cluster.Members[:2] }), "failsafe key: [a b]", ""},
		{"the list is missing", view(cutOff(0), on, func(v *View) {
			v.Cluster.Failsafe, v.Lease.Failsafe = cluster.Entry[map[string]string]{}, false
		}), "failsafe key: [a b c]", ""},
		{"the list is right", view(cutOff(0), on), "", "with the lock"},
		{"a deletion that was sent is taken back", view(cutOff(0), on, func(v *View) { v.Lease.Failsafe = false }), "failsafe key: [a b c]", ""},
		{"our own key is not there yet", view(cutOff(0), on, func(v *View) { v.Cluster.Members = v.Cluster.Members[1:] }), "", "with the lock"},
	})
}

func TestDeposed(t *testing.T) {
	deposed := func(index uint64) func(*View) { return func(v *View) { v.Lease.Deposed = index } }
	runSituations(t, []situationTest{
		{"by a newer status", view(holdsLease(7*time.Second), deposed(46)), "kill PostgreSQL", "another member"},
		{"before our own last beat", view(holdsLease(7*time.Second), deposed(45)), "", "with the lock"},
	})
	l := leader()
	l.Depose(50)
	l.Depose(40)
	if got := l.Lease().Deposed; got != 50 {
		t.Errorf("deposed by the status at %d", got)
	}
	l.BeginTakeOver(at(200), ttl)
	l.TookOver(at(200), ttl)
	if got := l.Lease().Deposed; got != 0 {
		t.Errorf("after a takeover: %d", got)
	}
}

func TestResume(t *testing.T) {
	l := leader()
	m := l.PersistedState("session", 45)
	var next LeaseState
	if err := next.Resume(at(107), m); err != nil || next.Until() != at(108) || next.Lease().Renewed != at(100) {
		t.Errorf("%v: %+v", err, next.Lease())
	}
	var late LeaseState
	if err := late.Resume(at(108), m); err == nil || late.Held(at(107)) {
		t.Errorf("resumed a lease that is over: %v", err)
	}
	if !reflect.DeepEqual(late, LeaseState{}) {
		t.Errorf("left behind: %+v", late)
	}
}

func TestClusterView(t *testing.T) {
	status := func(snapshot, index uint64) cluster.Snapshot {
		return cluster.Snapshot{Index: snapshot, Status: cluster.Entry[cluster.Status]{ModifyIndex: index}}
	}
	var o ClusterView
	expect := func(what string, got, want Acceptance, seen cluster.Instant) {
		t.Helper()
		if got != want || o.StatusSeen != seen {
			t.Errorf("%s: %v, status seen at %s; want %v, %s", what, got, o.StatusSeen, want, seen)
		}
	}
	expect("first, maybe of a Consul leader that is behind", o.Accept(at(1), status(7, 6), false), Superseded, 0)
	expect("first", o.Accept(at(1), status(10, 8), true), Taken, at(1))
	expect("nothing new", o.Accept(at(2), status(10, 8), false), Taken, at(1))
	expect("superseded", o.Accept(at(3), status(9, 7), false), Superseded, at(1))
	expect("a beat", o.Accept(at(4), status(12, 12), false), Taken, at(4))
	o.WroteStatus(at(5), cluster.Status{}, 20)
	expect("older than our write", o.Accept(at(6), status(15, 12), false), Superseded, at(5))
	expect("consistent, but older", o.Accept(at(7), status(15, 12), true), Stale, at(5))
	expect("consistent", o.Accept(at(8), status(20, 20), true), Taken, at(5))
	o.Wrote(30)
	for range maxStaleReads - 1 {
		expect("Consul went back", o.Accept(at(9), status(16, 3), true), Stale, at(5))
	}
	expect("Consul went back and stays there", o.Accept(at(9), status(16, 3), true), Taken, at(9))
}

// The index of a reading says that Consul has gone back only until somebody writes
// something; that of the status does for good. The leader of before may lead on for the
// longer of both leases.
func TestClusterViewOfAConsulThatHasGoneBack(t *testing.T) {
	status := func(snapshot, index uint64, lease time.Duration) cluster.Snapshot {
		value := cluster.Status{Lictor: &cluster.Beat{LeaseMS: lease.Milliseconds()}}
		return cluster.Snapshot{Index: snapshot, Status: cluster.Entry[cluster.Status]{ModifyIndex: index, Value: value}}
	}
	for _, leases := range [][2]time.Duration{{40 * time.Second, ttl}, {ttl, 40 * time.Second}} {
		var o ClusterView
		o.Accept(at(1), status(20, 19, leases[0]), true)
		o.Accept(at(2), status(21, 19, leases[0]), false)
		o.Accept(at(3), cluster.Snapshot{Index: 22}, false)
		o.Accept(at(3), status(23, 23, leases[0]), false)
		if !o.GoneBack.IsZero() {
			t.Fatalf("it has not gone back, %s", o.GoneBack)
		}
		o.Snapshot.Route.ModifyIndex = 22
		if o.Accept(at(4), status(24, 5, leases[1]), false) != Taken || o.GoneBack != at(45) {
			t.Errorf("leases %s: nothing is believed until %s", leases, o.GoneBack)
		}
		// The route has gone back as well: its leader must see that, to write it again.
		route := status(25, 25, leases[1])
		route.Route.ModifyIndex = 4
		if o.Accept(at(5), route, true); o.Snapshot.Route.ModifyIndex != 4 {
			t.Errorf("the route is still that at %d", o.Snapshot.Route.ModifyIndex)
		}
	}
}

// A pause that others cannot know of does not keep a primary alive beyond its
// lease, and a leader that rests on the pause is not replaced.
func TestPauseIsInForceWithTheBeatThatSaysSo(t *testing.T) {
	told := func(v *View) { v.Cluster.Status.Value.Lictor.Paused = true }
	over := func(v *View) { holdsLease(time.Millisecond)(v); v.Lease.InFlight = true }
	runSituations(t, []situationTest{
		{"the lease ends, and no beat has told of the pause", view(over, func(v *View) { v.Config.Pause = true }), "kill PostgreSQL", "over"},
		{"the lease ends, and a beat has told of the pause", view(over, paused_, told), "", "with the lock"},
		{"the last leader was paused", view(leads("b", 20*time.Second), told, asked()), "", "led in pause"},
		{"the last leader was paused, and waits for this standby", view(leads("b", 20*time.Second), told, asked(), syncKey("b", "a")), "take over (status at 45)", ""},
		{"the last leader was paused, and waits for another standby", view(leads("b", 20*time.Second), told, asked(), syncKey("b", "c")), "", "led in pause"},
		{"the last leader was paused, and the key is of the one before", view(leads("b", 20*time.Second), told, asked(), syncKey("c", "a")), "", "led in pause"},
		{
			"the last leader was paused, and waits for a quorum", view(leads("b", 20*time.Second), told, asked(peer("c", 1, 4000)), syncKey("b", "a", "c"), func(v *View) { v.Cluster.Sync.Value.Quorum = 1 }),
			"ask the other members, detached from the old leader (status at 45)", "asking for the positions",
		},
		{"the last leader was paused, and stopped in an orderly way", view(leads("b", 20*time.Second), told, released(""), asked()), "take over (status at 45)", ""},
		{"the last leader was paused, and the operator decides", view(leads("b", 20*time.Second), told, asked(),
			request(cluster.Failover{Candidate: "a"})), "take over (status at 45)", ""},
		{"it was this member", view(leads("a", 20*time.Second), told, func(v *View) { v.Postgres.Primary, v.Adopted = true, now }), "take over (status at 45)", "our own lock"},
	})
}

// What a restarted agent found may be older than anything that Consul tells it.
func TestPauseOutlivesTheAgent(t *testing.T) {
	found := func(v *View) { v.Read, v.Cluster, v.Adopted = 0, cluster.Snapshot{}, now.Add(-time.Hour) }
	resting := func(v *View) { v.AdoptedPaused, v.Config.Pause = true, true }
	unled := func(v *View) { v.AdoptedUnled = true }
	told := func(v *View) { v.Cluster.Status.Value.Lictor.Paused = true }
	since := func(ago time.Duration) func(*View) {
		return func(v *View) { v.Adopted, v.FirstRead = now.Add(-time.Hour), now.Add(-ago) }
	}
	const forgets, takes = "kill PostgreSQL", "take over (status at 45)"
	runSituations(t, []situationTest{
		{"Consul is away, nothing is remembered", view(primary, found), forgets, "without a lease"},
		{"Consul is away, what led here has ended, found just now", view(primary, found, func(v *View) { v.Adopted = now }), "", "Consul has not answered"},
		{"Consul is away, in pause", view(primary, found, resting), "", "Consul has not answered"},
		{"Consul is away, in pause, told to end", view(primary, found, resting, func(v *View) { v.Stopping = true }), "exit", "PostgreSQL and the lock stay"},
		{"Consul is away, never led here", view(primary, found, unled), "", "Consul has not answered"},
		{"Consul is away, never led here, told to end", view(primary, found, unled, func(v *View) { v.Stopping = true }), "demote", "stopping"},
		{"Consul is away, nothing runs, told to end", view(found, down, func(v *View) { v.Stopping = true }), "exit", "stopped"},
		{"Consul answers, in pause", view(primary, leads("a", 0), told, resting, since(0)), takes, "paused"},
		{"Consul answers, the pause has ended", view(primary, leads("a", 0), told, resting, since(0), func(v *View) { v.Config.Pause = false }), takes, "our own lock"},
		{"Consul answers, the pause ended long ago", view(primary, leads("a", 0), told, resting, since(ttl), func(v *View) { v.Config.Pause = false }), forgets, "without a lease"},
		{"Consul answers, a beat has ended the pause", view(primary, leads("a", 0), resting, since(0)), forgets, "without a lease"},
		{"Consul answers, another leads", view(primary, leads("b", 0), resting, since(0)), forgets, "while b leads"},
		{"Consul answers, nobody ever led", view(primary, unled, since(0)), "take over (status at 0)", "our own lock"},
		{"Consul answers, another leads an existing primary", view(primary, leads("b", 0), unled, since(0)), forgets, "while b leads"},
	})
}

// Answers that a patrol got before the switchover was asked for refuse nothing.
func TestSwitchoverIsNotRefusedOnOldAnswers(t *testing.T) {
	starting := peer("b", 1, 5000)
	starting.State = cluster.StateStarting
	lease := holdsLease(7 * time.Second)
	to := request(cluster.Failover{Leader: "a", Candidate: "b"})
	old := func(v *View) { v.PeersAsked = now.Add(-time.Second) }
	runSituations(t, []situationTest{
		{"old answers", view(lease, to, asked(starting), old), "ask the other members", "anew"},
		{"new answers", view(lease, to, asked(starting)), "clear the failover key", "not running"},
		{"old answers, and it can", view(lease, to, asked(peer("b", 1, 5000)), old), "hand over to b", ""},
	})
}

func TestBadDisk(t *testing.T) {
	full := func(lasting time.Duration) func(*View) {
		return func(v *View) { v.Postgres.DiskTrouble, v.Postgres.DiskSince = "no space left", now.Add(-lasting) }
	}
	lease := holdsLease(7 * time.Second)
	other := asked(peer("b", 1, 5000))
	replacing := func(v *View) { v.Postgres.Replacing = true }
	runSituations(t, []situationTest{
		{"while a restart waits for it", view(lease, other, full(ttl), doingTask(TaskRestart)), "give the lease up to b", "no space left"},
		{"while a restore that has told nobody waits for it", view(lease, other, full(ttl), doingTask(TaskRestore)), "give the lease up to b", "no space left"},
		{"while a restore replaces the data", view(lease, other, full(ttl), doingTask(TaskRestore), replacing), "", "busy: restore"},
		{"while old data are put back", view(lease, other, full(ttl), doingTask(TaskRestore), setAside), "", "busy: restore"},
		{"while a restart waits for it, for a moment", view(lease, other, full(ttl-time.Millisecond), doingTask(TaskRestart)), "", "busy: restart"},
		{"while a restart waits for it, in pause", view(lease, other, full(ttl), doingTask(TaskRestart), paused_), "", "busy: restart"},
		{"while a handover waits for it", view(lease, other, full(ttl), doingTask(TaskHandover)), "", "busy: handover"},
		{"while it is given up already", view(lease, other, full(ttl), doingTask(TaskDemote)), "", "busy: demote"},
		{"for a moment", view(lease, other, full(ttl-time.Millisecond)), "", "with the lock"},
		{"for a lease, and another can lead", view(lease, other, full(ttl)), "give the lease up to b", "no space left"},
		{"for a lease, and nobody can lead", view(lease, asked(), full(ttl)), "", "with the lock"},
		{"for a lease, and PostgreSQL is down", view(lease, other, down, full(ttl)), "give the lease up to b", "no space left"},
		{"in pause", view(lease, other, full(ttl), paused_), "", "with the lock"},
		{"Consul does not answer", view(lease, other, full(ttl), func(v *View) { v.Lease.Renewed = now.Add(-5 * time.Second) }), "", "with the lock"},
		{"of a member that could lead otherwise", view(leads("b", 20*time.Second), asked(), full(0)), "", "cannot be written"},
	})
}

func TestOtherPrimaries(t *testing.T) {
	another := peer("b", 2, 5000)
	another.Primary = true
	adopted := func(v *View) {
		leads("a", time.Second)(v)
		v.Adopted, v.AdoptedUntil = now.Add(-time.Second), now.Add(time.Second)
	}
	for name, test := range map[string]struct {
		view View
		want int
	}{
		"the leader sees none":        {view(holdsLease(7*time.Second), asked(peer("b", 1, 1), peer("c", 1, 1))), 0},
		"the leader sees one":         {view(holdsLease(7*time.Second), asked(another)), 1},
		"a primary without a lease":   {view(adopted, primary, asked(another)), 1},
		"a replica: that is no alarm": {view(leads("b", 0), asked(another)), 0},
		"an answer that is too old":   {view(holdsLease(7*time.Second), asked(another), func(v *View) { v.PeersAsked = now.Add(-time.Minute) }), 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.view.OtherPrimaries(); len(got) != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
	runSituations(t, []situationTest{
		{"a leader with a lease goes on, and says so", view(holdsLease(7*time.Second), asked(another)), "", "with the lock"},
		{"found running, alone", view(adopted, primary, asked(peer("b", 1, 1))), "take over (status at 45)", "our own lock"},
		{"found running, beside another", view(adopted, primary, asked(another)), "kill PostgreSQL", "without a lease"},
	})
}

func TestNextBeatDiffersFromTheStatusThatItReplaces(t *testing.T) {
	var o ClusterView
	if n := o.NextBeat(); n != 1 {
		t.Errorf("first: %d", n)
	}
	for _, owner := range []string{"a", "b"} {
		o.WroteStatus(now, cluster.Status{Lictor: &cluster.Beat{Number: 7, Owner: owner}}, 9)
		if n := o.NextBeat(); n != 8 {
			t.Errorf("after number 7 of %s: %d", owner, n)
		}
	}
}

func TestRequiredWatchdogThatDoesNotWork(t *testing.T) {
	broken := func(v *View) { v.WatchdogOK, v.WatchdogProblem = false, "no such device" }
	lease := holdsLease(7 * time.Second)
	ourLast := func(v *View) { leads("a", 20*time.Second)(v); v.Postgres.Primary = true }
	runSituations(t, []situationTest{
		{"leads, and another can", view(lease, broken, asked(peer("b", 1, 5000))), "give the lease up to b", "no such device"},
		{"leads, and nobody else can", view(lease, broken, asked()), "demote", "no other member"},
		{"leads in pause", view(lease, broken, asked(), paused_), "", "with the lock"},
		{"leads, not promoted yet", view(lease, broken, asked(), func(v *View) { v.Postgres.Primary = false }), "promote", ""},
		{"leads, and cannot be promoted for it", view(lease, broken, asked(peer("b", 1, 5000)), func(v *View) {
			v.Postgres.Primary, v.Attempt = false, Attempt{Kind: TaskPromote, Failures: 1}
		}), "give the lease up to b", "no such device"},
		{"led last, and is down", view(ourLast, broken, down, asked()), "start as replica of nobody", "nobody leads"},
		{"could lead", view(leads("b", 20*time.Second), broken, asked()), "", "no such device"},
	})
}

// A commit may be acknowledged until the old leader's lease has ended: what a
// member knew of its WAL before that proves nothing.
func TestQuorumNeedsPositionsReadAfterTheLease(t *testing.T) {
	quorum := func(v *View) {
		value := cluster.NewSync("b", []string{"a", "c"})
		value.Quorum = 1
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: value, ModifyIndex: 47}
	}
	expired := leads("b", ttl+ttl/40+time.Second) // its end was a second ago
	observed := func(ago time.Duration) func(*View) {
		c := peer("c", 1, 5000)
		c.Observed = now.Add(-ago)
		return askedToDetach(45, c)
	}
	runSituations(t, []situationTest{
		{"read after the end", view(expired, quorum, observed(500*time.Millisecond)), "take over (status at 45)", "best"},
		{"read before the end", view(expired, quorum, observed(1100*time.Millisecond)), "ask the other members, detached from the old leader (status at 45)", "positions"},
		{"without a quorum that does not matter", view(expired, observed(time.Hour)), "take over (status at 45)", "best"},
	})
}

func TestSuccessorOfACleanHandoverAsksForNoQuorum(t *testing.T) {
	quorum := func(v *View) {
		value := cluster.NewSync("b", []string{"a", "c"})
		value.Quorum = 1
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: value, ModifyIndex: 47}
	}
	complete := func(v *View) { v.Cluster.Status.Value.Lictor.Complete = true }
	runSituations(t, []situationTest{
		{"it has all WAL", view(leads("b", 0), quorum, released("a"), complete), "take over (status at 45)", "given to us"},
		{"its leader gave up", view(leads("b", 0), quorum, released("a")), "ask the other members", "positions"},
	})
}

func TestLeftBehind(t *testing.T) {
	history := func(timelines ...int) func(*View) {
		return func(v *View) {
			var h cluster.History
			for _, n := range timelines {
				h = append(h, cluster.TimelineSwitch{Timeline: n, LSN: int64(1000 * n), Reason: "x"})
			}
			v.Cluster.History = cluster.Entry[cluster.History]{Value: h, ModifyIndex: 49}
		}
	}
	on := func(timeline int, lsn int64) func(*View) {
		return func(v *View) { v.Postgres.Timeline, v.Postgres.LSN, v.Postgres.Streaming = timeline, lsn, false }
	}
	led := func(timeline int) func(*View) {
		return func(v *View) { leads("b", 0)(v); v.Cluster.Members[1].Value.Timeline = timeline }
	}
	patroni := func(v *View) { v.Cluster.Status.Value.Lictor = nil }
	rejoined := func(leader string, timeline int) func(*View) {
		return func(v *View) { v.Postgres.Rejoined = Line{Leader: leader, Timeline: timeline} }
	}
	const rejoin, nothing = "rejoin as replica of b", ""
	runSituations(t, []situationTest{
		{"beyond the switch", view(led(3), history(1, 2), on(2, 2001)), rejoin, ""},
		{"before the switch", view(led(3), history(1, 2), on(2, 2000)), nothing, ""},
		{"on a branch that is none of the leader's", view(led(4), history(1, 2), on(3, 2500)), rejoin, ""},
		{"older than the history tells", view(led(4), history(2, 3), on(1, 500)), nothing, ""},
		{"the same timeline", view(led(3), history(1, 2), on(3, 9000)), nothing, ""},
		{"streaming", view(led(3), history(1, 2), on(2, 2001), func(v *View) { v.Postgres.Streaming = true }), nothing, ""},
		{"of a Patroni leader that has not written it yet", view(led(3), patroni, history(1), on(2, 2000)), rejoin, ""},
		{"of one, asked", view(led(3), patroni, history(1), on(2, 2000), rejoined("b", 3)), nothing, ""},
		{"of one, asked on an earlier timeline", view(led(3), patroni, history(1), on(2, 2000), rejoined("b", 2)), rejoin, ""},
		{"of one, another was asked", view(led(3), patroni, history(1), on(2, 2000), rejoined("c", 3)), rejoin, ""},
		{"of one that has written it since", view(led(3), patroni, history(1, 2), on(2, 2001), rejoined("b", 3)), rejoin, ""},
	})
}

// A ttl that was raised, but that no beat has told of yet, changes nothing of the
// lease that runs.
func TestRaisedTTL(t *testing.T) {
	raised := func(left time.Duration) View {
		return view(holdsLease(left), func(v *View) {
			v.Lease.Length = ttl
			v.Config.TTL, v.Config.LoopWait, v.Config.RetryTimeout = 30*time.Second, 10*time.Second, 10*time.Second
		})
	}
	runSituations(t, []situationTest{
		{"plenty of lease", raised(7 * time.Second), "", "with the lock"},
		{"a beat is due by the lease in force", raised(6 * time.Second), "beat", "with the lock"},
	})
	l := leader()
	if l.Length() != ttl {
		t.Errorf("granted for %s", l.Length())
	}
	l.BeginBeat(at(102), 30*time.Second)
	if l.Length() != ttl {
		t.Errorf("while it is being raised: %s", l.Length())
	}
	if err := l.BeatSucceeded(at(103), at(102), 30*time.Second); err != nil || l.Length() != 30*time.Second {
		t.Errorf("raised: %s, %v", l.Length(), err)
	}
	l.BeginBeat(at(104), 5*time.Second)
	if l.Length() != 5*time.Second {
		t.Errorf("while it is being cut: %s", l.Length())
	}
	l.Drop()
	if l.Length() != 0 {
		t.Errorf("without a lease: %s", l.Length())
	}
}

func TestSwitchoverIsTriedOnce(t *testing.T) {
	to := request(cluster.Failover{Leader: "a", Candidate: "b"})
	tried := func(v *View) { v.HandedOver = v.Cluster.Failover.ModifyIndex }
	rolledBack := func(v *View) { v.RolledBack = RolledBack{v.Cluster.Failover.ModifyIndex, "rolled back: busy"} }
	another := func(v *View) { v.Cluster.Failover.ModifyIndex++ }
	runSituations(t, []situationTest{
		{"its successor did not take the lock", view(holdsLease(7*time.Second), to, asked(peer("b", 1, 5000)), tried), "clear the failover key", "did not take"},
		// It may have been refused for what has ended by now: nobody expects it any more.
		{"it was rolled back, and Consul still has it", view(holdsLease(7*time.Second), to, asked(peer("b", 1, 5000)), rolledBack), "clear the failover key", "rolled back: busy"},
		{"one before it was rolled back", view(holdsLease(7*time.Second), to, asked(peer("b", 1, 5000)), rolledBack, another), "hand over to b", "switching over"},
	})
}

// A leader whose session was lost takes its own lock again with a shorter ttl: that
// may take effect though its answer is lost.
func TestTakingOurOwnLockWithAShorterTTL(t *testing.T) {
	l := leader()
	l.BeginTakeOver(at(102), 3*time.Second)
	l.WriteFailed(Unknown, 0, 0)
	if l.Until() != at(105) || l.Length() != 3*time.Second {
		t.Errorf("until %s, length %s", l.Until(), l.Length())
	}
}
