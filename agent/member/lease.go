package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// leadership is this member's dealings with the lock: its lease, and the guard which ends
// that.
type leadership struct {
	*Shard
	local        *Local
	consul       Consul
	watches      Watches
	consulFailed func(error)

	// LeaseState is the lease, and what this member has written and promised.
	LeaseState      ha.LeaseState
	GuardSupervisor GuardSupervisor
	// discard is what a restore that is under way discards; nil: there is none.
	discard *ha.Discard
	// announcing is a major upgrade that the next beat announces; nil: there is none.
	announcing *announcement
	// led is what the data that lead tell themselves, since they were promoted.
	led Restores
	// Complete: the successor of the lease that is given up has all WAL.
	Complete bool
	// unsent takes back a beat that waits for what must come before it; nil: none does.
	unsent func()
}

// Leads reports whether the lease runs and the lock is shown as this member's.
func (l *leadership) Leads() bool { return l.LeaseState.Held(l.Now()) && l.LockIsOurs() }

// mayRunPrimary reports whether a primary may be started here. That the lock is shown as ours
// is not enough but in pause: it still is while the lease is given to somebody else, and after
// it has run out without Consul.
func (l *leadership) mayRunPrimary() bool {
	return l.LeaseState.Giving() == nil && (l.LeaseState.Held(l.Now()) || l.PauseInForce() && l.LockIsOurs())
}

// LeaseLeft is how long the lease still runs, zero when none is held.
func (l *leadership) LeaseLeft() time.Duration {
	now := l.Now()
	if !l.LeaseState.Held(now) {
		return 0
	}
	return l.LeaseState.Until().Sub(now)
}

// PersistedState is what must outlive the agent's process.
func (l *leadership) PersistedState() PersistedState {
	g := &l.GuardSupervisor
	g.persists++
	persisted := PersistedState{PersistedState: l.LeaseState.PersistedState(l.Session, l.Snapshot.Status.ModifyIndex), KillAt: l.KillAt(), version: g.persists}
	persisted.Paused, persisted.Unopened = l.PauseInForce(), l.local.unopened
	if json.Valid(l.Snapshot.Config.Value) {
		persisted.Config = l.Snapshot.Config.Value
	}
	return persisted
}

// PauseInForce reports whether this member may rest on the pause (ha.View).
func (l *leadership) PauseInForce() bool {
	shard := ha.Shard{Name: l.Name, Config: l.Dynamic, Cluster: l.Snapshot, Read: l.Read}
	return ha.View{Shard: shard, AdoptedPaused: l.local.adopted.paused}.PauseInForce()
}

// FenceMargins are the moments before the end of the lease at which PostgreSQL is
// stopped and killed.
func (l *leadership) FenceMargins() ha.FenceMargins {
	ttl := l.Dynamic.TTL
	if length := l.LeaseState.Length(); length > 0 {
		ttl = min(ttl, length) // a ttl that was raised helps no lease that runs already
	}
	return l.Margins(ttl)
}

// KillAt is the guard's deadline: a little before the lease ends.
func (l *leadership) KillAt() cluster.Instant {
	until := l.LeaseState.Until()
	if until.IsZero() {
		return 0
	}
	return until.Add(-l.FenceMargins().KillBefore)
}

// ArmGuard moves the guard's deadline with the lease. In pause nothing is killed
// on its own (I5), from the beat on that says so.
func (l *leadership) ArmGuard() {
	switch {
	case !l.PauseInForce():
		l.GuardSupervisor.arm(l.PersistedState())
	case l.replaced() && l.GuardSupervisor.mayHaveDeadline():
		// It is of a lease that no pause covers, and PostgreSQL may still run: only what has ended that takes it away.
	default:
		l.GuardSupervisor.standDown(l.PersistedState())
	}
}

// replaced reports whether another member has led since this one, by what Consul shows.
func (l *leadership) replaced() bool {
	holder, b := l.Snapshot.LeaderName(), l.Snapshot.Status.Value.Lictor
	return holder != "" && holder != l.Name || b != nil && b.Owner != l.Name
}

// restInPause has the guard stand down again, which was armed for a promotion or a start: until
// the next beat it would kill for a lease that nothing ends in pause (I5).
func (l *leadership) restInPause() {
	if l.PauseInForce() {
		l.ArmGuard()
	}
}

// whenTold calls send, with what is left of limit, when that has succeeded which must
// come before a beat or takeover of a lease of ttl that counts from t0: the guard knows the
// end of a lease that is cut, and a restarted agent will know that there may be one.
func (l *leadership) whenTold(t0 cluster.Instant, ttl, limit time.Duration, send func(left time.Duration), failed func(error)) {
	deadline := l.Now().Add(limit)
	left := func() time.Duration { return max(deadline.Sub(l.Now()), time.Millisecond) }
	persisted := l.PersistedState()
	persisted.Paused = l.Dynamic.Pause // as the status will say
	shorten := !l.PauseInForce() && !l.LeaseState.Until().IsZero()
	l.GuardSupervisor.leads(persisted, t0.Add(ttl-l.FenceMargins().KillBefore), limit, func(err error) {
		switch {
		case err != nil:
			failed(err)
		case !shorten:
			send(left())
		default:
			l.GuardSupervisor.shorten(persisted, left(), func(err error) {
				if err != nil {
					failed(err)
					return
				}
				send(left())
			})
		}
	})
}

