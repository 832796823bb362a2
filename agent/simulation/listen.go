package simulation

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// watchFor is how long one blocking query may take: a share of the real one, which
// is tried at several addresses.
const watchFor = 13 * time.Second

// watchConsul keeps one blocking query open on the shard (agent/watch.go).
func (a *agent) watchConsul(index uint64) {
	w := a.host.w
	answered := false
	again := func(next uint64, after time.Duration) {
		if !answered {
			answered = true
			a.later(after, func() { a.watchConsul(next) })
		}
	}
	me, there := a.host.id, len(w.hosts)
	if w.consul.state == consulDown {
		again(index, a.host.w.retryAfter())
		return
	}
	reply := func() {
		s, late := w.consul.watched(), w.net.stale(a.host)
		w.after(late, func() {
			w.net.send(there, me, func() {
				a.do(func() {
					if answered {
						return
					}
					again(s.Index, 0)
					a.Accept(*s, false)
					a.SawRoute(s.Route) // by a query of its own, in truth
					a.step()
				})
			})
		})
	}
	w.net.send(me, there, func() {
		w.consul.arrive(func() {
			if refused, _ := w.refuses(me); refused {
				w.net.send(there, me, func() { a.do(func() { again(index, w.retryAfter()) }) })
				return
			}
			if w.consul.changed > index {
				reply()
				return
			}
			w.consul.waiting = append(w.consul.waiting, waiter{index: index, answer: reply, broken: func() {
				a.do(func() { again(index, a.host.w.retryAfter()) })
			}})
		}, nil)
	})
	w.at(a.host.when(a.host.clock().Add(watchFor)), func() {
		if !answered {
			a.do(func() { again(0, a.host.w.retryAfter()) })
		}
	})
}

// keepSession makes a session, renews it, and makes another one when it is lost.
func (a *agent) keepSession() {
	a.sessionTimer++
	timer := a.sessionTimer
	again := func(after time.Duration) {
		a.later(after, func() {
			if timer == a.sessionTimer {
				a.keepSession()
			}
		})
	}
	timeout, id, ttl := max(a.Dynamic.RetryTimeout, time.Second), a.Session, sessionTTL(a.Dynamic.TTL)
	ask(a, timeout, func(c *consul) (string, error) {
		if id != "" {
			if s := c.session(id); s != nil && s.ttl == ttl {
				c.renew(s)
				return id, nil
			}
		}
		return c.createSession(a.host.id, ttl), nil
	}, func(got string, err error) {
		if err != nil {
			again(a.host.w.retryAfter())
			return
		}
		again(min(a.Dynamic.LoopWait, ttl/3))
		if a.Session != got {
			a.SawSession(got)
			a.step()
		}
	})
}

func sessionTTL(ttl time.Duration) time.Duration { return max(10*time.Second, ttl) }

// watchPostgres looks at PostgreSQL again and again.
func (a *agent) watchPostgres() {
	a.lookAtPostgres()
	a.later(min(max(a.Dynamic.LoopWait/3, time.Second), 5*time.Second), a.watchPostgres)
}

func (a *agent) lookAtPostgres() {
	look := a.look()
	a.later(a.host.pg.takes(0, 4*time.Millisecond), func() {
		a.Saw(look)
		a.step()
	})
}

// look looks at PostgreSQL, and at the data directory when none runs.
func (a *agent) look() member.Look {
	look := member.Look{Began: a.host.clock(), State: a.host.pg.observe()}
	a.host.w.mutant.looked(a, &look.State)
	if !look.State.Running && a.host.pg.diskHangs == 0 {
		found := a.host.pg.found()
		look.Found = &found
	}
	return look
}

// peerValue is what other members are told when they ask.
func (a *agent) peerValue() ha.Peer {
	o := a.PG.Observed
	_, detached := a.Detaching()
	return ha.Peer{
		Name: a.host.name, Answered: true, State: a.StateName(), Primary: a.PG.Primary(),
		Timeline: o.Timeline, LSN: o.LSN(), Replaying: o.Replaying, Restoring: a.Restoring(), Tags: a.TagsNow(),
		SystemIdentifier: a.Data.SystemIdentifier,
		Detached:         detached, Attempts: takeoverPeer(a).DetachedFor(),
	}
}

// serveObserve looks at PostgreSQL anew before it answers.
func serveObserve(a *agent, answer func(member.Seen)) {
	said := func() {
		answer(member.Seen{Peer: a.shown, Lictor: true, Age: a.host.clock().Sub(a.PG.ObservedAt)})
	}
	a.do(func() {
		look := a.look()
		if a.host.w.chance(0.05) || a.host.pg.slow > 0 && a.host.w.chance(0.8) { // that takes too long: what is known must do
			said()
			return
		}
		a.later(a.host.w.between(0, 4*time.Millisecond), func() {
			a.Saw(look)
			a.step()
			said()
		})
	})
}

func (a *agent) awaitDetached(index uint64, limit cluster.Instant, answer func(error)) {
	a.later(a.host.w.between(0, 5*time.Millisecond), func() {
		switch {
		case a.detachedFrom(index):
			answer(nil)
		case a.host.clock().Before(limit):
			a.awaitDetached(index, limit, answer)
		default:
			answer(errSilent)
		}
	})
}

func (a *agent) detachedFrom(index uint64) bool {
	detached, _ := a.Detaching()
	return index > 0 && detached >= index
}
