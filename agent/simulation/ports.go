package simulation

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// This file is the world as the state machine (package member) reaches it.

func (a *agent) ports() member.Ports {
	return member.Ports{
		Clock: clocks{a}, Later: clocks{a}, Consul: inConsul{a}, Postgres: upgradable{inPostgres{a}}, Guard: guarded{a}, Watchdog: noWatchdog{},
		Peers: toPeers{a}, Watches: watches{a}, Bouncers: toBouncers{a},
	}
}

// clocks are member.Clock and member.Later.
type clocks struct{ *agent }

func (c clocks) Now() cluster.Instant            { return c.host.clock() }
func (c clocks) Wall() time.Time                 { return c.host.wall(c.host.w.now) }
func (c clocks) After(d time.Duration, f func()) { c.later(d, func() { f(); c.step() }) }

func (c clocks) ID() string { return strconv.FormatUint(c.host.w.random.Uint64(), 36) }

func (c clocks) Jitter(low, high time.Duration) time.Duration { return c.host.w.between(low, high) }

// keys are those of the one shard; Consul here knows them without their prefix.
func keys() cluster.Keys { return cluster.NewKeys("", "shard", "") }

func (a *agent) short(key string) string { return strings.TrimPrefix(key, a.Keys.Prefix()) }

// indexed turns what a transaction wrote into what the state machine hears.
func (a *agent) indexed(done func(cluster.Indexes, error)) func(map[string]uint64, error) {
	return func(written map[string]uint64, err error) {
		indexes := cluster.Indexes{}
		for key, index := range written {
			if key != a.Keys.Route() {
				key = a.Keys.Prefix() + key
			}
			indexes[key] = index
		}
		done(indexes, err)
	}
}

// one is the index of one key.
func one(key string, done func(uint64, error)) func(map[string]uint64, error) {
	return func(written map[string]uint64, err error) { done(written[key], err) }
}

// inConsul is member.Consul.
type inConsul struct{ *agent }

func (c inConsul) Beat(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	m := &c.host.w.mutant
	ops := []op{
		{verb: checkSession, key: keyLeader, session: session},
		expect(keyStatus, index),
		{verb: set, key: keyStatus, value: m.said(&c.host.w.judge, status)},
	}
	c.transact(limit, m.change(ops, m.BeatUnchecked), one(keyStatus, func(index uint64, err error) {
		done(index, err)
		if err == nil {
			m.beaten(c.agent, status.Lictor.Lease())
		}
	}))
}

func (c inConsul) TakeOver(limit time.Duration, t cluster.TakeOver, done func(cluster.Indexes, error)) {
	m := &c.host.w.mutant
	ops := []op{expect(keyStatus, t.StatusIndex)}
	if !m.FailsafeUnchecked {
		ops = append(ops, expect(keyFailsafe, t.FailsafeIndex))
	}
	ops = append(ops, registers(t)...)
	if t.Config != nil {
		ops = append(ops, expect(keyConfig, 0), op{verb: set, key: keyConfig, value: t.Config})
	}
	if t.LeaderIndex != 0 {
		ops = append(ops, op{verb: deleteCAS, key: keyLeader, index: t.LeaderIndex})
	}
	ops = append(ops, op{verb: lock, key: keyLeader, session: t.Session, value: t.Name}, op{verb: set, key: keyStatus, value: m.said(&c.host.w.judge, t.Status)})
	if t.Sync != nil {
		ops = append(ops, replace(keySync, t.SyncIndex, *t.Sync, m.SyncIndexKept)...)
	} else {
		ops = append(ops, expect(keySync, t.SyncIndex))
	}
	if t.Route != nil {
		ops = append(ops, expect(c.short(c.Keys.Route()), t.RouteIndex), op{verb: set, key: c.short(c.Keys.Route()), value: *t.Route})
	}
	c.transact(limit, m.change(ops, m.TakeOverUnchecked), c.indexed(func(written cluster.Indexes, err error) {
		done(written, err)
		if err == nil {
			m.tookOver(c.agent, t.Status.Lictor.Lease())
		}
	}))
}

