package simulation

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is a permanent logical slot (Schedule.Logical, design 5.28): its copies on the
// replicas, and its reader, who reads from whatever primary lets it in.

// ReaderAway keeps the reader of the logical slot away for For.
const ReaderAway Kind = "reader-away"

func readerFaults() map[Kind]fault {
	return map[Kind]fault{
		ReaderAway: {inject: func(w *world, _ Event) func() {
			w.reader.away++
			return func() { w.reader.away-- }
		}},
	}
}

// feedSlot is the slot.
func feedSlot() cluster.Slot {
	return cluster.Slot{Name: "feed", Type: cluster.SlotLogical, Database: "app", Plugin: "test_decoding"}
}

func feedConfig() map[string]any {
	s := feedSlot()
	return map[string]any{"slots": map[string]any{s.Name: map[string]any{"type": s.Type, "database": s.Database, "plugin": s.Plugin}}}
}

// reader is who reads from the slot.
type reader struct {
	away int // faults that keep it away
	// has is up to where it has everything on each branch, with what is before it.
	has map[*branch]int64
}

// begins: the slot was made anew, and the reader takes what is there as it is.
func (r *reader) begins(at position) {
	if r.has == nil {
		r.has = map[*branch]int64{}
	}
	r.has[at.branch] = max(r.has[at.branch], at.lsn)
}

// hasAll reports whether the reader has everything up to a position.
func (r *reader) hasAll(p position) bool {
	for b, lsn := range r.has {
		if (position{b, lsn}).holds(p) {
			return true
		}
	}
	return false
}

// reads lets the reader read, and confirm that it has what it has read.
func (w *world) reads() {
	for _, h := range w.hosts {
		s := h.pg.feed()
		if s == nil || s.lost || w.reader.away > 0 || !h.pg.writable || !h.up || h.frozen || w.chance(0.7) {
			continue
		}
		if from := h.pg.at.before(s.confirmed); !w.reader.hasAll(from) {
			w.judge.fail("I8", "the logical slot of %s begins at %d on timeline %d, and its reader has not got everything before", h.name, from.lsn, from.branch.timeline)
			continue
		}
		s.confirmed += w.random.Int64N(h.pg.at.lsn - s.confirmed + 1)
		s.needs = s.confirmed
		w.reader.begins(position{h.pg.at.branch, s.confirmed})
	}
}

// before is the place in this history at lsn.
func (q position) before(lsn int64) position {
	at := position{q.branch, lsn}
	for at.branch.parent != nil && at.lsn <= at.branch.fork {
		at.branch = at.branch.parent
	}
	return at
}

// feed is the logical slot, nil when there is none.
func (p *postgres) feed() *slot { return p.slotOf(feedSlot().Name) }

// keepFeed makes the slot on a primary. A replica gets a copy.
func (p *postgres) keepFeed() {
	if p.feed() == nil && p.primary {
		p.slots = append(p.slots, slot{name: feedSlot().Name, logical: true, needs: p.at.lsn, confirmed: p.at.lsn})
		p.host.w.reader.begins(p.at)
	}
}

// fetchFeed is the slot of a primary, as a replica that runs may copy it.
func (p *postgres) fetchFeed(from *host) (pg.SlotFile, error) {
	s := from.pg.feed()
	switch {
	case !p.ready || !from.up || from.frozen || !from.pg.ready || !p.host.w.net.both(p.host.id, from.id):
		return pg.SlotFile{}, errors.New("no answer")
	case !from.pg.primary || s == nil:
		return pg.SlotFile{}, errors.New("it has no such slot")
	case p.oldest > s.needs:
		return pg.SlotFile{}, errors.New("its WAL is gone here")
	case p.at.lsn < s.confirmed && !p.host.w.mutant.CopiedEarly:
		return pg.SlotFile{}, errors.New("its reader has more than was received here")
	}
	return pg.SlotFile{Slot: feedSlot(), State: binary.BigEndian.AppendUint64(nil, uint64(s.confirmed))}, nil
}

// placeFeed puts the copy into the data of a replica that is down.
func (p *postgres) placeFeed(f pg.SlotFile) error {
	if p.running || p.primary || p.empty || p.feed() != nil {
		return errors.New("the data are no replica's without the slot")
	}
	confirmed := int64(binary.BigEndian.Uint64(f.State))
	p.slots = append(p.slots, slot{name: f.Name, logical: true, needs: confirmed, confirmed: confirmed})
	p.host.w.judge.tally.Copies++
	return nil
}

// advanceFeed moves the copy of a replica to where its reader has come.
func (p *postgres) advanceFeed(timeline int, to int64) error {
	s := p.feed()
	switch {
	case !p.ready:
		return errStopped
	case s == nil || p.primary || !p.streaming || p.at.branch.timeline != timeline:
		return nil
	}
	s.confirmed = max(s.confirmed, min(to, p.observe().ReplayedLSN))
	s.needs = s.confirmed
	return nil
}

// feedLate draws a schedule's logical slot, from numbers of what was added later.
func (s *Schedule) feedLate(intn func(int) int) {
	if s.Keeps == 0 || s.Standby || len(s.Patroni) > 0 || intn(2) > 0 {
		return
	}
	s.Logical = true
	for range intn(6) {
		s.Events = append(s.Events, Event{
			At: time.Duration(intn(int(s.Length/time.Second))) * time.Second, For: time.Duration(1+intn(60)) * time.Second, Kind: ReaderAway,
		})
	}
}
