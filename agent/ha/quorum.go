package ha

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is what a candidate does in quorum mode: it leads only once it is sure to
// hold every acknowledged commit.

// detachAgain is how soon members that were not ready to detach are asked again.
const detachAgain = 100 * time.Millisecond

// needsQuorum tells whether a member may lead only once it has seen a quorum at or
// behind its own position.
func (v Shard) needsQuorum(name string) bool {
	key := v.Cluster.Sync
	return key.Exists() && key.Value.Quorum > 0 && key.Value.Leader != "" && !strings.EqualFold(key.Value.Leader, name) && !v.forcedByOperator(name)
}

// quorumFirst is what must come before the lock is taken while the key sync asks
// for a quorum. The positions count only if they were asked for when the old
// leader could acknowledge nothing any more: after its lease ended (ended), and
// after what this member has promised to it; and, as nobody may have fenced it,
// of members that have detached from it.
func (v View) quorumFirst(ended cluster.Instant) (Decision, bool) {
	if !v.needsQuorum(v.Name) {
		return Decision{}, false
	}
	// One that still runs is void: its leader has released the lease since.
	if p := v.Promise; p != nil && ended.Before(p.Until) && !v.Now.Before(p.Until) {
		ended = p.Until
	}
	detach := v.mustDetach()
	current := v
	current.Peers = slices.DeleteFunc(slices.Clone(v.Peers), func(p Peer) bool {
		return p.Answered && p.Detached < detach || !p.Observed.IsZero() && p.Observed.Before(ended)
	})
	problem := current.quorumProblem()
	again := v.PeersAsked.Add(detachAgain)
	switch ask := do("nobody leads; asking for the positions of the synchronous standbys", AskPeers{Detach: detach}); {
	case !v.peersFresh() || v.PeersAsked.Before(ended) || v.PeersDetached < detach:
		return ask, true
	case problem == "":
		return Decision{}, false
	case !v.PeersDone:
		return wait("nobody leads; waiting for the positions of the synchronous standbys"), true
	case slices.ContainsFunc(current.Peers, func(p Peer) bool { return p.Replaying }) && !v.Now.Before(v.PeersAsked.Add(askAgain)):
		return ask, true
	case len(current.Peers) == len(v.Peers):
		return wait("nobody leads; " + problem).by(v.Now.Add(askAgain)), true
	case v.Now.Before(again):
		return wait("nobody leads; not all synchronous standbys have detached from the old leader").by(again), true
	default:
		return ask, true
	}
}

// quorumSeen tells whether the key sync asks for a quorum, and enough of its members
// have answered.
func (v View) quorumSeen(ended cluster.Instant) bool {
	if !v.needsQuorum(v.Name) {
		return false
	}
	_, first := v.quorumFirst(ended)
	return !first
}

// quorumProblem says why this member cannot be sure to hold every acknowledged
// commit, of which the key sync asks for a quorum: fewer of its leader and voters have
// shown their position, or one is ahead. A member that does not say how far it is
// (PostgreSQL down, timeline unknown, WAL left to be replayed), or whose data were
// replaced since, or are another cluster's, does not count. Of this
// member's own position it is enough to know what it has at least.
func (v View) quorumProblem() string {
	key := v.Cluster.Sync
	seen, further := map[string]bool{}, ""
	for _, p := range v.Peers {
		if !p.Answered || p.Primary || p.State != cluster.StateRunning || p.LSN <= 0 || p.Timeline <= 0 ||
			strings.EqualFold(p.Name, v.Name) || !key.Value.Has(p.Name) {
			continue
		}
		if why := v.otherCluster(p.SystemIdentifier); why != "" {
			further += "; " + p.Name + " " + why
			continue
		}
		if p.Restoring {
			further += "; " + p.Name + ": " + v.restoringForbids(true)
			continue
		}
		if p.Replaying {
			further += "; " + p.Name + " " + stillReplays
			continue
		}
		if ahead(p, v.self()) {
			further += "; " + p.Name + " is ahead"
			continue
		}
		seen[strings.ToLower(p.Name)] = true
	}
	if len(seen) >= key.Value.Quorum {
		return ""
	}
	return fmt.Sprintf("to be sure of every commit it must see %d of %s and its standbys %v at or behind its own position, and sees %d%s",
		key.Value.Quorum, key.Value.Leader, key.Value.Standbys(), len(seen), further)
}

// mustDetach is the status that the voters must detach from before their positions
// count; zero: the old leader has stopped its PostgreSQL, or is Patroni's. The old leader is the one of the
// key sync: somebody may have led since who was never promoted, and released the lock.
func (v Shard) mustDetach() uint64 {
	if b := v.beat(); b == nil || b.Released && strings.EqualFold(b.Owner, v.Cluster.Sync.Value.Leader) {
		return 0
	}
	return v.Cluster.Status.ModifyIndex
}
