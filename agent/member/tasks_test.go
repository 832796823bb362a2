package member

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
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
	if w.Tenure.Held(w.clock) {
		t.Fatal("the lease is still held")
	}
	w.wantTask(ha.TaskDemote)
	if c := w.take("Postgres.Kill"); c.w != nil || c.args[0] != backoffMax {
		t.Fatalf("%v: a kill is not broken off", c.args)
	} else {
		w.none("Guard.Overtake")
		w.running = false
		c.answer()
	}
	w.none("Guard.Disarm")
	w.answer("Guard.Overtake", false, nil)
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
	w.wantAsked("Postgres Guard", "Postgres.Kill", "Guard.Overtake", "Guard.Disarm", "Guard.Unmark", "Postgres.Look")
}

// A kill that fails leaves the guard armed, is told of after a while, and is tried again.
func TestAKillThatFails(t *testing.T) {
	w := newWorld(t).leading()
	w.fenceNow()
	w.deny("Postgres.Kill", errBoom)
	w.none("Guard.Overtake", "Guard.Disarm", "Postgres.Look")
	w.pass(killAgainAfter)
	w.none("Guard.Overtake", "Guard.Disarm")
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
	w.answer("Guard.Overtake", false, nil)
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
			w.answer("Guard.Overtake", true, nil)
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
	w.deny("Guard.Overtake", errBoom)
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
	w.answer("Guard.Overtake", false, nil)
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

// A mark on a disk that hangs, which the port gives up after as long as the guard has, keeps
// no lease from being given up.
func TestAMarkThatHangsKeepsNoLease(t *testing.T) {
	w := newWorld(t).leading()
	w.giveUp("c")
	w.running = false
	w.answer("Postgres.Kill")
	w.answer("Guard.Overtake", false, nil)
	w.pass(time.Millisecond)
	disarm := w.take("Guard.Disarm")
	w.pass(time.Millisecond) // the guard's answer
	disarm.answer()
	mark := w.take("Guard.Unmark")
	w.pass(lingering) // unmarkWithin of agent/guardian.go
	mark.answer()
	w.looked()
	if g := w.Tenure.Giving(); g == nil || g.Successor != "c" || w.Attempt.Failures != 0 {
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
	w.answer("Guard.Overtake", false, nil)
	w.none("Guard.Disarm", "Postgres.Look")
	since := w.wall
	w.pass(lingering)
	w.wantTask(ha.TaskInterrupted)
	if !w.TaskSince().After(since) || w.fencing || w.PG.Running || !w.Guardian.known.IsZero() {
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
	w.answer("Guard.Overtake", false, nil)
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
	w.answer("Guard.Overtake", false, nil)
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
	w.answer("Guard.Overtake", false, nil)
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
	w.answer("Guard.Overtake", false, nil)
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

// Everything but what stops PostgreSQL waits for its turn.
func TestOneTaskAtATime(t *testing.T) {
	w, _, _ := hung(t, ha.TaskClone)
	w.asked = nil
	for _, action := range []ha.Action{
		ha.Bootstrap{},
		ha.ClaimBootstrap{},
		ha.FinishBootstrap{},
		ha.EndShutDown{},
		ha.DiscardIncomplete{},
		ha.Clone{From: "b"},
		ha.StartPrimary{},
		ha.StartReplica{},
		ha.Rejoin{Upstream: "b"},
		ha.Follow{},
		ha.RestartReplica{},
		ha.Promote{},
		ha.Handover{},
		ha.SetSync{},
	} {
		w.perform(action)
	}
	w.wantAsked("Postgres Consul Guard Bouncers")
	w.wantTask(ha.TaskClone)
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
	w.answer("Guard.Overtake", false, nil)
	w.answer("Guard.Disarm")
	w.answer("Guard.Unmark")
	if !w.Tenure.Held(w.clock) {
		t.Fatal("the lease is dropped before the end")
	}
	w.looked()
	if w.Tenure.Held(w.clock) || w.PG.Running || w.TaskKind() != ha.TaskNone {
		t.Fatal("not demoted")
	}
	w.wantAsked("Postgres Guard", "Postgres.BeforeStop", "Postgres.Stop", "Postgres.Kill", "Guard.Overtake", "Guard.Disarm", "Guard.Unmark", "Postgres.Look")
}

// A demotion that fails keeps the lease, and the guard armed.
func TestADemotionThatFails(t *testing.T) {
	for _, at := range []string{"Postgres.Stop", "Postgres.Kill", "Guard.Overtake", "Guard.Disarm"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t).leading()
			w.agree("Postgres.BeforeStop", "Postgres.Stop", "Postgres.Kill", "Guard.Overtake", "Guard.Disarm", "Guard.Unmark")
			w.always[at] = no
			w.demote()
			w.settle()
			w.pass(killAgainAfter)
			w.looked()
			if !w.Tenure.Held(w.clock) || w.Attempt.Kind != ha.TaskDemote {
				t.Fatalf("held %t, %+v", w.Tenure.Held(w.clock), w.Attempt)
			}
			if w.find("Guard.Unmark") != nil || w.Guardian.known.IsZero() {
				t.Fatal("the guard is disarmed")
			}
		})
	}
}

func TestGiveUp(t *testing.T) {
	for _, fails := range []bool{false, true} {
		w := newWorld(t).leading()
		w.agree("Guard.Overtake", "Guard.Disarm", "Guard.Unmark", "Postgres.Kill")
		w.Complete = true
		if fails {
			w.always["Guard.Overtake"] = no
		}
		w.begin(ha.GiveUp{Successor: "b"})
		w.looked()
		if fails {
			if !w.Tenure.Held(w.clock) || w.Tenure.Giving() != nil {
				t.Fatal("given up while PostgreSQL may live")
			}
			continue
		}
		if g := w.Tenure.Giving(); g == nil || g.Successor != "b" || w.Tenure.Held(w.clock) || w.Complete {
			t.Fatalf("%+v, complete %t", g, w.Complete)
		}
	}
}

// A postmaster that hangs is killed, and the lease kept: it is started in place.
func TestEndHung(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Overtake", "Postgres.Kill")
	w.begin(ha.EndHung{})
	w.settle()
	w.running = false
	w.looked()
	if !w.Tenure.Held(w.clock) || w.PG.Running || !w.PGDown.IsZero() || w.Guardian.known.IsZero() {
		t.Fatal("a hung PostgreSQL")
	}
	w.none("Guard.Disarm")
}

// Before a primary is started there is a guard which has the deadline, and a watchdog.
func TestStartPrimary(t *testing.T) {
	w := newWorld(t).leading()
	w.running = false
	w.Upstream = "b"
	w.commits.set = true
	sync := &ha.SetSync{Standbys: []string{"b"}}
	w.begin(ha.StartPrimary{Sync: sync})
	if w.commits.set {
		t.Fatal("whom commits wait for is certain")
	}
	w.answer("Guard.Awake")
	arm := w.take("Guard.Arm")
	if arm.args[1] != true || arm.memo().KillAt != w.KillAt() {
		t.Fatalf("%v", arm.args)
	}
	w.none("Watchdog.Activate", "Postgres.Start")
	arm.answer()
	dog := w.take("Watchdog.Activate")
	if dog.args[0] != w.Tenure.Until() || dog.args[1] != 30*time.Second || dog.args[2] != w.FenceMargins() {
		t.Fatalf("%v", dog.args)
	}
	w.none("Postgres.Start")
	dog.answer()
	w.answer("Guard.Awake")
	c := w.take("Postgres.Start")
	if as := c.args[1].(StartAs); !as.Primary || as.Sync != sync || as.Upstream != nil || c.args[0] != startLimit {
		t.Fatalf("%v", c.args)
	}
	c.answer()
	w.looked()
	if w.Upstream != "" {
		t.Fatal("a primary follows somebody")
	}
	for _, at := range []string{"Guard.Awake", "Guard.Arm", "Watchdog.Activate"} {
		w := newWorld(t).leading()
		w.running = false
		w.agree("Guard.Awake", "Guard.Arm", "Watchdog.Activate")
		w.always[at] = no
		w.begin(ha.StartPrimary{})
		w.looked()
		w.none("Postgres.Start")
		if w.Attempt.Kind != ha.TaskStart || !w.Tenure.Held(w.clock) {
			t.Fatalf("%s: %+v", at, w.Attempt)
		}
	}
}

func TestStartReplica(t *testing.T) {
	for _, tt := range []struct {
		upstream string
		starts   bool
	}{{"b", true}, {"", true}, {"x", false}} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		w.running = false
		w.commits.set = true
		w.begin(ha.StartReplica{Upstream: tt.upstream})
		w.settle()
		if !tt.starts {
			w.none("Postgres.Start")
			w.wantTask(ha.TaskNone)
			if w.Attempt.Kind != ha.TaskStart || w.Attempt.Failures != 1 {
				t.Fatalf("%+v", w.Attempt)
			}
			continue
		}
		c := w.take("Postgres.Start")
		as := c.args[1].(StartAs)
		if as.Primary || (as.Upstream == nil) != (tt.upstream == "") || as.Upstream != nil && as.Upstream.Name != "b" || w.commits.set {
			t.Fatalf("%+v", as)
		}
		c.answer()
		w.pass(1)
		w.looked()
		if w.Upstream != tt.upstream || (w.PG.alone == w.clock) != (tt.upstream == "") {
			t.Fatalf("follows %q", w.Upstream)
		}
	}
}

