package pg

import "github.com/lictor-ha/lictor/agent/cluster"

// Upstream is whom to replicate from.
type Upstream struct {
	Name string
	// Host may be several, with commas between them, of a remote primary, and empty where its
	// archive alone is known.
	Host string
	Port int
	// Remote: it is no member, but the primary of the shard that this one is the standby of.
	Remote bool
}

// Loss says that the data of this member were replaced: removed and cloned anew, or
// rewound. What they had acknowledged lies before a position of the leader's that was
// asked for since. It is kept beside the data directory from before the first file is
// touched until the member has come to that position.
type Loss struct {
	// ID tells one loss from the next.
	ID string `json:"id"`
	// Timeline and LSN are the position; zero: it is not known yet.
	Timeline int   `json:"timeline,omitempty"`
	LSN      int64 `json:"lsn,omitempty"`
}

// Detachment is a note beside the data directory of a member that has detached for an attempt at a takeover
// by quorum (design 5.30): until a newer status than Status is seen it follows nobody.
type Detachment struct {
	Status uint64 `json:"status"`
	// Attempt is the latest, Candidate whose it is.
	Attempt   string `json:"attempt"`
	Candidate string `json:"candidate"`
	// Own: an attempt of this member's own is among those under Status.
	Own bool `json:"own,omitempty"`
}

// Permission says why a data directory may be removed. Every field must be
// true, or named: the caller vouches for it (design 5.20).
type Permission struct {
	// NotLeader: the shard has another leader.
	NotLeader bool
	// LeaderReachable: its PostgreSQL has just answered.
	LeaderReachable bool
	// AllowedBy names the setting or the request that asks for it.
	AllowedBy string
	// Shard is the shard's system identifier: whole data of another cluster are not removed.
	Shard string
	// Version: the data are from before the shard's upgrade to that major version. They are moved aside, and a copy
	// needs its programs. Zero: they are not.
	Version int
}

// WantedSlot is a slot that is to be there.
type WantedSlot struct {
	cluster.Slot
	// Spare: nobody is to stream by it as long as this member does not lead.
	Spare bool
	// To is up to where its reader needs nothing any more; 0: not known.
	To int64
	// KeepsCheckpoint: a spare one is moved to the last checkpoint, and no further.
	KeepsCheckpoint bool
	// Native: PostgreSQL itself keeps it on replicas like the primary's, which is a failover slot.
	Native bool
	// Yields: a copy that this agent has made makes room for that one now.
	Yields bool
	// Awaited: a replica waits for the primary's to move on, so that PostgreSQL can begin to keep it there.
	Awaited bool
}

// SlotFile is a logical slot, as it lies in PostgreSQL's data directory: its state, and the
// snapshot with which its reading begins, nil: it needs none.
type SlotFile struct {
	cluster.Slot
	State, Snapshot []byte
}

// SlotOrders say which slots are to be there, and which of the others may go.
type SlotOrders struct {
	Wanted []WantedSlot
	// Keep reports whether one that is not wanted stays all the same.
	Keep func(cluster.Slot) bool
}
