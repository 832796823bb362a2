package member

import (
	"errors"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// persistedAt is a persisted state with a deadline, the latest so far.
func persistedAt(g *GuardSupervisor, killAt cluster.Instant) PersistedState {
	g.persists++
	return PersistedState{KillAt: killAt, version: g.persists}
}

func (c *call) persisted() PersistedState { return c.args[0].(PersistedState) }

// outcomeOf is a done that remembers what it was told.
type outcomeOf struct {
	told int
	err  error
}

func (o *outcomeOf) done(err error) { o.told++; o.err = err }

func (o *outcomeOf) want(t *testing.T, told int, wrong bool) {
	t.Helper()
	if o.told != told || (o.err != nil) != wrong {
		t.Fatalf("told %d times, last %v; want %d, an error: %t", o.told, o.err, told, wrong)
	}
}

// Orders reach the guard one after another; of what the loop leaves meanwhile the latest
// counts.
func TestOrdersToTheGuardOneAfterAnother(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.arm(persistedAt(g, 10))
	first := w.take("Guard.Arm")
	g.arm(persistedAt(g, 20))
	g.arm(persistedAt(g, 30))
	w.none("Guard.Arm")
	if g.idle() {
		t.Fatal("idle while the guard is being told")
	}
	first.answer()
	second := w.take("Guard.Arm")
	if second.persisted().KillAt != 30 || second.args[1] != false {
		t.Fatalf("second order: %v", second.args)
	}
	second.answer()
	w.none("Guard.Arm")
	if !g.idle() || g.known != 30 {
		t.Fatalf("idle %t, known %v", g.idle(), g.known)
	}
}

// What is left of a new lease stays one, whatever deadline comes after it; a pause ends it.
func TestGrantIsNotReplacedByAnArm(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.arm(persistedAt(g, 10))
	first := w.take("Guard.Arm")
	g.grant(persistedAt(g, 20))
	g.arm(persistedAt(g, 30))
	first.answer()
	c := w.take("Guard.Arm")
	if c.args[1] != true || c.persisted().KillAt != 30 {
		t.Fatalf("the grant was lost: %v", c.args)
	}
	g.grant(persistedAt(g, 40))
	g.standDown(persistedAt(g, 40))
	c.answer()
	w.none("Guard.Arm")
	w.answer("Guard.StandDown")
}

// A task that passes on its persisted state late does not bring an old deadline back.
func TestAnOldMemoGivesWay(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	w.agree("Guard.Mark")
	old := persistedAt(g, 10)
	g.arm(persistedAt(g, 50))
	var o outcomeOf
	g.ArmNow(nil, old, o.done)
	w.answer("Guard.Arm")
	c := w.take("Guard.Arm")
	if c.persisted().KillAt != 50 || c.args[1] != true {
		t.Fatalf("armed with %v", c.args)
	}
	c.answer()
	o.want(t, 1, false)
}

// Without a deadline there is nothing to tell, and no mark to make.
func TestNoLeaseNoOrder(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.arm(persistedAt(g, 0))
	if !g.idle() {
		t.Fatal("an order without a deadline")
	}
	var o outcomeOf
	g.lead(0, o.done)
	o.want(t, 1, false)
	w.none("Guard.Mark", "Guard.Arm")
}

func TestArmNowNeedsItsMark(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	var o outcomeOf
	g.ArmNow(nil, persistedAt(g, 10), o.done)
	c := w.take("Guard.Mark")
	if c.args[0] != cluster.Instant(10) || c.args[1] != false {
		t.Fatalf("marked with %v", c.args)
	}
	w.none("Guard.Arm")
	c.fail(errBoom)
	o.want(t, 1, true)
	w.none("Guard.Arm")

	g.ArmNow(nil, persistedAt(g, 20), o.done) // tried again, as there is no mark
	w.answer("Guard.Mark")
	w.deny("Guard.Arm", errBoom)
	o.want(t, 2, true)
	if g.broken == "" {
		t.Fatal("the guard counts as told")
	}
	g.ArmNow(nil, persistedAt(g, 30), o.done) // one mark is enough
	w.none("Guard.Mark")
	w.answer("Guard.Arm")
	o.want(t, 3, false)
	if running, left := g.Shown(); !running || left != 0 {
		t.Fatalf("shown: %t, %v", running, left)
	}
}

// A disarm voids what the loop has left before, and keeps what a lease that is new by then
// has left.
func TestDisarmVoidsWhatWasLeftBefore(t *testing.T) {
	for _, tt := range []struct {
		name  string
		leave func(g *GuardSupervisor)
		armed bool // once it is disarmed
	}{
		{"nothing since", func(*GuardSupervisor) {}, false},
		{"a deadline of the old lease", func(g *GuardSupervisor) { g.arm(persistedAt(g, 30)) }, false},
		{"a pause", func(g *GuardSupervisor) { g.standDown(persistedAt(g, 30)) }, false},
		{"a new lease", func(g *GuardSupervisor) { g.grant(persistedAt(g, 30)) }, true},
		{"a new lease and its next deadline", func(g *GuardSupervisor) { g.grant(persistedAt(g, 30)); g.arm(persistedAt(g, 40)) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			g := &w.GuardSupervisor
			g.arm(persistedAt(g, 10))
			first := w.take("Guard.Arm")
			g.arm(persistedAt(g, 20))
			var o outcomeOf
			g.Disarm(o.done)
			tt.leave(g)
			first.answer()
			w.none("Guard.Arm", "Guard.StandDown")
			w.answer("Guard.Disarm")
			if c := w.find("Guard.Arm"); (c != nil) != tt.armed || c != nil && c.args[1] != true {
				t.Fatalf("armed again: %v", c)
			}
			w.none("Guard.StandDown")
			o.want(t, 0, false)
			w.answer("Guard.Unmark")
			o.want(t, 1, false)
			if tt.armed {
				w.answer("Guard.Arm")
			}
			if !g.idle() || g.known.IsZero() == tt.armed {
				t.Fatalf("idle %t, known %v", g.idle(), g.known)
			}
		})
	}
}

// A beat of the lease that ends arms the guard while the mark is changed, on a disk that hangs: it is disarmed again, and
// the lease has not ended before. What is of a new lease stays.
func TestADisarmIsNotUndoneWhileTheMarkIsChanged(t *testing.T) {
	for _, tt := range []struct {
		name  string
		leave func(w *world, g *GuardSupervisor)
		again bool
	}{
		{"nothing", func(*world, *GuardSupervisor) {}, false},
		{"a deadline", func(w *world, g *GuardSupervisor) { g.arm(persistedAt(g, 30)); w.answer("Guard.Arm") }, true},
		{"a deadline that the guard did not take", func(w *world, g *GuardSupervisor) { g.arm(persistedAt(g, 30)); w.deny("Guard.Arm", errBoom) }, true},
		{"a deadline that waits", func(w *world, g *GuardSupervisor) {
			g.remember(persistedAt(g, 20), func(error) {})
			g.arm(persistedAt(g, 30))
		}, true},
		{"a new lease", func(w *world, g *GuardSupervisor) { g.grant(persistedAt(g, 30)); w.answer("Guard.Arm") }, false},
		{"a new lease that waits", func(w *world, g *GuardSupervisor) {
			g.remember(persistedAt(g, 20), func(error) {})
			g.grant(persistedAt(g, 30))
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			g := &w.GuardSupervisor
			g.arm(persistedAt(g, 10))
			w.answer("Guard.Arm")
			var o outcomeOf
			g.Disarm(o.done)
			w.answer("Guard.Disarm")
			unmark := w.take("Guard.Unmark")
			tt.leave(w, g)
			unmark.answer()
			if !tt.again {
				o.want(t, 1, false)
				return
			}
			o.want(t, 0, false)
			if c := w.find("Guard.Remember"); c != nil {
				c.answer()
			}
			w.answer("Guard.Disarm")
			w.answer("Guard.Unmark")
			o.want(t, 1, false)
			w.none("Guard.Arm")
			if !g.idle() || g.mayHaveDeadline() {
				t.Fatalf("idle %t, may have %v", g.idle(), g.may)
			}
		})
	}
}

// A guard that cannot be disarmed keeps the mark: it says that this member may lead.
func TestAFailedDisarmKeepsTheMark(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.marked = markedLed
	var o outcomeOf
	g.Disarm(o.done)
	w.deny("Guard.Disarm", errBoom)
	o.want(t, 1, true)
	w.none("Guard.Unmark")
	if g.marked != markedLed || g.standsDown() {
		t.Fatalf("marked %v, stands down %t", g.marked, g.standsDown())
	}
}

// A beat that shortens the lease waits until the guard has no later deadline; the guard
// may have one that it was asked to take, whether it answered or not.
func TestShorten(t *testing.T) {
	for _, tt := range []struct {
		name   string
		may    cluster.Instant
		killAt cluster.Instant
		asks   bool
	}{
		{"later than the guard's", 10, 20, false},
		{"the same", 20, 20, false},
		{"sooner", 30, 20, true},
		{"no lease", 30, 0, false},
		{"a guard with none", 0, 20, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			g := &w.GuardSupervisor
			g.may = tt.may
			var o outcomeOf
			g.shorten(persistedAt(g, tt.killAt), time.Second, o.done)
			if !tt.asks {
				o.want(t, 1, false)
				w.none("Guard.Arm")
				return
			}
			o.want(t, 0, false)
			w.answer("Guard.Arm")
			o.want(t, 1, false)
			w.pass(time.Minute)
			o.want(t, 1, false)
		})
	}
}

