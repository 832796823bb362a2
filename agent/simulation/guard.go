package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/ha"
)

// guard is the process that kills PostgreSQL when the lease has run out.
type guard struct {
	host     *host
	alive    bool
	stopped  int // faults that keep it from running (SIGSTOP)
	deadline fence.Deadline
	memo     *guardMemo
	asked    cluster.Instant // starts that were asked for before are refused
	held     []func()
	watcher  *watcher // its parent; nil: no guard has run yet
}

// guardMemo is what the guard keeps for the agent.
type guardMemo struct {
	ha.Memo
	config  cluster.Dynamic
	killAt  cluster.Instant
	version uint64
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
func (g *guard) arm(until cluster.Instant, memo guardMemo, newLease bool, done func(error)) {
	var err error
	g.command(func() {
		if err = g.deadline.Arm(g.host.clock(), until, newLease); err == nil {
			g.memo = &memo
			g.watch()
			g.watcher.share(until)
		}
	}, func() {
		if done != nil {
			done(err)
		}
	})
}

var errOvertaken = errors.New("a later request has overtaken this one")

// overtake has starts refused that were asked for before.
func (g *guard) overtake(done func()) {
	asked := g.host.clock()
	g.command(func() { g.asked = max(g.asked, asked) }, done)
}

// start launches PostgreSQL, unless the agent has killed it since it asked, and no primary
// when the deadline has passed.
func (g *guard) start(primary bool, launch func(), refused func(error)) {
	asked := g.host.clock()
	g.command(func() {
		if asked < g.asked && !g.host.w.mutant.LateStart {
			refused(errOvertaken)
			return
		}
		if primary && g.deadline.Over(g.host.clock()) && !g.host.w.mutant.GuardOff {
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
			if !g.alive || g.deadline.Until != until || !g.deadline.Due(g.host.clock()) || g.host.w.mutant.GuardOff {
				return
			}
			g.deadline.Fire()
			g.memo = nil
			g.host.w.say("%s: the guard kills PostgreSQL", g.host.name)
			g.host.pg.kill(func() { g.watcher.share(g.deadline.Until) }) // it need not, any more
		})
	})
}

func (g *guard) disarm(done func()) {
	g.command(func() {
		g.deadline.Disarm()
		g.memo = nil
		g.watcher.share(0)
	}, done)
}

// standDown takes the deadline away and remembers that the shard is paused.
func (g *guard) standDown(memo guardMemo, done func()) {
	g.command(func() {
		g.deadline.Disarm()
		g.memo = &memo
		g.watcher.share(0)
	}, done)
}

func (g *guard) remember(memo guardMemo, done func()) {
	g.command(func() { g.memo = &memo }, done)
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

// recall is what a restarted agent learns: the deadline, and what is remembered. A
// guard that does not answer counts as one whose deadline has passed. Without a guard's
// word the mark tells whether this member has led, and how long it may have.
func (g *guard) recall() (until cluster.Instant, memo *guardMemo, paused, unled bool) {
	const longAgo = 1
	switch {
	case !g.alive:
	case g.stopped > 0, g.deadline.Fired:
		return longAgo, nil, false, false
	case !g.deadline.Until.IsZero():
		return g.deadline.Until, g.memo, false, false
	case g.memo != nil && g.memo.Paused:
		return 0, g.memo, true, false
	}
	return g.host.led, nil, false, g.host.led.IsZero()
}
