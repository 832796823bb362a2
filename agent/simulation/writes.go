package simulation

import (
	"errors"
	"maps"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// perform begins an action (agent/act.go).
func (a *agent) perform(action ha.Action) {
	switch act := action.(type) {
	case ha.Beat:
		a.beat()
	case ha.TakeOver:
		a.takeOver(act)
	case ha.Release:
		a.release(act.Successor)
	case ha.Reread:
		a.reread()
	case ha.AskPeers:
		a.askPeers(act.Part)
	case ha.WriteSync:
		a.writeSync(act)
	case ha.AskFailsafe:
		a.askFailsafe()
	case ha.WriteFailsafe:
		a.writeFailsafe(act)
	case ha.ClearFailover:
		a.clearFailover(act.Index)
	case ha.Exit:
		a.host.w.say("%s: the agent ends", a.host.name)
		a.die()
	default:
		a.begin(action)
	}
}

func (a *agent) nextStatus() cluster.Status {
	at := a.pg.observed.lsn
	switch known := a.Snapshot.Status.Value.OpTime; {
	case at == 0:
		at = known
	case a.pg.observed.replaying:
		at = max(at, known)
	}
	return cluster.Status{
		OpTime: at,
		Lictor: &cluster.Beat{
			LeaseMS: a.dynamic.TTL.Milliseconds(), Number: a.NextBeat(), Owner: a.host.name, Paused: a.dynamic.Pause,
			Timeline: a.NextTimeline(a.pg.observed.timeline, false),
		},
	}
}

// leaseTimeout is what is left of the lease before it must be fenced.
func (a *agent) leaseTimeout() time.Duration {
	return max(a.killAt().Sub(a.clock()), time.Millisecond)
}

func (a *agent) beat() {
	m := &a.host.w.mutant
	session, index, ttl := a.session, a.Snapshot.Status.ModifyIndex, a.dynamic.TTL
	t0 := a.clock()
	status := a.nextStatus()
	if m.GuardNotShortened {
		kept := a.memo()
		a.tenure.BeginBeat(t0, ttl)
		a.guardian.leave(guardOrder{memo: kept})
	} else {
		a.tenure.BeginBeat(t0, ttl)
		a.armGuard()
	}
	ops := []op{
		{verb: checkSession, key: keyLeader, session: session},
		expect(keyStatus, index),
		{verb: set, key: keyStatus, value: status},
	}
	a.transactTold(t0, ttl, a.leaseTimeout(), m.change(ops, m.BeatUnchecked), func(indexes map[string]uint64, err error) {
		if err != nil {
			a.writeFailed("beat", err)
			return
		}
		a.WroteStatus(a.clock(), status, indexes[keyStatus])
		from := t0
		if m.LeaseFromReply {
			from = a.clock()
		}
		if err := a.tenure.BeatSucceeded(a.clock(), from, ttl); err != nil {
			if !m.ExpiredExtended {
				return
			}
			a.tenure.TookOver(a.clock(), ttl)
			a.guardian.leave(guardOrder{memo: a.memo(), grant: true})
			return
		}
		a.armGuard()
	})
}

func (a *agent) writeFailed(what string, err error) {
	o, after := outcome(err), a.retryAfter()
	a.host.w.say("%s: %s failed: %v", a.host.name, what, err)
	a.tenure.WriteFailed(o, a.clock().Add(after), a.dynamic.BeatInterval())
	if o != ha.NoEffect {
		a.kickSession()
	}
	a.wakeAfter(after)
}

func (a *agent) takeOver(t ha.TakeOver) {
	m := &a.host.w.mutant
	if a.session == "" || a.tenure.Writing() {
		return
	}
	ttl, session := a.dynamic.TTL, a.session
	status := a.nextStatus()
	status.Lictor.Timeline = a.NextTimeline(a.pg.observed.timeline, !a.pg.primary())
	initialize := !a.Snapshot.Initialize.Exists()
	ops := []op{expect(keyStatus, t.Status), expect(keyFailsafe, t.Failsafe)}
	if initialize {
		ops = append(ops, expect(keyInitialize, 0), op{verb: set, key: keyInitialize, value: systemIdentifier})
	}
	if t.Leader != 0 {
		ops = append(ops, op{verb: deleteCAS, key: keyLeader, index: t.Leader})
	}
	ops = append(ops, op{verb: lock, key: keyLeader, session: session, value: a.host.name}, op{verb: set, key: keyStatus, value: status})
	if t.Sync != nil {
		ops = append(ops, replace(keySync, t.SyncIndex, *t.Sync, m.SyncIndexKept)...)
	} else {
		ops = append(ops, expect(keySync, t.SyncIndex))
	}
	deposed := a.unreleasedOwner()
	t0 := a.clock()
	a.tenure.BeginTakeOver(t0, ttl)
	a.armGuard()
	a.transactTold(t0, ttl, a.dynamic.RetryTimeout, m.change(ops, m.TakeOverUnchecked), func(indexes map[string]uint64, err error) {
		if err != nil {
			a.writeFailed("taking the lock", err)
			return
		}
		index := indexes[keyStatus]
		a.WroteStatus(a.clock(), status, index)
		a.Snapshot.Leader = cluster.Entry[string]{Value: a.host.name, Session: session, ModifyIndex: indexes[keyLeader]}
		if t.Sync != nil {
			a.syncUncertain = false
			a.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *t.Sync, ModifyIndex: indexes[keySync]}
		}
		if initialize {
			a.Snapshot.Initialize = cluster.Entry[string]{Value: systemIdentifier, ModifyIndex: indexes[keyInitialize]}
		}
		from := t0
		if m.LeaseFromReply {
			from = a.clock()
		}
		a.tenure.TookOver(from, ttl)
		a.history = 0
		a.host.w.say("%s: took the lock, lease of %s", a.host.name, a.tenure.Until().Sub(a.clock()))
		if a.dynamic.Pause {
			a.armGuard()
		} else {
			a.guardian.leave(guardOrder{memo: a.memo(), grant: true})
		}
		if deposed != "" {
			a.depose(deposed, index)
		}
		a.reread()
	})
}