// An arm that was not answered may have reached the guard.
func TestWhatTheGuardMayHave(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.arm(persistedAt(g, 10))
	w.answer("Guard.Arm")
	g.arm(persistedAt(g, 50))
	w.deny("Guard.Arm", errBoom)
	if g.known != 10 || g.may != 50 {
		t.Fatalf("known %v, may %v", g.known, g.may)
	}
	var o outcomeOf
	g.shorten(persistedAt(g, 40), time.Second, o.done)
	w.deny("Guard.Arm", errBoom)
	o.want(t, 1, true)
	g.shorten(persistedAt(g, 40), time.Second, o.done)
	w.pass(2 * time.Second) // no answer in time
	o.want(t, 2, true)
	if !errors.Is(o.err, errNotInTime) {
		t.Fatal(o.err)
	}
	w.answer("Guard.Arm")
	o.want(t, 2, true) // and once is enough
	if g.may != 40 {
		t.Fatalf("may have %v", g.may)
	}
}

// A pause takes no deadline away from a leader that was replaced and could not be killed: the guard is what
// ends that primary. What has ended it disarms the guard.
func TestAPauseEndsNoFence(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm")
	w.ArmGuard()
	w.settle()
	w.Snapshot = w.shard("b")
	w.fenceNow()
	w.deny("Postgres.Kill", errBoom)
	w.Dynamic.Pause = true
	if !w.PauseInForce() {
		t.Fatal("no pause")
	}
	w.ArmGuard()
	w.settle()
	w.none("Guard.StandDown", "Guard.Disarm")
	w.pass(killAgainAfter)
	w.looked()
	w.ArmGuard()
	w.settle()
	w.none("Guard.StandDown", "Guard.Disarm")
	w.fenceNow()
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.CancelStarts", false, nil)
	w.answer("Guard.Disarm")
	w.ArmGuard()
	w.answer("Guard.StandDown") // nothing is left that a deadline would end
}

