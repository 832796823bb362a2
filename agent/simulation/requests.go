package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// How a request to Consul can fail (agent/consul/store.go).
var (
	errConflict  = errors.New("a check failed")
	errUncertain = errors.New("the outcome is unknown")
	errNotSent   = errors.New("certainly had no effect")
)

// outcome sorts the failures of a write, as agent/act.go does.
func outcome(err error) ha.Outcome {
	switch {
	case errors.Is(err, errConflict):
		return ha.Refused
	case errors.Is(err, errUncertain):
		return ha.Unknown
	default:
		return ha.NoEffect
	}
}

// dispatch is how long it takes until what the loop began is on its way: another
// goroutine has to be scheduled.
func (a *agent) dispatch() time.Duration {
	if a.host.w.chance(0.01) {
		return a.host.w.between(0, 300*time.Millisecond)
	}
	return a.host.w.between(0, time.Millisecond)
}

// ask sends a request to Consul. done is called once, on the agent's loop, with the
// answer or with what became of it; it has the loop come round if need be.
func ask[T any](a *agent, timeout time.Duration, work func(*consul) (T, error), done func(T, error)) {
	w := a.host.w
	finished := false
	finish := func(value T, err error) {
		if !finished {
			finished = true
			done(value, err)
		}
	}
	var nothing T
	deadline := a.clock().Add(timeout)
	a.later(a.dispatch(), func() {
		if finished {
			return
		}
		if !a.clock().Before(deadline) {
			finish(nothing, errUncertain)
			return
		}
		me, there := a.host.id, len(w.hosts)
		if w.consul.state == consulDown && w.net.open(me, there) {
			finish(nothing, errNotSent)
			return
		}
		w.net.send(me, there, func() {
			w.consul.arrive(func() {
				value, err := work(&w.consul)
				w.net.send(there, me, func() { a.do(func() { finish(value, err) }) })
			}, func() {
				w.net.send(there, me, func() { a.do(func() { finish(nothing, errUncertain) }) })
			})
		})
	})
	w.at(a.host.when(deadline), func() {
		if !finished {
			a.do(func() { finish(nothing, errUncertain) })
		}
	})
}

// transact sends a transaction.
func (a *agent) transact(timeout time.Duration, ops []op, done func(indexes map[string]uint64, err error)) {
	ask(a, timeout, func(c *consul) (map[string]uint64, error) {
		if !c.commit(ops) {
			return nil, errConflict
		}
		indexes := make(map[string]uint64, 4)
		for _, o := range ops {
			if e, found := c.keys[o.key]; found {
				indexes[o.key] = e.index
			}
		}
		c.w.judge.committed(a.host, ops)
		return indexes, nil
	}, func(indexes map[string]uint64, err error) {
		done(indexes, err)
		a.step()
	})
}

// transactTold sends a beat or takeover once the guard knows the end of a lease that was
// cut, and nothing of a pause that the status ends (guardTold in agent/guardian.go).
func (a *agent) transactTold(t0 cluster.Instant, ttl, timeout time.Duration, ops []op, done func(indexes map[string]uint64, err error)) {
	deadline := a.clock().Add(timeout)
	send := func(err error) {
		if err == nil {
			a.transact(max(deadline.Sub(a.clock()), time.Millisecond), ops, done)
			return
		}
		done(nil, errNotSent)
		a.step()
	}
	memo := a.memo()
	memo.Paused = a.dynamic.Pause // as the status will say
	shorten := !a.tenure.Until().IsZero() && !a.pauseInForce() && !a.host.w.mutant.GuardNotShortened
	a.guardian.leads(memo, t0.Add(ttl-a.margins().KillBefore), timeout, func(err error) {
		if err != nil || !shorten {
			send(err)
			return
		}
		a.guardian.shorten(memo, timeout, send)
	})
}

// call asks another member over REST. serve runs on that member, done on our loop;
// ok is false when there was no answer in time.
func call[T any](a *agent, to *host, timeout time.Duration, serve func(*agent, func(T)), done func(answer T, ok bool)) {
	w := a.host.w
	finished := false
	finish := func(value T, ok bool) {
		if !finished {
			finished = true
			done(value, ok)
			a.step()
		}
	}
	var nothing T
	deadline := a.clock().Add(timeout)
	a.later(a.dispatch(), func() {
		w.net.send(a.host.id, to.id, func() {
			if to.agent == nil || !to.up {
				if to.up { // the connection is refused
					w.net.send(to.id, a.host.id, func() { a.do(func() { finish(nothing, false) }) })
				}
				return
			}
			serve(to.agent, func(value T) {
				w.net.send(to.id, a.host.id, func() { a.do(func() { finish(value, true) }) })
			})
		})
	})
	w.at(a.host.when(deadline), func() {
		if !finished {
			a.do(func() { finish(nothing, false) })
		}
	})
}
