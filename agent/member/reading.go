package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// reader is how this member comes to know of its shard: watches bring readings, and
// whatever needs to know for certain has it read anew.
type reader struct {
	*Shard
	consul     Consul
	leaseState *ha.LeaseState
	accept     func(s cluster.Snapshot, consistent bool) bool

	rereading  bool
	notBefore  cluster.Instant // spaces out readings that fail
	down       bool            // Consul does not answer
	wrong      string          // values that make no sense
	wrongSince cluster.Instant // when they were seen first; zero: they were logged
}

// Reread reads the shard consistently, once at a time.
func (r *reader) Reread() {
	if r.rereading || r.Now().Before(r.notBefore) {
		return
	}
	r.rereading = true
	failures := r.leaseState.Failures()
	r.consul.Read(r.Dynamic.RetryTimeout, func(snapshot cluster.Snapshot, err error) {
		r.rereading = false
		if err == nil && r.accept(snapshot, true) {
			r.leaseState.Reread(failures)
			return
		}
		if err != nil {
			r.ConsulFailed(err)
		}
		after := r.retryAfter()
		r.notBefore = r.Now().Add(after)
		if r.Read.IsZero() {
			r.After(after, r.Reread) // no decision asks again: none is made yet
			return
		}
		r.wakeAfter(after)
	})
}

// SawRoute takes in the route, which is watched by a query of its own, unless what is
// known is newer.
func (r *reader) SawRoute(route cluster.Entry[cluster.Route]) {
	if route.ModifyIndex > r.Snapshot.Route.ModifyIndex {
		r.Snapshot.Route = route
		r.noteProblems(r.Snapshot)
	} else if route.ModifyIndex < r.Snapshot.Route.ModifyIndex {
		r.Reread() // deleted, read before it was written, or Consul has gone back
	}
}

// ConsulFailed says once, and again only after Consul has answered meanwhile,
// that Consul does not answer, or not the token.
func (r *reader) ConsulFailed(err error) {
	if r.down {
		return
	}
	r.down = true
	r.Log.Warn().Err(err).Msg("Consul cannot be read; trying again")
}

// problemGrace is how long a value in Consul must make no sense before that is
// said: a leader whose session was lost has no member key for a moment.
const problemGrace = 3 * time.Second

// noteProblems reports values in Consul that make no sense, once each.
func (r *reader) noteProblems(snapshot cluster.Snapshot) {
	text := ""
	if err := errors.Join(snapshot.Problems()...); err != nil {
		text = err.Error()
	}
	if text != r.wrong {
		r.wrong, r.wrongSince = text, r.Now()
		if text != "" {
			r.After(problemGrace, func() { r.noteProblems(r.Snapshot) })
		}
		return
	}
	if text != "" && !r.wrongSince.IsZero() && r.Now().Sub(r.wrongSince) >= problemGrace {
		r.wrongSince = 0
		r.Log.Error().Str("prefix", r.Keys.Prefix()).Str("problems", text).Msg("values in Consul are wrong")
	}
}

// answered notes a reading that was taken.
func (r *reader) answered(snapshot cluster.Snapshot, first bool) {
	if first || r.down {
		r.Log.Info().Str("leader", snapshot.LeaderName()).Int("members", len(snapshot.Members)).Msg("Consul answers")
	}
	r.down, r.ReadWall = false, r.Wall()
	r.noteProblems(snapshot)
}

// Accept makes a reading of Consul this member's own unless what is known is
// younger. It reports whether it did.
func (m *Member) Accept(snapshot cluster.Snapshot, consistent bool) bool {
	first := m.Read.IsZero()
	switch m.ClusterView.Accept(m.Now(), snapshot, consistent) {
	case ha.Superseded:
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
		m.quorum.firstRead()
	}
	m.answered(snapshot, first)
	m.LeaseState.ListKnown(snapshot.Failsafe.ModifyIndex, snapshot.Failsafe.Value)
	m.shell.Accepted(snapshot)
	m.bootstrap.clearStale(snapshot)
	return true
}
