package ha

import "fmt"

// This file is about WAL that a restore discards (design 5.25). The status says up to which
// timeline; members there are ahead of the restored primary, and neither lead nor count as
// those who could. The member that restores has a note beside its data until the restored
// data are the shard's: with the note, it puts the old data back, takes the number back, and
// leads on as if nothing had happened.
//
//	note   data                              status              decision
//	none   any                               any                 nothing to be done
//	any    neither the old ones nor noted
//	       as the shard's                    any                 put the old ones back
//	any    the old ones                      has our number,
//	                                         and the lock is ours a beat takes it back first
//	any    the old ones                      has our number      nothing is started; the lock is taken
//	                                                             again by who had it (electing)
//	any    the old ones                      has another         drop the note

// Discard is what a restore writes into the status, and what stood there before.
type Discard struct{ Timeline, Before int }

// discarded says why a member on a timeline must not lead, empty: it holds no WAL that was
// discarded. A member whose timeline is not known may hold some.
func (v View) discarded(timeline int) string {
	upTo := v.Postgres.Discards
	if b := v.beat(); b != nil {
		upTo = max(upTo, b.Discarded)
	}
	if upTo > 0 && timeline <= upTo {
		return fmt.Sprintf("is on timeline %d, and what was written up to timeline %d was discarded by a restore", timeline, upTo)
	}
	return ""
}

// undoes reports whether the status still says what this member's restore has written.
func (v View) undoes() bool {
	b := v.beat()
	return v.Postgres.Restore != nil && b != nil && b.Owner == v.Name && b.Discarded == v.Postgres.Restore.Timeline
}

// undoing: a restore of this member's, or a major upgrade, has not ended, and no task works on it.
func undoing(v View) (Decision, bool) {
	if v.Postgres.upgrading() {
		return upgradeEnds(v)
	}
	if v.Postgres.Data == DataSetAside {
		return v.unlessFailing(do("a restore has not ended: the data that it was to replace are put back", PutBack{})), true
	}
	if v.Postgres.Restore == nil || v.Read.IsZero() || v.Lease.InFlight || v.Lease.Uncertain {
		return Decision{}, false
	}
	if v.undoes() {
		if v.Lease.Until.IsZero() {
			return Decision{}, false // the lock first
		}
		return wait("a restore is undone: the next beat says that nothing was discarded"), true
	}
	return v.unlessFailing(do("a restore is undone", EndRestore{})), true
}
