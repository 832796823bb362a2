package member

import (
	"errors"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// MayRestore says why the shard cannot be restored to an earlier moment by this member now.
func (m *Member) MayRestore() error {
	switch {
	case m.Stopping:
		return Refused{ErrStopping.Error()}
	case !m.Leads() || !m.PG.Primary() || !m.PG.Observed.Accepting || m.PG.Observed.Timeline == 0:
		return refused("%s is not the leader, or its PostgreSQL does not serve", m.Name)
	case m.LeaseState.OnFailsafe() || m.LeaseState.Lease().Uncertain:
		return refused("Consul does not answer")
	case m.task != nil:
		return refused("%s already in progress", m.task.kind)
	case m.Dynamic.Pause:
		return refused("the shard is paused")
	case m.Restore != nil || m.Data.State == ha.DataSetAside:
		return refused("an earlier restore is not undone yet")
	case m.upgradeUnfinished():
		return errUpgradeUnfinished
	}
	for _, other := range m.Snapshot.Members {
		if !other.OK() || other.Value.Lictor == nil {
			return refused("%s is a member of Patroni's, or its key is not understood: it would lead with what is discarded", other.Value.Name)
		}
	}
	return nil
}

// RestoreTo puts the shard back to an earlier moment (design 5.25). What was committed since
// is discarded: the status says so before the data are moved aside, so that no member leads
// with it. Until the restored data are the shard's, every error undoes it.
func (m *Member) RestoreTo(r pg.Restore, done func(error)) {
	if err := m.MayRestore(); err != nil {
		done(err)
		return
	}
	r.Before, _ = m.Discarded()
	r.SystemIdentifier = m.Snapshot.Initialize.Value
	if r.Timeline == 0 {
		r.Timeline = m.PG.Observed.Timeline
	}
	r.Discarded = max(m.PG.Observed.Timeline, m.Timeline())
	m.Restored = false
	discard := &ha.Discard{Timeline: r.Discarded, Before: r.Before}
	m.Log.Warn().Time("target", r.Target).Str("backup", r.Label).Int("timeline", r.Timeline).Msg("restoring the shard to an earlier moment")
	stop := m.restopped()
	m.startTask(ha.TaskRestore, func(w *Work, next func(error)) {
		m.restoring = w
		inOrder(func(w *Work, next func(error)) {
			m.Postgres.BeginRestore(w, r, next)
		}, stop, func(w *Work, next func(error)) {
			m.tellDiscarded(w, discard, next)
		}, func(w *Work, next func(error)) {
			m.stoppedOnPurpose()
			// Where it was says nothing of where the shard will be, nor what its history told of what there will be.
			m.PG.Observed, m.hidden = pg.State{}, true
			m.Data.Timeline, m.Data.Restores = 0, Restores{}
			m.Postgres.SetAside(w, next)
		}, func(w *Work, next func(error)) {
			m.Postgres.Restore(w, r, next)
		}, func(w *Work, next func(error)) {
			m.Restored = true // also if an error hides that the note is gone; with the note, PutBack says otherwise
			m.Postgres.EndRestore(w, next)
		})(w, func(err error) {
			m.discard, m.hidden, m.restoring = nil, false, nil
			done(err)
			next(err)
		})
	}, m.restoreUndone)
}

// restopped is the step that stops PostgreSQL for a restore.
func (m *Member) restopped() step {
	return inOrder(m.beforeStop(m.beforeStopLimit()), m.orderly(m.stopWithin(), false))
}

// errNotTold: the data stay where they are.
var errNotTold = errors.New("Consul was not told in time what is discarded")

// tellDiscarded waits until a beat has said what is discarded.
func (m *Member) tellDiscarded(w *Work, discard *ha.Discard, next func(error)) {
	m.discard = discard
	m.LeaseState.BeatSoon()
	m.waiters.await(w, m.Dynamic.TTL, func() bool {
		timeline, _ := m.Discarded()
		return timeline == discard.Timeline && m.LeaseState.Held(m.Now()) && !m.LeaseState.Lease().Uncertain
	}, func(told bool) {
		switch {
		case w.Broken() != nil:
			next(w.Broken())
		case !told:
			next(errNotTold)
		default:
			next(nil)
		}
	})
}

// restoreUndone is the end of a restore or a major upgrade, or of putting the old data back: what was not served
// meanwhile is no reason to give the lease up.
func (m *Member) restoreUndone(error) {
	m.PGDown, m.unservedSince = 0, 0
}

// CancelRestore has a restore that is under way undone. It reports whether there was one: one
// that is being undone already goes on with that, and one that is all but done may still come
// to its end (Restored).
func (m *Member) CancelRestore() bool {
	if m.restoring != nil {
		m.restoring.breakOff(ErrBroken)
	}
	return m.RestoreUnfinished()
}

// RestoreUnfinished reports whether a restore has neither come to its end nor been undone.
func (m *Member) RestoreUnfinished() bool {
	return m.TaskKind() == ha.TaskRestore || m.Restore != nil || m.Data.State == ha.DataSetAside
}
