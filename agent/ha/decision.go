package ha

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Decision is what to do now, why, and when to look again at the latest.
type Decision struct {
	// Reason in words: logged when it changes, shown in the API.
	Reason  string
	Actions []Action
	// Wake is when the next decision is due if nothing happens before; zero:
	// at the next tick.
	Wake cluster.Instant
}

// Action is one thing to do. Actions of a decision are begun in their order.
type Action interface{ fmt.Stringer }

// Beat renews the lease. Consent: it consents to a takeover by quorum.
type Beat struct{ Consent bool }

// TakeOver takes the lock in one transaction that fails if any of these
// indexes has moved; zero means that the key must not exist. In the same
// transaction Sync, if set, replaces the key `sync`: for a primary that runs already,
// which is the only member that certainly holds every commit it acknowledges.
type TakeOver struct {
	Status    uint64
	Failsafe  uint64
	Leader    uint64
	SyncIndex uint64
	Sync      *cluster.Sync
	// ByQuorum: the lease need not be over, as enough of the standbys have detached.
	ByQuorum bool
}

// BeginAttempt begins an attempt at a takeover by quorum, of the status at Index: the others
// are asked whether they hear the leader.
type BeginAttempt struct{ Index uint64 }

// DetachForAttempt has this member, and asks the others to, detach for the attempt.
type DetachForAttempt struct{}

// EndAttempt ends the attempt under way; the next one has to wait. Instead is a member that
// is ahead, and is to begin at once; empty: none.
type EndAttempt struct{ Instead string }

// Release gives the lease up, for Successor or for anybody.
type Release struct{ Successor string }

// Reread asks for a consistent read of the shard.
type Reread struct{}

// AskPeers asks every other member how it fares.
type AskPeers struct {
	// Detach asks them first to detach from the old leader, whose last status has this
	// index; zero: it does not.
	Detach uint64
}

// AskFailsafe asks every member of the failsafe list to promise that it will not
// take the lock, so that the lease can be prolonged without Consul.
type AskFailsafe struct{}

// WriteFailsafe replaces the key failsafe if it still has this index; a nil list
// deletes it.
type WriteFailsafe struct {
	Index uint64
	List  map[string]string // name to API URL
}

// Fence stops every process of PostgreSQL at once (SIGKILL) and drops the lease.
type Fence struct{}

// Demote stops PostgreSQL in an orderly way (fast shutdown), then drops the
// lease. It interrupts a running task.
type Demote struct{}

// GiveUp ends a leadership that PostgreSQL cannot fill: its processes are
// killed, the lease is dropped and offered to Successor.
type GiveUp struct{ Successor string }

// EndHung kills a postmaster that hangs. The lease is kept: it is started in place then.
type EndHung struct{}

// Bootstrap makes a new shard if this member wins the key `initialize`: of its own, or as the
// standby of another one, by a copy of From.
type Bootstrap struct{ From string }

// ClaimBootstrap takes the key `initialize` for a shard that this member has made
// already.
type ClaimBootstrap struct{}

// Register is the takeover that also tells Consul of the shard which this member has
// made.
type Register struct{ TakeOver }

// FinishBootstrap makes the bootstrapped data directory the shard's: from now on it is
// as sacred as any.
type FinishBootstrap struct{}

// PutBack puts the data back that a restore was to replace.
type PutBack struct{}

// EndRestore drops the note of a restore that was undone.
type EndRestore struct{}

// UndoUpgrade takes back what a major upgrade has done.
type UndoUpgrade struct{}

// EndUpgrade makes the data of a major upgrade that was announced the shard's.
type EndUpgrade struct{}

// EndShutDown ends the processes of a PostgreSQL that is shut down and does not end.
type EndShutDown struct{}

// DiscardIncomplete clears away what a bootstrap or clone of our own left
// unfinished.
type DiscardIncomplete struct{}

// Clone makes the data directory from another member. With NoStream it then follows
// nobody and gets WAL from the archive.
type Clone struct {
	From     string
	NoStream bool
}

// StartPrimary starts PostgreSQL as a primary; only a leader does so. From its first
// commit on its commits wait as Sync says; nil: as its configuration file says, for whom
// they waited before.
type StartPrimary struct{ Sync *SetSync }

// StartReplica starts PostgreSQL as a replica of Upstream; empty: of nobody,
// to find out how far its WAL goes.
type StartReplica struct{ Upstream string }

// Rejoin makes the data directory fit to follow Upstream, rewinding it or
// cloning it anew where that is needed and allowed, and starts it. With NoStream it is
// started as a replica of nobody, which gets Upstream's WAL from the archive.
type Rejoin struct {
	Upstream string
	NoStream bool
}

// Follow points a running replica at another upstream.
type Follow struct{ Upstream string }

// Rebuild makes the data of this replica anew by policy, when it is its turn.
type Rebuild struct{}

// RestartReplica restarts the running replica, to follow Upstream, or nobody.
type RestartReplica struct{ Upstream string }

// CopySlots restarts the running replica with copies of the logical slots that From has, the
// leader.
type CopySlots struct {
	Upstream, From string
	Slots          []cluster.Slot
}

// Promote makes the running replica the primary. Sync, if set, replaces the key `sync`
// at SyncIndex in the last step before, without which nothing is promoted: a new
// primary is at first the only member that holds every commit it acknowledges.
type Promote struct {
	SyncIndex uint64
	Sync      *cluster.Sync
}

// StandDown stops the primary in an orderly way, and starts it as a replica of nobody. The lease
// is kept.
type StandDown struct{}

