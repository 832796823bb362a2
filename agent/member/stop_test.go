package member

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// hung is a leader whose task waits for a disk that hangs; end ends the task.
func hung(t *testing.T, kind ha.TaskKind) (w *world, work *Work, end func(error)) {
	t.Helper()
	w = newWorld(t).leading()
	w.agree("Guard.Arm")
	w.startTask(kind, func(one *Work, e func(error)) { work, end = one, e }, func(error) {})
	return w, work, end
}

// A fence drops the lease at once, kills, makes sure that nothing was started meanwhile,
// and disarms the guard last.
func TestFence(t *testing.T) {
	w := newWorld(t).leading()
	w.begin(ha.Fence{})
	w.begin(ha.Fence{})
	if w.LeaseState.Held(w.clock) {
		t.Fatal("the lease is still held")
	}
	w.wantTask(ha.TaskDemote)
	if c := w.take("Postgres.Kill"); c.w != nil || c.args[0] != backoffMax {
		t.Fatalf("%v: a kill is not broken off", c.args)
	} else {
		w.none("Guard.CancelStarts")
		w.running = false
		c.answer()
	}
	w.none("Guard.Disarm")
	w.answer("Guard.CancelStarts", false, nil)
	w.answer("Guard.Disarm")
	w.none("Postgres.Look")
	w.answer("Guard.Unmark")
	if c := w.take("Postgres.Look"); c.args[0] != lookWithin {
		t.Fatalf("the look may take %v", c.args[0])
	} else {
		c.answer(w.left(), true)
	}
	w.wantTask(ha.TaskNone)
	if w.fencing || w.PG.Running || !w.PGDown.IsZero() {
		t.Fatal("the fence is not over")
	}
	w.wantAsked("Postgres Guard", "Postgres.Kill", "Guard.CancelStarts", "Guard.Disarm", "Guard.Unmark", "Postgres.Look")
}

// A kill that fails leaves the guard armed, is told of after a while, and is tried again.
func TestAKillThatFails(t *testing.T) {
	w := newWorld(t).leading()
	w.fenceNow()
	w.deny("Postgres.Kill", errBoom)
	w.none("Guard.CancelStarts", "Guard.Disarm", "Postgres.Look")
	w.pass(killAgainAfter)
	w.none("Guard.CancelStarts", "Guard.Disarm")
	w.looked()
	if w.fencing || w.Attempt.Kind != ha.TaskDemote || !w.PG.Running || !w.PG.Primary() {
		t.Fatalf("%+v, running %t", w.Attempt, w.PG.Running)
	}
	w.Saw(Look{State: pg.State{Running: true, Accepting: true, Timeline: 3}})
	w.Step() // a primary without a lease
	if w.find("Postgres.Kill") == nil {
		t.Fatalf("not killed again: %s", w.Reason)
	}
}

// What lingers on a disk that hangs is left to the kernel.
func TestAKillThatLingers(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Disarm", "Guard.Unmark")
	w.fenceNow()
	w.deny("Postgres.Kill", fmt.Errorf("pid 7: %w", ErrLingering))
	w.answer("Guard.CancelStarts", false, nil)
	w.looked()
	if w.fencing || w.Attempt.Failures != 0 {
		t.Fatalf("%+v", w.Attempt)
	}
}

// A start that was asked for before the kill may have come up since: it is killed, too.
func TestStartedMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name  string
		again error
		fails bool
	}{
		{"killed again", nil, false},
		{"it lingers", ErrLingering, false},
		{"it lives", errBoom, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t).leading()
			w.fenceNow()
			w.answer("Postgres.Kill")
			w.answer("Guard.CancelStarts", true, nil)
			w.none("Guard.Disarm")
			c := w.take("Postgres.Kill")
			if c.w != nil || c.args[0] != lingering {
				t.Fatalf("%v", c.args)
			}
			c.fail(tt.again)
			w.settle()
			if (w.find("Guard.Disarm") == nil) != tt.fails {
				t.Fatalf("pending %v", w.names())
			}
		})
	}
	w := newWorld(t).leading()
	w.fenceNow()
	w.answer("Postgres.Kill")
	w.deny("Guard.CancelStarts", errBoom)
	w.none("Guard.Disarm", "Postgres.Kill")
	w.looked()
	if w.Attempt.Kind != ha.TaskDemote {
		t.Fatal("a guard that may start PostgreSQL is no success")
	}
}

