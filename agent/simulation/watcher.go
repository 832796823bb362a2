package simulation

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// watcher is the guard's parent, which does what the guard cannot do any more
// (agent/fence/watcher.go). Each guard has one of its own, and another one after that.
type watcher struct {
	host    *host
	ended   bool
	stopped int // faults that keep it from running (SIGSTOP)
	held    []func()
	// until is the deadline that it reads in the memory which it shares with the guard,
	// fired the one at which it has killed.
	until, fired cluster.Instant
}

// fireBehind and watchEvery are those of agent/fence/watcher.go.
const (
	fireBehind = 50 * time.Millisecond
	watchEvery = 200 * time.Millisecond
)

// runs reports whether it can do something just now.
func (o *watcher) runs() bool { return o != nil && !o.ended && o.stopped == 0 }

// run runs something in the watcher's process, later while it is stopped.
func (o *watcher) run(do func()) {
	o.host.process(func() {
		switch {
		case o.ended:
		case o.stopped > 0:
			o.held = append(o.held, do)
		default:
			do()
		}
	})
}

// share is the guard's: whatever has become of the watcher, it writes the deadline down.
func (o *watcher) share(until cluster.Instant) {
	o.until = until
	if until.IsZero() {
		return
	}
	w := o.host.w
	at := o.host.when(until.Add(fireBehind))
	if soon := w.now + watchEvery; at < soon { // it may not have looked yet
		at = w.between(max(at, w.now), soon)
	}
	w.at(at, func() {
		o.run(func() {
			if o.until != until || o.fired == until || w.mutant.WatcherOff {
				return
			}
			if o.host.clock().Before(until) { // it has stood still
				o.share(until)
				return
			}
			o.fired = until
			if o.host.pg.running {
				w.judge.acts(o.host, "the guard's watcher kills PostgreSQL")
			}
			w.say("%s: the guard has not killed PostgreSQL at the deadline: its watcher does", o.host.name)
			o.host.pg.kill(func() {})
		})
	})
}

// inherit is the guard's end: its processes are the watcher's now, which kills them and
// ends. It spares what the next guard has started, and what no guard has.
func (o *watcher) inherit() {
	w, pg := o.host.w, &o.host.pg
	o.until = 0
	w.after(w.between(time.Millisecond, 20*time.Millisecond), func() {
		o.run(func() {
			if w.mutant.WatcherOff {
				return
			}
			o.host.changes(func() { o.ended = true })
			if pg.parent == o {
				pg.end()
			}
		})
	})
}

// die is a kill of the watcher: its guard, if it runs, makes another one, which watches the
// same postmaster.
func (o *watcher) die() {
	if o == nil || o.ended {
		return
	}
	h, g := o.host, &o.host.guard
	h.w.say("%s: the guard's watcher is gone", h.name)
	h.changes(func() { o.ended, o.held = true, nil })
	h.w.after(h.w.between(time.Millisecond, 50*time.Millisecond), func() {
		g.run(func() {
			if !g.alive || g.watcher != o {
				return
			}
			g.watcher = &watcher{host: h}
			if h.pg.parent == o {
				h.pg.parent = g.watcher
			}
			g.watcher.share(g.deadline.Until)
		})
	})
}

// stop stops it until the fault is over.
func (o *watcher) stop() (goOn func()) {
	if o == nil || o.ended {
		return nil
	}
	o.stopped++
	return func() {
		o.host.changes(func() { o.stopped-- })
		if o.stopped > 0 {
			return
		}
		held := o.held
		o.held = nil
		for _, f := range held {
			o.run(f)
		}
	}
}