// In pause the guard stands down and remembers it, then a mark says so too; the member
// key tells of the pause when all of that holds.
func TestStandDown(t *testing.T) {
	w := newWorld(t).leading()
	w.Dynamic.Pause = true
	w.Snapshot.Status.Value.Lictor.Paused = true
	if !w.PauseInForce() {
		t.Fatal("no pause")
	}
	w.ArmGuard()
	if w.Value().Pause {
		t.Fatal("the pause is told of before the guard knows")
	}
	c := w.take("Guard.StandDown")
	if !c.persisted().Paused {
		t.Fatal("the guard is not to remember the pause")
	}
	c.answer()
	mark := w.take("Guard.Mark")
	if mark.args[1] != true {
		t.Fatalf("marked with %v", mark.args)
	}
	mark.answer()
	if !w.Value().Pause || w.GuardSupervisor.marked != markedPaused {
		t.Fatal("the guard stands down, and nobody hears of it")
	}
	w.ArmGuard()
	w.answer("Guard.StandDown")
	w.none("Guard.Mark") // there is one
}

// The mark of a pause that fails is made again with the next beat.
func TestTheMarkOfAPauseIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.standDown(persistedAt(g, 10))
	w.answer("Guard.StandDown")
	w.deny("Guard.Mark", errBoom)
	if g.standsDown() {
		t.Fatal("without a mark a restarted agent would not know of the pause")
	}
	g.standDown(persistedAt(g, 20))
	w.answer("Guard.StandDown")
	w.answer("Guard.Mark")
	if !g.standsDown() || g.marked != markedPaused {
		t.Fatal("the mark was not made")
	}
	g.standDown(persistedAt(g, 30))
	w.deny("Guard.StandDown", errBoom)
	if g.standsDown() {
		t.Fatal("a guard that does not answer counts as standing down")
	}
}

