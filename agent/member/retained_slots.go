package member

import (
	"maps"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is about the slots of members that went away: a member's key goes with its session,
// soon after its host is lost, and it needs its slot when it comes back.

// retainedAlone is how long a replica keeps the slot of a member that went away without the
// leader's word: the leader hears of it in another moment.
const retainedAlone = time.Minute

// remember notes which members are here, and whose slots are retained for those that were until
// a while ago. The leader decides by what it has seen; the status tells the others, and itself
// after a restart of its agent.
func (k *slotKeeper) remember(primary bool) {
	now, told := k.Now(), k.Snapshot.Status.Value.RetainSlots
	told = slices.DeleteFunc(slices.Clone(told), func(slot string) bool {
		return slot == "" || cluster.SlotName(slot) != slot || slot == cluster.SlotName(k.Name) || slotOwner(k.Snapshot, slot) != ""
	})
	if k.here == nil {
		k.here = map[string]cluster.Instant{}
		for _, slot := range told {
			k.here[slot] = now - 1
		}
	}
	for _, m := range slotsFor(k.Snapshot, k.Name, true) {
		k.here[cluster.SlotName(m)] = now
	}
	maps.DeleteFunc(k.here, func(slot string, at cluster.Instant) bool {
		return at < now && (now.Sub(at) >= k.Dynamic.MemberSlotsTTL || slotOwner(k.Snapshot, slot) != "")
	})
	k.retained = nil
	for slot, at := range k.here {
		if at < now && (primary || now.Sub(at) < retainedAlone) {
			k.retained = append(k.retained, slot)
		}
	}
	if !primary {
		for _, slot := range told {
			if !slices.Contains(k.retained, slot) {
				k.retained = append(k.retained, slot)
			}
		}
	}
	slices.Sort(k.retained)
}
