package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// The leader is asked once which position this member must come to; that is kept until it
// is reached, and then forgotten.
func TestMindLoss(t *testing.T) {
	w := newWorld(t)
	mind := func() { w.restorer.mind(w.View().Postgres) }
	mind()
	w.none("Postgres.AimAt")
	w.Loss = &pg.Loss{ID: "x"}
	mind()
	mind()
	c := w.take("Postgres.AimAt")
	w.none("Postgres.AimAt")
	if c.args[1].(pg.Loss).ID != "x" || c.args[2].(pg.Upstream).Name != "b" {
		t.Fatalf("%v", c.args)
	}
	c.fail(errBoom)
	if len(w.Logged()) != 1 { // once, and not each time
		t.Errorf("logged: %q", w.Logged())
	}
	mind()
	w.none("Postgres.AimAt")
	w.pass(200 * time.Millisecond)
	mind()
	w.answer("Postgres.AimAt", pg.Loss{ID: "x", Timeline: 3, LSN: 150 * mib}, nil)
	if len(w.Logged()) != 0 {
		t.Errorf("logged still: %q", w.Logged())
	}
	if w.Loss == nil || w.Loss.LSN != 150*mib || !w.Restoring() || !w.View().Postgres.Restoring {
		t.Fatalf("%+v", w.Loss)
	}
	mind()
	w.none("Postgres.AimAt", "Postgres.ForgetLoss")
	w.sawReplica(151*mib, "b")
	mind()
	if c := w.take("Postgres.ForgetLoss"); c.args[1] != "x" || w.Restoring() {
		t.Fatalf("%v", c.args)
	} else {
		c.fail(errBoom)
	}
}

// An answer for an earlier loss is void.
func TestTheGoalOfAnEarlierLoss(t *testing.T) {
	w := newWorld(t)
	w.Loss = &pg.Loss{ID: "x"}
	w.restorer.mind(w.View().Postgres)
	c := w.take("Postgres.AimAt")
	w.Loss = &pg.Loss{ID: "y"}
	c.answer(pg.Loss{ID: "x", Timeline: 3, LSN: 1}, nil)
	if w.Loss.ID != "y" || w.Loss.LSN != 0 {
		t.Fatalf("%+v", w.Loss)
	}
	w.Loss = nil
	w.restorer.asking = false
	w.restorer.mind(w.View().Postgres)
	w.none("Postgres.AimAt")
}

func TestWhomTheGoalIsAskedOf(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
	}{
		{"a task is under way", func(w *world) { w.follow("c") }},
		{"nobody leads", func(w *world) { w.Snapshot = w.shard("") }},
		{"an unknown one", func(w *world) { w.Snapshot = w.shard("x") }},
		{"no primary", func(w *world) { w.Snapshot.Members[1].Value.Role = cluster.RoleReplica }},
		{"without an address", func(w *world) { w.Snapshot.Members[1].Value.ConnURL = "" }},
		{"itself", func(w *world) { w.Snapshot = w.shard("a") }},
	} {
		w := newWorld(t)
		w.Loss = &pg.Loss{ID: "x"}
		tt.change(w)
		w.Step()
		if w.find("Postgres.AimAt") != nil || w.Loss == nil {
			t.Errorf("%s: asked", tt.name)
		}
	}
	// A leader has all that there is.
	w := newWorld(t).leading()
	w.Loss = &pg.Loss{ID: "x"}
	w.Step()
	w.take("Postgres.ForgetLoss")
}
