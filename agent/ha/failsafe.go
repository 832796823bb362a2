package ha

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is design 5.5: a leader that cannot reach Consul goes on while every member
// that could take its lock promises not to.

// failsafeLists are the lists of members that may stand in the key failsafe. Only
// the leader writes the key, with a check of its index, so that a write of unknown
// outcome can take effect only as long as the index is still the one it checked.
type failsafeLists struct {
	index uint64 // of the key when it was last known
	known map[string]string
	// maybe are lists written since, with unknown outcome.
	maybe []map[string]string
	// leaving says that a deletion was sent: the key may be gone.
	leaving bool
}

func (l *failsafeLists) usable() bool { return l.known != nil && !l.leaving }

func (l *failsafeLists) all() []map[string]string {
	if l.known == nil {
		return l.maybe
	}
	return append([]map[string]string{l.known}, l.maybe...)
}

func (l *failsafeLists) resume(m PersistedState) {
	*l = failsafeLists{index: m.ListedAt, maybe: m.Lists, leaving: m.Leaving}
	if m.Listed && len(m.Lists) > 0 {
		l.known, l.maybe = m.Lists[0], m.Lists[1:]
	}
}

// ListKnown notes what the key holds at index: after a reading, or after a write
// that succeeded. list is nil when the key is absent. Writes of unknown outcome
// are settled when the index has moved: they had checked the earlier one.
func (t *LeaseState) ListKnown(index uint64, list map[string]string) {
	if index != t.lists.index {
		t.lists = failsafeLists{index: index, known: list}
	}
}

// BeginList notes that a list, or with nil the key's deletion, is about to be
// written.
func (t *LeaseState) BeginList(list map[string]string) {
	if list == nil {
		t.lists.leaving = true
		return
	}
	if !slices.ContainsFunc(t.lists.maybe, func(m map[string]string) bool { return maps.Equal(m, list) }) {
		t.lists.maybe = append(t.lists.maybe, list)
	}
}

// FailsafeMembers are the other members of every list that may stand in Consul,
// with their API URLs: all of them have to agree. A member whose URL differs from
// list to list appears with each.
func (t *LeaseState) FailsafeMembers(self string) []FailsafeMember {
	var members []FailsafeMember
	for _, list := range t.lists.all() {
		for name, url := range list {
			m := FailsafeMember{Name: name, URL: url}
			if name != self && !slices.Contains(members, m) {
				members = append(members, m)
			}
		}
	}
	slices.SortFunc(members, func(a, b FailsafeMember) int {
		return compareStrings(a.Name, b.Name, a.URL, b.URL)
	})
	return members
}

// FailsafeMember is a member that has to agree.
type FailsafeMember struct{ Name, URL string }

func compareStrings(pairs ...string) int {
	for i := 0; i < len(pairs); i += 2 {
		switch {
		case pairs[i] < pairs[i+1]:
			return -1
		case pairs[i] > pairs[i+1]:
			return 1
		}
	}
	return 0
}

// BeginFailsafe notes that the members are about to be asked, at t0, and returns
// the lease that they are asked for.
func (t *LeaseState) BeginFailsafe(t0 cluster.Instant) time.Duration {
	t.asking, t.asked = true, t0
	return t.shortest
}

// FailsafeAnswered prolongs the lease when all members have agreed, counted from
// t0, which was read before the first of them was asked.
func (t *LeaseState) FailsafeAnswered(now, t0 cluster.Instant, lease time.Duration, agreed bool) error {
	t.asking = false
	if !agreed {
		return nil
	}
	if !t.lists.usable() {
		return errors.New("the failsafe key is not certain any more")
	}
	before := t.lease.until
	if err := t.lease.extend(now, t0, lease); err != nil {
		return err
	}
	t.relying = t.relying || t.lease.until > before
	t.agreed = t0
	return nil
}

// FailsafeRequest is what a leader without Consul asks of a member.
type FailsafeRequest struct {
	Leader string
	// Lease is how long the member shall not take the lock.
	Lease time.Duration
	// Index is the ModifyIndex of the leader's own status that it knows of.
	Index uint64
	// Round names the round of questions, and Agreed the last one in which all have promised, while
	// these promises run; empty: there is none. With takeover by quorum alone.
	Round, Agreed string
	// Slots are where the readers of the leader's slots are, as its status would say.
	Slots map[string]int64
}

// Promise is a member's word not to take the lock.
type Promise struct {
	Leader string
	Until  cluster.Instant
	// Index is that of the leader's status when the promise was given.
	Index uint64
}

// ErrDisagree: a member does not agree that the leader goes on without Consul.
var ErrDisagree = errors.New("not agreed")

