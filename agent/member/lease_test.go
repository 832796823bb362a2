package member

import (
	"fmt"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A beat of a leader whose PostgreSQL could not be looked at tells the last position:
// by 0 nobody would lag.
func TestPositionNeverGoesBackToNothing(t *testing.T) {
	m := New(Settings{Name: "a"}, Ports{}, nil, cluster.Dynamic{})
	m.Snapshot.Status = cluster.Entry[cluster.Status]{ModifyIndex: 7, Value: cluster.Status{OpTime: 4711}}
	if got := m.nextStatus().OpTime; got != 4711 {
		t.Errorf("not looked at: %d", got)
	}
	m.PG.Observed = pg.State{Running: true, Accepting: true, WriteLSN: 4000}
	if got := m.nextStatus().OpTime; got != 4000 {
		t.Errorf("a leader that has less: %d", got)
	}
	m.PG.Observed.Replaying = true
	if got := m.nextStatus().OpTime; got != 4711 {
		t.Errorf("one that replays has more than it knows: %d", got)
	}
}

// A beat that shortens the lease is sent when the guard has the shorter deadline.
func TestArmBeforeABeatThatShortens(t *testing.T) {
	w := newWorld(t).leading()
	w.Dynamic.TTL = 12 * time.Second
	w.beat(false)
	if got := w.LeaseState.Until(); got != w.clock.Add(12*time.Second) {
		t.Fatalf("the lease is not cut before the beat: it lasts for %v", got.Sub(w.clock))
	}
	w.none("Consul.Beat")
	left := w.take("Guard.Arm")
	if left.persisted().KillAt != w.KillAt() {
		t.Fatalf("armed until %v, want %v", left.persisted().KillAt, w.KillAt())
	}
	left.answer()
	w.none("Consul.Beat")
	w.answer("Guard.Arm")
	c := w.take("Consul.Beat")
	if c.args[1] != "sa" || c.args[2] != uint64(101) {
		t.Fatalf("beat %v", c.args)
	}
	status := c.args[3].(cluster.Status)
	if b := status.Lictor; status.OpTime != 200*mib || b.LeaseMS != 12000 || b.Number != 10 || b.Owner != "a" || b.Paused || b.Released || b.Timeline != 3 {
		t.Fatalf("status %+v, beat %+v", status, status.Lictor)
	}
	t0 := w.clock
	w.pass(2 * time.Second)
	c.answer(uint64(120), nil)
	if got := w.LeaseState.Until(); got != t0.Add(12*time.Second) {
		t.Fatalf("the lease counts from %v, not from when the beat was sent", got.Sub(t0))
	}
	if w.Snapshot.Status.ModifyIndex != 120 || w.LeaseState.Writing() {
		t.Fatal("the beat is not noted")
	}
}

// A guard that cannot be told keeps its deadline: the beat that would make the lease
// shorter is not sent.
func TestNoShorterBeatWithoutTheGuard(t *testing.T) {
	for _, how := range []string{"it fails", "it is silent"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t).leading()
			w.Dynamic.TTL = 12 * time.Second
			w.beat(false)
			w.answer("Guard.Arm")
			if how == "it fails" {
				w.deny("Guard.Arm", errBoom)
			} else {
				w.pass(12 * time.Second)
				w.answer("Guard.Arm") // too late
			}
			w.none("Consul.Beat")
			if w.LeaseState.Writing() {
				t.Fatal("the next beat waits for ever")
			}
			if w.LeaseState.Lease().Uncertain {
				t.Fatal("what was not sent has an outcome that is not known")
			}
		})
	}
}

