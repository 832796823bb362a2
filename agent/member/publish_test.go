package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

func TestNosyncTag(t *testing.T) {
	given := map[string]any{"zone": "a", "sync_priority": 3}
	got := withNosync(given)
	if got["zone"] != "a" || got["nosync"] != true || got["sync_priority"] != 0 {
		t.Errorf("tags %v", got)
	}
	if given["sync_priority"] != 3 || len(given) != 2 {
		t.Errorf("the tags given have changed: %v", given)
	}
	if got := withNosync(nil); got["nosync"] != true || len(got) != 1 {
		t.Errorf("of no tags: %v", got)
	}
}

// The member key is bound to the session, and written when it has changed.
func TestTouch(t *testing.T) {
	w := newWorld(t)
	w.key.touch(w.Value())
	c := w.take("Consul.Touch")
	if v := c.args[3].(cluster.Member); c.args[1] != "sa" || c.args[2] != uint64(0) || v.State != cluster.StateRunning || v.Role != cluster.RoleReplica || v.ReceiveLSN != 100*mib || v.Lictor == nil {
		t.Fatalf("%v", c.args)
	}
	w.key.touch(w.Value())
	w.none("Consul.Touch") // one at a time
	c.answer(uint64(130), nil)
	w.key.touch(w.Value())
	w.none("Consul.Touch")
	w.scheduled = map[string]any{"schedule": "now"}
	w.key.touch(w.Value())
	w.answer("Consul.Touch", uint64(131), nil)

	// A new session gets the key at once; what another session holds is replaced.
	w.Session = "new"
	w.key.touch(w.Value())
	if c := w.take("Consul.Touch"); c.args[1] != "new" || c.args[2] != uint64(70) {
		t.Fatalf("%v", c.args)
	} else {
		c.fail(errBoom)
	}
	w.take("Consul.Read")
	w.key.touch(w.Value())
	w.none("Consul.Touch")
	w.pass(200 * time.Millisecond)
	w.key.touch(w.Value())
	w.answer("Consul.Touch", uint64(132), nil)
	w.Session = ""
	w.key.touch(w.Value())
	w.none("Consul.Touch")
}

// Mere progress in the WAL is told of once a loop_wait.
func TestMereProgress(t *testing.T) {
	w := newWorld(t)
	w.key.touch(w.Value())
	w.answer("Consul.Touch", uint64(70), nil)
	w.sawReplica(110*mib, "b")
	w.key.touch(w.Value())
	w.none("Consul.Touch")
	w.pass(w.Dynamic.LoopWait)
	w.key.touch(w.Value())
	w.take("Consul.Touch")
}

// A key that is gone, or that an earlier write has changed which landed late, is written
// again, once Consul's answers must show the last one.
func TestTheMemberKeyIsMended(t *testing.T) {
	for _, tt := range []struct {
		name   string
		read   time.Duration
		change func(s *cluster.Snapshot)
		writes bool
	}{
		{"as written", 2 * time.Second, func(s *cluster.Snapshot) {}, false},
		{"gone", 2 * time.Second, func(s *cluster.Snapshot) { s.Members = s.Members[1:] }, true},
		{"gone, by an answer that may be older", 500 * time.Millisecond, func(s *cluster.Snapshot) { s.Members = s.Members[1:] }, false},
		{"another session's", 2 * time.Second, func(s *cluster.Snapshot) { s.Members[0].Session = "x" }, true},
		{"Consul has gone back", 2 * time.Second, func(s *cluster.Snapshot) { s.Members[0].ModifyIndex = 120 }, true},
		{"an earlier write landed late", 2 * time.Second, func(s *cluster.Snapshot) { s.Members[0].ModifyIndex = 140 }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.key.touch(w.Value())
			w.answer("Consul.Touch", uint64(130), nil)
			w.pass(tt.read)
			s := w.shard("b")
			s.Index, s.Members[0].ModifyIndex = 200, 130
			tt.change(&s)
			w.Accept(s, true)
			w.key.touch(w.Value())
			if got := w.find("Consul.Touch") != nil; got != tt.writes {
				t.Fatalf("written: %t", got)
			}
		})
	}
}

func TestStateName(t *testing.T) {
	task := func(kind ha.TaskKind) func(w *world) {
		return func(w *world) { w.startTask(kind, func(*Work, func(error)) {}, nil) }
	}
	down := func(w *world) { w.stoppedOnPurpose() }
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   string
	}{
		{"running", func(*world) {}, cluster.StateRunning},
		{"bootstrap", task(ha.TaskBootstrap), cluster.StateInitializing},
		{"clone", task(ha.TaskClone), cluster.StateCreating},
		{"reinit", task(ha.TaskReinit), cluster.StateCreating},
		{"restart", task(ha.TaskRestart), cluster.StateRestarting},
		{"handover", task(ha.TaskHandover), cluster.StateStopping},
		{"demoted", func(w *world) { task(ha.TaskDemote)(w); down(w) }, cluster.StateStopped},
		{"stopping", func(w *world) { w.PG.Observed = pg.State{Running: true, Stopping: true} }, cluster.StateStopping},
		{"starting", func(w *world) { w.PG.Observed = pg.State{Running: true} }, cluster.StateStarting},
		{"start failed", func(w *world) { down(w); w.noteAttempt(ha.TaskStart, errBoom) }, cluster.StateStartFailed},
		{"crashed", func(w *world) { w.PostmasterGone() }, cluster.StateCrashed},
	} {
		w := newWorld(t)
		tt.change(w)
		if got := w.StateName(); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	w := newWorld(t).leading()
	if w.RoleName() != cluster.RolePrimary {
		t.Error(w.RoleName())
	}
	w.Data.State = ha.DataEmpty
	if w.RoleName() != cluster.RoleUninitialized {
		t.Error(w.RoleName())
	}
}

// Only a leader writes the shard's keys, and nothing is written before the first reading.
func TestPublish(t *testing.T) {
	w := newWorld(t)
	w.Exit = true
	w.Publish()
	w.Exit, w.Read = false, 0
	w.Publish()
	w.wantAsked("Consul Postgres")
	w = newWorld(t)
	w.logged["events"] = "x"
	w.Publish()
	w.wantAsked("Consul Postgres", "Consul.Touch")
	if len(w.Logged()) != 0 {
		t.Fatal("a leader's problem is told of by a replica")
	}
}
