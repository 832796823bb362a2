package member

import (
	"fmt"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// elected is a replica that has taken the lock, and the promotion that is decided on: its
// key sync, of b and a, is replaced by one of a alone.
func elected(t *testing.T) (*world, ha.Promote) {
	t.Helper()
	w := newWorld(t).leading()
	w.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"a"}), ModifyIndex: 44}
	w.sawReplica(100*mib, "")
	w.asked = nil
	alone := cluster.NewSync("a", nil)
	return w, ha.Promote{SyncIndex: 44, Sync: &alone}
}

// last has PostgreSQL ask for what must succeed when nothing is left but to promote.
func last(c *call, done func(error)) { c.args[1].(func(func(error)))(done) }

// The promotion: the guard, the watchdog, pre_promote, and the key sync in the last step.
func TestPromote(t *testing.T) {
	w, p := elected(t)
	w.begin(p)
	w.wantTask(ha.TaskPromote)
	if c := w.take("Guard.Arm"); c.args[1] != true || c.persisted().KillAt != w.KillAt() {
		t.Fatalf("%v", c.args)
	} else {
		w.none("Watchdog.Activate")
		c.answer()
	}
	w.none("Postgres.PrePromote")
	w.answer("Watchdog.Activate")
	w.none("Postgres.Promote")
	if c := w.take("Postgres.PrePromote"); c.args[0] != w.ScriptLimit {
		t.Fatalf("%v", c.args)
	} else {
		c.answer()
	}
	c := w.take("Postgres.Promote")
	if c.args[0] != w.Timeline()-1 {
		t.Fatalf("above %v", c.args[0])
	}
	w.none("Consul.WriteAsLeader")
	var o outcomeOf
	last(c, o.done)
	key := w.take("Consul.WriteAsLeader")
	if key.args[1] != "sa" || key.args[2] != w.Keys.Sync() || key.args[3] != uint64(44) || key.args[4].(cluster.Sync).Leader != "a" {
		t.Fatalf("%v", key.args)
	}
	o.want(t, 0, false)
	key.answer(uint64(150), nil)
	o.want(t, 1, false)
	c.answer()
	w.answer("Postgres.Observe", pg.State{Running: true, Accepting: true, Timeline: 4, WriteLSN: 101 * mib}, nil)
	w.looked()
	if !w.PG.Primary() || w.Upstream != "" || w.checkpoint.promotedTo != 4 || w.Snapshot.Sync.ModifyIndex != 150 || w.syncBefore != nil || w.SyncUncertain {
		t.Fatalf("%+v, sync %+v", w.PG, w.Snapshot.Sync)
	}
	w.none("Consul.Read")
}

// A promotion arms the guard in pause, too, and lets it rest again at its end: not with the next
// beat, before which it may be stopped, and kill for a lease that nobody ends.
func TestPromoteInPause(t *testing.T) {
	for _, failed := range []error{nil, errBoom} {
		w, p := elected(t)
		w.Dynamic.Pause = true
		w.Snapshot.Status.Value.Lictor.Paused = true
		p.Sync = nil
		w.agree("Guard.Arm", "Watchdog.Activate", "Postgres.PrePromote")
		w.begin(p)
		w.none("Guard.StandDown")
		c := w.take("Postgres.Promote")
		if failed == nil {
			var o outcomeOf
			last(c, o.done)
			c.answer()
			w.answer("Postgres.Observe", pg.State{Running: true, Accepting: true, Timeline: 4}, nil)
		} else {
			c.fail(failed)
		}
		w.looked()
		w.answer("Guard.StandDown")
	}
}

// Nothing is promoted without the guard, without the watchdog, or without the key sync.
func TestNothingIsPromoted(t *testing.T) {
	for _, at := range []string{"Guard.Arm", "Watchdog.Activate"} {
		w, p := elected(t)
		w.agree("Guard.Arm", "Watchdog.Activate", "Postgres.PrePromote")
		w.always[at] = no
		w.begin(p)
		w.none("Postgres.Promote", "Postgres.PrePromote")
		w.looked()
		w.take("Consul.Read")
		if w.Attempt.Kind != ha.TaskPromote || !w.LeaseState.Held(w.clock) || w.syncBefore != nil {
			t.Fatalf("%s: %+v", at, w.Attempt)
		}
	}
}