// A PostgreSQL that runs needs no guard to start it.
func TestStartOfOneThatRuns(t *testing.T) {
	w := newWorld(t)
	w.running = true
	w.begin(ha.StartReplica{Upstream: "b"})
	w.none("Guard.Awake")
	w.take("Postgres.Start")
}

func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.begin(ha.Follow{Upstream: "c"})
	if c := w.take("Postgres.Follow"); c.args[1].(pg.Upstream).Name != "c" || c.args[0] != startLimit {
		t.Fatalf("%v", c.args)
	} else {
		c.answer()
	}
	w.looked()
	if w.Upstream != "c" || !w.PG.alone.IsZero() {
		t.Fatal("does not follow")
	}
	w.begin(ha.Follow{Upstream: "x"})
	w.wantTask(ha.TaskNone)
	w.begin(ha.Follow{Upstream: "b"})
	w.deny("Postgres.Follow", errBoom)
	w.looked()
	if w.Upstream != "c" || w.Attempt.Failures != 2 {
		t.Fatalf("follows %q, %+v", w.Upstream, w.Attempt)
	}
	w.begin(ha.Follow{})
	w.deny("Postgres.Unfollow", errBoom)
	w.looked()
	if w.Upstream != "c" {
		t.Fatal("it follows nobody")
	}
	w.begin(ha.Follow{})
	w.answer("Postgres.Unfollow")
	w.looked()
	if w.Upstream != "" || w.PG.alone != w.clock || w.PG.Observed.ReplicationState != "" {
		t.Fatal("it follows somebody")
	}
}

