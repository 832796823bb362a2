package member

import (
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

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
		ha.CopySlots{},
		ha.Promote{},
		ha.Handover{},
		ha.SetSync{},
	} {
		w.perform(action)
	}
	w.wantAsked("Postgres Consul Guard Bouncers")
	w.wantTask(ha.TaskClone)
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
	if arm.args[1] != true || arm.persisted().KillAt != w.KillAt() {
		t.Fatalf("%v", arm.args)
	}
	w.none("Watchdog.Activate", "Postgres.Start")
	arm.answer()
	dog := w.take("Watchdog.Activate")
	if dog.args[0] != w.LeaseState.Until() || dog.args[1] != 30*time.Second || dog.args[2] != w.FenceMargins() {
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
		if w.Attempt.Kind != ha.TaskStart || !w.LeaseState.Held(w.clock) {
			t.Fatalf("%s: %+v", at, w.Attempt)
		}
	}
}

// In pause the guard rests again when the primary has started.
func TestStartPrimaryInPause(t *testing.T) {
	w := newWorld(t).leading()
	w.running = false
	w.Dynamic.Pause = true
	w.Snapshot.Status.Value.Lictor.Paused = true
	w.agree("Guard.Awake", "Guard.Arm", "Watchdog.Activate")
	w.begin(ha.StartPrimary{})
	w.none("Guard.StandDown")
	w.answer("Postgres.Start")
	w.looked()
	w.answer("Guard.StandDown")
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

// A primary that was started by hand beside an agent that has not heard of Consul is adopted as one
// that ran before it; later, Consul says how it stands.
func TestAdoptStrayWithoutConsul(t *testing.T) {
	for name, tt := range map[string]struct {
		recalled Recalled
		heard    bool
		fenced   bool
	}{
		"no run of this agent has led":              {recalled: Recalled{Unled: true}},
		"an earlier run led, and rested on a pause": {recalled: Recalled{Paused: true}},
		"an earlier run's lease is over":            {recalled: Recalled{Until: 1}, fenced: true},
		"Consul was heard of meanwhile":             {recalled: Recalled{Unled: true}, heard: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Read, w.Snapshot = 0, cluster.Snapshot{}
			w.startedPrimary, w.startedKnown = true, true
			stray := w.left()
			stray.Stray = true
			w.PG.Running, w.running = false, true
			w.pass(1)
			w.Saw(Look{Began: w.clock, Found: &stray})
			w.answer("Postgres.Adopt")
			if tt.heard {
				w.Read = w.clock
			}
			w.answer("Guard.Recall", tt.recalled)
			w.looked()
			if tt.heard {
				if !w.adopted.at.IsZero() {
					t.Fatalf("adopted: %+v", w.adopted)
				}
				return
			}
			w.sawPrimary(100 * mib)
			v := w.View()
			if fences := slices.ContainsFunc(ha.Decide(v).Actions, func(a ha.Action) bool { return a == ha.Fence{} }); fences != tt.fenced {
				t.Fatalf("fenced: %t; %+v", fences, w.adopted)
			}
		})
	}
}

// Only a task that can be done again from its beginning is interrupted for another one.
func TestRepeatable(t *testing.T) {
	for kind, want := range map[ha.TaskKind]bool{
		ha.TaskNone: false, ha.TaskBootstrap: true, ha.TaskClone: true, ha.TaskStart: true, ha.TaskRejoin: true, ha.TaskReinit: true,
		ha.TaskPromote: false, ha.TaskDemote: false, ha.TaskHandover: false, ha.TaskRestart: false, ha.TaskInterrupted: false,
	} {
		w := newWorld(t)
		var work *Work
		if kind != ha.TaskNone {
			w.startTask(kind, func(one *Work, _ func(error)) { work = one }, nil)
		}
		w.InterruptTask()
		if got := work != nil && work.Broken() != nil; got != want {
			t.Errorf("%s: interrupted %t", kind, got)
		}
	}
}
