package member

import (
	"errors"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// handing is a leader that hands over to b, as an operator has asked.
func handing(t *testing.T, successor string) *world {
	t.Helper()
	w := newWorld(t).leading()
	w.Snapshot.Failover = cluster.Entry[cluster.Failover]{Value: cluster.Failover{Leader: "a", Candidate: successor}, ModifyIndex: 105}
	w.begin(ha.Handover{Successor: successor, OnBusy: cluster.OnBusyWait})
	w.wantTask(ha.TaskHandover)
	return w
}

// A leader that was never promoted (in pause) waits for the successor to have what it has
// itself, and does not say that this is all: whoever led before may have acknowledged more.
func TestHandoverOfALeaderThatIsNoPrimary(t *testing.T) {
	w := newWorld(t).leading()
	w.sawReplica(300*mib, "")
	w.begin(ha.Handover{Successor: "b", OnBusy: cluster.OnBusyWait})
	w.answer("Postgres.Checkpoint")
	w.answer("Bouncers.Hold")
	w.answer("Postgres.BeforeStop")
	w.answer("Peers.Observe", ahead(300*mib-1, 3), nil)
	w.none("Postgres.StopFor")
	w.pass(pollWAL)
	w.answer("Peers.Observe", ahead(300*mib, 3), nil)
	if stop := w.take("Postgres.StopFor"); stop.args[0].(func(int64, func(error))) != nil {
		t.Fatal("its checkpoint is asked for")
	} else {
		stop.answer()
	}
	w.answer("Guard.Disarm")
	w.answer("Guard.Unmark")
	w.answer("Postgres.Look", w.left(), true)
	if g := w.LeaseState.Giving(); g == nil || g.Successor != "b" || w.Complete {
		t.Fatalf("%+v, complete %t", g, w.Complete)
	}
}

// ahead is the answer of a successor that has all WAL up to lsn of a timeline.
func ahead(lsn int64, timeline int) Seen {
	return Seen{Peer: ha.Peer{Answered: true, LSN: lsn, Timeline: timeline}, Lictor: true}
}

// A handover: a checkpoint, the clients are held, before_stop, a stop that waits for the
// successor's WAL, the guard, and the lease is given.
func TestHandover(t *testing.T) {
	w := handing(t, "b")
	if w.Successor() != "b" || w.route.state() != cluster.RouteOpen {
		t.Fatalf("successor %q, route %s", w.Successor(), w.route.state())
	}
	w.answer("Postgres.Checkpoint")
	hold := w.take("Bouncers.Hold")
	plan := hold.args[1].(cluster.Handover)
	if plan.ID != "id" || plan.Leader != "a" || plan.Successor != "b" || plan.Timeline != 3 || plan.State != cluster.HandoverAnnounced || plan.DeadlineMS != 10000 || hold.args[2] != cluster.OnBusyWait {
		t.Fatalf("%+v", hold.args)
	}
	w.none("Postgres.BeforeStop", "Postgres.StopFor")
	hold.answer()
	if w.route.state() != cluster.RouteHandover {
		t.Fatal("the route does not say that clients are held")
	}
	w.answer("Postgres.BeforeStop")
	stop := w.take("Postgres.StopFor")
	var served outcomeOf
	stop.args[0].(func(int64, func(error)))(300*mib, served.done)
	w.answer("Peers.Observe", ahead(300*mib, 3), nil) // not beyond
	w.pass(pollWAL)
	w.answer("Peers.Observe", ahead(400*mib, 2), nil) // of another timeline
	w.pass(pollWAL)
	w.deny("Peers.Observe", errBoom)
	w.pass(pollWAL)
	served.want(t, 0, false)
	w.answer("Peers.Observe", ahead(300*mib+1, 3), nil)
	served.want(t, 1, false)
	stop.answer()
	left := w.left()
	left.Data.CheckpointLSN, left.Data.ShutDown = 301*mib, true
	w.answer("Postgres.Look", left, true)
	w.none("Guard.Disarm")
	w.answer("Peers.Observe", ahead(302*mib, 3), nil)
	if !w.LeaseState.Held(w.clock) {
		t.Fatal("the lease is gone before the guard is disarmed")
	}
	w.answer("Guard.Disarm")
	w.answer("Guard.Unmark")
	w.answer("Postgres.Look", left, true)
	g := w.LeaseState.Giving()
	if g == nil || g.Successor != "b" || !w.Complete || w.handovers.HandedOver != 105 || w.LeaseState.Held(w.clock) || w.PG.Running || w.handovers.announced.ID != "id" {
		t.Fatalf("%+v, complete %t, request %d", g, w.Complete, w.handovers.HandedOver)
	}
	w.none("Consul.WriteAsLeader")
}

// Without a successor nobody is held up, and nobody is said to have all WAL.
func TestHandoverToAnybody(t *testing.T) {
	w := handing(t, "")
	w.answer("Postgres.BeforeStop")
	c := w.take("Postgres.StopFor")
	if f := c.args[0].(func(int64, func(error))); f != nil {
		t.Fatal("one standby is waited for")
	}
	c.answer()
	w.answer("Guard.Disarm")
	w.answer("Guard.Unmark")
	w.looked()
	if g := w.LeaseState.Giving(); g == nil || g.Successor != "" || w.Complete || w.handovers.HandedOver != 0 || w.handovers.announced.ID != "" {
		t.Fatalf("%+v", g)
	}
	w.none("Postgres.Checkpoint", "Bouncers.Hold")
}

// A handover that fails, or takes too long, is rolled back: the lease is kept, and the
// request is refused and cleared.
func TestAHandoverIsRolledBack(t *testing.T) {
	for _, tt := range []struct {
		name      string
		until     func(w *world)
		announced bool
	}{
		{"no checkpoint", func(w *world) { w.deny("Postgres.Checkpoint", errBoom) }, false},
		{"busy", func(w *world) {
			w.answer("Postgres.Checkpoint")
			w.deny("Bouncers.Hold", errBoom)
		}, true},
		{"it does not stop", func(w *world) {
			w.agree("Postgres.Checkpoint", "Bouncers.Hold", "Postgres.BeforeStop")
			w.settle()
			w.deny("Postgres.StopFor", errBoom)
		}, true},
		{"nobody knows how far the WAL goes", func(w *world) {
			w.agree("Postgres.Checkpoint", "Bouncers.Hold", "Postgres.BeforeStop", "Postgres.StopFor")
			w.answer("Postgres.Look", Found{}, false)
		}, true},
		{"the WAL does not arrive", func(w *world) {
			w.agree("Postgres.Checkpoint", "Bouncers.Hold", "Postgres.BeforeStop", "Postgres.StopFor")
			w.always["Peers.Observe"] = func(c *call) { c.answer(ahead(300*mib, 3), nil) }
			left := w.left()
			left.Data.CheckpointLSN, left.Data.ShutDown = 300*mib, true
			w.answer("Postgres.Look", left, true)
			w.pass(handoverLimit)
		}, true},
		{"it was killed while it stopped", func(w *world) {
			w.agree("Postgres.Checkpoint", "Bouncers.Hold", "Postgres.BeforeStop", "Postgres.StopFor")
			w.always["Peers.Observe"] = func(c *call) { c.answer(ahead(500*mib, 3), nil) }
			left := w.left()
			left.Data.CheckpointLSN = 300 * mib
			w.answer("Postgres.Look", left, true)
		}, true},
		{"too long before the stop", func(w *world) {
			w.answer("Postgres.Checkpoint")
			w.pass(handoverLimit)
			w.answer("Bouncers.Hold")
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := handing(t, "b")
			tt.until(w)
			w.none("Guard.Disarm")
			w.looked()
			w.wantTask(ha.TaskNone)
			if !w.LeaseState.Held(w.clock) || w.LeaseState.Giving() != nil || w.handovers.HandedOver != 0 || w.Refused == "" {
				t.Fatalf("held %t, giving %v, refused %q", w.LeaseState.Held(w.clock), w.LeaseState.Giving(), w.Refused)
			}
			if back := w.View().RolledBack; back.Request != 105 || back.Why != w.Refused {
				t.Fatalf("rolled back is %+v", back)
			}
			if !w.PGDown.IsZero() || (w.Attempt.Kind != ha.TaskHandover) || (w.handovers.announced.ID != "") != tt.announced {
				t.Fatalf("announced %+v", w.handovers.announced)
			}
			if c := w.take("Consul.WriteAsLeader"); c.args[2] != w.Keys.Failover() || c.args[3] != uint64(105) {
				t.Fatalf("%v", c.args)
			}
		})
	}
}

// A guard that stays armed would kill the replica that comes up next. The lease goes on, and whatever is started under
// it finds the guard armed, or awakens another one.
func TestHandoverWhoseGuardStaysArmed(t *testing.T) {
	w := handing(t, "")
	w.answer("Postgres.BeforeStop")
	w.answer("Postgres.StopFor")
	w.deny("Guard.Disarm", errBoom)
	w.looked()
	w.wantTask(ha.TaskNone)
	if !w.LeaseState.Held(w.clock) || w.LeaseState.Giving() != nil || w.handovers.HandedOver != 0 || w.Refused == "" {
		t.Fatalf("held %t, giving %v, refused %q", w.LeaseState.Held(w.clock), w.LeaseState.Giving(), w.Refused)
	}
}

// A successor without a key has no WAL that anybody could await.
func TestASuccessorWithoutAKey(t *testing.T) {
	w := handing(t, "x")
	w.agree("Postgres.Checkpoint", "Bouncers.Hold", "Postgres.BeforeStop", "Postgres.StopFor")
	w.always["Peers.Observe"] = no
	w.looked()
	w.pass(handoverLimit)
	w.looked()
	if !w.LeaseState.Held(w.clock) || w.handovers.HandedOver != 0 || w.Attempt.Kind != ha.TaskHandover {
		t.Fatal("the lease is given to nobody")
	}
}

// A fence during a handover: nothing is given, whatever its steps say afterwards.
func TestAFenceDuringAHandover(t *testing.T) {
	w := handing(t, "b")
	w.agree("Postgres.Checkpoint", "Bouncers.Hold", "Postgres.BeforeStop", "Postgres.Kill", "Guard.CancelStarts", "Guard.Disarm", "Guard.Unmark")
	stop := w.take("Postgres.StopFor")
	w.fenceNow()
	stop.answer()
	w.always["Postgres.Look"] = func(c *call) { c.answer(w.left(), true) }
	w.settle()
	w.pass(time.Minute)
	if w.LeaseState.Giving() != nil || w.LeaseState.Held(w.clock) || w.handovers.HandedOver != 0 || w.TaskKind() != ha.TaskNone {
		t.Fatal("a fenced leader gives its lease away")
	}
	w.none("Peers.Observe")
	if !errors.Is(stop.w.Broken(), ErrBroken) {
		t.Fatal("not interrupted")
	}
}

// The announcement is taken back when this member serves again, or another one leads.
func TestEndHandover(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   cluster.HandoverState
	}{
		{"it serves again", func(*world) {}, cluster.HandoverCancelled},
		{"its route is being written", func(w *world) { w.writing[w.Keys.Route()] = true }, ""},
		{"it is down", func(w *world) { w.stoppedOnPurpose() }, ""},
		{"another leads and says so", func(w *world) { w.LeaseState.Drop(); w.Snapshot = w.shard("b") }, cluster.HandoverDone},
		{"another leads", func(w *world) {
			w.LeaseState.Drop()
			route := w.Snapshot.Route
			w.Snapshot = w.shard("b")
			w.Snapshot.Route = route
		}, ""},
		{"the handover goes on", func(w *world) { w.startTask(ha.TaskHandover, func(*Work, func(error)) {}, nil) }, ""},
		{"nothing was announced", func(w *world) { w.handovers.announced = cluster.Handover{} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t).leading()
			w.handovers.announced = cluster.Handover{ID: "h", Successor: "b"}
			tt.change(w)
			w.handovers.end()
			if tt.want == "" {
				w.none("Bouncers.EndHandover")
				return
			}
			c := w.take("Bouncers.EndHandover")
			if plan := c.args[2].(cluster.Handover); plan.ID != "h" || plan.State != tt.want {
				t.Fatalf("%+v", plan)
			}
			c.fail(errBoom)
			w.handovers.end()
			w.none("Bouncers.EndHandover")
		})
	}
}
