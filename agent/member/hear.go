package member

import (
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is what other members ask of this one, and tell it.

// Refused is why a request is not carried out.
type Refused struct{ Why string }

func (r Refused) Error() string { return r.Why }

func refused(format string, args ...any) error { return Refused{fmt.Sprintf(format, args...)} }

// HearFailsafe answers a leader that cannot reach Consul: nil is a promise. Where the readers
// of its slots are it says as well, as its status cannot.
func (m *Member) HearFailsafe(r ha.FailsafeRequest) error {
	for name, at := range r.Slots {
		if at < 0 {
			return refused("the reader of slot %q cannot be at %d", name, at)
		}
	}
	before := m.LeaseState.Promise()
	err := m.LeaseState.Agree(m.View(), r)
	switch {
	case err != nil:
		m.Log.Warn().Err(err).Str("leader", r.Leader).Msg("refused to let a leader go on without Consul")
	case before == nil || before.Until.Before(m.Now()):
		m.Log.Warn().Str("leader", r.Leader).Msg("promised not to take the lock while the leader cannot reach Consul")
	}
	if err == nil {
		m.quorum.promised(r)
	}
	if err == nil && r.Slots != nil && ha.BeatOverdue(m.View()) {
		m.Snapshot.Status.Value.Slots = slotsHeard(m.Snapshot, m.Dynamic, r.Slots)
	}
	return err
}

// slotsHeard is what is taken in of where readers are. A member says that, and a copy of a slot that was moved on cannot be moved
// back: so it counts only while Consul shows no beats, and for slots that the shard is known to have.
func slotsHeard(s cluster.Snapshot, d cluster.Dynamic, slots map[string]int64) map[string]int64 {
	known := s.Status.Value.Slots
	heard := map[string]int64{}
	for name, at := range slots {
		_, told := known[name]
		_, permanent := d.Slots[name]
		if told || permanent || slotOwner(s, name) != "" {
			heard[name] = at
		}
	}
	return heard
}

// FailsafeInForce reports whether the leader goes on without Consul: this member, by the others' word, or
// another one, by this member's among them.
func (m *Member) FailsafeInForce() bool {
	known := ha.Shard{Now: m.Now(), Name: m.Name, Config: m.Dynamic, Cluster: m.Snapshot, Promise: m.LeaseState.Promise()}
	return m.LeaseState.OnFailsafe() || known.FailsafeInForce()
}

// confirmLimit bounds the reading of Consul by which a member confirms what another one
// told it. The one who asks waits for a second.
const confirmLimit = 500 * time.Millisecond

// confirm reads the shard consistently because another member told of the status at
// index, unless that or a later one is known already. done hears why Consul could not be
// read in time.
func (m *Member) confirm(index uint64, done func(unread error)) {
	if m.Snapshot.Status.ModifyIndex >= index {
		done(nil)
		return
	}
	m.Consul.Read(confirmLimit, func(snapshot cluster.Snapshot, err error) {
		if err == nil {
			m.Accept(snapshot, true)
		}
		done(err)
	})
}

// HearDetach is asked to have PostgreSQL receive nothing more from the old leader. A status
// that Consul does not show is no reason to detach: it would never be followed by a newer
// one. If Consul cannot be asked, the word of a member has to do. With nil, it begins to.
func (m *Member) HearDetach(candidate string, index uint64, done func(error)) {
	m.confirm(index, func(unread error) {
		done(m.detach(candidate, index, unread))
	})
}

func (m *Member) detach(candidate string, index uint64, unread error) error {
	if _, known := m.Snapshot.Member(candidate); !known || candidate == m.Name {
		return refused("%q is not another member of this shard", candidate)
	}
	if unread == nil && index > m.Snapshot.Status.ModifyIndex {
		return refused("Consul shows no status as new as %d", index)
	}
	if err := m.View().MayDetach(index); err != nil {
		return err
	}
	if index > m.Detached {
		m.Log.Info().Str("candidate", candidate).Uint64("status", index).Msg("detaching from the old leader, for an election")
	}
	m.Detach(index)
	return nil
}

// TakeoverPeer is a member as others ask it for its part in a takeover by quorum.
type TakeoverPeer struct{ *Member }

// HearDetachFor is asked to detach for an attempt at a takeover by quorum. done hears when this member
// has, and has noted it durably.
func (m TakeoverPeer) HearDetachFor(candidate string, index uint64, attempt string, done func(error)) {
	m.confirm(index, func(unread error) {
		if _, known := m.Snapshot.Member(candidate); !known || candidate == m.Name {
			done(refused("%q is not another member of this shard", candidate))
			return
		}
		if unread != nil {
			done(refused("Consul does not answer: %v", unread))
			return
		}
		if err := ha.MayDetachFor(m.View(), index, attempt, m.quorum.free); err != nil {
			done(err)
			return
		}
		m.quorum.detachFor(pg.Detachment{Status: index, Attempt: attempt, Candidate: candidate}, done)
	})
}

// HearMisses is asked whether this member misses the leader of the status at index.
func (m TakeoverPeer) HearMisses(index uint64) bool { return ha.Misses(m.View(), index) }

// HearSucceed hears from a candidate that this member is ahead of it.
func (m TakeoverPeer) HearSucceed(index uint64) { m.quorum.succeed(index) }

// DetachedFor are the attempts for which this member has detached, if its PostgreSQL was looked
// at since.
func (m TakeoverPeer) DetachedFor() []string {
	if _, observed := m.Detaching(); observed == 0 || m.Detached != m.quorum.noted.Status {
		return nil
	}
	return m.quorum.attempts
}

// HearDeposed hears that another member has taken the lock, or, forced, that an operator
// gives it to that member. Consul is asked whether it is so; who cannot ask Consul believes
// the word, and fences at once (design 5.5, 5.6).
func (m *Member) HearDeposed(leader string, index uint64, forced bool, done func(error)) {
	if leader == m.Name || leader == "" {
		done(refused("%q cannot have deposed this member", leader))
		return
	}
	m.confirm(index, func(unread error) { done(m.deposed(leader, index, forced, unread)) })
}

func (m *Member) deposed(leader string, index uint64, forced bool, unread error) error {
	if _, known := m.Snapshot.Member(leader); !known && !m.Read.IsZero() {
		return refused("%q is not a member of this shard", leader)
	}
	held := m.LeaseState.Held(m.Now()) && index > m.Snapshot.Status.ModifyIndex
	switch {
	case unread != nil || !held:
	case !forced:
		return refused("Consul shows no status as new as %d", index)
	case !m.overriddenFor(leader):
		return refused("Consul shows no failover to %q, without a leader, that an operator forces", leader)
	}
	if held {
		m.Log.Error().Str("by", leader).Bool("by_operator", forced).AnErr("consul", unread).Msg("deposed: another member has taken the lock")
		m.LeaseState.Depose(index)
	}
	m.Reread()
	return nil
}

// overriddenFor reports whether an operator's failover to a member may be one that overrides
// the last lease: before its command says so, it leaves the request, and it does so only
// while nobody holds the lock.
func (m *Member) overriddenFor(candidate string) bool {
	f := m.Snapshot.Failover
	return m.Snapshot.LeaderName() == "" && f.OK() && f.Value.Candidate == candidate && f.Value.ScheduledAt == nil
}
