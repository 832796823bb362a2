package ha

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file keeps quorum commit safe from an old leader that nobody fenced, because
// its agent and its guard both stand still: the lease keeps it from leading, but not
// its standbys from acknowledging its commits. So before a candidate takes the word
// of the voters for how far the shard's WAL goes, it asks them to detach from the old
// leader: to receive nothing more from it until Consul shows a newer status than the
// one that the candidate is about to replace. If the old leader does lead on, that
// is its next beat; and the candidate's takeover, which checks the index of the
// status, has failed then.

// ErrNotDetached: a member does not detach from its old leader.
var ErrNotDetached = errors.New("not detached")

// MayDetach says why this member cannot detach from the old leader for a candidate that
// is about to replace the status at index.
func (v View) MayDetach(index uint64) error {
	switch p := v.promised(); {
	case index == 0:
		return fmt.Errorf("%w: there is no status to replace", ErrNotDetached)
	case !v.Lease.Until.IsZero() || v.Postgres.Running && v.Postgres.Primary:
		return fmt.Errorf("%w: running as a leader", ErrNotDetached)
	case p != nil:
		return fmt.Errorf("%w: the lock is promised to %s", ErrNotDetached, p.Leader)
	case v.Config.Pause:
		return fmt.Errorf("%w: in pause nothing is changed", ErrNotDetached)
	case newerThan(v.Cluster.Status, index):
		return fmt.Errorf("%w: a newer status was seen", ErrNotDetached)
	case v.Task != TaskNone:
		return fmt.Errorf("%w: busy: %s", ErrNotDetached, v.Task)
	case !v.Postgres.Accepting:
		return fmt.Errorf("%w: PostgreSQL does not run", ErrNotDetached)
	}
	return nil
}

// Detach notes that this member has detached from the old leader for a candidate that is
// about to replace the status at index.
func (o *ClusterView) Detach(index uint64) {
	o.Detached = max(o.Detached, index)
	o.Wrote(index) // an older reading tells nothing any more
}

// DetachFor notes that this member detaches for an attempt at a takeover by quorum of the
// status at index.
func (o *ClusterView) DetachFor(index uint64, attempt string) {
	if o.Detached != index {
		o.Attempts = nil
	}
	if !slices.Contains(o.Attempts, attempt) {
		o.Attempts = append(o.Attempts, attempt)
	}
	o.Detach(index)
}

// Reattach notes that nobody counts on this member's receiving nothing any more.
func (o *ClusterView) Reattach() { o.Detached, o.Attempts = 0, nil }

// Resume is told whether PostgreSQL was found running with a connected WAL receiver
// when the agent began, at the first reading. If not, a voter may have detached in the
// agent's earlier run: it follows nobody until the status changes.
func (o *ClusterView) Resume(name string, receiving bool) {
	if key := o.Snapshot.Sync; key.Exists() && key.Value.Quorum > 0 && !strings.EqualFold(key.Value.Leader, name) && key.Value.Has(name) && !receiving {
		o.Detached = max(o.Detached, o.Snapshot.Status.ModifyIndex)
	}
}

// goesOn tells whether a reading shows that the shard has gone on since this member
// has detached, or that Consul itself has gone back behind that.
func (o *ClusterView) goesOn(s cluster.Snapshot) bool {
	return s.Status.ModifyIndex > o.Detached || s.Index < o.Detached
}

// detached: a candidate counts on this member's receiving nothing until the shard
// goes on.
//
//	PostgreSQL              leader        decision
//	replica of somebody     any           follow nobody
//	down                    somebody      start as a replica of nobody
//	replica of nobody       somebody      wait for its next beat
//	replica of nobody       nobody        take part in the election
func detached(v View) (Decision, bool) {
	if v.Detached == 0 {
		return Decision{}, false
	}
	leader, pg := v.leader(), v.Postgres
	switch {
	case pg.Accepting && !pg.Primary && (pg.Upstream != "" || pg.Streaming):
		return v.unlessFailing(do("a candidate counts on this member: detaching from the old leader", Follow{})), true
	case leader == "" || leader == v.Name:
		return Decision{}, false
	case !pg.Running:
		return v.mindTheLease(v.unlessFailing(do("detached from the old leader: starting as a replica of nobody", StartReplica{}))), true
	}
	return v.mindTheLease(wait("detached from the old leader until " + leader + " is seen to lead on")), true
}
