package member

import (
	"errors"
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// promoter makes this member's PostgreSQL the primary.
type promoter struct {
	*Shard
	work       *worker
	lead       *leadership
	keys       *leaderKeys
	local      *Local
	stop       *stopper
	checkpoint *firstCheckpoint
	watchdog   Watchdog
	consul     Consul
	postgres   Postgres
	reread     func()
}

// promotion is one under way.
type promotion struct {
	*promoter
	ha.Promote
	session string
	before  cluster.Entry[cluster.Sync] // the key sync as it was

	index     uint64 // that the key sync got; zero: it was not replaced
	uncertain bool   // whether it was
	asked     bool   // PostgreSQL was, or may have been
	over      bool   // PostgreSQL's part has ended
	forbidden bool   // by pre_promote
	seen      pg.State
}

// begin makes the replica the primary. The guard is armed before, so that the
// new primary cannot outlive the lease even if this agent dies on the way. The key sync
// is replaced when nothing is left to be done but the promotion itself.
func (m *promoter) begin(action ha.Promote) {
	p := &promotion{promoter: m, Promote: action, session: m.Session, before: m.Snapshot.Sync}
	persisted, above, until := m.lead.PersistedState(), m.Timeline()-1, m.lead.LeaseState.Until()
	ttl, margins := m.Dynamic.TTL, m.lead.FenceMargins()
	m.work.startTask(ha.TaskPromote, inOrder(func(w *Work, next func(error)) {
		m.lead.GuardSupervisor.ArmNow(w, persisted, because(next, "the guard could not be armed, so nothing is promoted"))
	}, func(w *Work, next func(error)) {
		m.watchdog.Activate(w, until, ttl, margins, because(next, "nothing is promoted"))
	}, p.prePromote, func(w *Work, next func(error)) {
		m.postgres.Promote(w, above, p.replaceSync, func(err error) { p.promoted(w, err, next) })
	}), p.ended)
}

func (p *promotion) prePromote(w *Work, next func(error)) {
	p.postgres.PrePromote(w, p.ScriptLimit, func(err error) {
		if err == nil || w.Broken() != nil {
			next(err) // broken off, it has forbidden nothing
			return
		}
		p.forbidden = true
		err = fmt.Errorf("nothing is promoted: %w", err)
		p.lead.GuardSupervisor.Disarm(func(undone error) { next(errors.Join(err, undone)) })
	})
}

// replaceSync binds the promotion to the key sync as it was decided on.
func (p *promotion) replaceSync(done func(error)) {
	if p.Sync == nil {
		p.asked = true
		done(nil)
		return
	}
	p.uncertain = true
	p.consul.WriteAsLeader(p.Dynamic.RetryTimeout, p.session, p.Keys.Sync(), p.SyncIndex, *p.Sync, func(index uint64, err error) {
		p.index, p.uncertain = index, errors.Is(err, cluster.ErrUncertain)
		if p.over {
			// Once the key has changed otherwise, this write is history.
			if now := p.Snapshot.Sync.ModifyIndex; now == p.before.ModifyIndex || now == index {
				p.note(false)
			}
			return
		}
		p.asked = err == nil
		because(done, "nothing is promoted: the key sync could not be replaced")(err)
	})
}

// promoted hears how PostgreSQL's part has ended.
func (p *promotion) promoted(w *Work, err error, next func(error)) {
	p.over = true
	switch {
	case err == nil:
		p.note(true)
		p.postgres.Observe(w, func(seen pg.State, err error) {
			p.seen = seen
			next(err)
		})
	case !p.asked:
		p.note(false)
		next(err)
	default:
		p.unpromote(func(certain bool) {
			p.note(!certain)
			next(err)
		})
	}
}

// note keeps what became of the key sync, also when the task is interrupted; promoted: or
// perhaps.
func (p *promotion) note(promoted bool) {
	if p.index != 0 {
		p.Wrote(p.index)
		p.keys.SyncUncertain = false
		p.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *p.Sync, ModifyIndex: p.index}
	}
	p.keys.SyncUncertain = p.keys.SyncUncertain || p.uncertain
	p.keys.syncBefore = nil
	if !promoted && (p.index != 0 || p.uncertain) {
		p.keys.syncBefore = &p.before
	}
}

// unpromote makes sure that a promotion which failed does not happen after all, and
// reports whether that is certain. PostgreSQL may have been asked already, and goes on with
// it, also when the lease was given up since: so it is ended, and until it has been, this
// member does not lead. It takes away standby.signal before it accepts the first commit.
func (p *promotion) unpromote(done func(certain bool)) {
	p.postgres.Kill(nil, backoffMax, func(err error) {
		if err != nil {
			p.Log.Error().Err(err).Msg("a PostgreSQL whose promotion failed could not be ended")
			done(false)
			if !errors.Is(err, ErrLingering) {
				p.stop.fenceNow()
			}
			return
		}
		p.postgres.Look(nil, backoffMax, func(left Found, seen bool) {
			done(seen && left.Data.State == ha.DataValid && !left.Data.WasPrimary)
		})
	})
}

func (p *promotion) ended(err error) {
	if p.forbidden {
		p.forbid()
	}
	p.lead.restInPause()
	if err != nil {
		p.reread()
		return
	}
	p.local.sawState(p.seen)
	p.local.Upstream, p.local.unopened = "", false
	p.checkpoint.promotedTo = p.seen.Timeline
	p.Log.Info().Int("timeline", p.seen.Timeline).Msg("promoted")
}

// forbid gives the lock up, as pre_promote has failed. Whoever is best of
// the others may lead. PostgreSQL may run on, as it was certainly not asked to promote.
func (p *promotion) forbid() {
	p.barredUntil = p.Now().Add(p.Dynamic.TTL)
	if !p.lead.LeaseState.Held(p.Now()) {
		return
	}
	p.Log.Warn().Dur("for", p.Dynamic.TTL).Msg("pre_promote has failed: the leader lock is given up, and this member does not want to lead for a while")
	p.lead.giveTo("", false)
}