// nextStatus is the status that replaces the one that is known.
func (l *leadership) nextStatus() cluster.Status {
	o := l.local.PG.Observed
	at, known := o.LSN(), l.Snapshot.Status.Value.OpTime
	discarded, before := l.nextDiscarded()
	if was, _ := l.Discarded(); discarded > was {
		known = 0 // Consul has gone back to before a restore: that position may be of what it discarded
	}
	switch {
	case l.discard != nil:
		at = 0 // where the restored shard will be is not known, and what was there before is discarded
	case at == 0 && l.local.Restore != nil && l.local.Data.State == ha.DataValid:
		at = max(known, l.local.Data.CheckpointLSN) // the data are back, as they were shut down
	case at == 0:
		at = known // it could not be looked at, or is down
	case o.Replaying && (l.wasStandby() || !l.Dynamic.StandbyCluster.On()):
		at = max(at, known) // it has more than it knows yet
	}
	beat := cluster.Beat{
		LeaseMS: l.Dynamic.TTL.Milliseconds(), Number: l.NextBeat(), Owner: l.Name, Paused: l.Dynamic.Pause,
		Timeline: l.NextTimeline(o.Timeline, false), Standby: l.standby(),
	}
	if o.Accepting && o.InRecovery { // it may be promoted without another takeover, as a standby leader is
		beat.Timeline = max(beat.Timeline, o.Timeline+1)
		if beat.Standby { // the other site may take the next one
			beat.Timeline = max(beat.Timeline, o.Timeline+2)
		}
	}
	beat.Site, beat.Succeeded = l.nextSite()
	if l.discard != nil { // the restored shard's
		beat.Timeline = max(beat.Timeline, l.discard.Timeline+1)
	}
	beat.Discarded, beat.DiscardedBefore = discarded, before
	beat.FailoverSlots = l.failoverSlots(&o)
	return cluster.Status{OpTime: at, Slots: l.slotPositions(&o), RetainSlots: l.retained, Lictor: &beat}
}

// standby reports whether the leader's position is that of a standby leader's PostgreSQL, until there is a
// primary. The one of a primary that is demoted lies on WAL that the remote primary may not have.
func (l *leadership) standby() bool {
	o := l.local.PG.Observed
	if !o.Accepting {
		return l.wasStandby()
	}
	return o.InRecovery && (l.wasStandby() || l.Dynamic.StandbyCluster.On())
}

// wasStandby reports whether the position that is known is a standby leader's.
func (l *leadership) wasStandby() bool {
	known := l.Snapshot.Status.Value.Lictor
	return known != nil && known.Standby
}

// nextSite is what the next status says of the two sites.
func (l *leadership) nextSite() (since, succeeded int) {
	if known := l.Snapshot.Status.Value.Lictor; known != nil {
		if since = known.Site; known.Standby && !l.standby() {
			since = l.local.PG.Observed.Timeline // it was promoted
		}
	}
	return since, l.asRead().Succeeded(l.site)
}

// nextDiscarded is what the next status says of discarded WAL: as the one that it replaces,
// unless a restore is under way, or was undone: then a member that holds that WAL writes it. The
// data of a primary know by their history which restores there were. Consul may not: it was told
// of one that came to nothing by a beat that came late, or has gone back to before one (a snapshot
// was restored).
func (l *leadership) nextDiscarded() (timeline, before int) {
	timeline, before = l.Discarded()
	o := &l.local.PG.Observed
	switch {
	case l.discard != nil:
		return l.discard.Timeline, l.discard.Before
	case l.local.Restore != nil && l.local.Data.State == ha.DataValid && timeline == l.local.Restore.Timeline:
		return l.local.Restore.Before, 0
	case l.local.Restore != nil || l.local.upgradeUnfinished() || !l.local.PG.Primary():
		return timeline, before
	}
	own, on := l.led, o.Timeline
	if !l.local.PG.Running {
		own, on = l.local.Data.Restores, l.local.Data.Timeline
	}
	switch {
	case on == 1:
		return 0, 0
	case on > 1 && own.Timeline == on:
		return own.Discard.Timeline, own.Before
	}
	return timeline, before
}

// leaseLimit is what is left of the lease before it would have to be fenced: the limit of
// a request that the lease is about.
func (l *leadership) leaseLimit() time.Duration {
	return max(l.KillAt().Sub(l.Now()), time.Millisecond)
}

