package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/ha"
)

// perform begins an action. It never waits.
func (a *Agent) perform(action ha.Action) {
	switch act := action.(type) {
	case ha.Beat:
		a.beat()
	case ha.TakeOver:
		a.takeOver(act, false)
	case ha.Register:
		a.takeOver(act.TakeOver, true)
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
		a.m.refused = a.m.reason
		a.clearFailover(act.Index)
	case ha.Exit:
		a.m.exit = true
	default:
		a.begin(action)
	}
}

// retryAfter is how soon a request to Consul that certainly failed is tried
// again, with jitter so that many members do not knock together.
func retryAfter() time.Duration { return 200*time.Millisecond + rand.N(200*time.Millisecond) }

// leaseContext ends when the lease that the request is about would have to be
// fenced: what is left of the lease is the request's timeout.
func (a *Agent) leaseContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(a.ctx, max(a.killAt().Sub(a.clock()), time.Millisecond))
}

// effect runs work in the background and hands what it returns to the loop.
func (a *Agent) effect(ctx context.Context, cancel context.CancelFunc, work func(context.Context) func()) {
	a.goDo(func(context.Context) {
		defer cancel()
		a.post(work(ctx))
	})
}

// nextStatus is the status that replaces the one that is known.
func (a *Agent) nextStatus() cluster.Status {
	at := a.m.pg.observed.LSN()
	switch known := a.m.Snapshot.Status.Value.OpTime; {
	case at == 0:
		at = known // it could not be looked at, or is down
	case a.m.pg.observed.Replaying:
		at = max(at, known) // it has more than it knows yet
	}
	return cluster.Status{
		OpTime: at,
		Lictor: &cluster.Beat{
			LeaseMS: a.m.dynamic.TTL.Milliseconds(), Number: a.m.NextBeat(), Owner: a.cfg.Name, Paused: a.m.dynamic.Pause,
			Timeline: a.m.NextTimeline(a.m.pg.observed.Timeline, false),
		},
	}
}

// beat renews the lease. The lease counts from t0, which is read before
// anything is sent: the leader's own view of it is the pessimistic one.
func (a *Agent) beat() {
	session, index, ttl := a.m.session, a.m.Snapshot.Status.ModifyIndex, a.m.dynamic.TTL
	t0 := a.clock()
	status := a.nextStatus()
	a.m.tenure.BeginBeat(t0, ttl)
	a.armGuard()
	told := a.guardTold(t0, ttl)
	ctx, cancel := a.leaseContext()
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		newIndex, err := uint64(0), told(ctx)
		if err == nil {
			newIndex, err = a.store.Beat(ctx, session, index, status)
		}
		return func() {
			if err != nil {
				a.writeFailed("beat", err)
				return
			}
			a.m.WroteStatus(a.clock(), status, newIndex)
			if err := a.m.tenure.BeatSucceeded(a.clock(), t0, ttl); err != nil {
				a.log.Error().Err(err).Msg("the beat succeeded too late")
				return
			}
			a.armGuard()
		}
	})
}

// outcome sorts the failures of a write to Consul.
func outcome(err error) ha.Outcome {
	switch {
	case errors.Is(err, consul.ErrConflict):
		return ha.Refused
	case errors.Is(err, consul.ErrUncertain):
		return ha.Unknown
	default:
		return ha.NoEffect
	}
}

// writeFailed notes a beat, takeover or release that did not succeed.
func (a *Agent) writeFailed(what string, err error) {
	o, after := outcome(err), retryAfter()
	a.m.tenure.WriteFailed(o, a.clock().Add(after), a.m.dynamic.BeatInterval())
	if o != ha.NoEffect {
		a.log.Warn().Err(err).Msg(what + " failed")
		kick(a.kickSession)                                 // it may be gone
		a.m.Snapshot.Route = cluster.Entry[cluster.Route]{} // perhaps it was this that has changed
		a.wakeAfter(after)
		return
	}
	a.consulFailed(fmt.Errorf("%s: %w", what, err))
	a.wakeAfter(after)
}

// wakeAfter brings the loop round after d.
func (a *Agent) wakeAfter(d time.Duration) {
	a.goDo(func(ctx context.Context) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			a.post(func() {})
		case <-ctx.Done():
		}
	})
}