func TestClone(t *testing.T) {
	for _, tt := range []struct {
		name     string
		c        ha.Clone
		upstream string
	}{
		{"from a member", ha.Clone{From: "b"}, "b"},
		{"that does not stream", ha.Clone{From: "b", NoStream: true}, ""},
		{"without one", ha.Clone{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.agree("Guard.Awake")
			w.running, w.Upstream = false, ""
			w.begin(tt.c)
			c := w.take("Postgres.MakeReplica")
			from, _ := c.args[0].(*pg.Upstream)
			if (from == nil) != (tt.c.From == "") || from != nil && from.Name != "b" || c.args[1] != systemA {
				t.Fatalf("%v", c.args)
			}
			w.none("Postgres.Start")
			c.answer()
			s := w.take("Postgres.Start")
			if as := s.args[1].(StartAs); as.Primary || (as.Upstream == nil) != (tt.upstream == "") {
				t.Fatalf("%+v", as)
			}
			s.answer()
			w.looked()
			if w.Upstream != tt.upstream {
				t.Fatalf("follows %q", w.Upstream)
			}
		})
	}
	w := newWorld(t)
	w.begin(ha.Clone{From: "x"})
	w.none("Postgres.MakeReplica")
	w.begin(ha.Clone{From: "b"})
	w.deny("Postgres.MakeReplica", errBoom)
	w.none("Postgres.Start")
	w.looked()
	if w.Attempt.Kind != ha.TaskClone || w.Attempt.Failures != 2 {
		t.Fatalf("%+v", w.Attempt)
	}
}

