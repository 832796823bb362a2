package simulation

import (
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is about WAL that is not kept for ever, and the slots that keep it
// (Schedule.Keeps). A standby whose upstream has not kept what it needs receives nothing:
// an operator has to clone it anew.

// slot is a replication slot.
type slot struct {
	name  string // the member's that it is for
	needs int64  // from there on WAL is kept
	lost  bool   // it needed more than is kept for a slot (wal_status): nobody streams by it again
	// logical: it is that of logical.go, whose reader has everything up to confirmed.
	logical   bool
	confirmed int64
}

// slotOf is the slot of a member, nil when there is none.
func (p *postgres) slotOf(member string) *slot {
	i := slices.IndexFunc(p.slots, func(s slot) bool { return s.name == member })
	if i < 0 {
		return nil
	}
	return &p.slots[i]
}

// feeds reports whether a member receives from this one, which makes its slot active.
func (p *postgres) feeds(member string) bool {
	follower := p.host.w.hostNamed(member)
	return follower != nil && follower.pg.streaming && follower.pg.upstream == p.host.name
}

// syncSlots makes the slots that are wanted, anew those that have lost their WAL, moves those
// by which nobody is to stream, and drops those of nobody (agent/postgres/slots.go).
func (p *postgres) syncSlots(wanted []pg.WantedSlot, keeps bool) {
	p.slots = slices.DeleteFunc(p.slots, func(s slot) bool { return s.lost && !p.host.w.mutant.LostKept })
	for _, want := range wanted {
		if want.Type == cluster.SlotLogical {
			p.keepFeed()
			continue
		}
		s := p.slotOf(want.Name)
		if s == nil {
			p.slots = append(p.slots, slot{name: want.Name, needs: p.at.lsn})
			continue
		}
		to := min(want.To, p.at.lsn)
		if want.KeepsCheckpoint {
			to = p.at.lsn - p.host.w.schedule.Keeps // what is kept anyway
		}
		if want.Spare && !p.feeds(s.name) {
			s.needs = max(s.needs, to)
		}
	}
	p.slots = slices.DeleteFunc(p.slots, func(s slot) bool {
		return !keeps && (!s.logical || !p.primary) && !p.feeds(s.name) && !slices.ContainsFunc(wanted, func(w pg.WantedSlot) bool { return w.Name == s.name })
	})
}

// observedSlots are the slots as PostgreSQL shows them.
func (p *postgres) observedSlots() []pg.Slot {
	var all []pg.Slot
	for _, s := range p.slots {
		if s.logical {
			all = append(all, pg.Slot{Slot: feedSlot(), RestartLSN: s.needs, ConfirmedLSN: s.confirmed})
			continue
		}
		all = append(all, pg.Slot{Slot: cluster.Slot{Name: s.name, Type: cluster.SlotPhysical}, Active: p.feeds(s.name), RestartLSN: s.needs, Lost: s.lost})
	}
	return all
}

// recycle removes WAL that nothing keeps, as checkpoints do.
func (p *postgres) recycle() {
	w := p.host.w
	if w.schedule.Keeps == 0 || !p.ready || p.host.frozen || w.chance(0.9) {
		return
	}
	oldest := p.at.lsn - w.schedule.Keeps
	for i := range p.slots {
		s := &p.slots[i]
		if p.feeds(s.name) {
			s.needs = w.hostNamed(s.name).pg.at.lsn
		} else if most := w.schedule.SlotKeeps; most > 0 && p.at.lsn-s.needs > most {
			s.lost = true
		}
		if !s.lost {
			oldest = min(oldest, s.needs)
		}
	}
	p.oldest = max(p.oldest, oldest)
}

// serves reports whether it has what a standby at this place asks for: the standby's slot,
// and the WAL from there on.
func (p *postgres) serves(standby *postgres) bool {
	if standby.system != p.system {
		return false
	}
	if p.host.w.schedule.Keeps == 0 {
		return true
	}
	s := p.slotOf(standby.host.name)
	return s != nil && !s.lost && p.oldest <= standby.at.lsn
}

// operator clones standbys anew whose upstream has not kept their WAL, while somebody leads.
func (w *world) operator() {
	leader := w.hostNamed(w.consul.leaderNamed())
	for _, h := range w.hosts {
		if leader == nil || !leader.pg.writable || w.judge.paused || !h.pg.stranded() && !superseded(&h.pg, leader) {
			h.strands = w.now
			continue
		}
		if a := h.agent; a != nil && h.pg.stranded() && a.Dynamic.Rebuild == cluster.RebuildAuto && w.now < h.strands+40*time.Second {
			continue // its turn has not come, or it must not be made anew by policy
		}
		w.say("%s: the operator sees that its WAL is gone, and clones it anew", h.name)
		if a := h.agent; a != nil {
			a.post(func() { _ = a.Reinitialize(false, false) })
		} else if p := h.patroni; p != nil && !p.busy {
			p.begin(p.empty)
		}
	}
	w.after(w.between(5*time.Second, 15*time.Second), w.operator)
}

// stranded reports whether a standby runs that receives nothing because its WAL is gone.
func (p *postgres) stranded() bool {
	up := p.host.w.hostNamed(p.upstream)
	if up == nil || !p.ready && !p.recovering || p.primary || p.streaming || !up.pg.at.holds(p.at) {
		return false
	}
	s := up.pg.slotOf(p.host.name)
	return s != nil && (s.lost || up.pg.oldest > p.at.lsn)
}
