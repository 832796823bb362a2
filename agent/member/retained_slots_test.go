package member

import (
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// away takes the key of a member away.
func (w *world) away(name string) {
	w.Snapshot.Members = slices.DeleteFunc(slices.Clone(w.Snapshot.Members), func(m cluster.Entry[cluster.Member]) bool { return m.Value.Name == name })
}

// The leader keeps the slot of a member that went away for member_slots_ttl, and says so.
func TestSlotOfAMemberThatWentAway(t *testing.T) {
	w := newWorld(t).leading()
	w.useSlots = true
	w.Dynamic.MemberSlotsTTL = time.Minute
	w.keptSlots("b", "c")
	members := w.Snapshot.Members
	w.away("c")
	w.pass(30 * time.Second)
	w.keptSlots("b", "c")
	w.PG.Observed.Slots = []pg.Slot{{Slot: cluster.Slot{Name: "c", Type: cluster.SlotPhysical}, RestartLSN: 7}}
	if s := w.nextStatus(); !slices.Equal(s.RetainSlots, []string{"c"}) || s.Slots["c"] != 7 {
		t.Errorf("%+v", s)
	}
	w.Snapshot.Members = members // it comes back, and goes again
	w.pass(slotsEvery)
	w.keptSlots("b", "c")
	if s := w.nextStatus(); s.RetainSlots != nil {
		t.Errorf("%+v", s)
	}
	w.away("c")
	w.pass(time.Minute - 1)
	w.keptSlots("b", "c")
	w.pass(1)
	w.keptSlots("b")
	if s := w.nextStatus(); s.RetainSlots != nil {
		t.Errorf("%+v", s)
	}

	// A member that streams from another one by now did not go away.
	w.Snapshot.Members = slices.Clone(members)
	w.keptSlots("b", "c")
	w.Snapshot.Members[2].Value.Tags = map[string]any{"replicatefrom": "b"}
	w.keptSlots("b")
	w.Dynamic.MemberSlotsTTL = 0
	w.Snapshot.Members[2].Value.Tags = nil
	w.keptSlots("b", "c")
	w.away("c")
	w.pass(time.Millisecond)
	w.keptSlots("b")
}

// The others believe the leader, and so does its agent when it begins anew.
func TestRetainedByTheLeadersWord(t *testing.T) {
	w := newWorld(t)
	w.useSlots = true
	w.Snapshot.Status.Value.RetainSlots, w.Snapshot.Status.Value.Slots = []string{"d", "Not a slot", "a", ""}, map[string]int64{"d": 3 * mib}
	w.keptSlots("(b checkpoint)", "(c 0)", "(d 3145728)")
	if s := w.nextStatus(); !slices.Equal(s.RetainSlots, []string{"d"}) {
		t.Errorf("a takeover forgets: %+v", s)
	}
	w.Snapshot.Status.Value.RetainSlots = nil
	w.pass(retainedAlone)
	w.keptSlots("(b checkpoint)", "(c 0)")

	// The leader hears of it in another moment.
	w.away("c")
	w.pass(time.Millisecond)
	w.slots.keep()
	w.none("Postgres.SyncSlots")
	w.pass(retainedAlone)
	w.keptSlots("(b checkpoint)")

	w = newWorld(t).leading()
	w.useSlots = true
	w.Snapshot.Status.Value.RetainSlots = []string{"d"}
	w.keptSlots("b", "c", "d")
	w.pass(w.Dynamic.MemberSlotsTTL)
	w.keptSlots("b", "c")
}
