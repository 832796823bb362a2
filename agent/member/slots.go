package member

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// slotsEvery is how often slots are looked at when nothing has changed.
const slotsEvery = 10 * time.Second

// slotKeeper keeps replication slots (design 5.26).
type slotKeeper struct {
	*Shard
	local    *Local
	postgres Postgres

	kept    []pg.WantedSlot // what there was made
	replica bool            // and as what
	at      cluster.Instant
	failed  bool // the last time
	keeping bool
	here    map[string]cluster.Instant // when the member of a slot was here last

	copied      map[string]copyTries // those of logical slots that were not seen here since for long enough
	lackedSince cluster.Instant      // since when one is lacking
	advanced    cluster.Instant
	advancing   bool

	awaitedSince cluster.Instant // since when a replica waits for a failover slot of this primary
	helped       cluster.Instant // when it was helped on last
}

// keep keeps the slots that this member is to have, so that a reader that is away for a
// while finds its WAL, here or with the next leader; and drops others, as these hold WAL back for
// ever. In pause none is dropped, and those are made without which nobody can follow.
func (k *slotKeeper) keep() {
	o := &k.local.PG.Observed
	if !o.Accepting || !k.postgres.UseSlots() {
		return
	}
	k.remember(!o.InRecovery)
	if k.keeping {
		return
	}
	wanted, err := k.wanted(!o.InRecovery || k.standbyLeads())
	k.Failure("slot names", "a replication slot is not made", err)
	d, replica := k.Dynamic, o.InRecovery
	same := replica == k.replica && slices.EqualFunc(wanted, k.kept, func(a, b pg.WantedSlot) bool {
		return a.Slot == b.Slot && a.Spare == b.Spare && a.Native == b.Native && a.Yields == b.Yields
	})
	// One that has lost its WAL keeps its member from streaming, also what that would still find.
	stale := slices.ContainsFunc(wanted, func(w pg.WantedSlot) bool { return w.Spare && moves(o, w) || lost(o, w) })
	awaited := k.awaited()
	switch waited := k.Now().Sub(k.at); {
	case k.failed && waited < d.LoopWait: // each answer brings the loop round
		return
	case same && !k.failed && len(awaited) == 0 && waited < slotsEvery && (!stale || waited < d.LoopWait):
		return
	}
	if len(awaited) > 0 {
		k.helped = k.Now()
	}
	for i := range wanted {
		wanted[i].Awaited = slices.Contains(awaited, wanted[i].Name)
	}
	k.keeping = true
	edge := k.local.edge
	k.postgres.SyncSlots(slotsEvery, pg.SlotOrders{Wanted: wanted, Keep: func(s cluster.Slot) bool {
		_, permanent := d.Slots[s.Name]
		return d.Pause || d.IgnoresSlot(s) || permanent && !replica
	}}, func(err error) {
		k.keeping = false
		if err != nil && k.local.edge != edge { // a task that has begun since may stop PostgreSQL
			k.at = 0
			return
		}
		k.at, k.failed = k.Now(), err != nil
		k.Failure("slots", "replication slots could not be brought up to date", err)
		if err == nil {
			k.kept, k.replica = wanted, replica
		}
	})
}

// moves reports whether a physical slot is behind its reader.
func moves(o *pg.State, w pg.WantedSlot) bool {
	return w.Type == cluster.SlotPhysical && isBehind(o, w)
}

// lost reports whether a physical slot has lost its WAL.
func lost(o *pg.State, w pg.WantedSlot) bool {
	i := slotIndex(o, w.Name)
	return i >= 0 && w.Type == cluster.SlotPhysical && o.Slots[i].Lost
}

func isBehind(o *pg.State, w pg.WantedSlot) bool {
	i := slotIndex(o, w.Name)
	return i >= 0 && o.Slots[i].Type == w.Type && !o.Slots[i].Active && o.Slots[i].Position() < min(w.To, o.ReplayedLSN)
}

func slotIndex(o *pg.State, name string) int {
	return slices.IndexFunc(o.Slots, func(s pg.Slot) bool { return s.Name == name })
}

