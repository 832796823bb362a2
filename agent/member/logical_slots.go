package member

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is about a replica's copies of the leader's logical slots (design 5.28).

const (
	// copyAgainAfter is when a slot is copied again that is not there, though PostgreSQL was restarted for it. fetchAgainAfter
	// is when it is tried again where PostgreSQL was not stopped. Both double, up to copyAgainMost and fetchAgainMost.
	copyAgainAfter, copyAgainMost   = time.Minute, time.Hour
	fetchAgainAfter, fetchAgainMost = 10 * time.Second, time.Minute
	// turnEvery is how long a replica waits for each one before it.
	turnEvery = 5 * time.Second
	// advanceLimit bounds the reading of WAL by which a logical slot is moved.
	advanceLimit = 10 * time.Minute
	// helpEvery is how often a primary helps a failover slot on that replicas wait for, at first. Later it does
	// when as much as a helpShare-th of the time has passed that they have waited: it may be in vain.
	helpEvery, helpShare = 2 * time.Second, 4
)

// copyTries are the attempts to copy a logical slot.
type copyTries struct {
	restarts, fetches int
	notUntil          cluster.Instant
}

// tried notes an attempt to copy slots, and whether PostgreSQL was stopped for it.
func (k *slotKeeper) tried(slots []cluster.Slot, stopped bool) {
	if k.copied == nil {
		k.copied = map[string]copyTries{}
	}
	for _, slot := range slots {
		t := k.copied[slot.Name]
		if stopped {
			t.restarts, t.fetches = t.restarts+1, 0
			t.notUntil = k.Now().Add(doubled(copyAgainAfter, t.restarts, copyAgainMost))
		} else {
			t.fetches++
			t.notUntil = k.Now().Add(doubled(fetchAgainAfter, t.fetches, fetchAgainMost))
		}
		k.copied[slot.Name] = t
	}
}

// doubled is the time after the nth attempt.
func doubled(first time.Duration, n int, most time.Duration) time.Duration {
	return min(first<<min(n-1, 16), most)
}

// copies are the logical slots that this replica is to have, as far as the leader that it
// follows has them. An old leader's word, or one of another timeline, is of other WAL.
func (k *slotKeeper) copies() []pg.WantedSlot {
	if len(k.Dynamic.Slots) == 0 {
		return nil
	}
	o := &k.local.PG.Observed
	switch {
	case !o.Accepting || !o.InRecovery || o.Replaying || o.ReplicationState != pg.Streaming || !k.mayLead() || !k.postgres.UseSlots():
		return nil
	case !k.isHeard() || !k.hearsLeader():
		return nil
	}
	wanted, _ := k.wanted(false) // what is wrong with them is told where they are kept
	var logical []pg.WantedSlot
	for _, w := range wanted {
		i := slotIndex(o, w.Name)
		waits := i >= 0 && !o.Slots[i].Failover && !w.Yields // to make room for PostgreSQL's: it is moved on until then
		if w.Type == cluster.SlotLogical && w.To > 0 && (i < 0 || !o.Slots[i].Synced) && (!w.Native || waits) {
			logical = append(logical, w)
		}
	}
	return logical
}

// hearsLeader reports whether the status is the word of the leader whose timeline this replica is on.
func (k *slotKeeper) hearsLeader() bool {
	status := k.Snapshot.Status
	leader, found := k.Snapshot.Member(k.Snapshot.LeaderName())
	return found && status.OK() && leader.Value.Timeline == k.local.PG.Observed.Timeline &&
		(status.Value.Lictor == nil || status.Value.Lictor.Owner == leader.Value.Name)
}

// isNative reports whether PostgreSQL itself keeps a logical slot of the leader's here: as long as nobody says
// so, there is a copy.
func (k *slotKeeper) isNative(slot string) bool {
	beat := k.Snapshot.Status.Value.Lictor
	return beat != nil && slices.Contains(beat.FailoverSlots, slot) && k.hearsLeader() && k.postgres.SyncsSlots()
}

// yields reports whether this replica's copy of a slot makes room for the one that PostgreSQL itself
// keeps: one replica after another, by name. Until those before it have theirs the reader could go on
// nowhere else.
func (k *slotKeeper) yields(slot string) bool {
	return !slices.ContainsFunc(k.Snapshot.Members, func(e cluster.Entry[cluster.Member]) bool {
		m := e.Value
		return e.OK() && m.Name < k.Name && m.Name != k.Snapshot.LeaderName() && m.Lictor != nil && m.State == cluster.StateRunning &&
			!cluster.NoFailover(m.Tags) && !cluster.NoStream(m.Tags) && !m.KeepsSynced(slot)
	})
}

// awaited are the failover slots of this primary that are to be helped on now: somebody reads them, and a
// replica has none yet, where PostgreSQL is to keep one. It cannot before the primary's needs no older rows of
// the catalogs than the replica has kept, and on a busy primary that moves on seldom.
func (k *slotKeeper) awaited() (names []string) {
	o := &k.local.PG.Observed
	if !o.InRecovery && k.postgres.SyncsSlots() {
		for _, slot := range k.failoverSlots(o) {
			if o.Slots[slotIndex(o, slot)].Active && slices.ContainsFunc(k.Snapshot.Members, func(e cluster.Entry[cluster.Member]) bool { return k.waitsFor(e, slot) }) {
				names = append(names, slot)
			}
		}
	}
	switch {
	case len(names) == 0:
		k.awaitedSince = 0
	case k.awaitedSince.IsZero():
		k.awaitedSince = k.Now()
	case k.Now().Sub(k.helped) < max(helpEvery, k.Now().Sub(k.awaitedSince)/helpShare):
		return nil
	}
	return names
}

