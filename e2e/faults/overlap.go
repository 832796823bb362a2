package faults

import (
	"cmp"
	"slices"
	"time"
)

// Commit is one commit that a member acknowledged. When it took effect is not
// known exactly: at some moment from Earliest to Acked. All times are on one
// clock, CLOCK_MONOTONIC of the machine that all hosts of a lab share, and count
// from the start of the lab.
type Commit struct {
	Member   string
	Timeline int
	// Earliest is when the statement was sent, or, where that is known, a later
	// moment at which it was surely still running.
	Earliest time.Duration
	Acked    time.Duration
}

// Reign is a member's time as a primary on one timeline, as far as commits show
// it. Since every promotion begins a new timeline, a member that leads, loses the
// lead and regains it has two, and a PostgreSQL that is restarted as a primary
// goes on with its old one.
//
// A reign reached at least from its first commit to its last, wherever in their
// bounds these two took effect: certainly from FirstAcked to LastEarliest, at the
// utmost from FirstEarliest to LastAcked.
type Reign struct {
	Member   string `json:"member"`
	Timeline int    `json:"timeline"`
	Commits  int    `json:"commits"`

	FirstEarliest time.Duration `json:"first_earliest_ns"`
	FirstAcked    time.Duration `json:"first_acked_ns"`
	LastEarliest  time.Duration `json:"last_earliest_ns"`
	LastAcked     time.Duration `json:"last_acked_ns"`
}

// add takes in one more commit; they may come in any order.
func (r Reign) add(c Commit) Reign {
	if r.Commits == 0 {
		return Reign{
			Member: c.Member, Timeline: c.Timeline, Commits: 1,
			FirstEarliest: c.Earliest, FirstAcked: c.Acked, LastEarliest: c.Earliest, LastAcked: c.Acked,
		}
	}
	r.Commits++
	r.FirstEarliest, r.FirstAcked = min(r.FirstEarliest, c.Earliest), min(r.FirstAcked, c.Acked)
	r.LastEarliest, r.LastAcked = max(r.LastEarliest, c.Earliest), max(r.LastAcked, c.Acked)
	return r
}

// Overlap is what the reigns of one shard say about two members that accept
// commits at once.
type Overlap struct {
	// Proven is for how long two members certainly did: each had committed
	// before that time, and committed again, or for the first time visible to a
	// client, after it. More than zero is a violation.
	Proven time.Duration
	// Margin is the least time from the last commit of one reign to the first
	// one of the next that is certain; what lies between them is the safety of
	// the lease. It is negative when the bounds of the two commits overlap,
	// which proves nothing, and zero with less than two reigns.
	Margin time.Duration
	// Who says which two reigns are closest, in words; empty with less than two.
	Between [2]Reign
}

// Overlaps compares every two reigns of different members. A member's own are
// left out: one PostgreSQL has one timeline at a time.
func Overlaps(reigns []Reign) Overlap {
	reigns = slices.Clone(reigns)
	slices.SortFunc(reigns, func(a, b Reign) int {
		return cmp.Or(cmp.Compare(a.FirstEarliest, b.FirstEarliest), cmp.Compare(a.Member, b.Member))
	})
	var o Overlap
	first := true
	for i, a := range reigns {
		for _, b := range reigns[i+1:] {
			if a.Member == b.Member {
				continue
			}
			proven := min(a.LastEarliest, b.LastEarliest) - max(a.FirstAcked, b.FirstAcked)
			margin := max(a.FirstEarliest, b.FirstEarliest) - min(a.LastAcked, b.LastAcked)
			o.Proven = max(o.Proven, proven)
			if first || margin < o.Margin {
				first, o.Margin, o.Between = false, margin, [2]Reign{a, b}
			}
		}
	}
	return o
}
