package member

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
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
	w.none("Postgres.SyncSlots") // not at once, though nothing was made yet
	w.pass(w.Dynamic.LoopWait)
	w.keptSlots("b", "c")
	w.pass(slotsEvery)
	w.slots.keep()
	w.deny("Postgres.SyncSlots", errBoom)
	w.slots.keep()
	w.none("Postgres.SyncSlots") // not at once
	w.pass(w.Dynamic.LoopWait)
	w.keptSlots("b", "c")
	// A task that stops PostgreSQL began meanwhile: that is no failure of the slots.
	w.pass(slotsEvery)
	w.slots.keep()
	w.newTask(ha.TaskRestart)
	w.task = nil
	w.deny("Postgres.SyncSlots", errBoom)
	if len(w.Logged()) != 0 {
		t.Fatalf("told of: %v", w.Logged())
	}
	w.keptSlots("b", "c")
	w.slots.keep()
	w.none("Postgres.SyncSlots")
	w.pass(slotsEvery)
	w.Dynamic.Pause = true
	if o := w.keptSlots("b", "c"); !o.Keep(cluster.Slot{}) {
		t.Fatal("in pause no slot is dropped")
	}
}

// keptSlots are what PostgreSQL is asked to keep now; spare ones in brackets, with where they
// are moved to.
func (w *world) keptSlots(want ...string) pg.SlotOrders {
	w.t.Helper()
	w.slots.keep()
	c := w.take("Postgres.SyncSlots")
	o, _ := c.args[1].(pg.SlotOrders)
	var got []string
	for _, s := range o.Wanted {
		name := s.Name
		if s.Spare {
			name = fmt.Sprintf("(%s %d)", s.Name, s.To)
		}
		if s.KeepsCheckpoint {
			name = "(" + s.Name + " checkpoint)"
		}
		got = append(got, name)
	}
	if !slices.Equal(got, want) {
		w.t.Fatalf("slots %q, want %q", got, want)
	}
	c.answer()
	return o
}

// A slot that has lost its WAL keeps its member from streaming: it is made anew within a loop_wait.
func TestLostSlotIsMadeAnewSoon(t *testing.T) {
	w := newWorld(t)
	w.useSlots = true
	w.leading()
	w.Dynamic.LoopWait = time.Second
	w.keptSlots("b", "c")
	w.PG.Observed.Slots = []pg.Slot{{Slot: cluster.Slot{Name: "c", Type: cluster.SlotPhysical}, RestartLSN: 80 * mib}}
	w.pass(w.Dynamic.LoopWait)
	w.slots.keep()
	w.none("Postgres.SyncSlots")
	w.PG.Observed.Slots[0].Lost = true
	w.keptSlots("b", "c")
	w.slots.keep()
	w.none("Postgres.SyncSlots") // not at once again
}

// A replica that may lead has the slots that it needs then, and moves them on as the leader
// says. One that may not drops what it kept as a primary.
func TestSpareSlots(t *testing.T) {
	w := newWorld(t)
	w.useSlots = true
	w.Snapshot.Members[2].Value.XLogLocation = 90 * mib
	if o := w.keptSlots("(b checkpoint)", "(c 94371840)"); o.Keep(cluster.Slot{}) {
		t.Error("others stay")
	}
	w.Snapshot.Status.Value.Slots = map[string]int64{"c": 80 * mib}
	w.pass(slotsEvery)
	w.keptSlots("(b checkpoint)", "(c 83886080)")

	// It is moved once a loop_wait, while it is behind.
	w.PG.Observed.Slots = []pg.Slot{{Slot: cluster.Slot{Name: "c", Type: cluster.SlotPhysical}, RestartLSN: 80 * mib}}
	w.pass(slotsEvery - time.Millisecond)
	w.slots.keep()
	w.none("Postgres.SyncSlots")
	w.Snapshot.Status.Value.Slots["c"] = 85 * mib
	w.Dynamic.LoopWait = time.Second
	w.keptSlots("(b checkpoint)", "(c 89128960)")

	w.Snapshot.Members[2].Value.Tags = map[string]any{"replicatefrom": "a"}
	w.keptSlots("c", "(b checkpoint)")
	w.Tags = map[string]any{"nofailover": true}
	w.keptSlots("c")
	w.Snapshot.Members[2].Value.Tags = nil
	w.keptSlots()
}

// Permanent slots are made wherever somebody may lead, but for this member's own; those that
// the configuration tells to leave alone stay.
func TestPermanentSlots(t *testing.T) {
	w := newWorld(t)
	w.useSlots = true
	d, _, err := cluster.ParseDynamicJSON([]byte(`{"slots":{"a":null,"archive":{"type":"physical"},"c":{"type":"logical","database":"d","plugin":"p"}},"ignore_slots":[{"name":"mine"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	w.Dynamic = d
	w.Snapshot.Status.Value.Slots = map[string]int64{"archive": 3 * mib}
	o := w.keptSlots("(b checkpoint)", "(c 0)", "(archive 3145728)")
	if len(w.Logged()) != 1 || !strings.Contains(w.Logged()[0], "slots.c is logical, and member c streams") {
		t.Errorf("the collision is not told of: %q", w.Logged())
	}
	for name, want := range map[string]bool{"mine": true, "other": false, "archive": false} {
		if got := o.Keep(cluster.Slot{Name: name}); got != want {
			t.Errorf("%s stays on a replica: %v", name, got)
		}
	}
	w.leading()
	if o = w.keptSlots("b", "c", "archive"); !o.Keep(cluster.Slot{Name: "a"}) {
		t.Error("a permanent slot goes")
	}

	// The leader says where their readers are.
	physical := func(name string, at int64) pg.Slot {
		return pg.Slot{Slot: cluster.Slot{Name: name, Type: cluster.SlotPhysical}, RestartLSN: at}
	}
	w.PG.Observed.Slots = []pg.Slot{physical("b", 5), physical("archive", 6), physical("somebodys", 7), physical("c", 0)}
	if got := w.nextStatus().Slots; !maps.Equal(got, map[string]int64{"b": 5, "archive": 6}) {
		t.Errorf("%v", got)
	}
	w.sawReplica(mib, "b")
	w.PG.Observed.Slots = []pg.Slot{physical("b", 5)}
	if got := w.nextStatus().Slots; got != nil {
		t.Errorf("a replica says %v", got)
	}
}
