package ha

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// As guards_test.go, for who takes the lock and who can.

func TestElectingNeedsEachCondition(t *testing.T) {
	const take = "take over (status at 45)"
	ourLock := func(v *View) { v.Cluster.Leader = cluster.Entry[string]{Value: "a", Session: "sa", ModifyIndex: 40} }
	lost := []func(*View){leads("a", time.Second), ourLock} // a takeover whose answer was lost
	noFailover := func(v *View) { v.Tags = map[string]any{"nofailover": true} }
	priority := func(n int) func(*View) { return func(v *View) { v.Tags = map[string]any{"failover_priority": n} } }
	chosen := func(name string) func(*View) { return request(cluster.Failover{Candidate: name}) }
	another := peer("c", 1, 5000)
	another.Primary = true
	silent, stopped := another, another
	silent.Answered, stopped.State = false, cluster.StateStopped
	stopping := another
	stopping.State = cluster.StateStopping
	began := func(v *View) { v.FirstRead = v.StatusSeen }
	preferred := peer("c", 1, 5000)
	preferred.Tags = map[string]any{"failover_priority": 2}
	just := func(v *View) { leads("b", 9*time.Second)(v); lockGone(v) }
	ledInPause := func(v *View) { v.Cluster.Status.Value.Lictor.Paused = true }
	with := func(base []func(*View), more ...func(*View)) View {
		return view(append(slices.Clone(base), more...)...)
	}
	runSituations(t, []situationTest{
		{"a takeover is under way", view(expiredLease, asked(), inFlight), "", "taking the lock"},
		{"our lock, the answer was lost", with(lost), take, "our own lock"},
		{"our lock, as Consul has it that has gone back", with(lost, goneBack), "", "not over"},
		{"our lock, as Consul had it that has gone back a lease ago", with(lost, goneBack, func(v *View) { v.GoneBack = now }), take, "our own lock"},
		{"was the primary, led last, says Consul that has gone back", view(leads("a", time.Second), lockGone, primary, down, goneBack), "start as replica of nobody", "how far our WAL goes"},
		{"given to us, says Consul that has gone back", view(leads("b", 20*time.Second), released("a"), asked(), goneBack), "", "not over"},
		{"given to another, says Consul that has gone back", view(leads("b", 20*time.Second), released("c"), asked(), goneBack), "", "not over"},
		{"given to anybody, says Consul that has gone back", view(leads("b", 20*time.Second), released(""), asked(), goneBack), "", "not over"},
		{"expired, says Consul that has gone back", view(expiredLease, asked(), goneBack), "", "a replica, following"},
		{"our lock, no session", with(lost, session("")), "", "waiting for a Consul session"},
		{"our lock, PostgreSQL is starting", with(lost, func(v *View) { v.Postgres.Accepting = false }), "", "is starting"},
		{"our lock, tagged nofailover", with(lost, noFailover), "", "nofailover"},
		{"our lock, released since", with(lost, func(v *View) { v.Cluster.Status.Value.Lictor.Released = true }), "ask the other members", "asking"},
		{"our lock, the last beat is another's", with(lost, expiredLease, ourLock), "ask the other members", "asking"},
		{"our lock, no beat", view(ourLock), "", "not over"},
		{"was the primary, led last, no session", view(leads("a", time.Second), lockGone, primary, down, session("")), "", "to take our own lock again"},
		{"was the primary, another has led since", view(expiredLease, primary, down, asked()), "start as replica of nobody", "how far our WAL goes"},
		{"was the primary, has released its lease", view(leads("a", 20*time.Second), released(""), primary, down, asked()), "start as replica of nobody", "how far our WAL goes"},
		{"runs as a primary, Consul read long ago", view(leads("a", 0), primary, adopted(ttl), silentFor(11*time.Second)), take, "our own lock"},
		{"could lead, no session", view(expiredLease, asked(), session("")), "", "waiting for a Consul session"},

		{"as good as the other, with more priority", view(expiredLease, asked(preferred), priority(3)), take, "best"},
		{"as good as the other, with less priority", view(expiredLease, asked(preferred)), "", "c is ahead"},
		{"another answered as a primary", view(just, asked(another)), "", "still runs as a primary"},
		{"another is stopping one", view(just, asked(stopping)), take, "best"},
		{"and no beat was seen since this agent began", view(just, asked(stopping), began), "", "still runs as a primary"},
		{"for a lease after the lease", view(leads("b", 17*time.Second), lockGone, asked(stopping), began), take, "best"},
		{"a replica that stops", view(just, asked(Peer{Name: "b", Answered: true, State: cluster.StateStopping, Timeline: 1}), began), take, "best"},
		{"another that was a primary is silent", view(just, asked(silent)), take, "best"},
		{"another that was a primary is stopped", view(just, asked(stopped)), take, "best"},
		{"the operator's choice lags", view(expiredLease, chosen("c"), asked(peer("c", 1, 5000-2<<20))), "", "chosen by the operator"},
		{"the operator's choice is somebody else, who is away", view(expiredLease, chosen("b"), asked(peer("c", 1, 6000))), "", "c is ahead"},
		{"the operator's choice is this member, another replays", view(just, chosen("a"), asked(replaying(peer("c", 1, 4000)))), take, "best"},
		{"the operator's choice is away, another replays", view(just, chosen("b"), asked(replaying(peer("c", 1, 4000)))), "", "may be ahead"},
		{"another replays", view(just, asked(replaying(peer("c", 1, 4000)))), "", "may be ahead"},
		{"led in pause itself, another is ahead", view(leads("a", 20*time.Second), lockGone, ledInPause, asked(peer("c", 1, 6000))), take, "best"},
		{"led in pause itself, another is chosen", view(leads("a", 20*time.Second), lockGone, ledInPause, chosen("c"), asked(peer("c", 1, 6000))), "", "chosen by the operator"},
		{"not in the failsafe list", view(expiredLease, asked(), func(v *View) {
			v.Cluster.Failsafe = cluster.Entry[map[string]string]{Value: map[string]string{"b": "u"}, ModifyIndex: 46}
		}), "", "not in the failsafe list"},
	})
}