func (c inConsul) Release(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	m := &c.host.w.mutant
	ops := []op{
		{verb: checkSession, key: keyLeader, session: session},
		expect(keyStatus, index),
		{verb: set, key: keyStatus, value: status},
		{verb: del, key: keyLeader},
	}
	c.transact(limit, m.change(ops, m.ReleaseUnchecked), one(keyStatus, done))
}

func (c inConsul) Read(limit time.Duration, done func(cluster.Snapshot, error)) {
	ask(c.agent, limit, func(c *consul) (*cluster.Snapshot, error) { return c.read(), nil }, func(s *cluster.Snapshot, err error) {
		if s == nil {
			s = &cluster.Snapshot{}
		}
		first := c.agent.Read.IsZero()
		done(*s, err)
		c.host.w.mutant.accepted(c.agent, first)
		c.step()
	})
}

func (c inConsul) WriteAsLeader(limit time.Duration, session, key string, index uint64, value any, done func(uint64, error)) {
	key = c.short(key)
	if key == keyFailsafe && (c.host.w.mutant.ListForgotten || value == nil && c.host.w.mutant.DeletionIgnored) {
		c.LeaseState.ListKnown(index+1, nil)
		c.LeaseState.ListKnown(index, c.Snapshot.Failsafe.Value)
	}
	c.transact(limit, leaderOps(session, key, index, value, key == keySync && c.host.w.mutant.SyncIndexKept), one(key, done))
}

func (c inConsul) Touch(limit time.Duration, session string, index uint64, value cluster.Member, done func(uint64, error)) {
	key := keyMembers + value.Name
	var ops []op
	if index != 0 {
		ops = append(ops, op{verb: deleteCAS, key: key, index: index})
	}
	c.transact(limit, append(ops, op{verb: lock, key: key, session: session, value: value}), one(key, done))
}

// guarded is member.GuardPort.
type guarded struct{ *agent }

// How long the agent waits for the guard, and for one that starts PostgreSQL (agent/fence).
const (
	answerWithin = 2 * time.Second
	startWithin  = 10 * time.Second
)

var errNoAnswer = errors.New("the guard does not answer")

// answered gives an order to the guard up when it is not answered in time.
func (a *agent) answered(order func(done func(error)), done func(error)) {
	over := false
	finish := func(err error) {
		if !over {
			over = true
			done(err)
		}
	}
	a.later(answerWithin, func() { finish(errNoAnswer) })
	order(finish)
}

// order sends an order to the guard.
func (g guarded) order(send func(done func(error)), done func(error)) {
	g.answered(func(told func(error)) {
		send(func(err error) { g.do(func() { told(err) }) })
	}, func(err error) {
		done(err)
		g.step()
	})
}

func (g guarded) Arm(m member.PersistedState, grant bool, done func(error)) {
	guard := &g.host.guard
	if g.host.w.mutant.PauseUntold && g.Dynamic.Pause {
		g.StandDown(m, done)
		return
	}
	if g.host.w.mutant.GuardNotShortened && !grant && m.KillAt.Before(guard.deadline.Until) {
		done(nil)
		return
	}
	g.order(func(told func(error)) { guard.arm(m, grant, told) }, done)
}

func (g guarded) Disarm(done func(error)) { g.order(g.host.guard.disarm, done) }

func (g guarded) StandDown(m member.PersistedState, done func(error)) {
	g.order(func(told func(error)) { g.host.guard.standDown(m, told) }, done)
}

func (g guarded) Remember(m member.PersistedState, done func(error)) {
	if g.host.w.mutant.ListForgotten && len(m.Lists) > 0 {
		m.Lists, m.Leaving = m.Lists[:1], false
		if !m.Listed {
			m.Lists = nil
		}
	}
	g.order(func(told func(error)) { g.host.guard.remember(m, told) }, done)
}

// Awake ends a guard that does not answer, before PostgreSQL is started.
func (g guarded) Awake(_ *member.Work, done func(error)) {
	guard := &g.host.guard
	g.order(func(told func(error)) { guard.command(func() {}, func() { told(nil) }) }, func(err error) {
		if err != nil && !g.host.pg.running {
			guard.die()
		}
		done(nil)
	})
}

