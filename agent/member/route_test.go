package member

import (
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// The route of another PostgreSQL cluster is left alone, and told of.
func TestTheRouteOfAnotherCluster(t *testing.T) {
	w := newWorld(t).leading()
	w.Snapshot.Route.Value.SystemIdentifier = "another"
	w.route.write()
	w.none("Consul.WriteAsLeader")
	if told := w.Told(); len(told) != 1 || !strings.Contains(told[0], "another") {
		t.Fatalf("%v", told)
	}
	if _, ok := w.route.wanted(); ok {
		t.Fatal("a takeover replaces it")
	}
	w.Snapshot.Route.Value.SystemIdentifier = systemA
	if _, ok := w.route.wanted(); !ok || len(w.Told()) != 0 {
		t.Fatal("it is ours again")
	}
	w.Data.SystemIdentifier = ""
	if _, ok := w.route.wanted(); ok {
		t.Fatal("a route of nothing")
	}
}

func TestRouteState(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   cluster.RouteState
	}{
		{"serves", func(*world) {}, cluster.RouteOpen},
		{"being demoted", func(w *world) { w.demote() }, cluster.RouteDown},
		{"a replica that is to be promoted", func(w *world) { w.sawReplica(mib, "") }, cluster.RoutePromoting},
		{"starting", func(w *world) { w.PG.Observed = pg.State{Running: true} }, cluster.RouteDown},
		{"down", func(w *world) { w.PostmasterGone() }, cluster.RouteDown},
	} {
		w := newWorld(t).leading()
		tt.change(w)
		if got := w.route.state(); got != tt.want {
			t.Errorf("%s: %s", tt.name, got)
		}
	}
}

// The route is written when the topology changes; a failed write is tried again.
func TestWriteRoute(t *testing.T) {
	w := newWorld(t).leading()
	w.route.write()
	w.none("Consul.WriteAsLeader")
	since := w.Snapshot.Route.Value.Since
	w.PostmasterGone()
	w.route.write()
	w.deny("Consul.WriteAsLeader", errBoom)
	w.route.write()
	w.none("Consul.WriteAsLeader")
	w.pass(200 * time.Millisecond)
	w.route.write()
	c := w.take("Consul.WriteAsLeader")
	if r := c.args[4].(cluster.Route); c.args[2] != w.Keys.Route() || c.args[3] != uint64(103) || r.State != cluster.RouteDown || r.Leader.Name != "a" || r.Timeline != 3 || !r.Since.Equal(since) {
		t.Fatalf("%v", c.args)
	}
	c.answer(uint64(140), nil)
	if len(w.poked) != 1 || w.Snapshot.Route.ModifyIndex != 140 {
		t.Fatal("the bouncers do not hear of it")
	}
	w.sawPrimary(201 * mib)
	w.Snapshot.Members[1].Value.ReplicationState = pg.Streaming
	w.Snapshot.Members[1].Value.ReplayLSN = 201 * mib
	w.Snapshot.Index++
	w.route.write()
	c = w.take("Consul.WriteAsLeader")
	if r := c.args[4].(cluster.Route); r.State != cluster.RouteOpen || len(r.Replicas) != 1 || r.Replicas[0].Name != "b" {
		t.Fatalf("%+v", r)
	}
}

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
	w.Tenure.Drop()
	w.answer("Postgres.TimelineHistory", lines, nil)
	w.none("Consul.WriteAsLeader")
}