// A beat that does not shorten the lease does not wait for the guard.
func TestABeatDoesNotWaitForTheGuard(t *testing.T) {
	w := newWorld(t).leading()
	w.pass(7 * time.Second)
	w.beat(false)
	t0 := w.clock
	c := w.take("Consul.Beat")
	if limit := c.args[0].(time.Duration); limit != w.KillAt().Sub(w.clock) {
		t.Fatalf("limit %v, until the kill %v", limit, w.KillAt().Sub(w.clock))
	}
	c.answer(uint64(120), nil)
	w.answer("Guard.Arm")
	w.answer("Guard.Arm")
	if w.GuardSupervisor.known != w.KillAt() || w.LeaseState.Until() != t0.Add(30*time.Second) {
		t.Fatalf("known %v, until %v", w.GuardSupervisor.known, w.LeaseState.Until())
	}
}

// A beat's answer that comes after a fence, or after the end of the lease, gives no lease.
func TestABeatThatIsAnsweredTooLate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		since func(w *world)
	}{
		{"fenced", func(w *world) { w.fenceNow() }},
		{"over", func(w *world) { w.pass(40 * time.Second) }},
		{"given up", func(w *world) { w.giveTo("b", false) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t).leading()
			w.agree("Guard.Arm")
			w.beat(false)
			c := w.take("Consul.Beat")
			tt.since(w)
			known := w.GuardSupervisor.known
			c.answer(uint64(120), nil)
			w.settle()
			if w.LeaseState.Held(w.clock) || w.Leads() {
				t.Fatal("the lease lives again")
			}
			if w.GuardSupervisor.known != known {
				t.Fatalf("the guard got another deadline: %v", w.GuardSupervisor.known)
			}
			if w.Snapshot.Status.ModifyIndex != 120 {
				t.Fatal("what was written is not noted")
			}
		})
	}
}

func TestAFailedBeat(t *testing.T) {
	for _, tt := range []struct {
		name      string
		err       error
		uncertain bool
	}{
		{"no effect", errBoom, false},
		{"refused", fmt.Errorf("beat: %w", cluster.ErrConflict), true},
		{"unknown", fmt.Errorf("beat: %w", cluster.ErrUncertain), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t).leading()
			w.agree("Guard.Arm")
			w.beat(false)
			until := w.LeaseState.Until()
			w.deny("Consul.Beat", tt.err)
			lease := w.LeaseState.Lease()
			if w.LeaseState.Writing() || lease.Uncertain != tt.uncertain || lease.Until != until {
				t.Fatalf("%+v", lease)
			}
			if (w.kicked["session"] == 1) != tt.uncertain || w.Snapshot.Route.Exists() == tt.uncertain || w.down == tt.uncertain {
				t.Fatalf("kicked %v, route %v, down %t", w.kicked, w.Snapshot.Route.Exists(), w.down)
			}
			if lease.NotBefore != w.clock.Add(200*time.Millisecond) {
				t.Fatalf("tried again at %v", lease.NotBefore)
			}
		})
	}
}

// What an unknown outcome left open is settled by a reading that began after the failure.
func TestAReadingOfBeforeAFailedWrite(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm")
	shown := w.Snapshot
	w.beat(false)
	c := w.take("Consul.Beat")
	w.Reread()
	before := w.take("Consul.Read")
	c.fail(cluster.ErrUncertain)
	before.answer(shown, nil)
	if !w.LeaseState.Lease().Uncertain {
		t.Fatal("a reading that began before the failure has settled it")
	}
	w.Reread()
	w.answer("Consul.Read", shown, nil)
	if w.LeaseState.Lease().Uncertain {
		t.Fatal("a reading that began after the failure has not settled it")
	}
}