// A pre_promote that fails takes the deadline back and gives the lock up, and this member
// does not want to lead for a ttl.
func TestPrePromoteFails(t *testing.T) {
	w, p := elected(t)
	w.agree("Guard.Arm", "Watchdog.Activate", "Guard.Unmark")
	w.begin(p)
	w.deny("Postgres.PrePromote", errBoom)
	w.none("Postgres.Promote")
	w.answer("Guard.Disarm")
	if !w.LeaseState.Held(w.clock) {
		t.Fatal("given up before the end")
	}
	w.looked()
	if g := w.LeaseState.Giving(); g == nil || g.Successor != "" || w.LeaseState.Held(w.clock) || w.Complete {
		t.Fatalf("the lock is not given up: %+v", g)
	}
	w.Tags = map[string]any{"failover_priority": 7, "zone": "x"}
	if tags := w.TagsNow(); tags["nofailover"] != true || tags["zone"] != "x" || len(tags) != 2 {
		t.Fatalf("%v", tags)
	}
	if !cluster.NoFailover(w.Value().Tags) {
		t.Fatal("the others do not hear of it")
	}
	w.pass(30 * time.Second)
	if tags := w.TagsNow(); len(tags) != 2 || tags["failover_priority"] != 7 {
		t.Fatalf("for ever: %v", tags)
	}

	// The lease is over by then: nothing is left to give.
	w, p = elected(t)
	w.agree("Guard.Arm", "Watchdog.Activate", "Guard.Disarm", "Guard.Unmark")
	w.begin(p)
	c := w.take("Postgres.PrePromote")
	w.LeaseState.Drop()
	c.fail(errBoom)
	w.looked()
	if w.LeaseState.Giving() != nil || w.barredUntil.IsZero() {
		t.Fatal("a lease that is over is given away")
	}
}

// promoting is a promotion that has asked for the key sync.
func promoting(t *testing.T) (w *world, promote, key *call) {
	t.Helper()
	w, p := elected(t)
	w.agree("Guard.Arm", "Watchdog.Activate", "Postgres.PrePromote")
	w.begin(p)
	promote = w.take("Postgres.Promote")
	last(promote, promote.done.(func(error))) // PostgreSQL is not asked if that fails
	return w, promote, w.take("Consul.WriteAsLeader")
}

// The key sync was not replaced, certainly or perhaps: what is uncertain is given back.
func TestTheKeySyncIsNotReplaced(t *testing.T) {
	for _, tt := range []struct {
		name      string
		err       error
		uncertain bool
	}{
		{"refused", cluster.ErrConflict, false},
		{"no effect", errBoom, false},
		{"unknown", fmt.Errorf("write: %w", cluster.ErrUncertain), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _, key := promoting(t)
			key.fail(tt.err)
			w.none("Postgres.Kill", "Postgres.Observe")
			w.looked()
			w.take("Consul.Read")
			if w.SyncUncertain != tt.uncertain || (w.syncBefore != nil) != tt.uncertain || w.Snapshot.Sync.ModifyIndex != 44 {
				t.Fatalf("uncertain %t, before %v", w.SyncUncertain, w.syncBefore)
			}
			if tt.uncertain && (w.syncBefore.ModifyIndex != 44 || w.syncBefore.Value.Leader != "b") {
				t.Fatalf("before: %+v", w.syncBefore)
			}
		})
	}
}

// The key was replaced and the promotion has failed: PostgreSQL may have been asked
// already, so it is ended. Where it certainly is no primary the key is given back.
func TestAPromotionThatFailsAfterTheKeySync(t *testing.T) {
	for _, tt := range []struct {
		name   string
		killed error
		left   Found
		unseen bool
		back   bool
	}{
		{name: "a replica still", left: Found{Data: Data{State: ha.DataValid}}, back: true},
		{name: "it cannot be killed", killed: errBoom, left: Found{Data: Data{State: ha.DataValid}}},
		{name: "a primary by its files", left: Found{Data: Data{State: ha.DataValid, WasPrimary: true}}},
		{name: "the disk hangs", unseen: true, left: Found{Data: Data{State: ha.DataValid}}},
		{name: "the data are gone", left: Found{Data: Data{State: ha.DataEmpty}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, p := elected(t)
			w.agree("Guard.Arm", "Watchdog.Activate", "Postgres.PrePromote")
			w.begin(p)
			promote := w.take("Postgres.Promote")
			last(promote, func(error) {})
			w.answer("Consul.WriteAsLeader", uint64(150), nil)
			promote.fail(errBoom)
			c := w.take("Postgres.Kill")
			if c.w != nil {
				t.Fatal("the kill can be broken off")
			}
			c.fail(tt.killed)
			if tt.killed == nil {
				if w.syncBefore != nil {
					t.Fatal("given back before it is certain")
				}
				w.answer("Postgres.Look", tt.left, !tt.unseen)
			}
			if s := w.Snapshot.Sync; s.ModifyIndex != 150 || s.Value.Leader != "a" || w.SyncUncertain {
				t.Fatalf("%+v", s)
			}
			if (w.syncBefore != nil) != tt.back {
				t.Fatalf("given back: %t", w.syncBefore != nil)
			}
			if tt.killed != nil { // it may be promoted at any time: fenced, with the guard armed
				w.wantTask(ha.TaskDemote)
				if w.LeaseState.Held(w.clock) || w.find("Postgres.Kill") == nil || w.find("Guard.Disarm") != nil {
					t.Fatal("not fenced")
				}
				return
			}
			w.looked()
			w.take("Consul.Read")
			if w.Attempt.Kind != ha.TaskPromote || !w.LeaseState.Held(w.clock) {
				t.Fatalf("%+v", w.Attempt)
			}
		})
	}
}

