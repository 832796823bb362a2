package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// Reread reads the shard consistently, once at a time.
func (m *Member) Reread() {
	if m.rereading || m.now().Before(m.rereadNotBefore) {
		return
	}
	m.rereading = true
	failures := m.Tenure.Failures()
	m.Consul.Read(m.Dynamic.RetryTimeout, func(snapshot cluster.Snapshot, err error) {
		m.rereading = false
		if err == nil && m.Accept(snapshot, true) {
			m.Tenure.Reread(failures)
			return
		}
		if err != nil {
			m.ConsulFailed(err)
		}
		after := m.retryAfter()
		m.rereadNotBefore = m.now().Add(after)
		if m.Read.IsZero() {
			m.Later.After(after, m.Reread) // no decision asks again: none is made yet
			return
		}
		m.wakeAfter(after)
	})
}

// Accept makes a reading of Consul this member's own unless what is known is
// younger. It reports whether it did.
func (m *Member) Accept(snapshot cluster.Snapshot, consistent bool) bool {
	first := m.Read.IsZero()
	switch m.Outlook.Accept(m.now(), snapshot, consistent) {
	case ha.Overtaken:
		m.Reread()
		return false
	case ha.Stale:
		return false
	case ha.Taken:
	}
	if err := snapshot.Joins(m.Name); first && err != nil && !m.PG.Running {
		m.Failed = fmt.Errorf("this agent ends before it starts PostgreSQL: %w", err)
		return false
	}
	if first {
		m.Resume(m.Name, m.Upstream != "")
	}
	if first || m.consulDown {
		m.Log.Info().Str("leader", snapshot.LeaderName()).Int("members", len(snapshot.Members)).Msg("Consul answers")
	}
	m.consulDown = false
	m.ReadWall = m.Clock.Wall()
	m.Tenure.ListKnown(snapshot.Failsafe.ModifyIndex, snapshot.Failsafe.Value)
	m.noteProblems(snapshot)
	m.shell.Accepted(snapshot)
	m.clearStaleBootstrap(snapshot)
	return true
}

// SawRoute takes in the route, which is watched by a query of its own, unless what is
// known is newer.
func (m *Member) SawRoute(route cluster.Entry[cluster.Route]) {
	if route.ModifyIndex > m.Snapshot.Route.ModifyIndex {
		m.Snapshot.Route = route
		m.noteProblems(m.Snapshot)
	} else if !route.Exists() && m.Snapshot.Route.Exists() {
		m.Reread() // deleted, or read before it was written
	}
}

// ConsulFailed says once, and again only after Consul has answered meanwhile,
// that Consul does not answer.
func (m *Member) ConsulFailed(err error) {
	if m.consulDown {
		return
	}
	m.consulDown = true
	m.Log.Warn().Err(err).Msg("Consul does not answer; trying again until it does")
}

// problemGrace is how long a value in Consul must make no sense before that is
// said: a leader whose session was lost has no member key for a moment.
const problemGrace = 3 * time.Second

// noteProblems reports values in Consul that make no sense, once each.
func (m *Member) noteProblems(snapshot cluster.Snapshot) {
	text := ""
	if err := errors.Join(snapshot.Problems()...); err != nil {
		text = err.Error()
	}
	if text != m.problems {
		m.problems, m.problemsSince = text, m.now()
		if text != "" {
			m.Later.After(problemGrace, func() { m.noteProblems(m.Snapshot) })
		}
		return
	}
	if text != "" && !m.problemsSince.IsZero() && m.now().Sub(m.problemsSince) >= problemGrace {
		m.problemsSince = 0
		m.Log.Error().Str("prefix", m.Keys.Prefix()).Str("problems", text).Msg("values in Consul are wrong")
	}
}

// clearStaleBootstrap ends a bootstrap of this member's that nobody works on any more:
// one of this run that has failed and could not say so, or one that an earlier run left
// behind with its session, instead of waiting for that one's TTL.
func (m *Member) clearStaleBootstrap(snapshot cluster.Snapshot) {
	init, session := snapshot.Initialize, m.Session
	if !init.Exists() || init.Value != "" || init.Session == "" || session == "" || m.task != nil ||
		init.Session == session && (m.Data.State == ha.DataBootstrapped || m.Tenure.Writing()) {
		return
	}
	cleared := func(err error) {
		if err != nil && !errors.Is(err, cluster.ErrConflict) {
			m.Log.Warn().Err(err).Msg("clearing away our own unfinished bootstrap in Consul")
		}
	}
	if init.Session == session {
		m.Consul.EndBootstrap(m.Dynamic.RetryTimeout, session, cleared)
		return
	}
	m.Consul.EndSession(m.Dynamic.RetryTimeout, init.Session, m.SessionName, cleared)
}
