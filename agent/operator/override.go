package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
)

// This file is `failover --force` when nobody leads: an operator takes the
// responsibility for what the protocol cannot know (design 5.5). Both things
// that keep the candidate from the lock are taken out of its way:
//
//	the key failsafe does not name it   the key is deleted
//	the last lease was not released,    it is released, in its owner's name, to the
//	or was released to somebody else    candidate: all wait for it, and all promises, end
//	a restore has discarded its WAL     that is taken back in the same way
//
// An old leader that lives and hears of it, from Consul or from this command by REST,
// fences itself at once; one that nobody reaches goes on until its lease ends, as the
// others agree to no more.

// overrides says what would be overridden for a candidate: the failsafe list, the last
// lease.
func overrides(snapshot cluster.Snapshot, candidate string) (list, lease bool) {
	if snapshot.LeaderName() != "" {
		return false, false
	}
	b := snapshot.Status.Value.Lictor
	lease = snapshot.Status.OK() && b != nil && (discarded(snapshot, candidate) ||
		b.Owner != candidate && (!b.Released || b.Successor != "" && b.Successor != candidate))
	return notListed(snapshot, candidate), lease
}

// override leaves the request and takes what is in the candidate's way out of it. It
// reports whether it did: when nothing is in the way, nothing is done.
func (s *Shard) override(ctx context.Context, c *Console, snapshot cluster.Snapshot, request cluster.Failover) (done bool, err error) {
	list, lease := overrides(snapshot, request.Candidate)
	if !list && !lease {
		return false, nil
	}
	// A lease that was given to a member which cannot take it helps nobody. One that
	// does not answer here may well hear of it from Consul.
	m, _ := snapshot.Member(request.Candidate)
	switch now, err := s.status(ctx, m.Value); {
	case err != nil:
		c.Warn("warning: %s cannot be asked how it is: %v", request.Candidate, err)
	case now.State != cluster.StateRunning || now.primary():
		return false, refusedf("nothing was overridden: %s is %s as a %s, and must run as a replica", request.Candidate, now.State, now.Role)
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	if err := s.leave(ctx, snapshot, request); err != nil {
		return false, overrideFailed("the request", err)
	}
	if list {
		c.Warn("The failsafe list is overridden, because of --force.")
		if err := s.site.deleteAt(ctx, s.Keys.Failsafe(), snapshot.Failsafe.ModifyIndex); err != nil {
			return false, errors.Join(err, s.withdraw(ctx, request))
		}
	}
	if lease {
		status := snapshot.Status.Value
		s.depose(ctx, c, snapshot, request.Candidate)
		c.Warn("The lease of %s is overridden, because of --force.", status.Lictor.Owner)
		value, err := json.Marshal(releasedTo(status, request.Candidate, discarded(snapshot, request.Candidate)))
		if err == nil {
			err = s.store.Write(ctx, s.Keys.Status(), snapshot.Status.ModifyIndex, value)
		}
		if err != nil {
			return false, errors.Join(overrideFailed("the lease of "+status.Lictor.Owner, err), s.withdraw(ctx, request))
		}
	}
	return true, nil
}

// deposeLimit bounds telling the old leader, and waiting until it has stopped.
const deposeLimit = 3 * time.Second

// depose tells the owner of the last lease that it is deposed, before the candidate may
// take over: then there is no moment at which both take writes. Its key may have gone
// with its session; the failsafe list still has its address.
func (s *Shard) depose(ctx context.Context, c *Console, snapshot cluster.Snapshot, candidate string) {
	owner := snapshot.Status.Value.Lictor.Owner
	m, _ := snapshot.Member(owner)
	old := api.Peer{Name: owner, APIURL: m.Value.APIURL} // it has a lease, so it runs Lictor
	if old.APIURL == "" {
		old.APIURL = snapshot.Failsafe.Value[owner]
	}
	if owner == candidate || old.APIURL == "" || snapshot.Status.Value.Lictor.Released {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, deposeLimit)
	defer cancel()
	// The candidate's status will be newer than the one that stands now.
	err := s.client.Depose(ctx, old, api.Deposition{Leader: candidate, Index: snapshot.Status.ModifyIndex + 1, Forced: true})
	if err == nil {
		err = await(ctx, func(ctx context.Context) error {
			if now, err := askStatus(ctx, s.client, old); err != nil || now.primary() && now.State == cluster.StateRunning {
				return errors.Join(err, errors.New("it still runs as a primary"))
			}
			return nil
		})
	}
	if err != nil {
		c.Warn("warning: %s could not be told that it is deposed: %v", owner, err)
		return
	}
	c.Warn("%s has been told that it is deposed, and is no primary any more.", owner)
}

// discarded reports whether a restore has discarded WAL that a member has, or may have.
func discarded(snapshot cluster.Snapshot, name string) bool {
	b := snapshot.Status.Value.Lictor
	m, _ := snapshot.Member(name)
	return snapshot.Status.OK() && b != nil && b.Discarded > 0 && m.Value.Timeline <= b.Discarded
}

// releasedTo is a status whose lease was given to a member; undo: and that says that the last
// restore has discarded nothing.
func releasedTo(status cluster.Status, candidate string, undo bool) cluster.Status {
	beat := *status.Lictor
	beat.Released, beat.Complete, beat.Successor = true, false, candidate
	if undo {
		beat.Discarded, beat.DiscardedBefore = beat.DiscardedBefore, 0
	}
	status.Lictor = &beat
	return status
}

// withdraw takes a request back that was left for nothing.
func (s *Shard) withdraw(ctx context.Context, request cluster.Failover) error {
	now, err := s.Read(ctx)
	if err == nil && now.Failover.OK() && now.Failover.Value == request {
		err = s.store.Write(ctx, s.Keys.Failover(), now.Failover.ModifyIndex, []byte("{}"))
	}
	if err != nil && !errors.Is(err, consul.ErrConflict) {
		return fmt.Errorf("the request to %s stays in the key %s: %w", request.Candidate, s.Keys.Failover(), err)
	}
	return nil
}

func overrideFailed(what string, err error) error {
	switch {
	case errors.Is(err, consul.ErrConflict):
		return refusedf("%s was not overridden: it has changed meanwhile, so somebody is alive there; look at lictor list and try again", what)
	case errors.Is(err, consul.ErrUncertain):
		return unknownf("overriding %s: %w; see lictor list", what, err)
	}
	return fmt.Errorf("overriding %s: %w", what, err)
}

func notListed(snapshot cluster.Snapshot, candidate string) bool {
	_, listed := snapshot.Failsafe.Value[candidate]
	return snapshot.Failsafe.Exists() && !listed
}
