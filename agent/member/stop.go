package member

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
)

// stopper stops PostgreSQL: it fences, demotes and ends what hangs. That comes before
// whatever is under way.
type stopper struct {
	*Shard
	work     *worker
	lead     *leadership
	local    *Local
	postgres Postgres
	guard    GuardPort

	fencing bool
	// Stopping: the agent is to end.
	Stopping bool
}

// BeginStop hears that the agent is to end: nothing more is begun, and what can be done again is broken off.
func (s *stopper) BeginStop() {
	s.Stopping = true
	s.work.InterruptTask()
}

// Fencing reports whether PostgreSQL is being fenced.
func (s *stopper) Fencing() bool { return s.fencing }

// fenceNow kills every process of PostgreSQL. The lease is dropped here and
// now: whatever answer still comes in, it is not taken up again.
func (s *stopper) fenceNow() {
	if s.fencing {
		return
	}
	s.fencing = true
	s.lead.drop()
	s.work.startStop(func(_ *Work, next func(error)) { s.kill(nil, backoffMax, next) }, s.disarm, func(err error) {
		s.fencing = false
		if err == nil || !s.postgres.Running() {
			s.local.stoppedOnPurpose()
		}
	})
}

// kill kills PostgreSQL, so that no start which was asked for before comes up any
// more. What lingers is left to the kernel. On any other error PostgreSQL may live: the
// guard keeps its deadline, and it is killed again.
func (s *stopper) kill(w *Work, limit time.Duration, done func(error)) {
	s.postgres.Kill(w, limit, func(err error) {
		if err != nil && !errors.Is(err, ErrLingering) {
			s.After(killAgainAfter, func() { done(err) })
			return
		}
		lingers := err != nil
		s.guard.CancelStarts(func(started bool, err error) {
			if err != nil || !started {
				done(err)
				return
			}
			// The kill may have taken all the time that there was. What lingers was waited for.
			again := lingering
			if lingers {
				again = killAgainAfter
			}
			s.postgres.Kill(nil, again, func(err error) { done(unlessLingering(err)) })
		})
	})
}

// unlessLingering leaves to the kernel what waits for a disk.
func unlessLingering(err error) error {
	if errors.Is(err, ErrLingering) {
		return nil
	}
	return err
}

// disarm disarms the guard when PostgreSQL was killed. It comes last before the lease is
// dropped: beats arm the guard again.
func (s *stopper) disarm(done func(error)) {
	s.lead.GuardSupervisor.DisarmWithin(lingering, done)
}

// demote stops PostgreSQL in an orderly way, for as long as a leader may serve nobody,
// and drops the lease when it has stopped. The guard stays armed until then.
func (s *stopper) demote() {
	if s.work.TaskKind() == ha.TaskDemote {
		return
	}
	scripts, limit := s.beforeStopLimit(), s.stopWithin()
	stop := func(w *Work, next func(error)) {
		s.postgres.Stop(w, limit, false, func(err error) { next(unlessLingering(err)) })
	}
	s.work.startStop(inOrder(s.beforeStop(scripts), stop, s.killLingering), s.disarm, func(err error) {
		if err == nil {
			s.lead.drop()
			s.local.stoppedOnPurpose()
		}
	})
}

// beforeStop runs before_stop, whose failure keeps nothing from being stopped.
func (s *stopper) beforeStop(limit time.Duration) step {
	return func(w *Work, next func(error)) {
		if limit <= 0 || !s.postgres.Running() {
			next(nil)
			return
		}
		s.postgres.BeforeStop(w, min(limit, s.ScriptLimit), func(err error) {
			if err != nil {
				s.Log.Warn().Err(err).Msg("before_stop failed; PostgreSQL is stopped all the same")
			}
			next(nil)
		})
	}
}

// killLingering kills PostgreSQL, within a short time.
func (s *stopper) killLingering(w *Work, next func(error)) { s.kill(w, lingering, next) }

// orderly is the step that stops PostgreSQL in an orderly way.
func (s *stopper) orderly(limit time.Duration, quick bool) step {
	return func(w *Work, next func(error)) { s.postgres.Stop(w, limit, quick, next) }
}

// giveUp ends a leadership that PostgreSQL cannot fill.
func (s *stopper) giveUp(successor string) {
	if s.work.TaskKind() == ha.TaskDemote {
		return
	}
	s.work.startStop(s.killLingering, s.disarm, func(err error) {
		if err == nil {
			s.lead.giveTo(successor, false)
			s.local.stoppedOnPurpose()
		}
	})
}

// endHung kills a postmaster that hangs. The lease is kept, and the guard armed: it is
// started in place then.
func (s *stopper) endHung() {
	if s.work.TaskKind() == ha.TaskDemote {
		return
	}
	s.work.startStop(s.killLingering, nil, func(err error) {
		if err == nil {
			s.local.stoppedOnPurpose()
		}
	})
}

// stopWithin is how long an orderly stop may take before PostgreSQL is killed: as long
// as a leader may serve nobody.
func (s *stopper) stopWithin() time.Duration {
	limit := ha.UnservedLimit(s.Dynamic)
	if !s.lead.LeaseState.Held(s.Now()) {
		limit = max(limit, StopLimit) // nobody waits for it
	}
	return limit
}

// beforeStopLimit is how long before_stop may take before a stop that begins now:
// of what is left until PostgreSQL would be killed, half is PostgreSQL's own.
func (s *stopper) beforeStopLimit() time.Duration {
	limit := s.ScriptLimit
	if now := s.Now(); s.lead.LeaseState.Held(now) && !s.lead.PauseInForce() {
		limit = min(limit, s.lead.KillAt().Sub(now)/2)
	}
	if s.Stopping {
		limit = min(limit, StopLimit/2)
	}
	return limit
}
