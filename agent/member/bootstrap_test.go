package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

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

// A bootstrap of this member's that nobody works on is ended; one under way, or one whose
// data are made, is not, and nobody else's.
func TestClearStaleBootstrap(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world, s *cluster.Snapshot)
		asks   string
	}{
		{"ours", func(*world, *cluster.Snapshot) {}, "Consul.EndBootstrap"},
		{"of an earlier session, perhaps ours", func(_ *world, s *cluster.Snapshot) { s.Initialize.Session = "old" }, "Consul.EndSession"},
		{"under way", func(w *world, _ *cluster.Snapshot) {
			w.startTask(ha.TaskBootstrap, func(*Work, func(error)) {}, nil)
		}, ""},
		{"made", func(w *world, _ *cluster.Snapshot) { w.Data.State = ha.DataBootstrapped }, ""},
		{"made, of an earlier session", func(w *world, s *cluster.Snapshot) {
			w.Data.State, s.Initialize.Session = ha.DataBootstrapped, "old"
		}, "Consul.EndSession"},
		{"being registered", func(w *world, _ *cluster.Snapshot) { w.LeaseState.BeginTakeOver(w.clock, time.Second) }, ""},
		{"no session", func(w *world, _ *cluster.Snapshot) { w.Session = "" }, ""},
		{"held by nobody", func(_ *world, s *cluster.Snapshot) { s.Initialize.Session = "" }, ""},
		{"over", func(_ *world, s *cluster.Snapshot) { s.Initialize.Value = systemA }, ""},
		{"none", func(_ *world, s *cluster.Snapshot) { s.Initialize = cluster.Entry[string]{} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			s := w.shard("")
			s.Initialize = cluster.Entry[string]{Session: "sa", ModifyIndex: 80}
			tt.change(w, &s)
			w.Accept(s, true)
			if tt.asks == "" {
				w.none("Consul.EndBootstrap", "Consul.EndSession")
				return
			}
			c := w.take(tt.asks)
			if tt.asks == "Consul.EndSession" && (c.args[1] != "old" || c.args[2] != "lictor a") {
				t.Fatalf("%v", c.args)
			}
			c.fail(errBoom)
		})
	}
}
