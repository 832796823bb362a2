package member

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// takeOver takes the lock in one transaction, which registers the shard as well if
// this member has made it.
func (m *Member) takeOver(t ha.TakeOver, register bool) { sendTakeOver(m, t, register, false) }

// sendTakeOver is takeOver; again: once more, as the route had moved.
func sendTakeOver(m *Member, t ha.TakeOver, register, again bool) {
	if m.Session == "" || m.LeaseState.Writing() {
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
	if route, ok := m.route.wanted(); ok {
		request.Route, request.RouteIndex = &route, m.Snapshot.Route.ModifyIndex
	}
	deposed := m.unreleasedOwner()
	t0 := m.Now()
	m.LeaseState.BeginTakeOver(t0, ttl)
	if t.ByQuorum {
		m.LeaseState.BeginTakeoverByQuorum(t.Status)
	}
	m.ArmGuard()
	failed := func(err error) {
		m.writeFailed("taking the lock", err)
		if t.ByQuorum {
			m.quorum.failed()
		}
	}
	m.whenTold(t0, ttl, m.Dynamic.RetryTimeout, func(left time.Duration) {
		m.Consul.TakeOver(left, request, func(written cluster.Indexes, err error) {
			if t.ByQuorum && !again && errors.Is(err, cluster.ErrConflict) {
				unlessTheRoute(m, t, request, func() { failed(err) })
				return
			}
			if err != nil {
				failed(err)
				return
			}
			m.tookOver(t0, ttl, request, written)
			if deposed != "" {
				m.deposer.depose(deposed, written[m.Keys.Status()])
			}
			m.Reread()
		})
	}, failed)
}

// unlessTheRoute sends a takeover by quorum that was refused once more, if nothing but the route had moved.
func unlessTheRoute(m *Member, t ha.TakeOver, refused cluster.TakeOver, otherwise func()) {
	m.Consul.Read(confirmLimit, func(s cluster.Snapshot, err error) {
		if err != nil || s.Status.ModifyIndex != refused.StatusIndex || s.Sync.ModifyIndex != refused.SyncIndex || s.Failsafe.ModifyIndex != refused.FailsafeIndex ||
			s.Leader.ModifyIndex != refused.LeaderIndex || s.Route.ModifyIndex == refused.RouteIndex || !m.Accept(s, true) {
			otherwise()
			return
		}
		m.LeaseState.WriteFailed(ha.NoEffect, m.Now(), m.Dynamic.BeatInterval())
		sendTakeOver(m, t, false, true)
		if !m.LeaseState.Writing() {
			otherwise()
		}
	})
}

// tookOver begins the lease of a takeover that has succeeded.
func (m *Member) tookOver(t0 cluster.Instant, ttl time.Duration, request cluster.TakeOver, written cluster.Indexes) {
	m.WroteStatus(m.Now(), request.Status, written[m.Keys.Status()])
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
	m.LeaseState.TookOver(t0, ttl)
	m.holdCommits()
	m.history.forget() // replicas believe what was written under this lock
	if m.Dynamic.Pause {
		m.ArmGuard() // which is to remember the pause
	} else {
		m.GuardSupervisor.grant(m.PersistedState())
	}
	m.Log.Info().Dur("lease", m.LeaseLeft()).Msg("took the leader lock")
	if request.Config != nil && !request.Bootstrapped {
		m.Log.Warn().Msg("Consul had no dynamic configuration of this shard: the last one that this member knows of was written")
	}
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
