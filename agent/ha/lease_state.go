package ha

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// LeaseState is a member's account of its dealings with the lock: its lease, its
// writes to Consul and what is known of their outcome, what it may rely on when
// Consul is gone, and what it has promised to another leader. These are the
// rules of design 5 that concern one member; what it does with
// them is decided by Decide.
//
// A lease state is as pure as Decide: it is told the time and the outcomes, and holds
// no clock. It is not safe for use by several goroutines. The zero value is a
// member that never wrote anything.
type LeaseState struct {
	lease lease
	// renewed is the moment of sending of the last beat or takeover that
	// succeeded, sent that of the last one at all.
	renewed, sent cluster.Instant
	writing       bool
	// takingOver says that the write which is under way, or whose outcome is not
	// known, is a takeover.
	takingOver bool
	uncertain  bool
	failures   uint64 // writes that failed, so that a reading is known to be younger
	notBefore  cluster.Instant
	// shortest is the shortest lease that a beat which may stand in Consul
	// carries: an observer that forgot its promise counts no more than that.
	shortest time.Duration
	giving   *Giving

	lists   failsafeLists
	asking  bool
	asked   cluster.Instant // when the last failsafe round began
	agreed  cluster.Instant // when the last one began in which all have promised
	relying bool            // the lease was last prolonged by failsafe
	promise *Promise
	deposed uint64
	// consented: a beat that consents to a takeover by quorum may stand in Consul.
	consented bool
	// byQuorum is the status that a takeover by quorum which is under way would replace, late
	// the one of such a takeover whose outcome is unknown: it may land as long as that stands.
	byQuorum, late uint64
}

// Lease is how a decision sees the lease state.
func (t *LeaseState) Lease() Lease {
	return Lease{
		Until: t.lease.until, Renewed: t.renewed, BeatSent: t.sent, InFlight: t.writing, Uncertain: t.uncertain, NotBefore: t.notBefore,
		Length: t.Length(), Failsafe: t.lists.usable(), Asking: t.asking, Asked: t.asked, Agreed: t.agreed, Deposed: t.deposed,
		Consented: t.consented,
	}
}

// Held tells whether the lease runs at now.
func (t *LeaseState) Held(now cluster.Instant) bool { return t.lease.held(now) }

// Until is the end of the lease; zero: there is none.
func (t *LeaseState) Until() cluster.Instant { return t.lease.until }

// Length is how long the lease in force was granted for, the shorter one while it
// is being changed; zero: there is none. Everything that happens before its end is
// counted by it, and not by a ttl that has only been read.
func (t *LeaseState) Length() time.Duration {
	if t.lease.until.IsZero() {
		return 0
	}
	return t.shortest
}

// Giving is the lease on its way to somebody else, nil when it is not.
func (t *LeaseState) Giving() *Giving { return t.giving }

// Writing tells whether a beat, takeover or release is under way.
func (t *LeaseState) Writing() bool { return t.writing }

// OnFailsafe tells whether the lease rests on the members instead of Consul.
func (t *LeaseState) OnFailsafe() bool { return t.relying && t.lease.until != 0 }

// BeginBeat notes a beat that is about to be sent, at t0. The lease is cut to what the beat will give before it is sent, as
// observers may count the new ttl from then on (design 5.1).
func (t *LeaseState) BeginBeat(t0 cluster.Instant, ttl time.Duration) {
	t.lease.shorten(t0, ttl)
	t.shortest = min(t.shortest, ttl)
	t.writing, t.takingOver, t.sent = true, false, t0
}

// BeatSucceeded prolongs the lease, counted from t0, the moment at which the
// beat was sent, unless it has run out meanwhile (ErrLeaseOver).
func (t *LeaseState) BeatSucceeded(now, t0 cluster.Instant, ttl time.Duration) error {
	t.writing = false
	t.renewed, t.shortest = t0, ttl
	err := t.lease.extend(now, t0, ttl)
	if err == nil {
		t.relying = false
	}
	return err
}

// BeginTakeOver notes a takeover that is about to be sent, at t0. A leader that
// takes its own lock again still has a lease: as before a beat, it is cut to what
// observers may count from then on.
func (t *LeaseState) BeginTakeOver(t0 cluster.Instant, ttl time.Duration) {
	t.lease.shorten(t0, ttl)
	t.shortest = min(t.shortest, ttl)
	t.writing, t.takingOver, t.sent = true, true, t0
}