// beat renews the lease. The lease counts from t0, which is read before
// anything is sent: the leader's own view of it is the pessimistic one.
func (l *leadership) beat(consent bool) {
	if l.announcing != nil {
		l.announce(l.announcing)
		return
	}
	session, index, ttl := l.Session, l.Snapshot.Status.ModifyIndex, l.Dynamic.TTL
	t0 := l.Now()
	status := l.nextStatus()
	if consent {
		status.Lictor.Takeover = cluster.TakeoverQuorum
	}
	l.LeaseState.BeginBeat(t0, ttl)
	l.LeaseState.BeginConsent(consent)
	l.holdCommits()
	l.ArmGuard()
	failed := func(err error) { l.writeFailed("beat", err) }
	send := func(left time.Duration) {
		l.consul.Beat(left, session, index, status, func(index uint64, err error) {
			if err != nil {
				failed(err)
				return
			}
			l.WroteStatus(l.Now(), status, index)
			if !consent {
				l.LeaseState.Withdrawn()
				l.holdCommits()
			}
			if err := l.LeaseState.BeatSucceeded(l.Now(), t0, ttl); err != nil {
				l.Log.Error().Err(err).Msg("the beat succeeded too late")
				return
			}
			l.ArmGuard()
		})
	}
	takenBack := false
	l.unsent = func() {
		takenBack = true
		l.LeaseState.WriteFailed(ha.NoEffect, l.Now(), l.Dynamic.BeatInterval())
	}
	told := func(then func()) {
		if !takenBack {
			l.unsent = nil
			then()
		}
	}
	l.whenTold(t0, ttl, l.leaseLimit(),
		func(left time.Duration) { told(func() { send(left) }) },
		func(err error) { told(func() { failed(err) }) })
}

// holdCommits has what others may take over by not weakened as long as a status may stand that consents.
func (l *leadership) holdCommits() { l.local.postgres.HoldCommits(l.LeaseState.Consented()) }

// drop ends the lease here and now.
func (l *leadership) drop() {
	l.takeBack()
	l.LeaseState.Drop()
}

// takeBack makes sure that a beat which was not sent yet is not sent any more: it may wait
// for a disk that hangs, and a release would wait for it.
func (l *leadership) takeBack() {
	if l.unsent != nil {
		l.unsent()
		l.unsent = nil
	}
}

// outcome sorts the failures of a write to Consul.
func outcome(err error) ha.Outcome {
	switch {
	case errors.Is(err, cluster.ErrConflict):
		return ha.Refused
	case errors.Is(err, cluster.ErrUncertain):
		return ha.Unknown
	default:
		return ha.NoEffect
	}
}

// writeFailed notes a beat, takeover or release that did not succeed.
func (l *leadership) writeFailed(what string, err error) {
	o, after := outcome(err), l.retryAfter()
	l.LeaseState.WriteFailed(o, l.Now().Add(after), l.Dynamic.BeatInterval())
	if o == ha.NoEffect {
		l.consulFailed(fmt.Errorf("%s: %w", what, err))
	} else {
		l.Log.Warn().Err(err).Msg(what + " failed")
		l.watches.KickSession()                           // it may be gone
		l.Snapshot.Route = cluster.Entry[cluster.Route]{} // perhaps it was this that has changed
	}
	l.wakeAfter(after)
}

// release gives the lease up in Consul. It is dropped here already.
func (l *leadership) release(successor string) {
	session, index := l.Session, l.Snapshot.Status.ModifyIndex
	status := l.nextStatus()
	l.LeaseState.BeginRelease()
	status.OpTime = max(status.OpTime, l.local.Data.CheckpointLSN)
	status.Lictor.Released, status.Lictor.Successor, status.Lictor.Complete = true, successor, l.Complete
	l.consul.Release(l.Dynamic.RetryTimeout, session, index, status, func(index uint64, err error) {
		if err != nil {
			l.writeFailed("release", err)
			return
		}
		l.WroteStatus(l.Now(), status, index)
		l.Snapshot.Leader = cluster.Entry[string]{}
		l.LeaseState.Released()
		l.Log.Info().Str("successor", successor).Msg("gave the leader lock up")
	})
}

// giveTo ends the lease and offers it to successor; empty: to anybody. complete: the
// successor has all WAL.
func (l *leadership) giveTo(successor string, complete bool) {
	l.Complete = complete
	l.takeBack()
	l.LeaseState.GiveTo(successor)
}

// resume goes on with the lease of the agent's earlier run, as the guard remembers it:
// without a word to Consul, which may be away. It reports whether it does.
func (l *leadership) resume(r Recalled) bool {
	now, persisted := l.Now(), r.PersistedState
	switch {
	case persisted == nil:
		return false
	case r.Paused:
		// It rests on the pause; the lock is taken anew when Consul answers.
		l.LeaseState.ResumeLists(persisted.PersistedState)
		l.Log.Info().Msg("going on with the pause of the agent's earlier run")
		return true
	// The guard has the last word on how long PostgreSQL lives.
	case !now.Before(r.Until), l.LeaseState.Resume(now, persisted.PersistedState) != nil:
		return false
	}
	l.Snapshot.Status.ModifyIndex = persisted.Index
	l.Log.Info().Dur("lease_left", l.LeaseLeft()).Msg("going on with the lease of the agent's earlier run")
	return true
}
