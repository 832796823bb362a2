package cluster

import "errors"

// How a write to Consul can fail. Any other error: it certainly had no effect.
var (
	// ErrConflict: the transaction was refused as a whole, because a key has
	// changed since it was read.
	ErrConflict = errors.New("refused by Consul: the shard has changed meanwhile")
	// ErrUncertain: the request may or may not take effect, now or later.
	ErrUncertain = errors.New("outcome unknown")
)

// TakeOver is everything that a takeover checks and writes, in one transaction
// (design 5.3). An index of zero means that the key must
// not exist.
type TakeOver struct {
	Session, Name string
	// StatusIndex, FailsafeIndex and LeaderIndex are those of the view that the
	// decision rests on.
	StatusIndex, FailsafeIndex, LeaderIndex uint64
	// Status is the first beat.
	Status Status
	// Sync, if set, replaces the sync key at SyncIndex; else the key must have that
	// index.
	Sync      *Sync
	SyncIndex uint64
	// Route, if set, replaces the route at RouteIndex.
	Route      *Route
	RouteIndex uint64
	// Initialize, if set, is written to the key initialize, which must not
	// exist; Bootstrapped says that it exists, empty, held by our session.
	Initialize   string
	Bootstrapped bool
	// Config, if set, is written unless there is one.
	Config []byte
}

// Announcement is the beat that also makes the cluster of a major upgrade the shard's (design 5.31).
type Announcement struct {
	Session string
	// Status is the beat, and StatusIndex that of the one which it replaces.
	Status      Status
	StatusIndex uint64
	// From and To are the system identifiers of the old cluster and of the new one: the key initialize, which must
	// name the old one at InitializeIndex.
	From, To        string
	InitializeIndex uint64
	// Sync and Route replace their keys at these indexes.
	Sync       Sync
	SyncIndex  uint64
	Route      Route
	RouteIndex uint64
}

// Indexes are the ModifyIndexes that keys have after a transaction. They need not
// be the transaction's own: a key that is set to the value it has already keeps
// its index (Consul, agent/consul/state/kvs.go, kvsSetTxn).
type Indexes map[string]uint64
