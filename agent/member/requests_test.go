package member

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

func isRefused(err error) bool {
	var r Refused
	return errors.As(err, &r)
}

// paused is the world of a pause that a beat has told of.
func (w *world) paused() {
	w.Dynamic.Pause = true
	w.Snapshot.Status.Value.Lictor.Paused = true
}

// ended is the end of PostgreSQL.
func (w *world) ended() {
	w.running = false
	w.gone()
}

// syncWith is synchronous mode with a standby.
func (w *world) syncWith(standby string) {
	w.Dynamic.SynchronousMode = cluster.SyncOn
	w.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("a", []string{standby}), ModifyIndex: 44}
}

func TestMayRestart(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		may    bool
	}{
		{"the leader", func(*world) {}, true},
		{"the agent stops", func(w *world) { w.Stopping = true }, false},
		{"a task is under way", func(w *world) { w.begin(ha.EndHung{}) }, false},
		{"no data", func(w *world) { w.Data.State = ha.DataEmpty }, false},
		{"a primary without lease and lock", func(w *world) { w.LeaseState.Drop(); w.Snapshot = w.shard("b") }, false},
		// It is shown as ours until the release has landed, and for as long as Consul is silent.
		{"a primary with the lock, without a lease", func(w *world) { w.LeaseState.Drop() }, false},
		{"the lease is given away", func(w *world) { w.LeaseState.GiveTo("b") }, false},
		{"in pause, with the lock", func(w *world) { w.paused(); w.LeaseState.Drop() }, true},
		{"in pause, the lease is given away", func(w *world) { w.paused(); w.LeaseState.GiveTo("b") }, false},
		{"in pause, without the lock", func(w *world) { w.paused(); w.LeaseState.Drop(); w.Snapshot = w.shard("b") }, false},
		{"a primary that is down, its key sync being written", func(w *world) { w.ended(); w.SyncUncertain = true; w.syncWith("b") }, false},
		{"a replica", func(w *world) { w.LeaseState.Drop(); w.Snapshot = w.shard("b"); w.sawReplica(mib, "b") }, true},
	} {
		w := newWorld(t).leading()
		tt.change(w)
		w.pending = nil
		if err := w.MayRestart(); (err == nil) != tt.may || err != nil && !isRefused(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.may {
			continue
		}
		var o outcomeOf
		w.Restart(o.done)
		o.want(t, 1, true)
		w.none("Postgres.BeforeStop", "Postgres.Stop")
	}
}

// A restart keeps the role, whom a replica follows, and a leader's lease.
func TestRestart(t *testing.T) {
	for _, primary := range []bool{true, false} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		if primary {
			w.leading()
			w.agree("Guard.Arm", "Guard.Mark", "Watchdog.Activate")
		}
		var o outcomeOf
		w.Restart(o.done)
		if w.StateName() != cluster.StateRestarting {
			t.Fatal(w.StateName())
		}
		w.answer("Postgres.BeforeStop")
		if c := w.take("Postgres.Stop"); c.args[1] != true {
			t.Fatal("standbys are waited for")
		} else {
			w.running = false
			c.answer()
		}
		o.want(t, 0, false)
		c := w.take("Postgres.Start")
		if as := c.args[1].(StartAs); as.Primary != primary || (as.Upstream != nil) == primary || as.Upstream != nil && as.Upstream.Name != "b" {
			t.Fatalf("%+v", as)
		}
		w.running = true
		c.answer()
		o.want(t, 1, false)
		w.looked()
		if w.LeaseState.Held(w.clock) != primary {
			t.Fatal("the lease")
		}
	}
	// One whose lease ends while PostgreSQL is being stopped starts no primary.
	w := newWorld(t).leading()
	w.agree("Guard.Awake", "Guard.Arm", "Guard.Mark", "Watchdog.Activate", "Postgres.BeforeStop")
	var late outcomeOf
	w.Restart(late.done)
	w.clock = w.LeaseState.Until()
	w.running = false
	w.take("Postgres.Stop").answer()
	late.want(t, 1, true)
	w.none("Postgres.Start")

	// A replica whose upstream has gone follows nobody until somebody leads: else it would seem to
	// follow that one already, and never would.
	w = newWorld(t)
	w.agree("Guard.Awake", "Postgres.BeforeStop", "Postgres.Stop")
	w.Snapshot.Members = slices.DeleteFunc(w.Snapshot.Members, func(m cluster.Entry[cluster.Member]) bool { return m.Value.Name == "b" })
	w.Restart(func(error) {})
	c := w.take("Postgres.Start")
	if as := c.args[1].(StartAs); as.Upstream != nil {
		t.Fatalf("%+v", as)
	}
	w.running = true
	c.answer()
	w.looked()
	if w.Upstream != "" {
		t.Fatalf("it seems to follow %q", w.Upstream)
	}

	// One that is down waits for whom the key sync names.
	w = newWorld(t).leading()
	w.agree("Guard.Awake", "Guard.Arm", "Guard.Mark", "Watchdog.Activate", "Postgres.BeforeStop", "Postgres.Stop")
	w.ended()
	w.syncWith("b")
	w.Restart(func(error) {})
	if as := w.take("Postgres.Start").args[1].(StartAs); !as.Primary || as.Sync == nil || !slices.Equal(as.Sync.Standbys, []string{"b"}) {
		t.Fatalf("%+v", as)
	}

	// One that is broken off says so.
	w = newWorld(t).leading()
	var o outcomeOf
	w.Restart(o.done)
	c = w.take("Postgres.BeforeStop")
	w.fenceNow()
	c.answer()
	o.want(t, 1, true)
	if !errors.Is(o.err, ErrBroken) {
		t.Fatal(o.err)
	}
	w.none("Postgres.Stop", "Postgres.Start")
}

