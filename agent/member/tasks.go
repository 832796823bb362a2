package member

import (
	"errors"
	"fmt"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// begin starts the task that an action asks for. Fencing interrupts whatever
// runs; everything else waits for its turn.
func (m *Member) begin(action ha.Action) {
	switch act := action.(type) {
	case ha.Fence:
		m.fenceNow()
		return
	case ha.Demote:
		m.demote()
		return
	case ha.GiveUp:
		m.giveUp(act.Successor)
		return
	case ha.EndHung:
		m.endHung()
		return
	}
	if m.task != nil || m.Upgrades.unfit {
		return
	}
	switch act := action.(type) {
	case ha.Bootstrap:
		m.bootstrap.begin(act.From)
	case ha.ClaimBootstrap:
		m.bootstrap.claim()
	case ha.FinishBootstrap:
		m.bootstrap.finish()
	case ha.PutBack:
		m.Restored = false
		m.startTask(ha.TaskRestore, m.Postgres.PutBack, m.restoreUndone)
	case ha.EndRestore:
		m.startTask(ha.TaskStart, m.Postgres.EndRestore, nil)
	case ha.UndoUpgrade:
		m.Upgrades.undo()
	case ha.EndUpgrade:
		m.startTask(ha.TaskUpgrade, m.Postgres.EndUpgrade, m.restoreUndone)
	case ha.EndShutDown:
		m.startTask(ha.TaskStart, func(w *Work, next func(error)) { m.Postgres.EndShutDown(w, startLimit, next) }, nil)
	case ha.DiscardIncomplete:
		m.startTask(ha.TaskStart, m.Postgres.DiscardIncomplete, nil)
	case ha.Clone:
		m.clone(act)
	case ha.StartPrimary:
		m.startPrimary(act.Sync)
	case ha.StartReplica:
		m.startReplica(act.Upstream)
	case ha.Rejoin:
		m.rejoin(act)
	case ha.Follow:
		m.follow(act.Upstream)
	case ha.Rebuild:
		m.rebuild()
	case ha.RestartReplica:
		m.restartReplica(act.Upstream)
	case ha.CopySlots:
		m.copySlots(act)
	case ha.Promote:
		m.promoter.begin(act)
	case ha.StandDown:
		m.standDown()
	case ha.Handover:
		m.handovers.begin(act)
	case ha.SetSync:
		m.commits.apply(act)
	}
}

// adoptStray takes charge of a PostgreSQL that somebody has started by hand while this
// agent ran, in pause mostly: it is to be seen, led with, and fenced as any other. What
// it is to do without a lease is decided then. It is a task, as a postmaster that another
// task starts is none of that.
func (m *Member) adoptStray() {
	if m.task != nil || m.PG.Running {
		return
	}
	m.commits.set = false // it has not been told by this agent
	var earlier *Recalled
	m.startTask(ha.TaskStart, inOrder(m.Postgres.Adopt, func(_ *Work, next func(error)) {
		if !m.Read.IsZero() {
			next(nil)
			return
		}
		m.Guard.Recall(func(r Recalled) {
			earlier = &r
			next(nil)
		})
	}), func(err error) {
		if err == nil && m.PG.Running {
			if earlier != nil && m.Read.IsZero() { // as of one that ran when this agent began
				m.adopted = earlier.adoption(m.Now())
			}
			m.follows(m.Postgres.Upstream())
			m.Log.Warn().Bool("primary", m.PG.Primary()).Msg("PostgreSQL was started by hand and is taken charge of; " +
				"restart it through the agent at a convenient moment (POST /restart)")
		}
	})
}

// replicaOf is how a replica of upstream is started; one that does not stream gets its
// WAL by restore_command alone.
func replicaOf(upstream *pg.Upstream, noStream bool) StartAs {
	if noStream {
		upstream = nil
	}
	return StartAs{Upstream: upstream}
}

// unless is whom a replica follows: nobody if it does not stream.
func unless(noStream bool, upstream string) string {
	if noStream {
		return ""
	}
	return upstream
}

// start is the step that starts PostgreSQL.
func (m *Member) start(as StartAs) step {
	return inOrder(m.awakenGuard, func(w *Work, next func(error)) { m.Postgres.Start(w, startLimit, as, next) })
}

// nowFollows is the end of a task that has made this member follow somebody.
func (m *Member) nowFollows(upstream string) func(error) {
	return func(err error) {
		if err == nil {
			m.follows(upstream)
		}
	}
}

// awakenGuard makes sure that there is a guard to start PostgreSQL.
func (m *Member) awakenGuard(w *Work, next func(error)) {
	if m.Postgres.Running() {
		next(nil)
		return
	}
	m.Guard.Awake(w, next)
}

// startPrimary starts PostgreSQL as the primary.
func (m *Member) startPrimary(waits *ha.SetSync) {
	m.startTask(ha.TaskStart, m.primaryStart(waits), func(err error) {
		m.restInPause()
		m.nowFollows("")(err)
	})
}

// primaryStart starts PostgreSQL as a primary whose commits wait for waits, nil: for whom its
// file says. Only a leader does that, and under an armed guard; or who has the lock in pause,
// when no lease ends anything.
func (m *Member) primaryStart(waits *ha.SetSync) step {
	leased := func() bool { return m.LeaseState.Held(m.Now()) && !m.PauseInForce() }
	may := func(_ *Work, next func(error)) {
		if !m.mayRunPrimary() {
			next(errors.New("the lease is over, so no primary is started"))
			return
		}
		m.commits.set = false // it is set anew
		m.opener.begins()
		next(nil)
	}
	arm := func(w *Work, next func(error)) {
		if !leased() {
			next(nil)
			return
		}
		m.GuardSupervisor.ArmNow(w, m.PersistedState(), because(next, "the guard could not be armed, so no primary is started"))
	}
	protect := func(w *Work, next func(error)) {
		if !leased() {
			next(nil)
			return
		}
		m.Watchdog.Activate(w, m.LeaseState.Until(), m.Dynamic.TTL, m.FenceMargins(), because(next, "no primary is started"))
	}
	opens := func(_ *Work, next func(error)) {
		m.opener.started()
		next(nil)
	}
	return inOrder(may, m.awakenGuard, arm, protect, m.start(StartAs{Primary: true, Sync: waits}), opens)
}

// because says with an error what does not happen for it.
func because(next func(error), what string) func(error) {
	return func(err error) {
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
		next(err)
	}
}

// startReplica starts PostgreSQL as a replica of upstream, or of nobody.
func (m *Member) startReplica(upstream string) {
	as, err := m.replica(upstream)
	if err != nil {
		m.noteAttempt(ha.TaskStart, err)
		return
	}
	m.commits.set = false // its file waits for nobody
	m.startTask(ha.TaskStart, m.start(as), m.nowFollows(upstream))
}

// replica is how a replica of upstream, or of nobody, is started.
func (m *Member) replica(upstream string) (StartAs, error) {
	if upstream == "" {
		return StartAs{}, nil
	}
	up, err := m.upstreamOf(upstream)
	return StartAs{Upstream: &up}, err
}

// clone makes the data directory from another member, or without one (from is
// empty) by the operator's own method, and starts the replica.
func (m *Member) clone(c ha.Clone) {
	from := c.From
	as, err := m.replica(from)
	if err != nil {
		m.noteAttempt(ha.TaskClone, err)
		return
	}
	shard := m.Snapshot.Initialize.Value
	m.startTask(ha.TaskClone, inOrder(func(w *Work, next func(error)) {
		m.Log.Info().Str("from", from).Msg("cloning")
		m.Postgres.MakeReplica(w, as.Upstream, shard, next)
	}, m.start(replicaOf(as.Upstream, c.NoStream))), func(err error) {
		if err == nil {
			m.Stranded = ""
			m.follows(unless(c.NoStream, from))
			m.Log.Info().Str("from", from).Msg("cloned and started")
		}
	})
}

// rejoin makes this member a replica of upstream, rewinding its data directory
// where its WAL has diverged, and cloning it anew only where the configuration
// allows that (I7).
func (m *Member) rejoin(r ha.Rejoin) {
	up, err := m.upstreamOf(r.Upstream)
	if err != nil {
		m.noteAttempt(ha.TaskRejoin, err)
		return
	}
	leader := m.Snapshot.LeaderName()
	primary, err := m.upstreamOf(leader)
	if err != nil {
		primary, leader = pg.Upstream{}, ""
	}
	allowed, remove := m.MayRewind(), m.MayRemove(m.Dynamic)
	if discarded, _ := m.Discarded(); remove == "" && m.Data.Timeline > 0 && m.Data.Timeline <= discarded {
		remove = "lictor restore"
	}
	if up.Remote {
		m.rejoinRemote(up, allowed)
		return
	}
	rewind := func(w *Work, next func(error)) {
		m.Postgres.Rewind(w, up, allowed, func(err error) {
			if err == nil || remove == "" || w.Broken() != nil || !errors.Is(err, ErrDiverged) {
				next(err) // a rewind that could not even begin is tried again
				return
			}
			m.Log.Warn().Err(err).Str("allowed_by", remove).Msg("cannot rewind; the data directory is replaced")
			m.replaceDiverged(w, up, primary, leader, remove, next)
		})
	}
	m.commits.set = false
	line := ha.Line{Leader: m.Snapshot.LeaderName()}
	if l, found := m.Snapshot.Member(line.Leader); found {
		line.Timeline = l.Value.Timeline
	}
	m.startTask(ha.TaskRejoin, inOrder(m.orderly(m.stopWithin(), false), rewind, m.start(replicaOf(&up, r.NoStream))), func(err error) {
		switch {
		case err == nil:
			m.Stranded, m.rejoined = "", line
			m.follows(unless(r.NoStream, r.Upstream))
		case errors.Is(err, ErrBeyondRewind):
			m.rebuilder.strand(err.Error())
		}
	})
}

// replaceDiverged clones a data directory anew that cannot be rewound.
func (m *Member) replaceDiverged(w *Work, up, primary pg.Upstream, leader, allowedBy string, done func(error)) {
	source, reachable, shard := up, false, m.Snapshot.Initialize.Value
	inOrder(func(w *Work, next func(error)) {
		// Whom this member follows need not be the leader (replicatefrom), nor answer.
		m.Postgres.Answers(w, up, false, shard, func(err error) {
			if err != nil {
				source = primary
			}
			next(nil)
		})
	}, func(w *Work, next func(error)) {
		if leader == "" {
			next(nil)
			return
		}
		m.Postgres.Answers(w, primary, m.leaderIsPrimary(), shard, func(err error) {
			if reachable = err == nil; !reachable {
				m.Log.Warn().Err(err).Str("leader", leader).Msg("leader does not answer; data that have diverged stay")
			}
			next(nil)
		})
	}, func(w *Work, next func(error)) {
		m.Postgres.RemoveForReinit(w, pg.Permission{
			NotLeader: leader != "" && leader != m.Name && leader == m.Snapshot.LeaderName(), LeaderReachable: reachable, AllowedBy: allowedBy,
			Shard: shard,
		}, next)
	}, func(w *Work, next func(error)) { m.Postgres.MakeReplica(w, &source, shard, next) })(w, done)
}

// leaderIsPrimary reports whether the shard's leader has to be a primary to be one.
func (s *Shard) leaderIsPrimary() bool { return !s.Dynamic.StandbyCluster.On() }

// follow points the running replica at another upstream, or at nobody.
func (m *Member) follow(upstream string) {
	if upstream == "" {
		m.startTask(ha.TaskStart, func(w *Work, next func(error)) { m.Postgres.Unfollow(w, startLimit, next) }, func(err error) {
			if err == nil {
				m.follows("")
				m.PG.Observed.ReplicationState = ""
				m.Log.Info().Msg("following nobody")
			}
		})
		return
	}
	up, err := m.upstreamOf(upstream)
	if err != nil {
		m.noteAttempt(ha.TaskStart, err)
		return
	}
	m.startTask(ha.TaskStart, func(w *Work, next func(error)) { m.Postgres.Follow(w, startLimit, up, next) }, func(err error) {
		if err == nil {
			m.Upstream = upstream
			m.Log.Info().Str("upstream", upstream).Msg("following")
		}
	})
}