func (a *agent) release(successor string) {
	m := &a.host.w.mutant
	session, index := a.session, a.Snapshot.Status.ModifyIndex
	status := a.nextStatus()
	a.tenure.BeginRelease()
	status.OpTime = max(status.OpTime, a.host.pg.at.lsn)
	status.Lictor.Released, status.Lictor.Successor, status.Lictor.Complete = true, successor, a.complete
	ops := []op{
		{verb: checkSession, key: keyLeader, session: session},
		expect(keyStatus, index),
		{verb: set, key: keyStatus, value: status},
		{verb: del, key: keyLeader},
	}
	a.transact(a.dynamic.RetryTimeout, m.change(ops, m.ReleaseUnchecked), func(indexes map[string]uint64, err error) {
		if err != nil {
			a.writeFailed("release", err)
			return
		}
		a.WroteStatus(a.clock(), status, indexes[keyStatus])
		a.Snapshot.Leader = cluster.Entry[string]{}
		a.tenure.Released()
	})
}

// reread reads the shard consistently, once at a time.
func (a *agent) reread() {
	if a.rereading || a.clock().Before(a.rereadNotBefore) {
		return
	}
	a.rereading = true
	failures := a.tenure.Failures()
	ask(a, a.dynamic.RetryTimeout, func(c *consul) (cluster.Snapshot, error) { return c.read(), nil }, func(s cluster.Snapshot, err error) {
		a.rereading = false
		if err == nil && a.accept(s, true) {
			a.tenure.Reread(failures)
		} else {
			after := a.retryAfter()
			a.rereadNotBefore = a.clock().Add(after)
			if a.Read.IsZero() {
				a.host.w.at(a.host.when(a.rereadNotBefore), func() { a.do(a.reread) })
			}
			a.wakeAfter(after)
		}
		a.step()
	})
}

