package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// nextStatus is the status that replaces the one that is known.
func (m *Member) nextStatus() cluster.Status {
	o := m.PG.Observed
	at := o.LSN()
	switch known := m.Snapshot.Status.Value.OpTime; {
	case at == 0:
		at = known // it could not be looked at, or is down
	case o.Replaying:
		at = max(at, known) // it has more than it knows yet
	}
	return cluster.Status{
		OpTime: at,
		Lictor: &cluster.Beat{
			LeaseMS: m.Dynamic.TTL.Milliseconds(), Number: m.NextBeat(), Owner: m.Name, Paused: m.Dynamic.Pause,
			Timeline: m.NextTimeline(o.Timeline, false),
		},
	}
}

// leaseLimit is what is left of the lease before it would have to be fenced: the limit of
// a request that the lease is about.
func (m *Member) leaseLimit() time.Duration {
	return max(m.KillAt().Sub(m.now()), time.Millisecond)
}

// beat renews the lease. The lease counts from t0, which is read before
// anything is sent: the leader's own view of it is the pessimistic one.
func (m *Member) beat() {
	session, index, ttl := m.Session, m.Snapshot.Status.ModifyIndex, m.Dynamic.TTL
	t0 := m.now()
	status := m.nextStatus()
	m.Tenure.BeginBeat(t0, ttl)
	m.ArmGuard()
	failed := func(err error) { m.writeFailed("beat", err) }
	m.whenTold(t0, ttl, m.leaseLimit(), func(left time.Duration) {
		m.Consul.Beat(left, session, index, status, func(index uint64, err error) {
			if err != nil {
				failed(err)
				return
			}
			m.WroteStatus(m.now(), status, index)
			if err := m.Tenure.BeatSucceeded(m.now(), t0, ttl); err != nil {
				m.Log.Error().Err(err).Msg("the beat succeeded too late")
				return
			}
			m.ArmGuard()
		})
	}, failed)
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
func (m *Member) writeFailed(what string, err error) {
	o, after := outcome(err), m.retryAfter()
	m.Tenure.WriteFailed(o, m.now().Add(after), m.Dynamic.BeatInterval())
	if o == ha.NoEffect {
		m.ConsulFailed(fmt.Errorf("%s: %w", what, err))
	} else {
		m.Log.Warn().Err(err).Msg(what + " failed")
		m.Watches.KickSession()                           // it may be gone
		m.Snapshot.Route = cluster.Entry[cluster.Route]{} // perhaps it was this that has changed
	}
	m.wakeAfter(after)
}

// takeOver takes the lock in one transaction, which registers the shard as well if
// this member has made it.
func (m *Member) takeOver(t ha.TakeOver, register bool) {
	if m.Session == "" || m.Tenure.Writing() {
		return
	}
	ttl := m.Dynamic.TTL
	request := cluster.TakeOver{
		Session: m.Session, Name: m.Name,
		StatusIndex: t.Status, FailsafeIndex: t.Failsafe, LeaderIndex: t.Leader,
		Status: m.nextStatus(),
		Sync:   t.Sync, SyncIndex: t.SyncIndex,
	}
	request.Status.Lictor.Timeline = m.NextTimeline(m.PG.Observed.Timeline, !m.PG.Primary())
	switch {
	case register:
		request.Bootstrapped, request.Initialize = true, m.Data.SystemIdentifier
	case !m.Snapshot.Initialize.Exists():
		request.Initialize = m.Data.SystemIdentifier
	}
	if !m.Snapshot.Config.Exists() {
		request.Config = m.shell.InitialConfig()
	}
	if route, ok := m.routeToWrite(); ok {
		request.Route, request.RouteIndex = &route, m.Snapshot.Route.ModifyIndex
	}
	deposed := m.unreleasedOwner()
	t0 := m.now()
	m.Tenure.BeginTakeOver(t0, ttl)
	m.ArmGuard()
	failed := func(err error) { m.writeFailed("taking the lock", err) }
	m.whenTold(t0, ttl, m.Dynamic.RetryTimeout, func(left time.Duration) {
		m.Consul.TakeOver(left, request, func(written cluster.Indexes, err error) {
			if err != nil {
				failed(err)
				return
			}
			m.tookOver(t0, ttl, request, written)
			if deposed != "" {
				m.depose(deposed, written[m.Keys.Status()])
			}
			m.Reread()
		})
	}, failed)
}

// tookOver begins the lease of a takeover that has succeeded.
func (m *Member) tookOver(t0 cluster.Instant, ttl time.Duration, request cluster.TakeOver, written cluster.Indexes) {
	m.WroteStatus(m.now(), request.Status, written[m.Keys.Status()])
	m.Snapshot.Leader = cluster.Entry[string]{Value: m.Name, Session: request.Session, ModifyIndex: written[m.Keys.Leader()]}
	if request.Sync != nil {
		m.SyncUncertain = false
		m.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *request.Sync, ModifyIndex: written[m.Keys.Sync()]}
	}
	if request.Route != nil {
		index := written[m.Keys.Route()]
		m.Snapshot.Route = cluster.Entry[cluster.Route]{Value: *request.Route, ModifyIndex: index}
		m.Bouncers.Poke(*request.Route, index)
	}
	if request.Initialize != "" {
		m.Snapshot.Initialize = cluster.Entry[string]{Value: request.Initialize, ModifyIndex: written[m.Keys.Initialize()]}
	}
	m.Tenure.TookOver(t0, ttl)
	m.published.history = 0 // replicas believe what was written under this lock
	if m.Dynamic.Pause {
		m.ArmGuard() // which is to remember the pause
	} else {
		m.Guardian.grant(m.Memo())
	}
	m.Log.Info().Dur("lease", m.LeaseLeft()).Msg("took the leader lock")
}

