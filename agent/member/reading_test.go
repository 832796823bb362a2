package member

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// Readings are one at a time, and one that failed is not asked for again at once.
func TestReread(t *testing.T) {
	w := newWorld(t)
	w.Reread()
	w.Reread()
	c := w.take("Consul.Read")
	w.none("Consul.Read")
	c.fail(errBoom)
	if !w.down {
		t.Fatal("Consul counts as well")
	}
	w.Reread()
	w.none("Consul.Read")
	w.pass(200 * time.Millisecond)
	w.none("Consul.Read") // the decision asks again
	w.Reread()
	s := w.shard("c")
	s.Index = 120
	w.answer("Consul.Read", s, nil)
	if w.down || w.Snapshot.LeaderName() != "c" || w.accepted != 1 || w.Read != w.clock || w.ReadWall != w.wall {
		t.Fatal("the reading is not taken")
	}
}

// Before the first reading nobody decides: it is asked for again by itself.
func TestTheFirstReadingIsAskedForUntilItComes(t *testing.T) {
	w := newWorld(t)
	w.ClusterView = ha.ClusterView{}
	w.Reread()
	w.deny("Consul.Read", errBoom)
	w.none("Consul.Read")
	w.pass(200 * time.Millisecond)
	w.answer("Consul.Read", w.shard("b"), nil)
	if w.FirstRead != w.clock {
		t.Fatal("not read")
	}
}

// A reading that is older than what is known does not count, and is made again.
func TestASupersededReading(t *testing.T) {
	w := newWorld(t)
	w.Wrote(200)
	if w.Accept(w.shard("c"), false) {
		t.Fatal("taken")
	}
	w.answer("Consul.Read", w.shard("c"), nil) // a consistent one that began before
	if w.Snapshot.LeaderName() != "b" || w.accepted != 0 {
		t.Fatal("an older reading is taken")
	}
	s := w.shard("c")
	s.Index = 200
	if !w.Accept(s, false) {
		t.Fatal("not taken")
	}
}

// An agent whose name another one has does not start PostgreSQL; one that runs goes on.
func TestANameThatIsTaken(t *testing.T) {
	for _, running := range []bool{false, true} {
		w := newWorld(t)
		w.ClusterView = ha.ClusterView{}
		s := w.shard("b")
		s.Members[0].Value.Name = "A"
		err := s.Joins("a")
		if err == nil {
			t.Fatal("this shard may be joined")
		}
		w.PG.Running = running
		if got := w.Accept(s, true); got != running {
			t.Fatalf("running %t: accepted %t", running, got)
		}
		if (w.Failed == nil) != running || !running && !errors.Is(w.Failed, err) && !strings.Contains(w.Failed.Error(), err.Error()) {
			t.Fatalf("running %t: %v", running, w.Failed)
		}
		if !w.Accept(w.shard("b"), true) {
			t.Fatal("a second reading is not asked that")
		}
	}
}

func TestSawRoute(t *testing.T) {
	w := newWorld(t)
	route := func(index uint64) cluster.Entry[cluster.Route] {
		e := w.shard("c").Route
		e.ModifyIndex = index
		return e
	}
	w.SawRoute(route(60))
	w.none("Consul.Read")
	w.SawRoute(route(59))
	w.answer("Consul.Read", w.shard("b"), nil) // superseded, or Consul has gone back
	if w.Snapshot.Route.Value.Leader.Name != "b" {
		t.Fatal("an older route is taken")
	}
	w.SawRoute(route(61))
	if w.Snapshot.Route.Value.Leader.Name != "c" {
		t.Fatal("a newer route is not taken")
	}
	w.none("Consul.Read")
	w.SawRoute(cluster.Entry[cluster.Route]{})
	w.take("Consul.Read") // deleted, or read before it was written
	if !w.Snapshot.Route.Exists() {
		t.Fatal("the route is forgotten")
	}
}

// Consul is said to be silent once, until it has answered.
func TestConsulFailed(t *testing.T) {
	w := newWorld(t)
	w.ConsulFailed(errBoom)
	w.ConsulFailed(errBoom)
	w.Accept(w.shard("b"), true)
	if w.down {
		t.Fatal("it answers")
	}
}

// Values that make no sense are told of when they stay so.
func TestNoteProblems(t *testing.T) {
	w := newWorld(t)
	bad := w.shard("b")
	bad.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 44, Err: errBoom}
	w.Accept(bad, true)
	if w.wrong == "" || w.wrongSince.IsZero() {
		t.Fatal("not noted")
	}
	w.pass(2 * time.Second)
	w.Accept(bad, true)
	if w.wrongSince.IsZero() {
		t.Fatal("told of too soon")
	}
	w.pass(time.Second)
	if !w.wrongSince.IsZero() {
		t.Fatal("not told of")
	}
	w.Accept(w.shard("b"), true)
	if w.wrong != "" {
		t.Fatal("they are over")
	}
	w.Accept(bad, true)
	w.pass(time.Second)
	w.Accept(w.shard("b"), true)
	w.pass(time.Minute)
	if w.wrong != "" {
		t.Fatal("what was wrong for a moment is told of")
	}
}