// accept makes a reading of Consul the loop's own unless what is known is younger.
func (a *agent) accept(s cluster.Snapshot, consistent bool) bool {
	first := a.Read.IsZero()
	if first {
		a.firstRead = a.clock()
	}
	switch a.Accept(a.clock(), s, consistent) {
	case ha.Overtaken:
		a.reread()
		return false
	case ha.Stale:
		return false
	case ha.Taken:
	}
	if first {
		a.Resume(a.host.name, a.upstream != "")
	}
	a.tenure.ListKnown(s.Failsafe.ModifyIndex, s.Failsafe.Value)
	a.applyConfig(s)
	return true
}

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
	before := a.dynamic
	a.dynamic = dynamic
	if before.Pause != dynamic.Pause || before.TTL != dynamic.TTL {
		a.tenure.BeatSoon()
		a.armGuard()
	}
}

func (a *agent) writeSync(w ha.WriteSync) {
	var value any
	if w.Value != nil {
		value = *w.Value
	}
	a.writeAsLeader(keySync, w.Index, value, func(index uint64) {
		a.syncUncertain, a.syncBefore = false, nil
		a.Snapshot.Sync = cluster.Entry[cluster.Sync]{}
		if w.Value != nil {
			a.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *w.Value, ModifyIndex: index}
		}
	})
}

func (a *agent) clearFailover(index uint64) {
	a.writeAsLeader(keyFailover, index, cluster.Failover{}, func(index uint64) {
		a.Snapshot.Failover = cluster.Entry[cluster.Failover]{ModifyIndex: index}
	})
}

// leaderOps is the transaction of Store.WriteAsLeader; nil when there is nothing to
// do.
func leaderOps(session, key string, index uint64, value any) []op {
	ops := []op{{verb: checkSession, key: keyLeader, session: session}}
	switch {
	case value == nil && index == 0:
		return nil
	case value == nil:
		return append(ops, op{verb: deleteCAS, key: key, index: index})
	default:
		return append(ops, replace(key, index, value, false)...)
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

func (a *agent) writeAsLeader(key string, index uint64, value any, written func(uint64)) {
	if a.writing[key] || a.session == "" {
		return
	}
	a.writing[key] = true
	a.sendAsLeader(key, leaderOps(a.session, key, index, value), written)
}

func (a *agent) sendAsLeader(key string, ops []op, written func(uint64)) {
	a.transact(a.dynamic.RetryTimeout, ops, func(indexes map[string]uint64, err error) {
		if err != nil {
			a.host.w.say("%s: writing %s failed: %v", a.host.name, key, err)
			a.syncUncertain = a.syncUncertain || key == keySync && errors.Is(err, errUncertain)
			a.reread()
			a.later(a.retryAfter(), func() { delete(a.writing, key); a.step() })
			return
		}
		delete(a.writing, key)
		a.Wrote(indexes[key])
		written(indexes[key])
	})
}

// writeFailsafe replaces the list of members that have to agree (agent/failsafe.go).
func (a *agent) writeFailsafe(w ha.WriteFailsafe) {
	if a.writing[keyFailsafe] || a.session == "" {
		return
	}
	if !a.host.w.mutant.ListForgotten {
		a.tenure.BeginList(w.List)
	}
	memo := a.memo()
	var value any
	if w.List != nil {
		value = maps.Clone(w.List)
	}
	a.writing[keyFailsafe] = true
	session := a.session
	a.guardian.remember(memo, func() {
		a.sendAsLeader(keyFailsafe, leaderOps(session, keyFailsafe, w.Index, value), func(index uint64) {
			a.Snapshot.Failsafe = cluster.Entry[map[string]string]{Value: w.List, ModifyIndex: index}
			a.tenure.ListKnown(index, w.List)
			a.armGuard()
		})
	})
}