// A rejoin stops PostgreSQL, rewinds and starts. The data are not touched otherwise.
func TestRejoin(t *testing.T) {
	for _, noStream := range []bool{false, true} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		w.begin(ha.Rejoin{Upstream: "b", NoStream: noStream})
		if c := w.take("Postgres.Stop"); c.args[0] != w.stopWithin() || c.args[1] != false {
			t.Fatalf("%v", c.args)
		} else {
			w.none("Postgres.Rewind")
			w.running = false
			c.answer()
		}
		if c := w.take("Postgres.Rewind"); c.args[0].(pg.Upstream).Name != "b" || c.args[1] != true {
			t.Fatalf("%v", c.args)
		} else {
			c.answer()
		}
		c := w.take("Postgres.Start")
		if as := c.args[1].(StartAs); as.Primary || (as.Upstream == nil) != noStream {
			t.Fatalf("%+v", as)
		}
		c.answer()
		w.looked()
		if (w.Upstream == "b") == noStream {
			t.Fatalf("follows %q", w.Upstream)
		}
		w.wantAsked("Postgres", "Postgres.Stop", "Postgres.Rewind", "Postgres.Start", "Postgres.Look")
	}
}

// I7: data that have diverged are replaced only where that is allowed, when somebody else
// leads, and when that leader has just answered. What is not so is said to who removes.
func TestRejoinReplacesTheDataOnlyWhenAllowed(t *testing.T) {
	diverged := fmt.Errorf("pg_rewind: %w", ErrDiverged)
	for _, tt := range []struct {
		name    string
		leader  string
		remove  string
		rewind  error
		broken  bool // the task is interrupted meanwhile
		follows bool // whom it follows answers
		answers bool // the leader does
		asks    bool // to remove
		want    pg.Permission
		from    string
	}{
		{name: "not allowed", leader: "b", rewind: diverged},
		{name: "a rewind that could not begin", leader: "b", remove: "setting", rewind: errBoom},
		{name: "interrupted", leader: "b", remove: "setting", rewind: diverged, broken: true},
		{name: "allowed", leader: "b", remove: "setting", rewind: diverged, follows: true, answers: true, asks: true, want: pg.Permission{NotLeader: true, LeaderReachable: true, AllowedBy: "setting"}, from: "c"},
		{name: "whom it follows is silent", leader: "b", remove: "setting", rewind: diverged, answers: true, asks: true, want: pg.Permission{NotLeader: true, LeaderReachable: true, AllowedBy: "setting"}, from: "b"},
		{name: "the leader is silent", leader: "b", remove: "setting", rewind: diverged, follows: true, asks: true, want: pg.Permission{NotLeader: true, AllowedBy: "setting"}},
		{name: "nobody leads", remove: "setting", rewind: diverged, follows: true, asks: true, want: pg.Permission{AllowedBy: "setting"}},
		{name: "an unknown one leads", leader: "x", remove: "setting", rewind: diverged, follows: true, asks: true, want: pg.Permission{AllowedBy: "setting"}},
		{name: "it leads itself", leader: "a", remove: "setting", rewind: diverged, follows: true, answers: true, asks: true, want: pg.Permission{LeaderReachable: true, AllowedBy: "setting"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.agree("Guard.Awake", "Postgres.Stop")
			w.Snapshot = w.shard(tt.leader)
			w.mayRemove = tt.remove
			w.begin(ha.Rejoin{Upstream: "c"})
			w.settle()
			c := w.take("Postgres.Rewind")
			if tt.broken {
				w.InterruptTask()
			}
			c.fail(tt.rewind)
			if tt.asks {
				f := w.take("Postgres.Answers")
				if f.args[0].(pg.Upstream).Name != "c" || f.args[1] != false {
					t.Fatalf("%v", f.args)
				}
				f.answer(tt.follows)
				if tt.want.NotLeader || tt.leader == "a" {
					w.none("Postgres.RemoveForReinit")
					l := w.take("Postgres.Answers")
					if l.args[0].(pg.Upstream).Name != tt.leader || l.args[1] != true {
						t.Fatalf("%v", l.args)
					}
					l.answer(tt.answers)
				}
				r := w.take("Postgres.RemoveForReinit")
				if r.args[0] != tt.want {
					t.Fatalf("%+v, want %+v", r.args[0], tt.want)
				}
				if tt.from == "" {
					r.fail(errBoom) // it is not permitted
				} else {
					w.none("Postgres.MakeReplica")
					r.answer()
					m := w.take("Postgres.MakeReplica")
					if m.args[0].(*pg.Upstream).Name != tt.from || m.args[1] != "" {
						t.Fatalf("%v", m.args)
					}
					m.answer()
					s := w.take("Postgres.Start")
					if s.args[1].(StartAs).Upstream.Name != "c" {
						t.Fatalf("%v", s.args)
					}
					s.answer()
					w.looked()
					if w.Upstream != "c" {
						t.Fatalf("follows %q", w.Upstream)
					}
					return
				}
			}
			w.none("Postgres.Answers", "Postgres.RemoveForReinit", "Postgres.MakeReplica", "Postgres.Start")
			w.looked()
			w.wantTask(ha.TaskNone)
		})
	}
	w := newWorld(t)
	w.begin(ha.Rejoin{Upstream: "x"})
	w.none("Postgres.Stop")
	if w.Attempt.Kind != ha.TaskRejoin {
		t.Fatalf("%+v", w.Attempt)
	}
}