// The answer of the key's write comes when the promotion is over: it is noted, and the key
// is to be given back.
func TestALateAnswerOfTheKeySync(t *testing.T) {
	for _, tt := range []struct {
		name      string
		err       error
		uncertain bool
		back      bool
	}{
		{"written", nil, false, true},
		{"unknown", cluster.ErrUncertain, true, true},
		{"refused", cluster.ErrConflict, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, key := interruptedPromotion(t)
			if !w.SyncUncertain || w.syncBefore == nil {
				t.Fatal("the write may still land")
			}
			if tt.err != nil {
				key.fail(tt.err)
			} else {
				key.answer(uint64(150), nil)
			}
			if (w.Snapshot.Sync.ModifyIndex == 150) != (tt.err == nil) {
				t.Fatalf("%+v", w.Snapshot.Sync)
			}
			if w.SyncUncertain != tt.uncertain || (w.syncBefore != nil) != tt.back {
				t.Fatalf("uncertain %t, before %v", w.SyncUncertain, w.syncBefore)
			}
		})
	}
}

// interruptedPromotion is one that was fenced while its key sync was being written.
func interruptedPromotion(t *testing.T) (w *world, key *call) {
	t.Helper()
	w, p := elected(t)
	w.agree("Guard.Arm", "Watchdog.Activate", "Postgres.PrePromote", "Guard.Disarm", "Guard.Unmark", "Postgres.Kill", "Guard.CancelStarts")
	w.begin(p)
	promote := w.take("Postgres.Promote")
	last(promote, func(error) { t.Error("PostgreSQL does not wait for that any more") })
	key = w.take("Consul.WriteAsLeader")
	w.fenceNow()
	promote.fail(ErrBroken)
	w.always["Postgres.Look"] = func(c *call) { c.answer(w.left(), true) }
	w.settle()
	w.wantTask(ha.TaskNone)
	return w, key
}

// An answer that comes when the key was written anew since does not bring the old one back.
func TestALateAnswerOfAKeySyncThatWasWrittenSince(t *testing.T) {
	for _, write := range []bool{true, false} {
		w, key := interruptedPromotion(t)
		before := cluster.NewSync("b", []string{"a"})
		if write {
			w.Snapshot.Sync.ModifyIndex = 150
			w.writeSync(ha.WriteSync{Index: 150, Value: &before})
			w.answer("Consul.WriteAsLeader", uint64(160), nil)
		} else {
			w.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: before, ModifyIndex: 160}
			w.SyncUncertain, w.syncBefore = false, nil
		}
		key.answer(uint64(150), nil)
		if s := w.Snapshot.Sync; s.ModifyIndex != 160 || s.Value.Leader != "b" || w.syncBefore != nil || w.SyncUncertain {
			t.Fatalf("%+v, before %v, uncertain %t", s, w.syncBefore, w.SyncUncertain)
		}
	}
}

// A promotion in a shard without synchronous replication has no key to replace.
func TestPromoteWithoutAKeySync(t *testing.T) {
	w, _ := elected(t)
	w.agree("Guard.Arm", "Watchdog.Activate", "Postgres.PrePromote")
	w.begin(ha.Promote{})
	c := w.take("Postgres.Promote")
	var o outcomeOf
	last(c, o.done)
	o.want(t, 1, false)
	w.none("Consul.WriteAsLeader")
	c.fail(errBoom)
	w.answer("Postgres.Kill") // it was asked, and may go on with it
	w.looked()
	w.looked()
	if w.SyncUncertain || w.syncBefore != nil || w.checkpoint.promotedTo != 0 {
		t.Fatal("a key that is none")
	}

	// What cannot be looked at afterwards is promoted all the same.
	w.begin(ha.Promote{})
	c = w.take("Postgres.Promote")
	c.answer()
	w.deny("Postgres.Observe", errBoom)
	w.looked()
	if w.Attempt.Failures != 2 {
		t.Fatalf("%+v", w.Attempt)
	}
}

// A promotion that a fence has broken off while its mark was made does not arm the guard after
// the fence has disarmed it.
func TestAPromotionThatIsBrokenOffArmsNothing(t *testing.T) {
	w, p := elected(t)
	w.GuardSupervisor.marked = unmarked
	w.agree("Guard.Disarm", "Guard.Unmark")
	w.begin(p)
	mark := w.take("Guard.Mark")
	w.fenceNow()
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.pass(lingering)
	w.wantTask(ha.TaskInterrupted)
	mark.answer()
	w.none("Guard.Arm")
	w.looked()
	w.looked()
	w.wantTask(ha.TaskNone)
}