// A synchronous standby has its leader let it go before it is restarted, if it would start
// again at all.
func TestRestartReplica(t *testing.T) {
	w := newWorld(t)
	w.agree("Guard.Awake", "Postgres.BeforeStop")
	w.begin(ha.RestartReplica{Upstream: "x"})
	w.wantTask(ha.TaskNone)

	w.begin(ha.RestartReplica{Upstream: "b"})
	w.answer("Postgres.TryStart", "no such parameter", nil)
	w.none("Postgres.Stop")
	w.looked()
	if w.Attempt.Failures != 2 || w.LeavingSync {
		t.Fatalf("%+v", w.Attempt)
	}

	w.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"A"}), ModifyIndex: 44}
	w.begin(ha.RestartReplica{Upstream: "b"})
	w.answer("Postgres.TryStart", "", nil)
	w.none("Postgres.Stop")
	if !w.LeavingSync || w.Value().Tags["nosync"] != true {
		t.Fatal("the leader does not hear of it")
	}
	w.Snapshot.Sync.Value = cluster.NewSync("b", []string{"c"})
	w.waiters.tell()
	if c := w.take("Postgres.Stop"); c.args[1] != false {
		t.Fatalf("%v", c.args)
	} else {
		c.answer()
	}
	w.answer("Postgres.Start")
	if w.LeavingSync {
		t.Fatal("it stays away")
	}
	w.looked()

	// A leader that has nobody else is not waited for longer than two rounds.
	w.Snapshot.Sync.Value = cluster.NewSync("b", []string{"a"})
	w.begin(ha.RestartReplica{Upstream: "b"})
	w.deny("Postgres.TryStart", errBoom) // it cannot be told
	w.pass(2*w.Dynamic.LoopWait - 1)
	w.none("Postgres.Stop")
	w.pass(1)
	w.take("Postgres.Stop")

	// To follow nobody needs nobody's leave.
	w = newWorld(t)
	w.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"a"}), ModifyIndex: 44}
	w.agree("Postgres.TryStart", "Postgres.BeforeStop")
	w.begin(ha.RestartReplica{})
	w.take("Postgres.Stop")
}

func TestReinitializeIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		force  bool
	}{
		{"the agent stops", func(w *world) { w.Stopping = true }, true},
		{"the leader", func(w *world) { w.Snapshot = w.shard("a") }, true},
		{"one with a lease", func(w *world) { w.LeaseState.TookOver(w.clock, time.Minute) }, true},
		{"nobody leads", func(w *world) { w.Snapshot = w.shard("") }, true},
		{"a task is under way", func(w *world) { w.begin(ha.Follow{Upstream: "c"}) }, false},
		{"one that cannot be repeated", func(w *world) { w.begin(ha.Demote{}) }, true},
		{"an unknown leader", func(w *world) { w.Snapshot = w.shard("x") }, true},
		{"an unknown source", func(w *world) {
			w.Snapshot.Members[2].Value.Tags, w.Snapshot.Members[2].Value.ConnURL = map[string]any{"clonefrom": true}, ""
		}, true},
		{"a restore has not ended", func(w *world) { w.Data.State = ha.DataSetAside }, true},
		{"a restore's note is there", func(w *world) { w.Restore = &ha.Discard{Timeline: 3} }, true},
		{"a candidate counts on it", func(w *world) { w.Detach(90) }, true},
	} {
		w := newWorld(t)
		tt.change(w)
		task := w.task
		if err := w.Reinitialize(false, tt.force); err == nil || !isRefused(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if w.task != task || task != nil && task.kind == ha.TaskStart && task.work.Broken() != nil || w.LeavingSync {
			t.Errorf("%s: something was begun", tt.name)
		}
	}
}