func (g guarded) CancelStarts(done func(bool, error)) {
	guard := &g.host.guard
	g.order(func(told func(error)) { guard.cancelStarts(func() { told(nil) }) }, func(err error) {
		if err != nil {
			guard.die()
		}
		done(err != nil || g.host.pg.running, nil)
	})
}

func (g guarded) Recall(done func(member.Recalled)) {
	g.later(g.host.w.between(time.Millisecond, 50*time.Millisecond), func() { done(g.host.guard.recall()); g.step() })
}

func (g guarded) Mark(until cluster.Instant, paused bool, done func(error)) {
	g.onDisk(func() {
		g.host.mark = &mark{member.LedMark{Until: until, Paused: paused}, g.host.boot}
		if g.host.pg.full > 0 && !paused { // there is room for an empty one
			g.host.mark.LedMark = member.LedMark{Until: member.LongAgo}
		}
		done(nil)
	})
}

// Unmark waits a moment for a disk that hangs, as the agent's does.
func (g guarded) Unmark(done func()) {
	over := false
	end := func() {
		if !over {
			over = true
			done()
		}
	}
	g.onDisk(func() {
		if g.host.mark != nil {
			g.host.mark = &mark{LedMark: member.LedMark{Ended: true}}
		}
		end()
	})
	g.later(250*time.Millisecond, end)
}

// onDisk does something beside the data directory, for an agent that lives when the disk answers.
func (g guarded) onDisk(do func()) {
	g.host.pg.onDisk(func() {
		if !g.dead {
			do()
		}
	})
}

// toPeers is member.Peers.
type toPeers struct{ *agent }

func (p toPeers) Failsafe(limit time.Duration, to ha.FailsafeMember, _ bool, request ha.FailsafeRequest, done func(error)) {
	m := &p.host.w.mutant
	done = m.failsafe(p.agent, &request, done)
	call(p.agent, p.host.w.hostNamed(to.Name), limit, func(to *agent, answer func(error)) {
		to.post(func() { answer(m.hears(to, request)) })
	}, heard(done))
}

// errSilent: a member did not answer.
var errSilent = errors.New("no answer")

func heard(done func(error)) func(error, bool) {
	return func(err error, ok bool) {
		if !ok {
			err = errSilent
		}
		done(err)
	}
}

func (p toPeers) Detach(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	call(p.agent, p.host.w.hostNamed(to.Name), limit, func(to *agent, answer func(error)) {
		to.post(func() {
			if to.host.w.mutant.VoterStays {
				answer(nil)
				return
			}
			to.HearDetach(p.host.name, index, func(err error) {
				if err != nil {
					answer(err)
					return
				}
				to.awaitDetached(index, to.host.clock().Add(detachLimit), answer)
			})
		})
	}, heard(done))
}

// detachLimit is how long a member may take to detach from the old leader (agent/api).
const detachLimit = 500 * time.Millisecond

func (p toPeers) Probe(limit time.Duration, to cluster.Member, done func(bool)) {
	probe(p.agent, p.host.w.hostNamed(to.Name), limit, done)
}

func (p toPeers) Misses(limit time.Duration, to cluster.Member, index uint64, done func(bool, error)) {
	call(p.agent, p.host.w.hostNamed(to.Name), limit, func(to *agent, answer func(bool)) {
		to.post(func() { answer(takeoverPeer(to).HearMisses(index) || to.host.w.mutant.WitnessLies) })
	}, func(misses, ok bool) {
		if !ok {
			done(false, errSilent)
			return
		}
		done(misses, nil)
	})
}

func (p toPeers) DetachFor(limit time.Duration, to cluster.Member, index uint64, attempt string, done func(error)) {
	call(p.agent, p.host.w.hostNamed(to.Name), limit, func(to *agent, answer func(error)) {
		to.post(func() {
			to.before = to.shown.LSN
			takeoverPeer(to).HearDetachFor(p.host.name, index, attempt, answer)
		})
	}, heard(done))
}

func (p toPeers) Succeed(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	call(p.agent, p.host.w.hostNamed(to.Name), limit, func(to *agent, answer func(error)) {
		to.post(func() { takeoverPeer(to).HearSucceed(index); answer(nil) })
	}, heard(done))
}