// A lease is dropped before its release is sent, and says how far the WAL of the shutdown
// goes.
func TestRelease(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm")
	w.giveTo("b", true)
	w.Data.CheckpointLSN = 300 * mib
	w.release("b")
	c := w.take("Consul.Release")
	status := c.args[3].(cluster.Status)
	if b := status.Lictor; !b.Released || b.Successor != "b" || !b.Complete || status.OpTime != 300*mib || c.args[2] != uint64(101) {
		t.Fatalf("%+v", status)
	}
	if w.LeaseState.Giving() == nil || !w.LeaseState.Writing() {
		t.Fatal("the release is not under way")
	}
	c.answer(uint64(130), nil)
	if w.LeaseState.Giving() != nil || w.LeaseState.Writing() || w.LockIsOurs() || w.Snapshot.Status.ModifyIndex != 130 {
		t.Fatal("the release is not noted")
	}

	w = newWorld(t).leading()
	w.giveTo("", false)
	w.release("")
	w.deny("Consul.Release", cluster.ErrUncertain)
	if w.LeaseState.Giving() == nil || w.LeaseState.Writing() || !w.LeaseState.Lease().Uncertain {
		t.Fatal("a release of unknown outcome is given up")
	}
}

// A restarted agent goes on with the lease that its guard vouches for, and no other.
func TestResume(t *testing.T) {
	lists := []map[string]string{{"a": "http://a", "b": "http://b"}}
	persisted := func(until time.Duration) *PersistedState {
		return &PersistedState{PersistedState: ha.PersistedState{Until: start.Add(until), Shortest: 30 * time.Second, Session: "old", Index: 88, Lists: lists, Listed: true, ListedAt: 7}}
	}
	for _, tt := range []struct {
		name      string
		r         Recalled
		want      bool
		held      bool
		lists     bool
		uncertain bool
	}{
		{"nothing known", Recalled{}, false, false, false, false},
		{"a lease", Recalled{PersistedState: persisted(20 * time.Second), Until: start.Add(17 * time.Second)}, true, true, true, true},
		{"the guard's deadline is over", Recalled{PersistedState: persisted(20 * time.Second), Until: start.Add(-1)}, false, false, false, false},
		{"the lease is over", Recalled{PersistedState: persisted(-1), Until: start.Add(time.Hour)}, false, false, false, false},
		{"a pause", Recalled{PersistedState: persisted(-1), Paused: true}, true, false, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.clock = start
			primary := pg.State{Running: true, Accepting: true, Timeline: 3, WriteLSN: 1}
			if got := w.AdoptRunning(primary, "", tt.r); got != tt.want {
				t.Fatalf("goes on: %t", got)
			}
			if w.LeaseState.Held(w.clock) != tt.held || len(w.LeaseState.FailsafeMembers("a")) == 1 != tt.lists || w.SyncUncertain != tt.uncertain {
				t.Fatalf("held %t, lists %v, uncertain %t", w.LeaseState.Held(w.clock), w.LeaseState.FailsafeMembers("a"), w.SyncUncertain)
			}
			if w.adopted.at != w.clock || w.adopted.paused != tt.r.Paused {
				t.Fatal("not adopted")
			}
			w.stoppedOnPurpose()
			if !w.adopted.at.IsZero() || w.adopted.paused {
				t.Fatal("what was adopted is stopped")
			}
		})
	}
	// What says nothing led by that lease, or may be another that starts.
	for _, until := range []time.Duration{17 * time.Second, -1} {
		w := newWorld(t)
		w.clock, w.PG, w.startedPrimary, w.startedKnown = start, PG{}, true, true
		goesOn := w.AdoptRunning(pg.State{Running: true, Silent: true}, "", Recalled{PersistedState: persisted(20 * time.Second), Until: start.Add(until)})
		if goesOn != (until > 0) || w.View().Postgres.Hung {
			t.Fatalf("deadline in %s: goes on: %t; hangs: %t", until, goesOn, w.View().Postgres.Hung)
		}
	}
	w := newWorld(t)
	replica := pg.State{Running: true, Accepting: true, InRecovery: true}
	if w.AdoptRunning(replica, "b", Recalled{PersistedState: persisted(20 * time.Second), Until: start.Add(time.Hour)}) || w.LeaseState.Held(start) || w.Upstream != "b" {
		t.Fatal("a replica goes on with a lease")
	}
}
