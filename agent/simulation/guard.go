package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/member"
)

// guard is the process that kills PostgreSQL when the lease has run out.
type guard struct {
	host      *host
	alive     bool
	stopped   int // faults that keep it from running (SIGSTOP)
	deadline  fence.Deadline
	persisted *member.PersistedState
	asked     cluster.Instant // starts that were asked for before are refused
	held      []func()
	watcher   *watcher // its parent; nil: no guard has run yet
}

// mark is what is written beside the data directory, in a boot of the host.
type mark struct {
	member.LedMark
	boot int
}

// run runs something in the guard's process, later while it is stopped.
func (g *guard) run(do func()) {
	g.host.process(func() {
		if g.stopped > 0 {
			g.held = append(g.held, do)
			return
		}
		do()
	})
}

// command is one order of the agent. A guard that has gone is started again.
func (g *guard) command(do func(), done func()) {
	w := g.host.w
	w.after(w.between(50*time.Microsecond, 2*time.Millisecond), func() {
		g.run(func() {
			if !g.alive {
				g.alive, g.watcher = true, &watcher{host: g.host}
			}
			do()
			if done != nil {
				done()
			}
		})
	})
}

// arm sets or moves the deadline.
func (g *guard) arm(persisted member.PersistedState, newLease bool, done func(error)) {
	until := persisted.KillAt
	var err error
	g.command(func() {
		if err = g.deadline.Arm(g.host.clock(), until, newLease); err == nil {
			g.persisted = &persisted
			g.watch()
			g.watcher.share(until)
		}
	}, func() {
		if done != nil {
			done(err)
		}
	})
}

var errSuperseded = errors.New("a later request has overtaken this one")

// cancelStarts has starts refused that were asked for before.
func (g *guard) cancelStarts(done func()) {
	asked := g.host.clock()
	g.command(func() { g.asked = max(g.asked, asked) }, done)
}

// start launches PostgreSQL, unless the agent has killed it since it asked, and no primary
// when the deadline has passed.
func (g *guard) start(primary bool, launch func(), refused func(error)) {
	asked := g.host.clock()
	g.command(func() {
		if asked < g.asked && !g.host.w.mutant.LateStart {
			refused(errSuperseded)
			return
		}
		if primary && g.deadline.Over(g.host.clock()) && !g.host.w.mutant.GuardOff && !g.host.w.mutant.OverdueStart {
			refused(fence.ErrDeadlinePassed)
			return
		}
		launch()
	}, nil)
}

// watch waits for the deadline as it is now.
func (g *guard) watch() {
	until := g.deadline.Until
	g.host.w.at(g.host.when(until), func() {
		g.run(func() {
			if !g.alive || g.deadline.Until != until || g.host.w.mutant.GuardOff {
				return
			}
			if !g.deadline.Due(g.host.clock()) {
				if g.host.clock().Before(until) { // the clock has stood still
					g.watch()
				}
				return
			}
			g.deadline.Fire()
			g.persisted = nil
			if g.host.pg.running {
				g.host.w.judge.acts(g.host, "the guard kills PostgreSQL")
			}
			g.host.w.say("%s: the guard kills PostgreSQL", g.host.name)
			g.host.pg.kill(func() { g.watcher.share(g.deadline.Until) }) // it need not, any more
		})
	})
}

func (g *guard) disarm(done func(error)) {
	g.command(func() {
		g.deadline.Disarm()
		g.persisted = nil
		g.watcher.share(0)
	}, func() { done(nil) })
}

// standDown takes the deadline away and remembers that the shard is paused.
func (g *guard) standDown(persisted member.PersistedState, done func(error)) {
	g.command(func() {
		g.deadline.Disarm()
		g.persisted = &persisted
		g.watcher.share(0)
	}, func() { done(nil) })
}

func (g *guard) remember(persisted member.PersistedState, done func(error)) {
	g.command(func() { g.persisted = &persisted }, func() { done(nil) })
}

// die is the guard's end: the kernel signals the postmaster that it has started, and the
// watcher kills all that was the guard's.
func (g *guard) die() {
	if !g.alive {
		return
	}
	h, held, last := g.host, g.held, g.watcher
	h.changes(func() { *g = guard{host: h, watcher: last} })
	for _, f := range held {
		h.w.after(0, func() { g.run(f) }) // said again to the next guard
	}
	h.w.say("%s: the guard is gone", h.name)
	if h.pg.parent == last {
		h.pg.later(h.w.between(time.Millisecond, 100*time.Millisecond), h.pg.end, func() {})
	}
	last.inherit()
}

// recall is what a restarted agent learns.
func (g *guard) recall() member.Recalled {
	says := member.GuardSays{Runs: g.alive, Answers: g.alive && g.stopped == 0}
	if says.Answers {
		says.Fired, says.Until, says.PersistedState = g.deadline.Fired, g.deadline.Until, g.persisted
	}
	return member.Recall(says, g.host.mark.read(g.host))
}

// read is what the mark says in this boot of its host.
func (m *mark) read(h *host) *member.LedMark {
	if m == nil {
		return nil
	}
	return m.In(m.boot == h.boot)
}
