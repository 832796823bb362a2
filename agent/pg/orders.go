package pg

// Upstream is a member to replicate from.
type Upstream struct {
	Name string
	Host string
	Port int
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

// Permission says why a data directory may be removed. Every field must be
// true, or named: the caller vouches for it (design 5.20).
type Permission struct {
	// NotLeader: the shard has another leader.
	NotLeader bool
	// LeaderReachable: its PostgreSQL has just answered.
	LeaderReachable bool
	// AllowedBy names the setting or the request that asks for it.
	AllowedBy string
}
