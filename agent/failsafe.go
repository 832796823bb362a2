package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// askFailsafe asks every member that could take the lock to promise not to, all
// at once, and prolongs the lease when all have. A member that does not answer in
// time is asked again in the next round.
func (a *Agent) askFailsafe() {
	t0 := a.clock()
	lease := a.m.tenure.BeginFailsafe(t0)
	members := a.m.tenure.FailsafeMembers(a.cfg.Name)
	snapshot := a.m.Snapshot
	request := api.FailsafeRequest{
		Name: a.cfg.Name, ConnURL: a.memberValue().ConnURL, APIURL: a.memberValue().APIURL,
		Lictor: &api.FailsafeLease{LeaseMS: lease.Milliseconds(), Index: a.m.Snapshot.Status.ModifyIndex},
	}
	left := a.killAt().Sub(t0)
	ctx, cancel := context.WithTimeout(a.ctx, max(min(left, a.m.dynamic.TTL/4), time.Millisecond))
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		asking, ctx := errgroup.WithContext(ctx) // the first refusal ends the round
		for _, m := range members {
			asking.Go(func() error {
				if err := a.peers.Failsafe(ctx, peerAt(snapshot, m), request); err != nil {
					return fmt.Errorf("%s: %w", m.Name, err)
				}
				return nil
			})
		}
		err := asking.Wait()
		return func() { a.failsafeAnswered(t0, lease, err) }
	})
}

// peerAt is a member of the failsafe list. What it runs its key in Consul says; without
// one it has to prove itself.
func peerAt(s cluster.Snapshot, listed ha.FailsafeMember) api.Peer {
	m, found := s.Member(listed.Name)
	return api.Peer{Name: listed.Name, APIURL: listed.URL, Patroni: found && m.OK() && m.Value.Lictor == nil}
}

func (a *Agent) failsafeAnswered(t0 cluster.Instant, lease time.Duration, refusal error) {
	before := a.m.tenure.OnFailsafe()
	if err := a.m.tenure.FailsafeAnswered(a.clock(), t0, lease, refusal == nil); err != nil {
		a.log.Error().Err(err).Msg("the members agreed too late")
		return
	}
	switch {
	case refusal != nil:
		a.log.Warn().Err(refusal).Dur("lease_left", a.leaseLeft(a.clock())).
			Msg("not every member agrees that the leader goes on without Consul")
		a.wakeAfter(retryAfter())
	case !before && a.m.tenure.OnFailsafe():
		a.log.Warn().Msg("Consul does not answer; going on as the leader, as all members agree")
	}
	a.armGuard()
}

// Failsafe answers a leader that cannot reach Consul (api.Node).
func (a *Agent) Failsafe(ctx context.Context, r api.FailsafeRequest) error {
	return a.ask(ctx, func() error {
		if r.Lictor == nil {
			return fmt.Errorf("%w: the request carries no lease: this shard is led by Lictor", api.ErrRefused)
		}
		before := a.m.tenure.Promise()
		err := a.m.tenure.Agree(a.view(), ha.FailsafeRequest{
			Leader: r.Name, Lease: time.Duration(r.Lictor.LeaseMS) * time.Millisecond, Index: r.Lictor.Index,
		})
		switch {
		case err != nil:
			a.log.Warn().Err(err).Str("leader", r.Name).Msg("refused to let a leader go on without Consul")
		case before == nil || before.Until.Before(a.clock()):
			a.log.Warn().Str("leader", r.Name).Msg("promised not to take the lock while the leader cannot reach Consul")
		}
		return err
	})
}

// writeFailsafe replaces the list of members that have to agree, or deletes it.
// The guard knows of the list before Consul can, so that an agent that is
// restarted in between asks these members too.
func (a *Agent) writeFailsafe(w ha.WriteFailsafe) {
	key := a.keys.Failsafe()
	if a.m.writing[key] || a.m.session == "" {
		return
	}
	a.m.tenure.BeginList(w.List)
	memo := a.memo()
	var value any
	if w.List != nil {
		value = w.List
	}
	a.m.writing[key] = true
	session := a.m.session
	ctx, cancel := context.WithTimeout(a.ctx, a.m.dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		newIndex, err := uint64(0), a.guard.remember(ctx, memo)
		if err == nil {
			newIndex, err = a.store.WriteAsLeader(ctx, session, key, w.Index, value)
		}
		return func() {
			if err != nil {
				a.log.Warn().Err(err).Msg("writing the key failsafe failed")
				a.reread()
				a.afterwards(retryAfter(), func() { delete(a.m.writing, key) })
				return
			}
			delete(a.m.writing, key)
			a.m.Wrote(newIndex)
			a.m.Snapshot.Failsafe = cluster.Entry[map[string]string]{Value: w.List, ModifyIndex: newIndex}
			a.m.tenure.ListKnown(newIndex, w.List)
			a.armGuard()
			a.log.Info().Int("members", len(w.List)).Msg("failsafe list written")
		}
	})
}

