package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// errNotSent: a request that Consul certainly did not get.
var errNotSent = errors.New("certainly had no effect")

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
	deadline := a.host.clock().Add(timeout)
	a.later(a.dispatch(), func() {
		if finished {
			return
		}
		if !a.host.clock().Before(deadline) {
			finish(nothing, cluster.ErrUncertain)
			return
		}
		me, there := a.host.id, len(w.hosts)
		if w.consul.state == consulDown && w.net.open(me, there) {
			finish(nothing, errNotSent)
			return
		}
		w.net.send(me, there, func() {
			w.consul.arrive(func() {
				if refused, effect := w.refuses(me); refused {
					err := errNotSent
					if effect {
						_, _ = work(&w.consul)
					}
					if w.net.status[me] >= 500 {
						err = cluster.ErrUncertain
					}
					w.after(w.errorSoon(), func() { w.net.send(there, me, func() { a.do(func() { finish(nothing, err) }) }) })
					return
				}
				value, err := work(&w.consul)
				w.net.send(there, me, func() { a.do(func() { finish(value, err) }) })
			}, func() {
				w.net.send(there, me, func() { a.do(func() { finish(nothing, cluster.ErrUncertain) }) })
			})
		})
	})
	w.at(a.host.when(deadline), func() {
		if !finished {
			a.do(func() { finish(nothing, cluster.ErrUncertain) })
		}
	})
}

// transact sends a transaction.
func (a *agent) transact(timeout time.Duration, ops []op, done func(indexes map[string]uint64, err error)) {
	ask(a, timeout, func(c *consul) (map[string]uint64, error) {
		if !c.commit(ops) {
			return nil, cluster.ErrConflict
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
	deadline := a.host.clock().Add(timeout)
	a.later(a.dispatch(), func() {
		if to == nil || w.nameless() { // its address is not known
			finish(nothing, false)
			return
		}
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

// leaderOps is the transaction of Store.WriteAsLeader; nil when there is nothing to
// do.
func leaderOps(session, key string, index uint64, value any, keptIfSame bool) []op {
	ops := []op{{verb: checkSession, key: keyLeader, session: session}}
	switch {
	case value == nil && index == 0:
		return nil
	case value == nil:
		return append(ops, op{verb: deleteCAS, key: key, index: index})
	default:
		return append(ops, replace(key, index, value, keptIfSame)...)
	}
}

// replace sets a key that must have this index, so that it gets another one even when
// the value is the same (agent/consul, ops.replace).
func replace(key string, index uint64, value any, keptIfSame bool) []op {
	if index == 0 || keptIfSame {
		return []op{expect(key, index), {verb: set, key: key, value: value}}
	}
	return []op{{verb: deleteCAS, key: key, index: index}, {verb: set, key: key, value: value}}
}