// A guard that does not answer holds a fence up for a short time.
func TestAFenceWithoutTheGuard(t *testing.T) {
	w := newWorld(t).leading()
	w.fenceNow()
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	late := w.take("Guard.Disarm")
	w.pass(lingering)
	w.looked()
	if w.fencing || w.Attempt.Failures != 1 || w.PG.Running {
		t.Fatalf("%+v", w.Attempt)
	}
	late.answer()
	w.answer("Guard.Unmark")
	w.wantTask(ha.TaskNone)
}

// What lingers is not waited for twice as long, though a start may have come up.
func TestLingeringIsWaitedForOnce(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Disarm", "Guard.Unmark")
	w.giveUp("c")
	w.deny("Postgres.Kill", ErrLingering)
	w.answer("Guard.CancelStarts", true, nil)
	again := w.take("Postgres.Kill")
	if again.args[0] != killAgainAfter {
		t.Fatalf("%v", again.args)
	}
	again.fail(ErrLingering)
	w.looked()
	if g := w.LeaseState.Giving(); g == nil || g.Successor != "c" {
		t.Fatalf("the lease is kept: %+v", w.Attempt)
	}
}

// A beat that waits for a disk that hangs keeps no lease from being given up: it is not sent
// any more, and the release waits for no answer to it.
func TestABeatThatWasNotSentKeepsNoLease(t *testing.T) {
	w := newWorld(t).leading()
	w.giveUp("c")
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.answer("Guard.Disarm")
	mark := w.take("Guard.Unmark")
	w.beat(false)
	led := w.take("Guard.Mark")
	if !w.LeaseState.Lease().InFlight {
		t.Fatal("no beat waits")
	}
	mark.answer()
	w.answer("Guard.Arm") // by that beat: the guard is disarmed again
	w.answer("Guard.Disarm")
	w.answer("Guard.Unmark")
	w.looked()
	if w.LeaseState.Lease().InFlight {
		t.Fatal("the release waits for a beat")
	}
	w.Step()
	w.take("Consul.Release").answer()
	led.answer()
	w.settle()
	w.none("Consul.Beat")
}

// A mark on a disk that hangs, which the port gives up after a moment, keeps no lease from
// being given up.
func TestAMarkThatHangsKeepsNoLease(t *testing.T) {
	w := newWorld(t).leading()
	w.giveUp("c")
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.pass(time.Millisecond)
	disarm := w.take("Guard.Disarm")
	w.pass(time.Millisecond) // the guard's answer
	disarm.answer()
	mark := w.take("Guard.Unmark")
	w.pass(lingering) // longer than unmarkWithin of agent/guard_supervisor.go
	mark.answer()
	w.looked()
	if g := w.LeaseState.Giving(); g == nil || g.Successor != "c" || w.Attempt.Failures != 0 {
		t.Fatalf("the lease is kept: %+v, %+v", g, w.Attempt)
	}
}

// A fence interrupts what is under way and does not wait for it on a disk that hangs. What
// is interrupted lives on, and nothing else is begun until it has ended.
func TestAFenceDoesNotWaitForAHungDisk(t *testing.T) {
	w, work, end := hung(t, ha.TaskRestart)
	w.agree("Guard.Disarm", "Guard.Unmark")
	w.fenceNow()
	if !errors.Is(work.Broken(), ErrBroken) {
		t.Fatal("the task is not interrupted")
	}
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.none("Guard.Disarm", "Postgres.Look")
	since := w.wall
	w.pass(lingering)
	w.wantTask(ha.TaskInterrupted)
	if !w.TaskSince().After(since) || w.fencing || w.PG.Running || !w.GuardSupervisor.known.IsZero() {
		t.Fatalf("the outcome is not told: fencing %t", w.fencing)
	}
	w.begin(ha.StartReplica{Upstream: "b"})
	w.begin(ha.Clone{From: "b"})
	if err := w.MayRestart(); err == nil {
		t.Fatal("a restart may begin")
	}
	w.none("Postgres.Start", "Guard.Awake", "Postgres.MakeReplica")

	end(ErrBroken)
	w.wantTask(ha.TaskInterrupted)
	w.looked() // of the task
	w.wantTask(ha.TaskInterrupted)
	w.looked() // of the fence
	w.wantTask(ha.TaskNone)
	if w.Attempt.Failures != 0 {
		t.Fatalf("%+v", w.Attempt)
	}
}