// unreleasedOwner is the member whose lease ran out without being given up: it may
// not know yet.
func (a *Agent) unreleasedOwner() string {
	s := a.m.Snapshot.Status
	if !s.OK() || s.Value.Lictor == nil || s.Value.Lictor.Released || s.Value.Lictor.Owner == a.cfg.Name {
		return ""
	}
	return s.Value.Lictor.Owner
}

// deposeEvery is how often a deposed leader that does not answer is told again.
const deposeEvery = time.Second

// depose tells the old leader that it is deposed, until it has heard it or this
// member does not lead any more: its clock may have stood still with the whole
// host (design 5.6).
func (a *Agent) depose(name string, index uint64) {
	m, found := a.m.Snapshot.Member(name)
	if !found || !m.OK() {
		return // its member key has gone with its session: it was away for long
	}
	old := api.PeerOf(m.Value)
	a.goDo(func(ctx context.Context) {
		for ctx.Err() == nil && a.State().Cluster.LeaderName() == a.cfg.Name {
			ask, cancel := context.WithTimeout(ctx, deposeEvery)
			err := a.peers.Depose(ask, old, api.Deposition{Leader: a.cfg.Name, Index: index})
			cancel()
			if err == nil {
				a.log.Info().Str("member", name).Msg("the old leader has heard that it is deposed")
				return
			}
			pause(ctx, deposeEvery)
		}
	})
}

// confirmLimit bounds the reading of Consul by which a member confirms what another one
// told it. The one who asks waits for a second.
const confirmLimit = 500 * time.Millisecond

// confirm reads the shard consistently because another member told of the status at
// index, unless that or a later one is known already. It returns an error when Consul
// could not be read in time.
func (a *Agent) confirm(ctx context.Context, index uint64) error {
	known := false
	if err := a.ask(ctx, func() error { known = a.m.Snapshot.Status.ModifyIndex >= index; return nil }); err != nil || known {
		return err
	}
	read, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	snapshot, err := a.store.Read(read)
	if err != nil {
		return err
	}
	return a.ask(ctx, func() error { a.accept(snapshot, true); return nil })
}

// Part has PostgreSQL receive nothing more from the old leader (api.Node). A status
// that Consul does not show is no reason to part: it would never be followed by a newer
// one. If Consul cannot be asked, the word of a member has to do.
func (a *Agent) Part(ctx context.Context, p api.Parting) error {
	unread := a.confirm(ctx, p.Index)
	err := a.ask(ctx, func() error {
		if _, known := a.m.Snapshot.Member(p.Candidate); !known || p.Candidate == a.cfg.Name {
			return fmt.Errorf("%w: %q is not another member of this shard", api.ErrRefused, p.Candidate)
		}
		if unread == nil && p.Index > a.m.Snapshot.Status.ModifyIndex {
			return fmt.Errorf("%w: Consul shows no status as new as %d", api.ErrRefused, p.Index)
		}
		if err := a.view().MayPart(p.Index); err != nil {
			return err
		}
		if p.Index > a.m.Parted {
			a.log.Info().Str("candidate", p.Candidate).Uint64("status", p.Index).Msg("parting from the old leader, for an election")
		}
		a.m.Part(p.Index)
		return nil
	})
	if err != nil {
		return err
	}
	return a.await(ctx, func(s api.State) bool { return s.Parted >= p.Index })
}

// Deposed hears that another member has taken the lock (api.Node). Consul is asked
// whether it has; who cannot ask Consul believes the member, and fences at once. Before
// an operator gives the lease away by force, Consul shows nothing.
func (a *Agent) Deposed(ctx context.Context, d api.Deposition) error {
	if d.Leader == a.cfg.Name || d.Leader == "" {
		return fmt.Errorf("%w: %q cannot have deposed this member", api.ErrRefused, d.Leader)
	}
	var unread error
	if !d.Forced {
		unread = a.confirm(ctx, d.Index)
	}
	return a.ask(ctx, func() error {
		if _, known := a.m.Snapshot.Member(d.Leader); !known && !a.m.Read.IsZero() {
			return fmt.Errorf("%w: %q is not a member of this shard", api.ErrRefused, d.Leader)
		}
		held := a.m.tenure.Held(a.clock()) && d.Index > a.m.Snapshot.Status.ModifyIndex
		if unread == nil && held && !d.Forced {
			return fmt.Errorf("%w: Consul shows no status as new as %d", api.ErrRefused, d.Index)
		}
		if held {
			a.log.Error().Str("by", d.Leader).Bool("by_operator", d.Forced).AnErr("consul", unread).Msg("deposed: another member has taken the lock")
			a.m.tenure.Depose(d.Index)
		}
		a.reread()
		return nil
	})
}
