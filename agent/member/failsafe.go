package member

import (
	"fmt"
	"maps"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// failsafe is how a leader goes on without Consul, by the promises of the others.
type failsafe struct {
	*Shard
	lead  *leadership
	keys  *leaderKeys
	peers Peers

	// agreed is the last round in which all have promised, until these promises end. With takeover by quorum alone.
	agreed      string
	agreedUntil cluster.Instant
}

// ask asks every member that could take the lock to promise not to, all
// at once, and prolongs the lease when all have. A member that does not answer in
// time is asked again in the next round.
func (f *failsafe) ask() {
	t0 := f.Now()
	lease := f.lead.LeaseState.BeginFailsafe(t0)
	members := f.lead.LeaseState.FailsafeMembers(f.Name)
	request := ha.FailsafeRequest{Leader: f.Name, Lease: lease, Index: f.Snapshot.Status.ModifyIndex, Slots: f.slotPositions(&f.lead.local.PG.Observed)}
	if f.Dynamic.Takeover == cluster.TakeoverQuorum {
		if request.Round = f.ID(); t0 < f.agreedUntil {
			request.Agreed = f.agreed
		}
	}
	limit := max(min(f.lead.KillAt().Sub(t0), f.Dynamic.TTL/4), time.Millisecond)
	open, over := len(members), false
	answered := func(refusal error) {
		if over {
			return
		}
		if open--; refusal == nil && open > 0 {
			return
		}
		over = true // the first refusal ends the round
		f.answered(t0, lease, refusal, request.Round)
	}
	if open == 0 {
		f.After(0, func() { answered(nil) })
	}
	for _, listed := range members {
		// What it runs its key in Consul says; without one it has to prove itself.
		other, found := f.Snapshot.Member(listed.Name)
		patroni := found && other.OK() && other.Value.Lictor == nil
		f.peers.Failsafe(limit, listed, patroni, request, func(err error) {
			if err != nil {
				err = fmt.Errorf("%s: %w", listed.Name, err)
			}
			answered(err)
		})
	}
}

func (f *failsafe) answered(t0 cluster.Instant, lease time.Duration, refusal error, round string) {
	before := f.lead.LeaseState.OnFailsafe()
	if err := f.lead.LeaseState.FailsafeAnswered(f.Now(), t0, lease, refusal == nil); err != nil {
		f.Log.Error().Err(err).Msg("the members agreed too late")
		return
	}
	if refusal == nil {
		f.agreed, f.agreedUntil = round, t0.Add(lease)
	}
	switch {
	case refusal != nil:
		f.Log.Warn().Err(refusal).Dur("lease_left", f.lead.LeaseLeft()).
			Msg("not every member agrees that the leader goes on without Consul")
		f.wakeAfter(f.retryAfter())
	case !before && f.lead.LeaseState.OnFailsafe():
		f.Log.Warn().Msg("Consul does not answer; going on as the leader, as all members agree")
	}
	f.lead.ArmGuard()
}

// writeList replaces the list of members that have to agree, or deletes it.
// The guard knows of the list before Consul can, so that an agent that is
// restarted in between asks these members too.
func (f *failsafe) writeList(w ha.WriteFailsafe) {
	key, session := f.Keys.Failsafe(), f.Session
	if !f.keys.begin(key) {
		return
	}
	f.lead.LeaseState.BeginList(w.List)
	var value any
	if w.List != nil {
		value = maps.Clone(w.List)
	}
	f.lead.GuardSupervisor.remember(f.lead.PersistedState(), func(err error) {
		if err != nil {
			f.keys.failed("failsafe", key, err)
			return
		}
		f.keys.send("failsafe", key, session, w.Index, value, func(index uint64) {
			f.Snapshot.Failsafe = cluster.Entry[map[string]string]{Value: w.List, ModifyIndex: index}
			f.lead.LeaseState.ListKnown(index, w.List)
			f.lead.ArmGuard()
			f.Log.Info().Int("members", len(w.List)).Msg("failsafe list written")
		})
	})
}

// deposeEvery is how often a deposed leader that does not answer is told again.
const deposeEvery = time.Second

// deposer tells a leader whose lease has run out that it is deposed.
type deposer struct {
	*Shard
	peers Peers
}

// depose tells the old leader that it is deposed, until it has heard it or this
// member does not lead any more: its clock may have stood still with the whole
// host (design 5.6).
func (d deposer) depose(name string, index uint64) {
	old, found := d.Snapshot.Member(name)
	if !found || !old.OK() {
		return // its member key has gone with its session: it was away for long
	}
	d.keep(old.Value, index)
}

func (d deposer) keep(old cluster.Member, index uint64) {
	if d.Snapshot.LeaderName() != d.Name {
		return
	}
	d.peers.Depose(deposeEvery, old, index, func(err error) {
		if err != nil {
			d.After(deposeEvery, func() { d.keep(old, index) })
			return
		}
		d.Log.Info().Str("member", old.Name).Msg("the old leader has heard that it is deposed")
	})
}