// A task that ends in time has its outcome told by the fence alone.
func TestAnInterruptedTaskThatEnds(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm", "Guard.Disarm", "Guard.Unmark")
	var end func(error)
	told := 0
	w.startTask(ha.TaskRestart, func(_ *Work, e func(error)) { end = e }, func(error) { told++ })
	w.fenceNow()
	end(ErrBroken)
	w.looked()
	w.wantTask(ha.TaskDemote)
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.looked()
	w.wantTask(ha.TaskNone)
	w.pass(time.Minute)
	w.none("Postgres.Look")
	if told != 0 {
		t.Fatal("a task that was interrupted has told its outcome")
	}

	// It ends when PostgreSQL is killed, and before it is waited for no more.
	w, _, end = hung(t, ha.TaskRestart)
	w.agree("Guard.Disarm", "Guard.Unmark")
	w.fenceNow()
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.none("Guard.Disarm")
	end(ErrBroken)
	w.looked()
	w.looked()
	w.wantTask(ha.TaskNone)
	w.asked = nil
	w.pass(time.Minute)
	w.wantAsked("Postgres Guard")

	// It ends while the guard is disarmed without it.
	w, _, end = hung(t, ha.TaskRestart)
	w.fenceNow()
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.pass(lingering)
	end(ErrBroken)
	w.looked()
	w.answer("Guard.Disarm")
	w.answer("Guard.Unmark")
	w.looked()
	w.wantTask(ha.TaskNone)
}

// A fence that comes upon one that is interrupted already waits for the same hung task.
func TestAFenceUponADemotion(t *testing.T) {
	w, _, end := hung(t, ha.TaskRestart)
	w.agree("Guard.Disarm", "Guard.Unmark")
	w.running = false
	w.demote()
	stop := w.take("Postgres.Stop")
	w.fenceNow()
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	stop.fail(ErrBroken)
	w.pass(lingering)
	w.wantTask(ha.TaskInterrupted)
	end(ErrBroken)
	w.looked()
	w.looked()
	w.looked()
	w.wantTask(ha.TaskNone)
	if w.Attempt.Failures != 0 {
		t.Fatalf("%+v", w.Attempt)
	}
}

// A demotion: before_stop, an orderly stop, a kill of what is left, no start that comes up
// later, the guard, and the lease last.
func TestDemote(t *testing.T) {
	w := newWorld(t).leading()
	w.begin(ha.Demote{})
	w.begin(ha.Demote{})
	w.begin(ha.GiveUp{})
	w.begin(ha.EndHung{})
	if c := w.take("Postgres.BeforeStop"); c.args[0] != 5*time.Second {
		t.Fatalf("%v", c.args)
	} else {
		c.fail(errBoom) // it keeps nothing from being stopped
	}
	stop := w.take("Postgres.Stop")
	if stop.args[0] != w.stopWithin() || stop.args[1] != false {
		t.Fatalf("%v", stop.args)
	}
	w.none("Postgres.Kill")
	stop.fail(ErrLingering)
	w.running = false
	if c := w.take("Postgres.Kill"); c.args[0] != lingering {
		t.Fatalf("%v", c.args)
	} else {
		c.answer()
	}
	w.answer("Guard.CancelStarts", false, nil)
	w.answer("Guard.Disarm")
	w.answer("Guard.Unmark")
	if !w.LeaseState.Held(w.clock) {
		t.Fatal("the lease is dropped before the end")
	}
	w.looked()
	if w.LeaseState.Held(w.clock) || w.PG.Running || w.TaskKind() != ha.TaskNone {
		t.Fatal("not demoted")
	}
	w.wantAsked("Postgres Guard", "Postgres.BeforeStop", "Postgres.Stop", "Postgres.Kill", "Guard.CancelStarts", "Guard.Disarm", "Guard.Unmark", "Postgres.Look")
}

