package member

import (
	"slices"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Each member has its slot where it streams from, and a pause changes nothing.
func TestSlots(t *testing.T) {
	w := newWorld(t)
	s := w.shard("a")
	tag := func(i int, name string, value any) { s.Members[i].Value.Tags = map[string]any{name: value} }
	want := func(name string, primary bool, want ...string) {
		t.Helper()
		if got := slotsFor(s, name, primary); !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	}
	want("a", true, "b", "c")
	want("b", false)
	tag(2, "replicatefrom", "b")
	want("a", true, "b")
	want("b", false, "c")
	s.Members[1].Value.Timeline++ // not of this leader's
	want("a", true, "b", "c")
	s.Members[1].Value.Timeline--
	tag(1, "replicatefrom", "c") // a ring: both follow the leader
	want("a", true, "b", "c")
	want("b", false)
	s.Members[1].Value.Tags = nil
	s.Members[1].Value.State = cluster.StateStopped
	want("a", true, "b", "c")
	tag(2, "nostream", true)
	want("a", true, "b")

	w.leading()
	w.slots.keep()
	w.none("Postgres.SyncSlots")
	w.useSlots = true
	w.slots.keep()
	w.slots.keep()
	w.deny("Postgres.SyncSlots", errBoom)
	if len(w.Logged()) != 1 {
		t.Fatal("not told of")
	}
	w.slots.keep()
	if c := w.take("Postgres.SyncSlots"); !slices.Equal(c.args[1].([]string), []string{"b", "c"}) {
		t.Fatalf("%v", c.args)
	} else {
		c.answer()
	}
	w.slots.keep()
	w.none("Postgres.SyncSlots")
	w.pass(slotsEvery)
	w.Dynamic.Pause = true
	w.slots.keep()
	if c := w.take("Postgres.SyncSlots"); !c.args[2].(cluster.Dynamic).Pause {
		t.Fatal("it does not hear of the pause, in which no slot is dropped")
	} else {
		c.answer()
	}
	w.Dynamic.Pause = false
	w.sawReplica(mib, "b") // it drops what it kept as a primary
	w.slots.keep()
	if c := w.take("Postgres.SyncSlots"); len(c.args[1].([]string)) != 0 {
		t.Fatalf("%v", c.args)
	}
}