// An interruption keeps a data directory from being removed, however far the task is.
func TestAnInterruptedRejoinRemovesNothing(t *testing.T) {
	for _, at := range []string{"Postgres.Stop", "first", "second"} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		w.mayRemove = "setting"
		w.begin(ha.Rejoin{Upstream: "c"})
		if at != "Postgres.Stop" {
			w.answer("Postgres.Stop")
			w.deny("Postgres.Rewind", ErrDiverged)
		}
		switch at {
		case "Postgres.Stop":
			w.InterruptTask()
			w.answer("Postgres.Stop") // well all the same
		case "first":
			w.InterruptTask()
			w.answer("Postgres.Answers", true)
		case "second":
			w.answer("Postgres.Answers", true)
			w.InterruptTask()
			w.answer("Postgres.Answers", true)
		}
		w.none("Postgres.Rewind", "Postgres.RemoveForReinit")
		w.looked()
		if w.Attempt.Failures != 0 {
			t.Fatalf("%s: %+v", at, w.Attempt)
		}
	}
}

func TestBootstrap(t *testing.T) {
	w := newWorld(t)
	w.Session = ""
	w.begin(ha.Bootstrap{})
	w.wantTask(ha.TaskNone)
	w.Session = "sa"

	// Somebody else makes the shard.
	w.begin(ha.Bootstrap{})
	w.deny("Consul.BeginBootstrap", cluster.ErrConflict)
	w.none("Postgres.Bootstrap")
	w.looked()
	if w.Attempt.Kind != ha.TaskBootstrap || w.Attempt.NotUntil != w.clock.Add(backoffMin) {
		t.Fatalf("%+v", w.Attempt)
	}
	w.answer("Consul.Read", w.Snapshot, nil)

	// It could not be asked.
	w.begin(ha.Bootstrap{})
	w.deny("Consul.BeginBootstrap", cluster.ErrUncertain)
	w.none("Postgres.Bootstrap")
	w.looked()
	if w.Attempt.Failures != 2 {
		t.Fatalf("%+v", w.Attempt)
	}
	w.answer("Consul.Read", w.Snapshot, nil)

	// It fails, and is ended in this order: PostgreSQL, then the key.
	w.begin(ha.Bootstrap{})
	w.answer("Consul.BeginBootstrap")
	w.deny("Postgres.Bootstrap", errBoom)
	w.none("Consul.EndBootstrap")
	w.deny("Postgres.Kill", errBoom)
	c := w.take("Consul.EndBootstrap")
	if c.args[1] != "sa" {
		t.Fatalf("%v", c.args)
	}
	c.answer()
	w.looked()
	if w.Attempt.Failures != 3 {
		t.Fatalf("%+v", w.Attempt)
	}
	w.answer("Consul.Read", w.Snapshot, nil)

	w.begin(ha.Bootstrap{})
	if w.StateName() != cluster.StateInitializing {
		t.Fatal(w.StateName())
	}
	w.answer("Consul.BeginBootstrap")
	w.answer("Postgres.Bootstrap")
	w.none("Postgres.Kill", "Consul.EndBootstrap")
	w.looked()
	if w.Attempt.Failures != 0 {
		t.Fatalf("%+v", w.Attempt)
	}
	w.answer("Consul.Read", w.Snapshot, nil)

	w.begin(ha.ClaimBootstrap{})
	w.answer("Consul.BeginBootstrap")
	w.looked()
	w.answer("Consul.Read", w.Snapshot, nil)
	w.begin(ha.FinishBootstrap{})
	w.answer("Postgres.FinishBootstrap")
	w.looked()
	w.begin(ha.DiscardIncomplete{})
	w.answer("Postgres.DiscardIncomplete")
	w.looked()
	w.begin(ha.EndShutDown{})
	w.answer("Postgres.EndShutDown")
	w.looked()
	w.wantTask(ha.TaskNone)
}