// wanted are the slots that this member is to have. A replica that may lead has besides those
// by which it is streamed from the ones that it needs when it leads, and moves them on. An
// error names those that cannot be made; the others are.
func (k *slotKeeper) wanted(primary bool) (wanted []pg.WantedSlot, err error) {
	physical := func(name string) cluster.Slot { return cluster.Slot{Name: name, Type: cluster.SlotPhysical} }
	has := func(name string) bool {
		return slices.ContainsFunc(wanted, func(w pg.WantedSlot) bool { return w.Name == name })
	}
	for _, m := range slotsFor(k.Snapshot, k.Name, primary) {
		if slot := cluster.SlotName(m); !has(slot) { // of namesakes the members' keys tell
			wanted = append(wanted, pg.WantedSlot{Slot: physical(slot)})
		}
	}
	if !primary && !k.mayLead() {
		return wanted, nil
	}
	at := k.Snapshot.Status.Value.Slots
	if !primary {
		for _, m := range slotsFor(k.Snapshot, k.Name, true) {
			slot := cluster.SlotName(m)
			if has(slot) {
				continue
			}
			other, _ := k.Snapshot.Member(m)
			to, shown := at[slot]
			if !shown {
				to = other.Value.XLogLocation
			}
			wanted = append(wanted, pg.WantedSlot{Slot: physical(slot), Spare: true, To: to, KeepsCheckpoint: m == k.Snapshot.LeaderName()})
		}
	}
	for _, slot := range k.retained {
		if !has(slot) {
			wanted = append(wanted, pg.WantedSlot{Slot: physical(slot), Spare: !primary, To: at[slot]})
		}
	}
	var errs []error
	for _, slot := range k.Dynamic.PermanentSlots() {
		other := slotOwner(k.Snapshot, slot.Name)
		switch {
		case slot.Type == cluster.SlotLogical && k.Dynamic.StandbyCluster.On():
			// What is read from it, and how far, is the remote shard's.
		case slot.Type == cluster.SlotLogical && other != "":
			errs = append(errs, fmt.Errorf("slots.%s is logical, and member %s streams by a slot of that name: give one of the two another name", slot.Name, other))
		case slot.Name != cluster.SlotName(k.Name) && !has(slot.Name):
			native := slot.Type == cluster.SlotLogical && !primary && k.isNative(slot.Name)
			wanted = append(wanted, pg.WantedSlot{Slot: slot, Spare: !primary, To: at[slot.Name], Native: native, Yields: native && k.yields(slot.Name)})
		}
	}
	return wanted, errors.Join(errs...)
}

// mayLead reports whether this member, as a replica, is to have what it needs when it leads.
func (k *slotKeeper) mayLead() bool { return !cluster.NoFailover(k.Tags) && !cluster.NoStream(k.Tags) }

// slotOwner is the member that streams by a slot of this name, empty: none.
func slotOwner(s cluster.Snapshot, slot string) string {
	for i := range s.Members {
		if name := s.Members[i].Value.Name; cluster.SlotName(name) == slot {
			return name
		}
	}
	return ""
}

// slotsFor are the members that stream from a member, as each decides. On a primary also
// those that follow it for want of one that they may cascade from.
func slotsFor(s cluster.Snapshot, name string, primary bool) []string {
	var names []string
	for _, m := range s.Members {
		if !m.OK() || m.Value.Name == name || cluster.NoStream(m.Value.Tags) || !primary && m.Value.Name == s.LeaderName() {
			continue
		}
		from, _ := m.Value.Tags["replicatefrom"].(string)
		if from == name && !s.InRing(m.Value.Name) || primary && s.Upstream(m.Value.Name, m.Value.Tags, name) == name {
			names = append(names, m.Value.Name)
		}
	}
	return names
}

// slotPositions are what a primary, or a standby leader, says of its members' slots and of the permanent ones: up to
// where each one's reader needs nothing any more.
func (s *Shard) slotPositions(o *pg.State) map[string]int64 {
	if !o.Accepting || o.InRecovery && !s.standbyLeads() {
		return nil
	}
	var at map[string]int64
	for _, slot := range o.Slots {
		_, permanent := s.Dynamic.Slots[slot.Name]
		if slot.Position() == 0 || !permanent && (slot.Type != cluster.SlotPhysical || slotOwner(s.Snapshot, slot.Name) == "" && !slices.Contains(s.retained, slot.Name)) {
			continue
		}
		if at == nil {
			at = map[string]int64{}
		}
		at[slot.Name] = slot.Position()
	}
	return at
}

// syncedSlots are those of the permanent ones that PostgreSQL itself keeps on this replica.
func (s *Shard) syncedSlots(o *pg.State) (names []string) {
	for _, slot := range o.Slots {
		if _, permanent := s.Dynamic.Slots[slot.Name]; permanent && slot.Synced {
			names = append(names, slot.Name)
		}
	}
	slices.Sort(names)
	return names
}

// failoverSlots are those of the permanent ones of a primary that PostgreSQL itself keeps on replicas.
func (s *Shard) failoverSlots(o *pg.State) (names []string) {
	if !o.Accepting || o.InRecovery {
		return nil
	}
	for _, slot := range o.Slots {
		if _, permanent := s.Dynamic.Slots[slot.Name]; permanent && slot.Failover {
			names = append(names, slot.Name)
		}
	}
	slices.Sort(names)
	return names
}