// Agree gives the promise that a leader without Consul asks for, or says why not.
func (t *LeaseState) Agree(v View, r FailsafeRequest) error {
	status := v.Cluster.Status
	newer := status.ModifyIndex > r.Index
	switch b := v.beat(); {
	case r.Leader == v.Name:
		return fmt.Errorf("%w: it is this member's own name", ErrDisagree)
	case r.Lease <= 0:
		return fmt.Errorf("%w: lease %s", ErrDisagree, r.Lease)
	case !t.lease.until.IsZero() || v.Postgres.Running && v.Postgres.Primary:
		return fmt.Errorf("%w: Running as a leader", ErrDisagree)
	case t.takingOver, t.mayLand(status.ModifyIndex):
		return fmt.Errorf("%w: a takeover of unknown outcome is under way", ErrDisagree)
	case newer && (b == nil || b.Owner != r.Leader || b.Released):
		return fmt.Errorf("%w: a newer status of another leader was seen", ErrDisagree)
	case !v.Read.IsZero() && (b == nil || b.Owner != r.Leader):
		return fmt.Errorf("%w: the last beat that was seen is not %s's", ErrDisagree, r.Leader)
	case r.Lease > v.longestLease():
		return fmt.Errorf("%w: a lease of %s, though Consul has shown none longer than %s", ErrDisagree, r.Lease, v.longestLease())
	}
	if p := v.promised(); p != nil && p.Leader != r.Leader && (!newerThan(status, p.Index) || v.beat() == nil || v.beat().Owner != r.Leader) {
		return fmt.Errorf("%w: promised to %s already", ErrDisagree, p.Leader)
	}
	until := v.Now.Add(withDrift(r.Lease))
	if p := v.promised(); p != nil {
		until = max(until, p.Until)
	}
	t.promise = &Promise{Leader: r.Leader, Until: until, Index: max(r.Index, status.ModifyIndex)}
	return nil
}

// BeatOverdue reports whether a leader that reaches Consul would have been seen to beat by now: one that asks for
// promises has waited for its last beat for longer.
func BeatOverdue(v View) bool {
	ttl := v.Config.TTL
	if b := v.beat(); b != nil {
		ttl = max(ttl, b.Lease())
	}
	return v.Read.IsZero() || !v.Now.Before(v.StatusSeen.Add(min(v.Config.LoopWait, ttl/4)+v.failsafePatience()/2))
}

// unseenLease bounds what a member promises that has never read Consul: it knows
// neither a beat nor the shard's ttl.
const unseenLease = 10 * time.Minute

// longestLease is what a leader can ask for at most: it asks for the shortest lease
// that a beat of its own in Consul may carry.
func (v Shard) longestLease() time.Duration {
	if v.Read.IsZero() {
		return unseenLease
	}
	longest := v.Config.TTL
	if b := v.beat(); b != nil {
		longest = max(longest, b.Lease())
	}
	return longest
}

func newerThan(e cluster.Entry[cluster.Status], index uint64) bool { return e.ModifyIndex > index }

// Promise is what this member has promised, nil when nothing.
func (t *LeaseState) Promise() *Promise { return t.promise }

// FailsafeInForce reports whether a leader goes on without Consul by this member's promise.
func (v Shard) FailsafeInForce() bool { return v.promised() != nil }

// promised is the promise in force: it has not run out, and the leader has not
// been seen to release its lease since.
func (v Shard) promised() *Promise {
	p := v.Promise
	if p == nil || !v.Now.Before(p.Until) {
		return nil
	}
	if b := v.beat(); b != nil && b.Owner == p.Leader && b.Released && newerThan(v.Cluster.Status, p.Index) {
		return nil
	}
	return p
}

// failsafe asks the other members when Consul has not renewed the lease for a
// while, and goes on asking as often as it would beat.
func failsafe(v View, d Decision) Decision {
	l := v.Lease
	if l.Until.IsZero() || !l.Failsafe || !v.Config.FailsafeMode || !v.Now.Before(l.Until.Add(-v.Fence.KillBefore)) || v.Task == TaskDemote || v.overdue(d) {
		return d
	}
	due := max(l.Renewed.Add(v.beatInterval()+v.failsafePatience()), l.Asked.Add(v.failsafeEvery()))
	switch {
	case l.Asking:
		return d
	case v.Now.Before(due):
		return d.by(due)
	}
	d.Actions = append(d.Actions[:len(d.Actions):len(d.Actions)], AskFailsafe{})
	return d
}

// failsafePatience is how long a beat may go unanswered before the members are
// asked (design 5.5).
func (v View) failsafePatience() time.Duration { return min(v.Config.RetryTimeout, v.ttl()/4) }

// failsafeAgain is how soon a round in which somebody did not agree is repeated.
const failsafeAgain = 300 * time.Millisecond

// failsafeEvery spaces the rounds: as often as beats while all agree, faster
// while the lease runs down.
func (v View) failsafeEvery() time.Duration {
	if v.Lease.Until.Sub(v.Lease.Asked) < v.ttl()*3/4 {
		return failsafeAgain
	}
	return v.beatInterval()
}

// failsafeList keeps the key failsafe in step with the members.
func failsafeList(v View) Decision {
	key := v.Cluster.Failsafe
	if !v.inTouch() {
		return Decision{}
	}
	if !v.Config.FailsafeMode {
		if key.Exists() {
			return do("failsafe mode is off", WriteFailsafe{Index: key.ModifyIndex})
		}
		return Decision{}
	}
	list := map[string]string{}
	for _, m := range v.Cluster.Members {
		if m.OK() && m.Value.APIURL != "" {
			list[m.Value.Name] = m.Value.APIURL
		}
	}
	if _, known := list[v.Name]; !known || key.OK() && maps.Equal(list, key.Value) && v.Lease.Failsafe {
		return Decision{}
	}
	return do("the failsafe list is brought up to date", WriteFailsafe{Index: key.ModifyIndex, List: list})
}