// takeOver takes the lock in one transaction, which registers the shard as well if
// this member has made it.
func (a *Agent) takeOver(t ha.TakeOver, register bool) {
	if a.m.session == "" || a.m.tenure.Writing() {
		return
	}
	ttl := a.m.dynamic.TTL
	request := consul.TakeOver{
		Session: a.m.session, Name: a.cfg.Name,
		StatusIndex: t.Status, FailsafeIndex: t.Failsafe, LeaderIndex: t.Leader,
		Status: a.nextStatus(),
		Sync:   t.Sync, SyncIndex: t.SyncIndex,
	}
	request.Status.Lictor.Timeline = a.m.NextTimeline(a.m.pg.observed.Timeline, !a.m.pg.primary())
	switch {
	case register:
		request.Bootstrapped, request.Initialize = true, a.m.data.SystemIdentifier
	case !a.m.Snapshot.Initialize.Exists():
		request.Initialize = a.m.data.SystemIdentifier
	}
	if !a.m.Snapshot.Config.Exists() {
		request.Config = a.initialConfig()
	}
	if route, ok := a.routeToWrite(); ok {
		request.Route, request.RouteIndex = &route, a.m.Snapshot.Route.ModifyIndex
	}
	deposed := a.unreleasedOwner()
	t0 := a.clock()
	a.m.tenure.BeginTakeOver(t0, ttl)
	a.armGuard()
	told := a.guardTold(t0, ttl)
	ctx, cancel := context.WithTimeout(a.ctx, a.m.dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		var written consul.Indexes
		err := told(ctx)
		if err == nil {
			written, err = a.store.TakeOver(ctx, request)
		}
		return func() {
			if err != nil {
				a.writeFailed("taking the lock", err)
				return
			}
			index := written[a.keys.Status()]
			a.m.WroteStatus(a.clock(), request.Status, index)
			a.m.Snapshot.Leader = cluster.Entry[string]{Value: a.cfg.Name, Session: request.Session, ModifyIndex: written[a.keys.Leader()]}
			if request.Sync != nil {
				a.m.syncUncertain = false
				a.m.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *request.Sync, ModifyIndex: written[a.keys.Sync()]}
			}
			if request.Route != nil {
				a.m.Snapshot.Route = cluster.Entry[cluster.Route]{Value: *request.Route, ModifyIndex: written[a.keys.Route()]}
				a.poke(*request.Route, written[a.keys.Route()])
			}
			if request.Initialize != "" {
				a.m.Snapshot.Initialize = cluster.Entry[string]{Value: request.Initialize, ModifyIndex: written[a.keys.Initialize()]}
			}
			a.m.tenure.TookOver(t0, ttl)
			a.m.published.history = 0 // replicas believe what was written under this lock
			if a.m.dynamic.Pause {
				a.armGuard() // which is to remember the pause
			} else {
				a.guard.grant(a.memo())
			}
			a.log.Info().Dur("lease", a.leaseLeft(a.clock())).Msg("took the leader lock")
			if deposed != "" {
				a.depose(deposed, index)
			}
			a.reread()
		}
	})
}

// release gives the lease up in Consul. It is dropped here already.
func (a *Agent) release(successor string) {
	session, index := a.m.session, a.m.Snapshot.Status.ModifyIndex
	status := a.nextStatus()
	a.m.tenure.BeginRelease()
	status.OpTime = max(status.OpTime, a.m.data.checkpointLSN)
	status.Lictor.Released, status.Lictor.Successor, status.Lictor.Complete = true, successor, a.m.complete
	ctx, cancel := context.WithTimeout(a.ctx, a.m.dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		newIndex, err := a.store.Release(ctx, session, index, status)
		return func() {
			if err != nil {
				a.writeFailed("release", err)
				return
			}
			a.m.WroteStatus(a.clock(), status, newIndex)
			a.m.Snapshot.Leader = cluster.Entry[string]{}
			a.m.tenure.Released()
			a.log.Info().Str("successor", successor).Msg("gave the leader lock up")
		}
	})
}

// reread reads the shard consistently, once at a time.
func (a *Agent) reread() {
	if a.m.rereading || a.clock().Before(a.m.rereadNotBefore) {
		return
	}
	a.m.rereading = true
	failures := a.m.tenure.Failures()
	ctx, cancel := context.WithTimeout(a.ctx, a.m.dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		snapshot, err := a.store.Read(ctx)
		return func() {
			a.m.rereading = false
			if err == nil && a.accept(snapshot, true) {
				a.m.tenure.Reread(failures)
				return
			}
			if err != nil {
				a.consulFailed(err)
			}
			after := retryAfter()
			a.m.rereadNotBefore = a.clock().Add(after)
			if a.m.Read.IsZero() {
				a.afterwards(after, a.reread) // no decision asks again: none is made yet
				return
			}
			a.wakeAfter(after)
		}
	})
}

// accept makes a reading of Consul the loop's own unless what is known is
// younger.
func (a *Agent) accept(snapshot cluster.Snapshot, consistent bool) bool {
	first := a.m.Read.IsZero()
	switch a.m.Accept(a.clock(), snapshot, consistent) {
	case ha.Overtaken:
		a.reread()
		return false
	case ha.Stale:
		return false
	case ha.Taken:
	}
	if err := snapshot.Joins(a.cfg.Name); first && err != nil && !a.m.pg.running {
		a.m.failed = fmt.Errorf("this agent ends before it starts PostgreSQL: %w", err)
		return false
	}
	if first {
		a.m.Resume(a.cfg.Name, a.m.upstream != "")
	}
	if first || a.m.consulDown {
		a.log.Info().Str("leader", snapshot.LeaderName()).Int("members", len(snapshot.Members)).Msg("Consul answers")
	}
	a.m.consulDown = false
	a.m.readWall = time.Now()
	a.m.tenure.ListKnown(snapshot.Failsafe.ModifyIndex, snapshot.Failsafe.Value)
	a.noteProblems(snapshot)
	a.applyConfig(snapshot)
	a.clearStaleBootstrap(snapshot)
	return true
}