// Handover stops PostgreSQL, waits until Successor has all of its WAL, drops
// the lease and gives it to Successor.
type Handover struct {
	Successor string
	// OnBusy is what the operator wants done with running transactions.
	OnBusy string
}

// RolledBack is a request (the index of the key `failover`) whose handover was rolled back, and why.
type RolledBack struct {
	Request uint64
	Why     string
}

// ClearFailover resets the key `failover`.
type ClearFailover struct{ Index uint64 }

// SetSync makes PostgreSQL's commits wait for these standbys: for any Any of
// them, or for all when Any is 0.
type SetSync struct {
	Standbys []string
	Any      int
}

// WriteSync replaces the key `sync` if it still has this index; a nil value
// deletes it.
type WriteSync struct {
	Index uint64
	Value *cluster.Sync
}

// Exit ends the agent.
type Exit struct{}

func (b Beat) String() string {
	if b.Consent {
		return "beat that consents to a takeover by quorum"
	}
	return "beat"
}

func (t TakeOver) String() string {
	if t.ByQuorum {
		return fmt.Sprintf("take over by quorum (status at %d)", t.Status)
	}
	return fmt.Sprintf("take over (status at %d)", t.Status)
}

func (a BeginAttempt) String() string {
	return fmt.Sprintf("begin to take over by quorum (status at %d)", a.Index)
}
func (DetachForAttempt) String() string { return "detach, with the others" }
func (e EndAttempt) String() string {
	if e.Instead != "" {
		return "leave the takeover to " + e.Instead
	}
	return "end the attempt to take over"
}

func (r Release) String() string {
	if r.Successor == "" {
		return "release the lease"
	}
	return "release the lease to " + r.Successor
}
func (Reread) String() string { return "read Consul again" }
func (a AskPeers) String() string {
	if a.Detach > 0 {
		return fmt.Sprintf("ask the other members, detached from the old leader (status at %d)", a.Detach)
	}
	return "ask the other members"
}
func (AskFailsafe) String() string { return "ask the members to let the lease go on" }
func (w WriteFailsafe) String() string {
	if w.List == nil {
		return "delete the failsafe key"
	}
	return fmt.Sprintf("failsafe key: %v", slices.Sorted(maps.Keys(w.List)))
}
func (Fence) String() string    { return "kill PostgreSQL" }
func (Demote) String() string   { return "demote" }
func (g GiveUp) String() string { return "give the lease up to " + g.Successor }
func (EndHung) String() string  { return "kill the PostgreSQL that hangs" }
func (b Bootstrap) String() string {
	if b.From != "" {
		return "bootstrap from the " + b.From
	}
	return "bootstrap"
}
func (ClaimBootstrap) String() string    { return "take the key initialize" }
func (r Register) String() string        { return "register the shard: " + r.TakeOver.String() }
func (FinishBootstrap) String() string   { return "finish the bootstrap" }
func (PutBack) String() string           { return "put the data back" }
func (EndRestore) String() string        { return "drop the note of the restore" }
func (UndoUpgrade) String() string       { return "take the major upgrade back" }
func (EndUpgrade) String() string        { return "begin with the upgraded data" }
func (EndShutDown) String() string       { return "end what is left of PostgreSQL" }
func (DiscardIncomplete) String() string { return "clear away the unfinished data directory" }
func (c Clone) String() string           { return "clone from " + c.From + byArchive(c.NoStream) }
func (StartPrimary) String() string      { return "start as primary" }
func (s StartReplica) String() string    { return "start as replica of " + orNobody(s.Upstream) }
func (r Rejoin) String() string          { return "rejoin as replica of " + r.Upstream + byArchive(r.NoStream) }
func (f Follow) String() string          { return "follow " + orNobody(f.Upstream) }
func (Rebuild) String() string           { return "make the data anew" }
func (r RestartReplica) String() string  { return "restart as replica of " + orNobody(r.Upstream) }
func (c CopySlots) String() string       { return "copy the logical slots of " + c.From }
func (Promote) String() string           { return "promote" }
func (StandDown) String() string         { return "stand down, as a replica of nobody" }
func (h Handover) String() string        { return "hand over to " + h.Successor }
func (ClearFailover) String() string     { return "clear the failover key" }
func (s SetSync) String() string {
	if s.Any > 0 {
		return fmt.Sprintf("commits wait for any %d of %v", s.Any, s.Standbys)
	}
	return fmt.Sprintf("commits wait for %v", s.Standbys)
}

func (w WriteSync) String() string {
	if w.Value == nil {
		return "delete the sync key"
	}
	text := fmt.Sprintf("sync key: %s with %v", w.Value.Leader, w.Value.Standbys())
	if w.Value.Quorum > 0 {
		text += fmt.Sprintf(", quorum %d", w.Value.Quorum)
	}
	return text
}
func (Exit) String() string { return "exit" }

func byArchive(noStream bool) string {
	if noStream {
		return ", by the archive alone"
	}
	return ""
}

func orNobody(name string) string {
	if name == "" {
		return "nobody"
	}
	return name
}

func do(reason string, actions ...Action) Decision {
	return Decision{Reason: reason, Actions: actions}
}

func wait(reason string) Decision { return Decision{Reason: reason} }

func (d Decision) by(wake cluster.Instant) Decision {
	d.Wake = earlier(d.Wake, wake)
	return d
}

// earlier is the earlier of two moments, zero meaning never.
func earlier(a, b cluster.Instant) cluster.Instant {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
