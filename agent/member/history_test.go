package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// What is known of a timeline's end stays; the newest is told of with its leader; the list
// is bounded.
func TestHistory(t *testing.T) {
	w := newWorld(t).leading()
	w.Dynamic.MaxTimelinesHistory = 2
	known := cluster.TimelineSwitch{Timeline: 1, LSN: 10, Reason: "r", Time: "then", NewLeader: "c"}
	w.Snapshot.History = cluster.Entry[cluster.History]{Value: cluster.History{known}, ModifyIndex: 30}
	w.history.write()
	w.history.write()
	c := w.take("Postgres.TimelineHistory")
	w.none("Postgres.TimelineHistory")
	c.fail(errBoom)
	w.history.write()
	w.none("Postgres.TimelineHistory")
	w.pass(200 * time.Millisecond)
	w.history.write()
	lines := cluster.History{{Timeline: 1, LSN: 10, Reason: "r"}, {Timeline: 2, LSN: 20, Reason: "s"}}
	w.answer("Postgres.TimelineHistory", lines, nil)
	c = w.take("Consul.WriteAsLeader")
	h := c.args[4].(cluster.History)
	if len(h) != 2 || h[0] != known || h[1].NewLeader != "a" || h[1].Time == "" || c.args[3] != uint64(30) {
		t.Fatalf("%+v", h)
	}
	w.history.write()
	w.none("Postgres.TimelineHistory")
	c.answer(uint64(150), nil)
	w.history.write()
	w.none("Postgres.TimelineHistory")

	// Consul goes back to before it, and the lock is there all the same.
	written := w.Snapshot.History
	w.Snapshot.History = cluster.Entry[cluster.History]{Value: cluster.History{known}, ModifyIndex: 30}
	w.history.write()
	w.answer("Postgres.TimelineHistory", lines, nil)
	w.answer("Consul.WriteAsLeader", uint64(151), nil)
	if w.Snapshot.History.ModifyIndex != 151 || len(w.Snapshot.History.Value) != len(written.Value) {
		t.Fatalf("%+v", w.Snapshot.History)
	}
	w.history.write()
	w.none("Postgres.TimelineHistory")

	w.history.put(3, append(cluster.History{{Timeline: 0, LSN: 1}}, lines...))
	if h := w.take("Consul.WriteAsLeader").args[4].(cluster.History); len(h) != 2 || h[0].Timeline != 1 {
		t.Fatalf("%+v", h)
	}

	// What restores have discarded.
	const promoted, restored = "no recovery target specified", "before 2026-11-29 10:00:00+00"
	for want, lines := range map[ha.Discard]cluster.History{
		{}:                       {{Timeline: 1, Reason: promoted}, {Timeline: 2, Reason: promoted}},
		{Timeline: 6}:            {{Timeline: 1, Reason: promoted}, {Timeline: 2, Reason: restored}},
		{Timeline: 1}:            {{Timeline: 1, Reason: restored}, {Timeline: 2, Reason: promoted}},
		{Timeline: 6, Before: 3}: {{Timeline: 1, Reason: restored}, {Timeline: 4, Reason: restored}},
	} {
		if got := RestoresIn(lines, 7); got != (Restores{7, want}) {
			t.Errorf("%+v: %+v, want %+v", lines, got, want)
		}
	}

	// Who leads no more by the time does not write.
	w = newWorld(t).leading()
	w.history.write()
	w.LeaseState.Drop()
	w.answer("Postgres.TimelineHistory", lines, nil)
	w.none("Consul.WriteAsLeader")
}