// waitsFor reports whether a member waits for PostgreSQL to keep a slot of this primary's there. PostgreSQL keeps
// none where another replica is streamed from.
func (k *slotKeeper) waitsFor(e cluster.Entry[cluster.Member], slot string) bool {
	m := e.Value
	return e.OK() && m.Name != k.Name && m.Lictor != nil && m.State == cluster.StateRunning && !m.KeepsSynced(slot) &&
		!cluster.NoFailover(m.Tags) && !cluster.NoStream(m.Tags) && k.Snapshot.Upstream(m.Name, m.Tags, k.Name) == k.Name
}

// isHeard reports whether the leader hears which rows this replica needs: one that gets its WAL from the archive
// passes on nothing.
func (k *slotKeeper) isHeard() bool {
	upstream, _ := k.Snapshot.Member(k.Snapshot.Upstream(k.Name, k.Tags, k.Snapshot.LeaderName()))
	return !cluster.NoStream(upstream.Value.Tags)
}

// lacking are those of them that are not there, and are to be copied now: commits wait for a
// replica that is restarted, so one does it after another.
func (k *slotKeeper) lacking() []cluster.Slot {
	var slots []cluster.Slot
	for _, w := range k.copies() {
		if slotIndex(&k.local.PG.Observed, w.Name) < 0 && !k.Now().Before(k.copied[w.Name].notUntil) {
			slots = append(slots, w.Slot)
		}
	}
	if len(slots) == 0 || !k.isMyTurn() {
		return nil
	}
	return slots
}

// isMyTurn reports whether this replica may be restarted for its copies: by name, and while no
// other one is.
func (k *slotKeeper) isMyTurn() bool {
	before := 0
	for i := range k.Snapshot.Members {
		m := &k.Snapshot.Members[i].Value
		switch {
		case m.Name == k.Name || m.Name == k.Snapshot.LeaderName():
		case m.State == cluster.StateRestarting:
			return false
		case m.Name < k.Name && !cluster.NoFailover(m.Tags) && !cluster.NoStream(m.Tags):
			before++
		}
	}
	return before == 0 || !k.lackedSince.IsZero() && k.Now().Sub(k.lackedSince) >= time.Duration(before)*turnEvery
}

// advance moves those that are there to where their readers have come.
func (k *slotKeeper) advance() {
	o := &k.local.PG.Observed
	lacks := false
	var behind []pg.WantedSlot
	for _, w := range k.copies() {
		if slotIndex(o, w.Name) < 0 {
			lacks = true
		} else if !k.Now().Before(k.copied[w.Name].notUntil) { // it stays
			delete(k.copied, w.Name)
		}
		if isBehind(o, w) {
			behind = append(behind, w)
		}
	}
	if !lacks {
		k.lackedSince = 0
	} else if k.lackedSince.IsZero() {
		k.lackedSince = k.Now()
	}
	if len(behind) == 0 || k.advancing || k.Now().Sub(k.advanced) < k.Dynamic.LoopWait {
		return
	}
	k.advancing, k.advanced = true, k.Now()
	k.postgres.AdvanceLogical(advanceLimit, o.Timeline, behind, func(err error) {
		k.advancing = false
		k.Failure("logical slots", "logical slots are behind the leader's", err)
	})
}

// copySlots restarts this replica with copies of the leader's logical slots. Nothing is stopped
// before they are here, and what was stopped is started again, also without them.
func (m *Member) copySlots(c ha.CopySlots) {
	as, err := m.replica(c.Upstream)
	from, unknown := m.upstreamOf(c.From)
	if err == nil {
		err = unknown
	}
	if err != nil {
		m.noteAttempt(ha.TaskRestart, err)
		return
	}
	var files []pg.SlotFile
	var lacking error // why there are no copies, which is no failure of the restart
	stopped, started := false, false
	fetch := func(w *Work, next func(error)) {
		m.Postgres.FetchSlots(w, from, c.Slots, func(fetched []pg.SlotFile, err error) {
			files = fetched
			next(err)
		})
	}
	stop := inOrder(func(_ *Work, next func(error)) {
		stopped = true
		m.slots.tried(c.Slots, true)
		next(nil)
	}, m.beforeStop(m.beforeStopLimit()), m.orderly(m.stopWithin(), false))
	place := func(w *Work, next func(error)) {
		m.Postgres.PlaceSlots(w, files, func(err error) {
			lacking = err
			next(w.Broken())
		})
	}
	restart := m.thenInSync(fetch, m.startsAgain, m.LeaveSync, stop, place, m.start(as), func(_ *Work, next func(error)) {
		started = true
		next(nil)
	})
	m.startTask(ha.TaskRestart, func(w *Work, next func(error)) {
		restart(w, func(err error) {
			if err != nil && !stopped && w.Broken() == nil {
				lacking, err = err, nil
				m.slots.tried(c.Slots, false)
			}
			next(err)
		})
	}, func(err error) {
		if !errors.Is(err, ErrBroken) {
			m.Failure("copies of slots", "logical slots are not copied", cmp.Or(lacking, err))
		}
		if started {
			m.Upstream = c.Upstream
		}
	})
}

// startsAgain is a step that fails when PostgreSQL would not start again.
func (m *Member) startsAgain(w *Work, next func(error)) {
	m.Postgres.TryStart(w, func(why string, err error) {
		if err == nil && why != "" {
			next(fmt.Errorf("it would not start again: %s", why))
			return
		}
		next(nil)
	})
}