// consulFailed says once, and again only after Consul has answered meanwhile,
// that Consul does not answer.
func (a *Agent) consulFailed(err error) {
	if a.m.consulDown || a.ctx.Err() != nil {
		return
	}
	a.m.consulDown = true
	a.log.Warn().Err(err).Msg("Consul does not answer; trying again until it does")
}

// problemGrace is how long a value in Consul must make no sense before that is
// said: a leader whose session was lost has no member key for a moment.
const problemGrace = 3 * time.Second

// noteProblems reports values in Consul that make no sense, once each.
func (a *Agent) noteProblems(snapshot cluster.Snapshot) {
	text := ""
	if err := errors.Join(snapshot.Problems()...); err != nil {
		text = err.Error()
	}
	if text != a.m.problems {
		a.m.problems, a.m.problemsSince = text, a.clock()
		if text != "" {
			a.afterwards(problemGrace, func() { a.noteProblems(a.m.Snapshot) })
		}
		return
	}
	if text != "" && !a.m.problemsSince.IsZero() && a.clock().Sub(a.m.problemsSince) >= problemGrace {
		a.m.problemsSince = 0
		a.log.Error().Str("prefix", a.keys.Prefix()).Str("problems", text).Msg("values in Consul are wrong")
	}
}

// clearStaleBootstrap ends a bootstrap of this member's that nobody works on any more:
// one of this run that has failed and could not say so, or one that an earlier run left
// behind with its session, instead of waiting for that one's TTL.
func (a *Agent) clearStaleBootstrap(snapshot cluster.Snapshot) {
	init, session := snapshot.Initialize, a.m.session
	if !init.Exists() || init.Value != "" || init.Session == "" || session == "" || a.m.task.kind != ha.TaskNone ||
		init.Session == session && (a.m.data.State == ha.DataBootstrapped || a.m.tenure.Writing()) {
		return
	}
	ctx, cancel := context.WithTimeout(a.ctx, a.m.dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		var err error
		if init.Session == session {
			err = a.store.EndBootstrap(ctx, session)
		} else {
			var name string
			if name, err = a.store.SessionName(ctx, init.Session); err == nil && name == a.sessionName() {
				err = a.store.DestroySession(ctx, init.Session)
			}
		}
		return func() {
			if err != nil && !errors.Is(err, consul.ErrConflict) {
				a.log.Warn().Err(err).Msg("clearing away our own unfinished bootstrap in Consul")
			}
		}
	})
}

func (a *Agent) writeSync(w ha.WriteSync) {
	var value any
	if w.Value != nil {
		value = *w.Value
	}
	a.writeAsLeader("sync", a.keys.Sync(), w.Index, value, func(index uint64) {
		a.m.syncUncertain, a.m.syncBefore = false, nil
		a.m.Snapshot.Sync = cluster.Entry[cluster.Sync]{}
		if w.Value != nil {
			a.m.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *w.Value, ModifyIndex: index}
		}
	})
}

func (a *Agent) clearFailover(index uint64) {
	a.writeAsLeader("failover", a.keys.Failover(), index, cluster.Failover{}, func(index uint64) {
		a.m.Snapshot.Failover = cluster.Entry[cluster.Failover]{ModifyIndex: index}
	})
}

// writeAsLeader writes one of the leader's own keys, one write per key at a
// time; written is told the new index.
func (a *Agent) writeAsLeader(what, key string, index uint64, value any, written func(index uint64)) {
	if a.m.writing[key] || a.m.session == "" {
		return
	}
	a.m.writing[key] = true
	session := a.m.session
	ctx, cancel := context.WithTimeout(a.ctx, a.m.dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		newIndex, err := a.store.WriteAsLeader(ctx, session, key, index, value)
		return func() {
			if err != nil {
				a.log.Warn().Err(err).Msg("writing the key " + what + " failed")
				a.m.syncUncertain = a.m.syncUncertain || key == a.keys.Sync() && errors.Is(err, consul.ErrUncertain)
				a.reread()
				a.afterwards(retryAfter(), func() { delete(a.m.writing, key) })
				return
			}
			delete(a.m.writing, key)
			if strings.HasPrefix(key, a.keys.Prefix()) {
				a.m.Wrote(newIndex)
			}
			written(newIndex)
		}
	})
}