// A demotion that fails keeps the lease, and the guard armed.
func TestADemotionThatFails(t *testing.T) {
	for _, at := range []string{"Postgres.Stop", "Postgres.Kill", "Guard.CancelStarts", "Guard.Disarm"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t).leading()
			w.agree("Postgres.BeforeStop", "Postgres.Stop", "Postgres.Kill", "Guard.CancelStarts", "Guard.Disarm", "Guard.Unmark")
			w.always[at] = no
			w.demote()
			w.settle()
			w.pass(killAgainAfter)
			w.looked()
			if !w.LeaseState.Held(w.clock) || w.Attempt.Kind != ha.TaskDemote {
				t.Fatalf("held %t, %+v", w.LeaseState.Held(w.clock), w.Attempt)
			}
			if w.find("Guard.Unmark") != nil || w.GuardSupervisor.known.IsZero() {
				t.Fatal("the guard is disarmed")
			}
		})
	}
}

func TestGiveUp(t *testing.T) {
	for _, fails := range []bool{false, true} {
		w := newWorld(t).leading()
		w.agree("Guard.CancelStarts", "Guard.Disarm", "Guard.Unmark", "Postgres.Kill")
		w.Complete = true
		if fails {
			w.always["Guard.CancelStarts"] = no
		}
		w.begin(ha.GiveUp{Successor: "b"})
		w.looked()
		if fails {
			if !w.LeaseState.Held(w.clock) || w.LeaseState.Giving() != nil {
				t.Fatal("given up while PostgreSQL may live")
			}
			continue
		}
		if g := w.LeaseState.Giving(); g == nil || g.Successor != "b" || w.LeaseState.Held(w.clock) || w.Complete {
			t.Fatalf("%+v, complete %t", g, w.Complete)
		}
	}
}

// A postmaster that hangs is killed, and the lease kept: it is started in place.
func TestEndHung(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.CancelStarts", "Postgres.Kill")
	w.begin(ha.EndHung{})
	w.settle()
	w.running = false
	w.looked()
	if !w.LeaseState.Held(w.clock) || w.PG.Running || !w.PGDown.IsZero() || w.GuardSupervisor.known.IsZero() {
		t.Fatal("a hung PostgreSQL")
	}
	w.none("Guard.Disarm")
}

// A stop may take as long as a leader may serve nobody, and before_stop half of what is
// left until PostgreSQL would be killed.
func TestStopLimits(t *testing.T) {
	w := newWorld(t)
	w.Dynamic.PrimaryStartTimeout = 0
	w.Dynamic.TTL = 5 * time.Second
	if got := w.stopWithin(); got != StopLimit {
		t.Fatalf("without a lease: %v", got)
	}
	if got := w.beforeStopLimit(); got != w.ScriptLimit {
		t.Fatalf("without a lease: %v", got)
	}
	w.LeaseState.TookOver(w.clock, 5*time.Second)
	if got := w.stopWithin(); got != 5*time.Second {
		t.Fatalf("with a lease: %v", got)
	}
	if got := w.beforeStopLimit(); got != 2250*time.Millisecond {
		t.Fatalf("with a lease: %v", got)
	}
	w.Dynamic.Pause = true
	w.Snapshot.Status.Value.Lictor = nil
	if got := w.beforeStopLimit(); got != w.ScriptLimit {
		t.Fatalf("in pause: %v", got)
	}
	w.ScriptLimit, w.Stopping = time.Minute, true
	if got := w.beforeStopLimit(); got != StopLimit/2 {
		t.Fatalf("when the agent stops: %v", got)
	}
}
