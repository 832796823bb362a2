package simulation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is how a data directory that has diverged is made fit to follow another member, what is
// left of a rewind that was cut short, and what an operator does about it.

var (
	errHalfWritten = fmt.Errorf("%w: a rewind of it was cut short", member.ErrBeyondRewind)
	errNotAllowed  = fmt.Errorf("%w: use_pg_rewind is off", member.ErrBeyondRewind)
)

// rewinding is one rewind.
type rewinding struct {
	*postgres
	up      *host
	allowed bool
	cut     func() bool // whether its agent has killed it, or has ended: nobody else notes that it is whole
	began   int         // in which life
	copied  position    // up to where the upstream's WAL was copied
	done    func(error)
}

func (p inPostgres) Rewind(w *member.Work, up pg.Upstream, allowed bool, done func(error)) {
	p.work(w, func(done func(error)) {
		rewinding{
			up: p.host.w.hostNamed(up.Name), allowed: allowed, done: done,
			cut: func() bool { return w.Broken() != nil || p.dead },
		}.begin(&p.host.pg)
	}, done)
}

// begin makes the data directory fit to follow another member: it is rewound where it has diverged.
func (r rewinding) begin(p *postgres) {
	r.postgres, r.began = p, p.life
	p.host.w.after(p.takes(10*time.Millisecond, 100*time.Millisecond), func() {
		p.host.process(func() { r.compare() })
	})
}

// compare finds out whether there is anything to rewind.
func (r rewinding) compare() {
	p := r.postgres
	w, up := p.host.w, &r.up.pg
	switch {
	case p.life != r.began:
		r.done(errStopped)
	case !r.reaches():
		r.done(errors.New("the upstream is not reachable, or another cluster's"))
	case p.ruined:
		r.done(errHalfWritten)
	case up.at.holds(p.at) && up.at.holds(p.needs):
		r.done(nil)
	case !up.primary && p.at.branch == up.at.branch && p.needs.branch == nil:
		r.done(nil) // a standby that is behind on the same timeline: nothing has diverged
	case !r.allowed:
		r.done(errNotAllowed)
	case up.replaying():
		r.done(errors.New("the upstream is still replaying"))
	case w.mishap():
		r.done(fmt.Errorf("%w: nothing was written", member.ErrDiverged))
	default:
		p.noteLoss()
		w.after(p.takes(100*time.Millisecond, time.Second), func() {
			p.host.process(func() { p.onDisk(func() { r.rewrite() }) })
		})
	}
}

// reaches reports whether a member can be read for a rewind: it is of the same cluster.
func (r rewinding) reaches() bool {
	p, up := r.postgres, r.up
	return up.up && !up.frozen && up.pg.ready && !p.empty && up.pg.system == p.system && p.host.w.net.both(p.host.id, up.id)
}

// rewrite is the part of a rewind from which on nothing but its end makes the data whole again.
func (r rewinding) rewrite() {
	p := r.postgres
	if p.life != r.began || r.cut() || !r.reaches() {
		r.done(errStopped)
		return
	}
	p.ruined, r.copied = true, r.up.pg.at
	p.host.w.say("%s: rewinds onto %s", p.host.name, r.up.name)
	p.host.w.after(p.takes(100*time.Millisecond, 2*time.Second), func() {
		p.host.process(func() {
			p.halfWay(func() { p.onDisk(func() { r.rewound() }) }, func() { r.done(errStopped) })
		})
	})
}

// rewound ends a rewind.
func (r rewinding) rewound() {
	p := r.postgres
	up := &r.up.pg
	switch {
	case p.life != r.began || r.cut():
		p.host.w.say("%s: the rewind is cut short", p.host.name)
		r.done(errStopped)
	case !r.reaches(), up.replaying(), p.full > 0, p.host.w.mishap():
		r.done(errHalfWritten)
	default:
		// pg_rewind takes the slots away, and notes where the upstream is when it ends: the WAL up to there is to come.
		p.at, p.needs, p.oldest, p.slots, p.ruined = r.copied, up.at, up.oldest, nil, false
		p.checkpoint = up.checkpoint
		r.done(nil)
	}
}

// mayRewind and mayRemove are use_pg_rewind and remove_data_directory_on_rewind_failure of a member.
func (s Schedule) mayRewind(member int) bool { return !slices.Contains(s.NoRewind, member) }

func (s Schedule) mayRemove(member int) string {
	if slices.Contains(s.Replaces, member) {
		return "remove_data_directory_on_rewind_failure"
	}
	return ""
}

// seesStranded is an operator who clones anew whoever says for a while that it cannot be rewound, while
// somebody leads. Where that is the agent's own to do it gets longer.
func (w *world) seesStranded() {
	leader := w.hostNamed(w.consul.leaderNamed())
	for _, h := range w.hosts {
		a := h.agent
		led := leader != nil && (leader.pg.writable || w.isStandby() && leader.pg.ready)
		if a == nil || a.Stranded == "" || !h.pg.ruined && w.schedule.mayRewind(h.id) || !led || w.judge.paused {
			h.beyond = w.now
			continue
		}
		patience := 15 * time.Second
		if a.Dynamic.Rebuild == cluster.RebuildAuto {
			patience = 80 * time.Second // its turn, and what it waits for before
		}
		if w.now < h.beyond+patience {
			continue
		}
		h.beyond = w.now
		w.say("%s: the operator sees that it cannot go on, and clones it anew: %s", h.name, a.Stranded)
		a.post(func() {
			if a.Reinitialize(false, true) == nil { // it may be refused
				h.asked = a.TaskSince()
			}
		})
	}
}
