package simulation

import (
	"errors"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is a restore to an earlier moment (design 5.25): what an operator asks for, what
// it does to the data directory, and what may not come back after it.

// Restore asks a member, if it leads, to put the shard back by Value KB of WAL.
const Restore Kind = "restore"

// setAside is what lies beside the data directory while a restore goes on.
type setAside struct {
	note ha.Discard
	old  *position // nil: the old data are still in place
	cut  *cut      // what the restored data are without; nil: they are not there yet

	slots  []slot // of the old data
	oldest int64
}

// cut is WAL that was discarded: what is beyond a position on its branch.
type cut struct{ after, end position }

func restoreShard(w *world, e Event) func() {
	a := w.hosts[e.Member].agent
	if a == nil {
		return nil
	}
	a.post(func() {
		a.RestoreTo(pg.Restore{Target: time.Unix(0, 0), Label: "F"}, func(err error) {
			w.say("%s: the restore has ended: %v", a.host.name, err)
			if err == nil {
				w.judge.tally.Restores++
			}
		})
	})
	a.host.goesBack = int64(e.Value) << 10
	return nil
}

func (p *postgres) note() *ha.Discard {
	if p.aside == nil {
		return nil
	}
	note := p.aside.note
	return &note
}

// part is a part of a restore, which takes a while, and ends unless PostgreSQL's life does.
func (p inPostgres) part(w *member.Work, low, high time.Duration, do func() error, done func(error)) {
	pg := &p.host.pg
	p.work(w, func(done func(error)) {
		life := pg.life
		p.host.w.after(pg.takes(low, high), func() {
			p.host.process(func() {
				pg.onDisk(func() {
					p.do(func() {
						if pg.life != life || w.Broken() != nil {
							done(errStopped)
							return
						}
						done(do())
					})
				})
			})
		})
	}, done)
}

func (p inPostgres) BeginRestore(w *member.Work, r pg.Restore, done func(error)) {
	p.part(w, 0, 20*time.Millisecond, func() error {
		p.host.pg.aside = &setAside{note: ha.Discard{Timeline: r.Discarded, Before: r.Before}}
		return nil
	}, done)
}

func (p inPostgres) SetAside(w *member.Work, done func(error)) {
	p.part(w, 0, 20*time.Millisecond, func() error {
		pg := &p.host.pg
		if pg.running || pg.orphans || pg.remains || pg.aside == nil || pg.empty {
			return errors.New("PostgreSQL runs, or there is nothing to move aside")
		}
		old := pg.at
		pg.aside.old, pg.aside.slots, pg.aside.oldest = &old, pg.slots, pg.oldest
		return nil
	}, done)
}

func (p inPostgres) Restore(w *member.Work, r pg.Restore, done func(error)) {
	p.part(w, time.Second, 15*time.Second, func() error {
		pg := &p.host.pg
		switch {
		case pg.aside == nil || pg.aside.old == nil:
			return errors.New("the old data are in the way")
		case pg.failing > 0 && p.host.w.chance(0.5), pg.full > 0, p.host.w.chance(0.1):
			return errors.New("the target is not reached")
		}
		end := *pg.aside.old
		from := position{end.branch, max(end.branch.fork, end.lsn-p.host.goesBack)}
		pg.aside.cut = &cut{after: from, end: end}
		// It is told of the numbers in between, of which there is no history file.
		p.host.w.timeline = max(p.host.w.timeline, r.Discarded)
		pg.at = position{branch: &branch{timeline: p.host.w.nextTimeline(from, r.Discarded), parent: from.branch, fork: from.lsn, restored: true}, lsn: from.lsn + 1}
		pg.primary, pg.clean, pg.checkpoint = true, true, pg.at.lsn
		// A backup has no slots, and the WAL since then.
		pg.slots, pg.oldest = nil, min(pg.oldest, from.lsn)
		return nil
	}, done)
}

func (p inPostgres) PutBack(w *member.Work, done func(error)) {
	p.part(w, 0, 20*time.Millisecond, func() error {
		pg := &p.host.pg
		if pg.aside != nil && pg.aside.old != nil {
			pg.at, pg.slots, pg.oldest = *pg.aside.old, pg.aside.slots, pg.aside.oldest
			pg.aside.old, pg.aside.cut = nil, nil
			pg.primary, pg.clean = true, true
		}
		return nil
	}, done)
}

func (p inPostgres) EndRestore(w *member.Work, done func(error)) {
	p.part(w, 0, 20*time.Millisecond, func() error {
		pg := &p.host.pg
		if pg.aside != nil && pg.aside.cut != nil {
			p.host.w.judge.discards(*pg.aside.cut)
		}
		pg.aside = nil
		return nil
	}, done)
}

// discards: from now on what is beyond the cut was never committed, as far as anybody may know.
func (j *judge) discards(c cut) {
	j.w.say("what is beyond timeline %d at %d is discarded", c.after.branch.timeline, c.after.lsn)
	j.cuts = append(j.cuts, c)
	b := c.after.branch
	b.acked, b.promised, b.shown = min(b.acked, c.after.lsn), min(b.promised, c.after.lsn), min(b.shown, c.after.lsn)
	j.replaced.OpTime = min(j.replaced.OpTime, c.after.lsn)
	j.clean = nil
}

// backFrom: nobody accepts commits with WAL that was discarded. Nothing is promised where Consul has
// forgotten that, and none of those who know it by their data has led since: then it is the shard's
// again.
func (j *judge) backFrom(h *host) {
	for i := 0; i < len(j.cuts); i++ {
		c := j.cuts[i]
		if has := h.pg.at.upTo(c.after.branch); has > c.after.lsn {
			if j.unsaid > 0 {
				j.cuts = slices.Delete(j.cuts, i, i+1)
				i--
				continue
			}
			j.fail("I2", "%s accepts commits with %d of timeline %d, of which what is beyond %d was discarded", h.name, has, c.after.branch.timeline, c.after.lsn)
		}
	}
}