// A pause ends in this order: the mark of a lease, what the guard remembers, the beat
// that says so.
func TestTheEndOfAPause(t *testing.T) {
	for _, tt := range []struct {
		name   string
		killAt cluster.Instant
		order  string
	}{
		{"with a lease", 50, "Guard.Arm"},
		{"without", 0, "Guard.Remember"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			g := &w.GuardSupervisor
			g.standDown(persistedAt(g, 10))
			w.answer("Guard.StandDown")
			w.answer("Guard.Mark")
			var o outcomeOf
			paused := persistedAt(g, tt.killAt)
			paused.Paused = true
			g.leads(paused, 60, time.Second, o.done)
			o.want(t, 1, false) // a beat in pause: nothing changes
			w.none("Guard.Mark", tt.order)

			g.leads(persistedAt(g, tt.killAt), 60, time.Second, o.done)
			w.none(tt.order)
			if c := w.take("Guard.Mark"); c.args[0] != cluster.Instant(60) || c.args[1] != false {
				t.Fatalf("marked with %v", c.args)
			} else {
				c.answer()
			}
			o.want(t, 1, false)
			w.deny(tt.order, errBoom)
			o.want(t, 2, true)
			if !g.resting {
				t.Fatal("the guard still remembers the pause")
			}
			g.leads(persistedAt(g, tt.killAt), 60, time.Second, o.done)
			w.answer(tt.order)
			o.want(t, 3, false)
			if g.resting {
				t.Fatal("the guard remembers no pause any more")
			}
		})
	}
}

// A mark of the pause that is still on its way to a slow disk does not stay the last word.
func TestTheEndOfAPauseWhoseMarkIsSlow(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.marked = markedLed
	g.standDown(persistedAt(g, 10))
	w.answer("Guard.StandDown")
	slow := w.take("Guard.Mark")
	if g.standsDown() {
		t.Error("it counts as standing down before the mark says so")
	}
	g.standDown(persistedAt(g, 15))
	w.answer("Guard.StandDown")
	w.none("Guard.Mark") // one is on its way
	var o outcomeOf
	g.leads(persistedAt(g, 20), 60, 10*time.Second, o.done)
	if w.find("Guard.Mark") == nil {
		t.Fatal("the beat goes out while the disk is about to say that a pause is in force")
	}
	slow.answer()
	w.answer("Guard.Mark")
	w.answer("Guard.Arm")
	o.want(t, 1, false)
	if g.marked != markedLed {
		t.Fatalf("marked %v", g.marked)
	}
}

// What the guard of an earlier run knows counts until this run tells it something else.
func TestRecall(t *testing.T) {
	w := newWorld(t)
	w.GuardSupervisor.Recall(Recalled{Deadline: 70, Paused: true})
	if g := &w.GuardSupervisor; g.known != 70 || g.may != 70 || !g.resting || g.standsDown() {
		t.Fatalf("%+v", g)
	}
	w.clock = 60
	if running, left := w.GuardSupervisor.Shown(); !running || left != 10 {
		t.Fatalf("shown: %t, %v", running, left)
	}
}

// A guard that was told nothing for too long gives up the wait, and only that.
func TestRememberIsQueued(t *testing.T) {
	w := newWorld(t)
	g := &w.GuardSupervisor
	g.arm(persistedAt(g, 10))
	var o outcomeOf
	g.remember(persistedAt(g, 20), o.done)
	w.none("Guard.Remember")
	w.answer("Guard.Arm")
	w.deny("Guard.Remember", errBoom)
	o.want(t, 1, true)
	g.remember(persistedAt(g, 30), o.done)
	w.answer("Guard.Remember")
	o.want(t, 2, false)
}

// The guard's deadline is before the end of the lease, by the margin of a ttl that is no
// longer than the lease is.
func TestKillAt(t *testing.T) {
	w := newWorld(t)
	if got := w.KillAt(); !got.IsZero() {
		t.Fatalf("without a lease: %v", got)
	}
	w.LeaseState.TookOver(w.clock, 30*time.Second)
	if got := w.KillAt(); got != w.clock.Add(27*time.Second) {
		t.Fatalf("%v", got.Sub(w.clock))
	}
	w.Dynamic.TTL = 60 * time.Second
	if got := w.FenceMargins(); got != (ha.FenceMargins{DemoteBefore: 10 * time.Second, KillBefore: 3 * time.Second}) {
		t.Fatalf("a ttl that was raised: %v", got)
	}
	w.Dynamic.TTL = 10 * time.Second
	if got := w.FenceMargins().KillBefore; got != time.Second {
		t.Fatalf("a ttl that was lowered: %v", got)
	}
}

// The persisted state carries the configuration in force, if it is one.
func TestPersistedState(t *testing.T) {
	w := newWorld(t).leading()
	m := w.PersistedState()
	if string(m.Config) != "{}" || m.KillAt != w.KillAt() || m.Session != "sa" || m.Index != 101 || m.Paused {
		t.Fatalf("%+v", m)
	}
	w.Snapshot.Config.Value = []byte("{")
	next := w.PersistedState()
	if next.Config != nil || next.version <= m.version {
		t.Fatalf("%+v", next)
	}
}
