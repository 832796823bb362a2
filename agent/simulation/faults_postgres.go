package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// The faults of PostgreSQL, of its processes and of its disk that do not end with one kill.
const (
	StopPostmaster Kind = "stop-postmaster" // SIGSTOP, of a primary too; its backends commit
	Orphans        Kind = "orphans"         // the postmaster is killed, its backends commit until For is over
	KillFails      Kind = "kill-fails"      // the agent's: it cannot tell PostgreSQL's processes
	Linger         Kind = "linger"          // what is killed waits for its disk
	DiskFull       Kind = "disk-full"
	HangWork       Kind = "hang-work" // promotions, starts, clones, rewinds, pre_promote stop half-way
	VanishData     Kind = "vanish-data"
	ReplayTrails   Kind = "replay-trails" // what was received is replayed Value KB later
	PauseVM        Kind = "pause-vm"      // the host stands still, and its clock too
)

func postgresFaults() map[Kind]fault {
	return map[Kind]fault{
		StopPostmaster: {member: true, inject: stopPostmaster},
		Orphans: {member: true, inject: func(w *world, e Event) func() {
			pg := &w.hosts[e.Member].pg
			if !pg.orphan() {
				return nil
			}
			life := pg.life
			return func() {
				if pg.life == life {
					pg.endOrphans()
				}
			}
		}},
		KillFails: {member: true, inject: func(w *world, e Event) func() {
			h := w.hosts[e.Member]
			h.pg.unkillable++
			return func() {
				if h.pg.unkillable--; h.pg.unkillable == 0 && h.loose {
					h.back()
				}
			}
		}},
		Linger:   {member: true, inject: counted(func(p *postgres) *int { return &p.lingers }, func(p *postgres) { p.remains = p.remains && p.diskHangs > 0 })},
		DiskFull: {member: true, inject: counted(func(p *postgres) *int { return &p.full }, nil)},
		HangWork: {member: true, inject: counted(func(p *postgres) *int { return &p.workHangs }, func(p *postgres) {
			left := p.halfway
			p.halfway = nil
			for _, f := range left {
				p.host.w.after(p.host.w.between(0, 20*time.Millisecond), f)
			}
		})},
		ReplayTrails: {member: true, value: true, inject: func(w *world, e Event) func() {
			p := &w.hosts[e.Member].pg
			p.trails = int64(e.Value) << 10
			return func() { p.trails = 0 }
		}},
		VanishData: {member: true, inject: vanishData},
		PauseVM:    {member: true, inject: pauseVM},
	}
}

func stopPostmaster(w *world, e Event) func() {
	pg := &w.hosts[e.Member].pg
	if !pg.ready {
		return nil
	}
	life := pg.life
	pg.hung = true
	return func() {
		if pg.life == life {
			pg.goOn()
		}
	}
}

// counted is a fault of PostgreSQL that lasts; over is called when no such fault is left.
func counted(count func(*postgres) *int, over func(*postgres)) func(*world, Event) func() {
	return func(w *world, e Event) func() {
		p := &w.hosts[e.Member].pg
		n := count(p)
		*n++
		return func() {
			if *n--; *n == 0 && over != nil {
				over(p)
			}
		}
	}
}

// orphan ends the postmaster alone: what clients have begun goes on.
func (p *postgres) orphan() bool {
	if !p.running || !p.writable {
		return false
	}
	p.life++
	p.running, p.ready, p.stopping, p.streaming, p.hung, p.served, p.recovering = false, false, false, false, false, false, false
	p.orphans = true
	p.abandon()
	if a := p.host.agent; a != nil {
		a.later(p.host.w.between(0, 3*time.Millisecond), a.postmasterGone)
	}
	return true
}

func (p *postgres) endOrphans() {
	if p.orphans {
		p.orphans = false
		p.refuse()
	}
}

// abandon tells those who wait for a postmaster that it is gone.
func (p *postgres) abandon() {
	left := append(p.stuck, p.flushes...)
	p.stuck, p.flushes = nil, nil
	for _, s := range left {
		s.lost()
	}
}

// halfWay goes on with a piece of work unless it hangs there, until the fault is over; by
// then this life of PostgreSQL may have ended.
func (p *postgres) halfWay(do, lost func()) {
	if p.workHangs == 0 {
		do()
		return
	}
	life := p.life
	p.halfway = append(p.halfway, func() {
		p.host.process(func() {
			if p.life != life {
				lost()
				return
			}
			do()
		})
	})
}

// vanishData removes a data directory with all that is in it, under a PostgreSQL that runs
// too: that one ends soon. It happens only where another member has what was acknowledged:
// nobody could make good the rest.
func vanishData(w *world, e Event) func() {
	h, leader := w.hosts[e.Member], w.hostNamed(w.consul.leaderNamed())
	if leader == nil || leader == h || !leader.pg.writable {
		return nil
	}
	if key, found := w.consul.keys[keySync]; found && key.value.(cluster.Sync).Leader != leader.name {
		return nil
	}
	h.pg.end()
	h.pg.discard()
	return nil
}

// pauseVM is what no watchdog and no clock of the host notices: it stands still, and finds
// its lease where it was.
func pauseVM(w *world, e Event) func() {
	h := w.hosts[e.Member]
	if h.frozen || !h.up {
		return nil
	}
	began := w.now
	goOn := freezeHost(w, e)
	return func() {
		h.offset -= time.Duration(float64(w.now-began) * h.rate)
		h.blind = w.now + longestLease
		goOn()
	}
}

// longestLease is that of any schedule, and the drift.
const longestLease = 31 * time.Second

var errNotKilled = errors.New("the processes of PostgreSQL cannot be told from others")
