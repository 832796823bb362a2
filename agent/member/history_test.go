package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
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

	w.history.put(3, append(cluster.History{{Timeline: 0, LSN: 1}}, lines...))
	if h := w.take("Consul.WriteAsLeader").args[4].(cluster.History); len(h) != 2 || h[0].Timeline != 1 {
		t.Fatalf("%+v", h)
	}

	// Who leads no more by the time does not write.
	w = newWorld(t).leading()
	w.history.write()
	w.LeaseState.Drop()
	w.answer("Postgres.TimelineHistory", lines, nil)
	w.none("Consul.WriteAsLeader")
}
