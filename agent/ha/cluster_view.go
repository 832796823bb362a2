package ha

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ClusterView is what a member knows of its shard, and since when (design 5.2). Readings
// come from a blocking query, which may be superseded, and from consistent reads. Like a
// LeaseState it is told the time. The zero value is a member that never heard of its shard.
type ClusterView struct {
	// Snapshot is the shard as last read, or written by this member since.
	Snapshot cluster.Snapshot
	// Read is when it was read last; zero: never.
	Read cluster.Instant
	// FirstRead is when it was read first; zero: never.
	FirstRead cluster.Instant
	// Confirmed is when it was read consistently last; zero: never.
	Confirmed cluster.Instant
	// StatusSeen is when the status was first seen at its present ModifyIndex,
	// or first seen to be absent.
	StatusSeen cluster.Instant
	// GoneBack is until when another member may lead of whom Consul knows nothing any more,
	// as it has gone back to an earlier state (a snapshot was restored); zero: it has not.
	GoneBack cluster.Instant
	// Detached is the status (its ModifyIndex) under which this member has detached from
	// the old leader (detaching.go); zero: it has not, or the shard has gone on since.
	Detached uint64
	// Attempts are the attempts at a takeover by quorum for which it has, the latest last.
	Attempts []string
	// OwnerChangedAt is when the status was first seen to be another owner's than before; zero: it was not.
	OwnerChangedAt cluster.Instant

	floor uint64 // of the last reading, or of our own last write since: older readings are stale
	stale int    // consistent readings in a row that were older
}

// Acceptance says what became of a reading.
type Acceptance int

// What may become of a reading.
const (
	// Taken: it is the view of the cluster now.
	Taken Acceptance = iota
	// Superseded: it is older than what is known, or may be since nothing is known; a
	// consistent read must tell.
	Superseded
	// Stale: a consistent reading that began before our own last write.
	Stale
)

// maxStaleReads is how many consistent readings in a row may be older than our
// own last write before they are believed: Consul itself has gone back then (a
// snapshot was restored).
const maxStaleReads = 5

// Accept takes in a reading, made at now, unless what is known is younger.
// consistent says that it was a consistent read of everything, the route too.
func (o *ClusterView) Accept(now cluster.Instant, s cluster.Snapshot, consistent bool) Acceptance {
	switch {
	// A server that has just become Consul's leader answers by what it has applied of
	// its log so far, which may be far behind (docs/facts.md, Consistency).
	case !consistent && (o.Read.IsZero() || s.Index < o.floor):
		return Superseded
	case s.Index < o.floor:
		if o.stale++; o.stale < maxStaleReads {
			return Stale
		}
	}
	// The index of a whole reading tells only until the next write.
	if s.Status.Exists() && s.Status.ModifyIndex < o.Snapshot.Status.ModifyIndex {
		o.GoneBack = now.Add(withDrift(max(leaseIn(o.Snapshot), leaseIn(s))))
	}
	o.stale, o.floor = 0, s.Index
	// A reading from after the known route was written that lacks it shows that Consul has
	// gone back, too, whatever was written since.
	known := o.Snapshot.Route.ModifyIndex
	older := s.Route.Exists() && s.Route.ModifyIndex < known && s.Index < known && !now.Before(o.GoneBack)
	if known := o.Snapshot.Route; !consistent || older {
		s.Route = known
	}
	if s.Status.ModifyIndex != o.Snapshot.Status.ModifyIndex || o.Read.IsZero() {
		o.StatusSeen = now
	}
	if consistent {
		o.Confirmed = now
	}
	if was, is := ownerIn(o.Snapshot), ownerIn(s); was != "" && is != "" && was != is {
		o.OwnerChangedAt = now
	}
	if o.goesOn(s) {
		o.Reattach()
	}
	if o.FirstRead.IsZero() {
		o.FirstRead = now
	}
	o.Snapshot, o.Read = s, now
	return Taken
}

// ownerIn is that of the last beat in a reading.
func ownerIn(s cluster.Snapshot) string {
	if b := s.Status.Value.Lictor; b != nil {
		return b.Owner
	}
	return ""
}

// leaseIn is that of the last beat in a reading.
func leaseIn(s cluster.Snapshot) time.Duration {
	if b := s.Status.Value.Lictor; b != nil {
		return b.Lease()
	}
	return 0
}

// NextBeat is the number of the beat that replaces the status which is known. It
// differs from that status's own, whoever wrote it: Consul leaves the ModifyIndex
// of a key as it is when it is set to the value that it has already, and then
// nobody would see the beat.
func (o *ClusterView) NextBeat() int64 {
	if b := o.Snapshot.Status.Value.Lictor; b != nil {
		return b.Number + 1
	}
	return 1
}

// NextTimeline is the highest timeline that may be in use once the status which
// replaces the one that is known stands in Consul. own is that of this member's
// data directory; promotes says that the status is a takeover's which is to be
// followed by a promotion. A leader that promotes and is lost at once would
// otherwise leave a timeline whose number its successor takes too: PostgreSQL knows
// only of those that have reached it (its documentation, 26.3.6 Timelines).
func (o *ClusterView) NextTimeline(own int, promotes bool) int {
	highest := max(own, o.Timeline())
	if promotes {
		highest++
	}
	return highest
}

// Timeline is the highest timeline that may be in use, as far as the status tells.
func (o *ClusterView) Timeline() int {
	if b := o.Snapshot.Status.Value.Lictor; b != nil {
		return b.Timeline
	}
	return 0
}

// Discarded is the number up to which timelines hold discarded WAL, and the one before the
// last restore, as far as the status tells (design 5.25).
func (o *ClusterView) Discarded() (timeline, before int) {
	if b := o.Snapshot.Status.Value.Lictor; b != nil {
		return b.Discarded, b.DiscardedBefore
	}
	return 0, 0
}

// Wrote notes a write of this member, which has given some key this index.
func (o *ClusterView) Wrote(index uint64) { o.floor = max(o.floor, index) }

// WroteStatus notes the status that this member has written at now.
func (o *ClusterView) WroteStatus(now cluster.Instant, s cluster.Status, index uint64) {
	if was := ownerIn(o.Snapshot); was != "" && s.Lictor != nil && was != s.Lictor.Owner {
		o.OwnerChangedAt = now
	}
	o.Snapshot.Status = cluster.Entry[cluster.Status]{Value: s, ModifyIndex: index}
	o.StatusSeen = now
	o.Reattach()
	o.Wrote(index)
}