// TookOver begins a lease, counted from t0, the moment of sending.
func (t *LeaseState) TookOver(t0 cluster.Instant, ttl time.Duration) {
	t.writing, t.takingOver, t.uncertain = false, false, false
	t.renewed, t.shortest = t0, ttl
	t.giving, t.promise, t.relying, t.asked, t.deposed = nil, nil, false, 0, 0
	t.consented, t.byQuorum, t.late = false, 0, 0
	t.lease.grant(t0, ttl)
}

// BeginRelease notes a release that is about to be sent. PostgreSQL has stopped
// and the lease was dropped before.
func (t *LeaseState) BeginRelease() { t.writing, t.takingOver = true, false }

// Released notes that Consul shows the lease released.
func (t *LeaseState) Released() { t.writing, t.giving = false, nil }

// Outcome of a write to Consul that did not succeed.
type Outcome int

// The outcomes.
const (
	// NoEffect: it certainly did not reach Consul, or was turned down.
	NoEffect Outcome = iota
	// Refused: a check of the transaction failed: the shard is not as it was
	// thought to be.
	Refused
	// Unknown: it may take effect, now or later.
	Unknown
)

// WriteFailed notes that the write under way did not succeed. It may be tried
// again at again; unless it certainly had no effect, after a reading.
func (t *LeaseState) WriteFailed(o Outcome, again cluster.Instant, beatInterval time.Duration) {
	t.writing = false
	t.failures++
	t.notBefore = again
	if o == Unknown {
		t.late = max(t.late, t.byQuorum)
	}
	t.byQuorum = 0
	if o != NoEffect {
		t.uncertain = true
		return
	}
	t.takingOver = false
	t.sent = again.Add(-beatInterval) // so that a beat is due then
}

// Failures counts the writes that failed; a reading that settles what they left
// open must have begun after the last of them.
func (t *LeaseState) Failures() uint64 { return t.failures }

// Reread notes that Consul was read, consistently, by a reading which began when
// there had been failures failed writes.
func (t *LeaseState) Reread(failures uint64) {
	if failures != t.failures {
		return
	}
	t.uncertain = false
	t.takingOver = t.takingOver && t.writing
}

// BeatSoon makes a beat due: there is something that others must know at once.
func (t *LeaseState) BeatSoon() { t.sent = 0 }

// Drop ends the lease: PostgreSQL has stopped, or is being killed.
func (t *LeaseState) Drop() {
	t.lease.drop()
	t.giving, t.relying = nil, false
}

// GiveTo ends the lease and offers it to successor; empty: to anybody.
func (t *LeaseState) GiveTo(successor string) {
	t.Drop()
	t.giving = &Giving{Successor: successor}
}

// Depose notes that another member says it has taken the lock with the status at
// index.
func (t *LeaseState) Depose(index uint64) { t.deposed = max(t.deposed, index) }

// PersistedState is what must outlive the agent's process, so that a restarted agent
// within the same lease goes on where it was, even without Consul. The guard
// keeps it (design 5.5).
type PersistedState struct {
	Until    cluster.Instant     `json:"until"`
	Shortest time.Duration       `json:"shortest"`
	Session  string              `json:"session"`
	Index    uint64              `json:"index"` // of the status that was seen last
	Lists    []map[string]string `json:"lists,omitempty"`
	ListedAt uint64              `json:"listed_at,omitempty"`
	// Listed says that the first of the lists is known to have stood in Consul,
	// Leaving that its deletion was sent since.
	Listed  bool `json:"listed,omitempty"`
	Leaving bool `json:"leaving,omitempty"`
	// Paused says that a pause is in force (View.PauseInForce).
	Paused bool `json:"paused,omitempty"`
}

// PersistedState makes the persisted state; session and index are the agent's.
func (t *LeaseState) PersistedState(session string, index uint64) PersistedState {
	return PersistedState{
		Until: t.lease.until, Shortest: t.shortest, Session: session, Index: index,
		Lists: t.lists.all(), ListedAt: t.lists.index, Listed: t.lists.known != nil, Leaving: t.lists.leaving,
	}
}

// ResumeLists takes up the failsafe lists of the agent's earlier run, which rested on a
// pause and not on its lease.
func (t *LeaseState) ResumeLists(m PersistedState) { t.lists.resume(m) }

// errNotOurs: the persisted state cannot be resumed.
var errNotOurs = errors.New("the lease of the agent's earlier run is over")

// Resume takes up the lease of the agent's earlier run. The guard has vouched
// that PostgreSQL has not been killed since.
func (t *LeaseState) Resume(now cluster.Instant, m PersistedState) error {
	if !now.Before(m.Until) {
		return errNotOurs
	}
	t.lease.until, t.shortest = m.Until, m.Shortest
	t.renewed = m.Until.Add(-m.Shortest)
	t.lists.resume(m)
	return nil
}