// unreleasedOwner is the member whose lease ran out without being given up: it may
// not know yet.
func (m *Member) unreleasedOwner() string {
	s := m.Snapshot.Status
	if !s.OK() || s.Value.Lictor == nil || s.Value.Lictor.Released || s.Value.Lictor.Owner == m.Name {
		return ""
	}
	return s.Value.Lictor.Owner
}

// release gives the lease up in Consul. It is dropped here already.
func (m *Member) release(successor string) {
	session, index := m.Session, m.Snapshot.Status.ModifyIndex
	status := m.nextStatus()
	m.Tenure.BeginRelease()
	status.OpTime = max(status.OpTime, m.Data.CheckpointLSN)
	status.Lictor.Released, status.Lictor.Successor, status.Lictor.Complete = true, successor, m.Complete
	m.Consul.Release(m.Dynamic.RetryTimeout, session, index, status, func(index uint64, err error) {
		if err != nil {
			m.writeFailed("release", err)
			return
		}
		m.WroteStatus(m.now(), status, index)
		m.Snapshot.Leader = cluster.Entry[string]{}
		m.Tenure.Released()
		m.Log.Info().Str("successor", successor).Msg("gave the leader lock up")
	})
}

// giveTo ends the lease and offers it to successor; empty: to anybody. complete: the
// successor has all WAL.
func (m *Member) giveTo(successor string, complete bool) {
	m.Complete = complete
	m.Tenure.GiveTo(successor)
}

// resume goes on with the lease of the agent's earlier run, as the guard remembers it:
// without a word to Consul, which may be away. It reports whether it does.
func (m *Member) resume(r Recalled) bool {
	now, memo := m.now(), r.Memo
	switch {
	case memo == nil:
		return false
	case r.Paused:
		// It rests on the pause; the lock is taken anew when Consul answers.
		m.Tenure.ResumeLists(memo.Memo)
		m.Log.Info().Msg("going on with the pause of the agent's earlier run")
		return true
	// The guard has the last word on how long PostgreSQL lives.
	case !now.Before(r.Until), m.Tenure.Resume(now, memo.Memo) != nil:
		return false
	}
	m.Snapshot.Status.ModifyIndex = memo.Index
	m.SyncUncertain = true // the earlier run may have had one under way
	m.Log.Info().Dur("lease_left", m.LeaseLeft()).Msg("going on with the lease of the agent's earlier run")
	return true
}
