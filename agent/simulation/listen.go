package simulation

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
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
		again(index, a.retryAfter())
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
					a.accept(s, false)
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
				a.do(func() { again(index, a.retryAfter()) })
			}})
		}, nil)
	})
	w.at(a.host.when(a.clock().Add(watchFor)), func() {
		if !answered {
			a.do(func() { again(0, a.retryAfter()) })
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
	timeout, id, ttl := max(a.dynamic.RetryTimeout, time.Second), a.session, sessionTTL(a.dynamic.TTL)
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
			again(a.retryAfter())
			return
		}
		again(min(a.dynamic.LoopWait, ttl/3))
		if a.session != got {
			a.session = got
			a.step()
		}
	})
}

func (a *agent) kickSession() { a.later(0, a.keepSession) }

func sessionTTL(ttl time.Duration) time.Duration { return max(10*time.Second, ttl) }

// watchPostgres looks at PostgreSQL again and again.
func (a *agent) watchPostgres() {
	a.lookAtPostgres()
	a.later(min(max(a.dynamic.LoopWait/3, time.Second), 5*time.Second), a.watchPostgres)
}

func (a *agent) kickPostgres() { a.later(a.dispatch(), a.lookAtPostgres) }

func (a *agent) lookAtPostgres() {
	edge, began := a.taskEdge, a.clock()
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

// seen is what a member says of itself, and how old that is.
type seen struct {
	peer ha.Peer
	age  time.Duration
}

// serveObserve looks at PostgreSQL anew before it answers.
func serveObserve(a *agent, answer func(seen)) {
	a.do(func() {
		edge, began := a.taskEdge, a.clock()
		o := a.host.pg.observe()
		if a.host.w.chance(0.05) || a.host.pg.slow > 0 && a.host.w.chance(0.8) { // that takes too long: what is known must do
			answer(seen{a.shown, a.clock().Sub(a.observedAt)})
			return
		}
		a.later(a.host.w.between(0, 4*time.Millisecond), func() {
			if a.taskEdge == edge {
				a.sawPostgres(o)
				a.observedAt = began
				a.step()
			}
			answer(seen{a.shown, a.clock().Sub(a.observedAt)})
		})
	})
}

// askPeers asks every other member how it fares, all at once; if part is not zero, they
// are asked to part from the old leader first.
func (a *agent) askPeers(part uint64) {
	if a.pending {
		return
	}
	a.asked, a.askedToPart, a.answers, a.pending = a.clock(), part, nil, true
	a.askedLSN = a.pg.observed.lsn
	var peers []ha.Peer
	for _, m := range a.Snapshot.Members {
		if m.OK() && m.Value.Name != a.host.name {
			peers = append(peers, ha.Peer{Name: m.Value.Name})
		}
	}
	open, round := len(peers), a.asked
	finish := func() { a.pending = false }
	if open == 0 {
		a.later(0, func() { finish(); a.step() })
	}
	observe := func(i int, parted uint64) {
		asked := a.clock()
		call(a, a.host.w.hostNamed(peers[i].Name), time.Second, serveObserve, func(s seen, ok bool) {
			if ok {
				peers[i] = s.peer
				peers[i].Observed = asked.Add(-s.age - time.Millisecond)
				peers[i].Parted = min(parted, s.peer.Parted)
				if a.host.w.mutant.VoterStays {
					peers[i].Parted = parted
				}
			}
			if a.asked == round {
				a.answers = append(a.answers, peers[i])
			}
			if open--; open == 0 {
				finish()
			}
		})
	}
	for i := range peers {
		if part == 0 {
			observe(i, 0)
			continue
		}
		call(a, a.host.w.hostNamed(peers[i].Name), time.Second, servePart(part), func(err error, ok bool) {
			if ok && err == nil {
				observe(i, part)
			} else {
				observe(i, 0)
			}
		})
	}
}

// partLimit is how long a member may take to part from the old leader (agent/api).
const partLimit = 500 * time.Millisecond

// servePart parts from the old leader for an election (agent/failsafe.go).
func servePart(index uint64) func(*agent, func(error)) {
	return func(a *agent, answer func(error)) {
		a.post(func() {
			v := a.view()
			a.host.w.mutant.see(a, &v)
			if err := v.MayPart(index); err != nil {
				answer(err)
				return
			}
			if a.host.w.mutant.VoterStays {
				answer(nil)
				return
			}
			a.Part(index)
			a.awaitParted(index, a.clock().Add(partLimit), answer)
		})
	}
}

func (a *agent) awaitParted(index uint64, limit cluster.Instant, answer func(error)) {
	a.later(a.host.w.between(0, 5*time.Millisecond), func() {
		switch {
		case a.upstream == "" && a.task == nil && !a.pg.primary() && a.Parted >= index:
			answer(nil)
		case a.clock().Before(limit):
			a.awaitParted(index, limit, answer)
		default:
			answer(errCancelled)
		}
	})
}

// askFailsafe asks every member that could take the lock to promise not to.
func (a *agent) askFailsafe() {
	t0 := a.clock()
	lease := a.tenure.BeginFailsafe(t0)
	members := a.tenure.FailsafeMembers(a.host.name)
	request := ha.FailsafeRequest{Leader: a.host.name, Lease: lease, Index: a.Snapshot.Status.ModifyIndex}
	timeout := max(min(a.killAt().Sub(t0), a.dynamic.TTL/4), time.Millisecond)
	open, over := len(members), false
	finish := func(agreed bool) {
		if over {
			return
		}
		over = true
		a.host.w.say("%s: failsafe round of %d members: agreed %v", a.host.name, len(members), agreed)
		if err := a.tenure.FailsafeAnswered(a.clock(), t0, lease, agreed); err != nil {
			return
		}
		if agreed {
			a.host.w.judge.tally.Failsafe++
		} else {
			a.wakeAfter(a.retryAfter())
		}
		a.armGuard()
	}
	if open == 0 {
		a.later(a.dispatch(), func() { finish(true); a.step() })
	}
	for _, m := range members {
		call(a, a.host.w.hostNamed(m.Name), timeout, func(to *agent, answer func(error)) {
			to.post(func() { answer(to.agree(request)) })
		}, func(err error, ok bool) {
			open--
			switch {
			case !ok || err != nil:
				finish(false)
			case open == 0:
				finish(true)
			}
		})
	}
}

// agree answers a leader that cannot reach Consul.
func (a *agent) agree(r ha.FailsafeRequest) error {
	v := a.view()
	a.host.w.mutant.see(a, &v)
	return a.tenure.Agree(v, r)
}

// unreleasedOwner is the member whose lease ran out without being given up.
func (a *agent) unreleasedOwner() string {
	s := a.Snapshot.Status
	if !s.OK() || s.Value.Lictor == nil || s.Value.Lictor.Released || s.Value.Lictor.Owner == a.host.name {
		return ""
	}
	return s.Value.Lictor.Owner
}

// depose tells the old leader that it is deposed, until it has heard it.
func (a *agent) depose(name string, index uint64) {
	if _, found := a.Snapshot.Member(name); !found || a.Snapshot.LeaderName() != a.host.name {
		return
	}
	call(a, a.host.w.hostNamed(name), time.Second, func(to *agent, answer func(bool)) {
		to.post(func() { to.deposed(index, func() { answer(true) }) })
	}, func(_, ok bool) {
		if !ok {
			a.later(time.Second, func() { a.depose(name, index) })
		}
	})
}

// confirmLimit bounds the reading of Consul by which a member confirms what it is told.
const confirmLimit = 500 * time.Millisecond

// deposed hears that another member has taken the lock: it believes that when Consul
// shows it, or when it cannot ask Consul.
func (a *agent) deposed(index uint64, heard func()) {
	if a.Snapshot.Status.ModifyIndex >= index {
		a.reread()
		heard()
		return
	}
	ask(a, confirmLimit, func(c *consul) (cluster.Snapshot, error) { return c.read(), nil }, func(s cluster.Snapshot, err error) {
		switch {
		case err == nil:
			a.accept(s, true)
		case a.tenure.Held(a.clock()):
			a.tenure.Depose(index)
		}
		a.reread()
		heard()
		a.step()
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
	mine := a.Snapshot.Leader.Exists() && a.session != "" && a.Snapshot.Leader.Session == a.session
	if a.tenure.Held(a.clock()) && mine {
		a.writeHistory()
	}
}

func (a *agent) writeHistory() {
	o := a.pg.observed
	if !o.accepting || o.recovery || o.timeline <= 1 || a.history == o.timeline || a.writing[keyHistory] {
		return
	}
	timeline := o.timeline
	lines := a.host.pg.at.history()
	a.writeAsLeader(keyHistory, a.Snapshot.History.ModifyIndex, lines, func(uint64) { a.history = timeline })
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
	if t.touching || a.session == "" {
		return
	}
	now := told{state: a.stateName(), primary: a.pg.running && a.pg.primary(), timeline: a.pg.observed.timeline, pause: a.dynamic.Pause}
	entry, exists := a.Snapshot.Member(a.host.name)
	settled := a.Read.Sub(t.at) > time.Second
	ours := exists && entry.Session == a.session
	bound := t.session == a.session && (ours || !settled)
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
	key, session := keyMembers+a.host.name, a.session
	var ops []op
	if exists && entry.Session != session && t.session != session {
		ops = append(ops, op{verb: deleteCAS, key: key, index: entry.ModifyIndex})
	}
	ops = append(ops, op{verb: lock, key: key, session: session, value: value})
	t.touching = true
	a.transact(a.dynamic.RetryTimeout, ops, func(indexes map[string]uint64, err error) {
		if err == nil {
			t.index = indexes[key]
			t.touching, t.told, t.session, t.at = false, now, session, a.clock()
			return
		}
		t.session = ""
		a.reread()
		a.later(a.retryAfter(), func() { t.touching = false; a.step() })
	})
}
