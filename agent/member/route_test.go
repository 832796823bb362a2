package member

import (
	"slices"
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
	if told := w.Logged(); len(told) != 1 || !strings.Contains(told[0], "another") {
		t.Fatalf("%v", told)
	}
	if _, ok := w.route.wanted(); ok {
		t.Fatal("a takeover replaces it")
	}
	w.Snapshot.Route.Value.SystemIdentifier = systemA
	if _, ok := w.route.wanted(); !ok || len(w.Logged()) != 0 {
		t.Fatal("it is ours again")
	}
	w.Snapshot.Route.Value.Succeeds = []string{"7", "6"}
	if r, _ := w.route.wanted(); !slices.Equal(r.Succeeds, []string{"7", "6"}) {
		t.Fatalf("what the shard was before its upgrades is lost: %v", r.Succeeds)
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