// LookUp finds that a host is called as its member is.
func (p toPeers) LookUp(_ time.Duration, host string, done func([]string, error)) {
	p.later(time.Millisecond, func() { done([]string{host}, nil) })
}

func (p toPeers) Observe(limit time.Duration, to cluster.Member, done func(member.Seen, error)) {
	call(p.agent, p.host.w.hostNamed(to.Name), limit, serveObserve, func(seen member.Seen, ok bool) {
		if !ok {
			done(member.Seen{}, errSilent)
			return
		}
		if p.host.w.mutant.VoterStays {
			seen.Detached, seen.Attempts = 1<<62, []string{p.View().Takeover.Attempt}
		}
		if asked := p.host.w.hostNamed(to.Name).agent; p.host.w.mutant.LookedBefore && len(seen.Attempts) > 0 && asked != nil {
			seen.LSN = asked.before
		}
		done(seen, nil)
	})
}

func (p toPeers) Depose(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	if p.host.w.mutant.NotDeposed {
		p.later(limit, func() { done(errSilent) })
		return
	}
	call(p.agent, p.host.w.hostNamed(to.Name), limit, func(to *agent, answer func(error)) {
		to.post(func() { to.HearDeposed(p.host.name, index, false, answer) })
	}, heard(done))
}

// watches is member.Watches.
type watches struct{ *agent }

func (w watches) KickSession()  { w.later(0, w.keepSession) }
func (w watches) KickPostgres() { w.later(w.dispatch(), w.lookAtPostgres) }

// toBouncers is member.Bouncers. They have no clients here.
type toBouncers struct{ *agent }

func (toBouncers) Poke(cluster.Route, uint64) {}

func (b toBouncers) Misses(limit time.Duration, leader string, _ []string, silent time.Duration, done func(string, error)) {
	bouncerMisses(b.agent, b.host.w.hostNamed(leader), limit, silent, done)
}

func (b toBouncers) EndHandover(_ time.Duration, _ string, _ cluster.Handover, done func(error)) {
	inPostgres(b).work(nil, func(done func(error)) { done(nil) }, done)
}

func (b toBouncers) Hold(w *member.Work, _ string, _ cluster.Handover, _ string, done func(error)) {
	inPostgres(b).work(w, func(done func(error)) { b.later(b.host.w.between(0, 100*time.Millisecond), func() { done(nil) }) }, done)
}

// noWatchdog is member.Watchdog: there is none, and none is required.
type noWatchdog struct{}

func (noWatchdog) OK() (bool, string) { return true, "" }

func (noWatchdog) Activate(_ *member.Work, _ cluster.Instant, _ time.Duration, _ ha.FenceMargins, done func(error)) {
	done(nil)
}

// shell is member.Shell.
type shell struct{ *agent }

func (s shell) InitialConfig() []byte            { return []byte("{}") }
func (s shell) Accepted(c cluster.Snapshot)      { s.applyConfig(c) }
func (s shell) Problems() []string               { return nil }
func (s shell) Copying() (now, made string)      { return "", "" }
func (s shell) ScheduledRestart() map[string]any { return nil }

// applyConfig makes a new dynamic configuration take effect (agent/configure.go).
func (a *agent) applyConfig(s cluster.Snapshot) {
	if !s.Config.Exists() || s.Config.ModifyIndex == a.configIndex {
		return
	}
	a.configIndex = s.Config.ModifyIndex
	dynamic, err := a.host.w.parse(s.Config)
	if err != nil {
		return
	}
	before := a.Dynamic
	a.Dynamic = dynamic
	a.applyCommit()
	if before.Pause != dynamic.Pause || before.TTL != dynamic.TTL {
		a.LeaseState.BeatSoon()
		a.ArmGuard()
	}
}

// applyCommit makes another synchronous_commit take effect, unless it is weaker and that is held back.
func (a *agent) applyCommit() {
	off := a.wantedCommit() == "off"
	if !off || !a.holds || a.host.w.mutant.ConsentKept {
		a.host.pg.unsynchronous = off
	}
}

// wantedCommit is synchronous_commit as it is configured.
func (a *agent) wantedCommit() string {
	if a.Dynamic.Postgres.Parameters["synchronous_commit"] == "off" {
		return "off"
	}
	return "on"
}
