package ha

// This file is about a member that has given its data up: they were removed, rewound, or
// cloned from another member. What it acknowledged before, a member that is named in
// the key sync must have; and the key still names it. So it neither counts nor leads
// while the key is there, until it has come to a position of the leader's that was asked
// for after the old data had acknowledged their last commit: whatever they acknowledged
// lies before that. From then on it keeps its word as if nothing had happened, whatever
// the key says.

// Goal is the position that such a member must have come to.
type Goal struct {
	Timeline int
	LSN      int64
}

// Reached reports whether a replica that runs has everything up to the goal. Without a
// goal it never has: what the old data acknowledged is not known.
func (g Goal) Reached(pg Postgres) bool {
	return g.LSN > 0 && pg.Running && pg.Accepting && !pg.Replaying && pg.Timeline >= g.Timeline && pg.LSN >= g.LSN
}

// Outdated reports whether the leader must be asked: there is no goal yet, or the
// leader's timeline has left the one on which it lies, perhaps before it.
func (g Goal) Outdated(leaderTimeline int) bool {
	return g.LSN == 0 || leaderTimeline > g.Timeline
}

// restoringForbids says why a member whose data were replaced must not lead.
func (v Shard) restoringForbids(restoring bool) string {
	if key := v.Cluster.Sync; !restoring || key.Err == nil && key.Value.Leader == "" {
		return ""
	}
	return "its data were removed, rewound or cloned, and it has not yet got all that it may have acknowledged before"
}