// Data are removed after the leader has let this member go, and has just answered, and
// PostgreSQL is stopped.
func TestReinitialize(t *testing.T) {
	for _, fromLeader := range []bool{false, true} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		w.Snapshot.Members[2].Value.Tags = map[string]any{"clonefrom": true}
		w.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"a"}), ModifyIndex: 44}
		w.begin(ha.Follow{Upstream: "c"})
		before := w.take("Postgres.Follow")
		if err := w.Reinitialize(fromLeader, true); err != nil {
			t.Fatal(err)
		}
		w.wantTask(ha.TaskReinit)
		if before.w.Broken() == nil || w.LeavingSync {
			t.Fatal("what is under way is not interrupted, or not waited for")
		}
		before.fail(ErrBroken)
		w.looked()
		if !w.LeavingSync {
			t.Fatal("the leader is not asked to do without")
		}
		w.none("Postgres.Answers", "Postgres.Stop", "Postgres.RemoveForReinit")
		w.Snapshot.Sync.Value = cluster.NewSync("b", nil)
		w.waiters.tell()
		if c := w.take("Postgres.Answers"); c.args[0].(pg.Upstream).Name != "b" || c.args[1] != true || c.args[2] != systemA {
			t.Fatalf("%v", c.args)
		} else {
			w.none("Postgres.Stop", "Postgres.RemoveForReinit")
			c.answer()
		}
		w.none("Postgres.RemoveForReinit")
		w.answer("Postgres.Stop")
		w.none("Postgres.RemoveForReinit")
		w.answer("Postgres.Answers") // a stop takes a while
		if c := w.take("Postgres.RemoveForReinit"); c.args[0] != (pg.Permission{NotLeader: true, LeaderReachable: true, AllowedBy: "POST /reinitialize", Shard: systemA}) {
			t.Fatalf("%v", c.args)
		} else {
			c.answer()
		}
		if c := w.take("Postgres.MakeReplica"); (c.args[0].(*pg.Upstream).Name == "b") != fromLeader {
			t.Fatalf("%v", c.args)
		} else {
			c.answer()
		}
		w.answer("Postgres.Start")
		w.looked()
		if w.Upstream != "b" || w.LeavingSync {
			t.Fatalf("follows %q", w.Upstream)
		}
	}
	// A leader that does not answer: the data stay, and PostgreSQL runs on.
	w := newWorld(t)
	if err := w.Reinitialize(false, false); err != nil {
		t.Fatal(err)
	}
	w.take("Postgres.Answers").fail(errBoom)
	w.none("Postgres.Stop", "Postgres.RemoveForReinit")
	w.looked()
	if w.LeavingSync || w.Attempt.Kind != ha.TaskReinit {
		t.Fatalf("%+v", w.Attempt)
	}
	// One that is gone when PostgreSQL has stopped, or is none any more: it is started as it was.
	for name, gone := range map[string]func(w *world){
		"does not answer": func(w *world) { w.take("Postgres.Answers").fail(errBoom) },
		"leads no more":   func(w *world) { w.Snapshot = w.shard("c") },
		"lost the lock":   func(w *world) { w.Snapshot = w.shard("") },
		"is to be replaced by a candidate that counts on this one": func(w *world) {
			w.Detached = 7
		},
	} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		if err := w.Reinitialize(false, false); err != nil {
			t.Fatal(err)
		}
		w.answer("Postgres.Answers")
		stop := w.take("Postgres.Stop")
		w.running = false
		if name != "does not answer" {
			gone(w)
		}
		stop.answer()
		w.settle()
		if name == "does not answer" {
			gone(w)
		}
		w.none("Postgres.RemoveForReinit")
		if c := w.take("Postgres.Start"); c.args[1].(StartAs).Upstream.Name != "b" {
			t.Fatalf("%s: started as %+v", name, c.args)
		} else {
			c.answer()
		}
		w.looked()
		if w.Attempt.Kind != ha.TaskReinit {
			t.Fatalf("%s: %+v", name, w.Attempt)
		}
	}
	// Interrupted at the last moment, nothing is removed.
	w.Attempt = ha.Attempt{}
	if err := w.Reinitialize(false, false); err != nil {
		t.Fatal(err)
	}
	w.answer("Postgres.Answers")
	c := w.take("Postgres.Stop")
	w.fenceNow()
	c.answer()
	w.none("Postgres.RemoveForReinit")
}