// A PostgreSQL that somebody has started by hand is taken charge of, unless a task may have
// started it.
func TestAdoptStray(t *testing.T) {
	w := newWorld(t)
	stray := w.left()
	stray.Stray = true
	w.startTask(ha.TaskStart, func(*Work, func(error)) {}, nil)
	w.PG.Running = false
	w.pass(1)
	w.Saw(Look{Began: w.clock, Found: &stray})
	w.none("Postgres.Adopt")

	w = newWorld(t)
	w.commits.set = true
	w.upstream = "c"
	w.pass(1)
	w.Saw(Look{Began: w.clock, Found: &stray})
	w.answer("Postgres.Adopt")
	w.looked()
	if w.Upstream != "c" || !w.PG.Running || w.commits.set {
		t.Fatalf("follows %q, running %t", w.Upstream, w.PG.Running)
	}
}

// Whom commits wait for is uncertain from the beginning of a change on.
func TestSetSync(t *testing.T) {
	w := newWorld(t).leading()
	w.commits.set, w.commits.value = true, ""
	set := ha.SetSync{Standbys: []string{"b"}, Any: 1}
	if w.View().Postgres.SyncUnsure {
		t.Fatal("unsure before")
	}
	w.begin(set)
	w.begin(set)
	c := w.take("Postgres.SetSynchronous")
	w.none("Postgres.SetSynchronous")
	if !w.View().Postgres.SyncUnsure || w.Idle() {
		t.Fatal("sure meanwhile")
	}
	c.fail(errBoom)
	if !w.View().Postgres.SyncUnsure || w.commits.setting {
		t.Fatal("sure after a failure")
	}
	w.begin(set)
	w.answer("Postgres.SetSynchronous", pg.SyncInForce{Value: "ANY 1 (b)", Since: 300}, nil)
	v := w.View().Postgres
	if v.SyncUnsure || v.SyncSince != 300 || v.SyncAny != 1 || strings.Join(v.SyncNames, ",") != "b" || w.kicked["postgres"] != 1 {
		t.Fatalf("%+v", v)
	}
	w.PG.Observed.SyncNames = "somebody else's"
	if !w.View().Postgres.SyncUnsure {
		t.Fatal("sure of what somebody has changed")
	}
}
