package simulation

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is the disk under a data directory: what PostgreSQL and the agent do on it, while it
// hangs or is full, and how a leader finds out.

// HangDisk has nothing come back that reads or writes the data directory: what is committed is not
// flushed, and what is received neither.
const HangDisk Kind = "hang-disk"

func hangDisk(w *world, e Event) func() {
	p := &w.hosts[e.Member].pg
	p.diskHangs++
	return func() {
		if p.diskHangs--; p.diskHangs > 0 {
			return
		}
		if p.lingers == 0 {
			p.remains = false
		}
		flushes, waiting := p.flushes, p.waiting
		p.flushes, p.waiting = nil, nil
		for _, s := range flushes {
			p.later(w.between(0, 20*time.Millisecond), func() { p.flush(s.do, s.lost) }, s.lost)
		}
		for _, f := range waiting {
			w.after(w.between(0, 20*time.Millisecond), func() { p.host.process(func() { p.onDisk(f) }) })
		}
	}
}

// disk is the one under a data directory.
type disk struct {
	// diskHangs: faults that keep everybody from it; flushes, waiting: what of PostgreSQL and of
	// others waits for it; full: faults.
	diskHangs, full int
	flushes         []stuck
	waiting         []func()
}

// onDisk does something that needs the data directory's disk, when that answers.
func (p *disk) onDisk(do func()) {
	if p.diskHangs > 0 {
		p.waiting = append(p.waiting, do)
		return
	}
	do()
}

// flush is that of a piece of PostgreSQL's own work, which is lost with this life of it.
func (p *disk) flush(do, lost func()) {
	if p.diskHangs > 0 {
		p.flushes = append(p.flushes, stuck{do, lost})
		return
	}
	do()
}

// writes reports whether what is committed or received gets to the disk.
func (p *disk) writes() bool { return p.full == 0 && p.diskHangs == 0 }

// probeAtLeast is how often, at the most, a leader probes its disk (agent/disk.go).
const probeAtLeast = 3 * time.Second

// probeTakes is how long a probe takes where nothing is wrong.
const probeTakes = 5 * time.Millisecond

// diskProbe is one that a leader has written to its disk.
type diskProbe struct {
	began cluster.Instant
	ended bool
	full  bool
	heard func()
}

// watchDisk probes the disk again and again while this member leads, and goes on while there is
// trouble (agent/disk.go).
func (a *agent) watchDisk() {
	every := max(a.Dynamic.LoopWait, probeAtLeast)
	a.later(every, func() {
		if !a.Leads() && !a.troubled || a.host.w.mutant.DiskUnseen {
			a.watchDisk()
			return
		}
		a.probeDisk(every)
	})
}

// probeDisk waits for a probe, or for the one that hangs still.
func (a *agent) probeDisk(limit time.Duration) {
	over := false
	saw := func(trouble string, since cluster.Instant) {
		if over {
			return
		}
		news := a.troubled || trouble != ""
		over, a.troubled = true, trouble != ""
		a.SawDisk(trouble, since)
		if news {
			a.step()
		}
		a.watchDisk()
	}
	probe := a.probe
	if probe == nil {
		probe = &diskProbe{began: a.host.clock()}
		a.probe = probe
		a.later(probeTakes, func() {
			a.host.pg.onDisk(func() {
				probe.ended, probe.full = true, a.host.pg.full > 0
				a.do(func() { probe.heard() })
			})
		})
	}
	probe.heard = func() {
		a.probe = nil
		if probe.full {
			saw("no space left on device", a.host.clock())
			return
		}
		saw("", 0)
	}
	a.later(limit, func() {
		if !probe.ended {
			saw("a write to it does not come back", probe.began)
		}
	})
}