// goneBack: Consul was put back to an earlier state just now.
func goneBack(v *View) { v.GoneBack = now.Add(5 * time.Second) }

func TestTakeOverNeedsEachIndex(t *testing.T) {
	failsafe := func(v *View) { v.Cluster.Failsafe.ModifyIndex = 46 }
	syncOn := func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }
	for _, tt := range []struct {
		name string
		view View
		want TakeOver
		sync bool // the key sync is replaced
	}{
		{"by a replica", view(expiredLease, failsafe, syncKey("b", "a")), TakeOver{Status: 45, Failsafe: 46, SyncIndex: 47}, false},
		{"by a primary, synchronous mode off", view(expiredLease, primary), TakeOver{Status: 45}, false},
		{"by a primary, no key yet", view(expiredLease, primary, syncOn), TakeOver{Status: 45}, true},
		{"by a primary, the key is its own", view(leads("a", 0), primary, syncOn, syncKey("a", "b")), TakeOver{Status: 45, Leader: 40, SyncIndex: 47}, false},
		{"by a primary, the key is another's", view(leads("a", 0), primary, syncKey("b", "a")), TakeOver{Status: 45, Leader: 40, SyncIndex: 47}, true},
	} {
		got := tt.view.takeOver()
		if (got.Sync != nil) != tt.sync {
			t.Errorf("%s: sync %+v", tt.name, got.Sync)
		}
		if got.Sync = nil; got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestUnelectableNeedsEachCondition(t *testing.T) {
	route := func(timeline int) func(*View) {
		return func(v *View) {
			v.Config.CheckTimeline = true
			v.Cluster.Route = cluster.Entry[cluster.Route]{Value: cluster.Route{Timeline: timeline}, ModifyIndex: 9}
		}
	}
	for _, tt := range []struct {
		name string
		view View
		ok   bool
	}{
		{"a replica", view(expiredLease), true},
		{"a primary", view(expiredLease, primary), false},
		{"behind the route's timeline", view(expiredLease, route(2)), false},
		{"on the route's timeline", view(expiredLease, route(1)), true},
		{"behind the route's timeline, not to be checked", view(expiredLease, route(2), func(v *View) { v.Config.CheckTimeline = false }), true},
		{"behind a route that is not understood", view(expiredLease, route(2), func(v *View) { v.Cluster.Route.Err = errors.New("x") }), true},
		{"its own timeline is not known", view(expiredLease, route(2), func(v *View) { v.Postgres.Timeline = 0 }), true},
	} {
		if why := tt.view.unelectable(); (why == "") != tt.ok {
			t.Errorf("%s: %q", tt.name, why)
		}
	}
}

func TestElectableNeedsEachCondition(t *testing.T) {
	listed := func(v *View) {
		v.Cluster.Failsafe = cluster.Entry[map[string]string]{Value: map[string]string{"a": "u"}, ModifyIndex: 46}
	}
	another := peer("b", 1, 5000)
	another.Primary = true
	behind := peer("b", 1, 5000-2<<20)
	lease := holdsLease(7 * time.Second)
	crashed := func(v *View) { down(v); v.Config.PrimaryStartTimeout = 0 }
	runSituations(t, []situationTest{
		{"gives up to nobody that lags", view(lease, crashed, asked(behind)), "start as primary", ""},
		{"gives up to nobody outside the failsafe list", view(lease, crashed, listed, asked(peer("b", 1, 5000))), "start as primary", ""},
		{"gives up to no other primary", view(lease, crashed, asked(another)), "start as primary", ""},
		{"gives up to the better of two, the better first", view(lease, crashed, asked(peer("c", 1, 5000), peer("b", 1, 4000))), "give the lease up to c", ""},
	})
	// What a member has beyond the point at which the shard left its timeline is nothing.
	v := view(leads("b", 0), func(v *View) {
		v.Cluster.Status.Value.OpTime = 9000
		v.Cluster.History = cluster.Entry[cluster.History]{ModifyIndex: 2, Value: cluster.History{{Timeline: 1, LSN: 3000}}}
	})
	for _, tt := range []struct{ timeline, lsn, lag int64 }{{1, 8000, 6000}, {1, 2000, 7000}, {2, 8000, 1000}} {
		if got := v.lag(int(tt.timeline), tt.lsn); got != tt.lag {
			t.Errorf("timeline %d at %d: lag %d, want %d", tt.timeline, tt.lsn, got, tt.lag)
		}
	}
	v = view(leads("b", 9*time.Second), func(v *View) { v.Cluster.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 47} })
	if !v.mayBeAhead(replaying(peer("c", 1, 1))) {
		t.Error("a key sync without a leader says nothing of who has what")
	}
	// Equals are ordered by the failover slots that their PostgreSQL keeps.
	kept := view(leads("b", 0), func(v *View) {
		v.Cluster.Status.Value.Lictor.FailoverSlots = []string{"x", "y"}
		for i := range v.Cluster.Members {
			if m := &v.Cluster.Members[i]; m.Value.Name == "c" {
				m.Value.Lictor = &cluster.MemberLictor{SyncedSlots: "other,x"}
			}
		}
	})
	if p, q := peer("c", 1, 5000), peer("a", 1, 5000); !kept.better(p, q) || kept.better(q, p) {
		t.Error("of equals the one that has failover slots is not preferred")
	}
	if p, q := peer("c", 1, 5000), peer("a", 1, 5001); kept.better(p, q) || !kept.better(q, p) {
		t.Error("slots are preferred to WAL")
	}
	// A timeline that is not known orders nothing.
	if p, q := peer("b", 0, 6000), peer("c", 1, 5000); !v.better(p, q) || v.better(q, p) {
		t.Error("the position counts where a timeline is not known")
	}
	if (View{Shard: Shard{Now: at(1)}}).peersFresh() {
		t.Error("answers that were never asked for are fresh just after the host's boot")
	}
}
