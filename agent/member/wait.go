package member

import "time"

// waiter is somebody who waits until something holds.
type waiter struct {
	holds func() bool
	done  func(held bool)
	over  bool
}

// waiters are those who wait.
type waiters struct {
	*Shard
	all []*waiter
}

// await calls done as soon as something holds, or after limit, or when the work is broken
// off.
func (ws *waiters) await(w *Work, limit time.Duration, holds func() bool, done func(held bool)) {
	if holds() {
		done(true)
		return
	}
	one := &waiter{holds: holds}
	end := func(held bool) {
		if !one.over {
			one.over = true
			done(held)
		}
	}
	one.done = end
	ws.all = append(ws.all, one)
	ws.After(limit, func() { end(false) })
	if w != nil {
		w.OnBreak(func() { end(false) })
	}
}

// tell tells those whose wait is over.
func (ws *waiters) tell() {
	if len(ws.all) == 0 {
		return
	}
	all := ws.all
	ws.all = nil
	for _, one := range all {
		switch {
		case one.over:
		case one.holds():
			one.done(true)
		default:
			ws.all = append(ws.all, one)
		}
	}
}
