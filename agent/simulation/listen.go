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
					a.Accept(s, false)
					a.step()
				})
			})
		})
	}
	w.net.send(me, there, func() {
		w.consul.arrive(func() {
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
			a.Session = got
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

func (a *agent) kickPostgres() { a.later(a.dispatch(), a.lookAtPostgres) }

func (a *agent) lookAtPostgres() {
	edge, began := a.taskEdge, a.host.clock()
	o := a.host.pg.observe()
	a.later(a.host.pg.takes(0, 4*time.Millisecond), func() {
		if a.taskEdge == edge && began > a.observedAt {
			a.sawPostgres(o)
			a.observedAt = began
			a.step()
		}
	})
}

// peerValue is what other members are told when they ask.
func (a *agent) peerValue() ha.Peer {
	return ha.Peer{
		Name: a.host.name, Answered: true, State: a.stateName(), Primary: a.pg.primary(),
		Timeline: a.pg.observed.timeline, LSN: a.pg.observed.lsn, Replaying: a.pg.observed.replaying, Restoring: a.restoring(), Tags: a.tags(),
		Parted: a.observedParted(),
	}
}

// observedParted is the status under which this member had parted when it looked at
// its PostgreSQL.
func (a *agent) observedParted() uint64 {
	if a.upstream != "" || a.task != nil || a.pg.primary() || a.observedAt <= a.alone {
		return 0
	}
	return a.Parted
}

func serveStatus(a *agent, answer func(ha.Peer)) { a.do(func() { answer(a.shown) }) }

// serveObserve looks at PostgreSQL anew before it answers.
func serveObserve(a *agent, answer func(member.Seen)) {
	a.do(func() {
		edge, began := a.taskEdge, a.host.clock()
		o := a.host.pg.observe()
		if a.host.w.chance(0.05) || a.host.pg.slow > 0 && a.host.w.chance(0.8) { // that takes too long: what is known must do
			answer(member.Seen{Peer: a.shown, Lictor: true, Age: a.host.clock().Sub(a.observedAt)})
			return
		}
		a.later(a.host.w.between(0, 4*time.Millisecond), func() {
			if a.taskEdge == edge {
				a.sawPostgres(o)
				a.observedAt = began
				a.step()
			}
			answer(member.Seen{Peer: a.shown, Lictor: true, Age: a.host.clock().Sub(a.observedAt)})
		})
	})
}

func (a *agent) awaitParted(index uint64, limit cluster.Instant, answer func(error)) {
	a.later(a.host.w.between(0, 5*time.Millisecond), func() {
		switch {
		case a.upstream == "" && a.task == nil && !a.pg.primary() && a.Parted >= index:
			answer(nil)
		case a.host.clock().Before(limit):
			a.awaitParted(index, limit, answer)
		default:
			answer(errCancelled)
		}
	})
}

func (a *agent) stateName() string {
	if a.task != nil {
		switch a.task.kind {
		case ha.TaskDemote, ha.TaskHandover:
			if a.pg.running {
				return cluster.StateStopping
			}
		}
	}
	switch {
	case a.pg.running && a.pg.observed.accepting:
		return cluster.StateRunning
	case a.pg.running:
		return cluster.StateStarting
	case !a.pgDown.IsZero():
		return cluster.StateCrashed
	default:
		return cluster.StateStopped
	}
}

// publish tells others what has changed (agent/publish.go).
func (a *agent) publish() {
	if a.Read.IsZero() || a.dead {
		return
	}
	a.touch()
	mine := a.Snapshot.Leader.Exists() && a.Session != "" && a.Snapshot.Leader.Session == a.Session
	if a.Tenure.Held(a.host.clock()) && mine {
		a.writeHistory()
	}
}

func (a *agent) writeHistory() {
	o := a.pg.observed
	if !o.accepting || o.recovery || o.timeline <= 1 || a.history == o.timeline || a.Writing(a.Keys.History()) {
		return
	}
	timeline := o.timeline
	lines := a.host.pg.at.history()
	a.WriteAsLeader("history", a.Keys.History(), a.Snapshot.History.ModifyIndex, lines, func(uint64) { a.history = timeline })
}

// told is what a member key says that can change.
type told struct {
	state    string
	primary  bool
	timeline int
	pause    bool
}

// touch writes the member key when it has changed, or is not bound to our session.
func (a *agent) touch() {
	t := &a.touched
	if t.touching || a.Session == "" {
		return
	}
	now := told{state: a.stateName(), primary: a.pg.running && a.pg.primary(), timeline: a.pg.observed.timeline, pause: a.Dynamic.Pause}
	entry, exists := a.Snapshot.Member(a.host.name)
	settled := a.Read.Sub(t.at) > time.Second
	ours := exists && entry.Session == a.Session
	bound := t.session == a.Session && (ours || !settled)
	if settled && ours && entry.ModifyIndex > t.index {
		bound = false // an earlier write of ours has landed late
	}
	if bound && now == t.told {
		return
	}
	value := cluster.Member{
		Name: a.host.name, APIURL: "http://" + a.host.name, State: now.state, Role: cluster.RoleReplica, Tags: a.tags(),
		Timeline: now.timeline, Pause: now.pause,
	}
	if now.primary {
		value.Role = cluster.RolePrimary
	}
	key, session := keyMembers+a.host.name, a.Session
	var ops []op
	if exists && entry.Session != session && t.session != session {
		ops = append(ops, op{verb: deleteCAS, key: key, index: entry.ModifyIndex})
	}
	ops = append(ops, op{verb: lock, key: key, session: session, value: value})
	t.touching = true
	a.transact(a.Dynamic.RetryTimeout, ops, func(indexes map[string]uint64, err error) {
		if err == nil {
			t.index = indexes[key]
			t.touching, t.told, t.session, t.at = false, now, session, a.host.clock()
			return
		}
		t.session = ""
		a.Reread()
		a.later(a.host.w.retryAfter(), func() { t.touching = false; a.step() })
	})
}
