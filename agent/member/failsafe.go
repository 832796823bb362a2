package member

import (
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// Refused is why a request is not carried out.
type Refused struct{ Why string }

func (r Refused) Error() string { return r.Why }

func refused(format string, args ...any) error { return Refused{fmt.Sprintf(format, args...)} }

// askFailsafe asks every member that could take the lock to promise not to, all
// at once, and prolongs the lease when all have. A member that does not answer in
// time is asked again in the next round.
func (m *Member) askFailsafe() {
	t0 := m.now()
	lease := m.Tenure.BeginFailsafe(t0)
	members, index := m.Tenure.FailsafeMembers(m.Name), m.Snapshot.Status.ModifyIndex
	limit := max(min(m.KillAt().Sub(t0), m.Dynamic.TTL/4), time.Millisecond)
	open, over := len(members), false
	answered := func(refusal error) {
		if over {
			return
		}
		if open--; refusal == nil && open > 0 {
			return
		}
		over = true // the first refusal ends the round
		m.failsafeAnswered(t0, lease, refusal)
	}
	if open == 0 {
		m.Later.After(0, func() { answered(nil) })
	}
	for _, listed := range members {
		// What it runs its key in Consul says; without one it has to prove itself.
		other, found := m.Snapshot.Member(listed.Name)
		patroni := found && other.OK() && other.Value.Lictor == nil
		m.Peers.Failsafe(limit, listed, patroni, lease, index, func(err error) {
			if err != nil {
				err = fmt.Errorf("%s: %w", listed.Name, err)
			}
			answered(err)
		})
	}
}

func (m *Member) failsafeAnswered(t0 cluster.Instant, lease time.Duration, refusal error) {
	before := m.Tenure.OnFailsafe()
	if err := m.Tenure.FailsafeAnswered(m.now(), t0, lease, refusal == nil); err != nil {
		m.Log.Error().Err(err).Msg("the members agreed too late")
		return
	}
	switch {
	case refusal != nil:
		m.Log.Warn().Err(refusal).Dur("lease_left", m.LeaseLeft()).
			Msg("not every member agrees that the leader goes on without Consul")
		m.wakeAfter(m.retryAfter())
	case !before && m.Tenure.OnFailsafe():
		m.Log.Warn().Msg("Consul does not answer; going on as the leader, as all members agree")
	}
	m.ArmGuard()
}

// HearFailsafe answers a leader that cannot reach Consul: nil is a promise.
func (m *Member) HearFailsafe(r ha.FailsafeRequest) error {
	before := m.Tenure.Promise()
	err := m.Tenure.Agree(m.View(), r)
	switch {
	case err != nil:
		m.Log.Warn().Err(err).Str("leader", r.Leader).Msg("refused to let a leader go on without Consul")
	case before == nil || before.Until.Before(m.now()):
		m.Log.Warn().Str("leader", r.Leader).Msg("promised not to take the lock while the leader cannot reach Consul")
	}
	return err
}

// deposeEvery is how often a deposed leader that does not answer is told again.
const deposeEvery = time.Second

// depose tells the old leader that it is deposed, until it has heard it or this
// member does not lead any more: its clock may have stood still with the whole
// host (design 5.6).
func (m *Member) depose(name string, index uint64) {
	old, found := m.Snapshot.Member(name)
	if !found || !old.OK() {
		return // its member key has gone with its session: it was away for long
	}
	m.keepDeposing(old.Value, index)
}

func (m *Member) keepDeposing(old cluster.Member, index uint64) {
	if m.Snapshot.LeaderName() != m.Name {
		return
	}
	m.Peers.Depose(deposeEvery, old, index, func(err error) {
		if err != nil {
			m.Later.After(deposeEvery, func() { m.keepDeposing(old, index) })
			return
		}
		m.Log.Info().Str("member", old.Name).Msg("the old leader has heard that it is deposed")
	})
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

// HearPart is asked to have PostgreSQL receive nothing more from the old leader. A status
// that Consul does not show is no reason to part: it would never be followed by a newer
// one. If Consul cannot be asked, the word of a member has to do. With nil, it begins to.
func (m *Member) HearPart(candidate string, index uint64, done func(error)) {
	m.confirm(index, func(unread error) {
		done(m.part(candidate, index, unread))
	})
}

func (m *Member) part(candidate string, index uint64, unread error) error {
	if _, known := m.Snapshot.Member(candidate); !known || candidate == m.Name {
		return refused("%q is not another member of this shard", candidate)
	}
	if unread == nil && index > m.Snapshot.Status.ModifyIndex {
		return refused("Consul shows no status as new as %d", index)
	}
	if err := m.View().MayPart(index); err != nil {
		return err
	}
	if index > m.Parted {
		m.Log.Info().Str("candidate", candidate).Uint64("status", index).Msg("parting from the old leader, for an election")
	}
	m.Part(index)
	return nil
}

// HearDeposed hears that another member has taken the lock. Consul is asked
// whether it has; who cannot ask Consul believes the member, and fences at once. Before
// an operator gives the lease away by force, Consul shows nothing.
func (m *Member) HearDeposed(leader string, index uint64, forced bool, done func(error)) {
	if leader == m.Name || leader == "" {
		done(refused("%q cannot have deposed this member", leader))
		return
	}
	heard := func(unread error) { done(m.deposed(leader, index, forced, unread)) }
	if forced {
		heard(nil)
		return
	}
	m.confirm(index, heard)
}

func (m *Member) deposed(leader string, index uint64, forced bool, unread error) error {
	if _, known := m.Snapshot.Member(leader); !known && !m.Read.IsZero() {
		return refused("%q is not a member of this shard", leader)
	}
	held := m.Tenure.Held(m.now()) && index > m.Snapshot.Status.ModifyIndex
	if unread == nil && held && !forced {
		return refused("Consul shows no status as new as %d", index)
	}
	if held {
		m.Log.Error().Str("by", leader).Bool("by_operator", forced).AnErr("consul", unread).Msg("deposed: another member has taken the lock")
		m.Tenure.Depose(index)
	}
	m.Reread()
	return nil
}
