package pg

import "time"

// Restore is a recovery of a shard to an earlier moment, in the place of its data.
type Restore struct {
	Target time.Time
	// Label is the backup that it begins with.
	Label string
	// Timeline is the one that the recovery follows; zero: that of the data which are replaced.
	Timeline int
	// Discarded is the number that the new timeline must be above, Before the one that the
	// status had before.
	Discarded, Before int
	// SystemIdentifier is the shard's; empty: it is not known.
	SystemIdentifier string
}
