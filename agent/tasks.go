package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// handoverLimit is the deadline of a handover (design 7.6); after it
// the old primary goes on. A task that failed is tried again after a time that
// doubles from backoffMin to backoffMax.
const (
	handoverLimit = 10 * time.Second
	backoffMin    = time.Second
	backoffMax    = 10 * time.Second
	// backoffBootstrap is that of a bootstrap, whose failures cost more.
	backoffBootstrap = 2 * time.Minute
	// killAgainAfter spaces out kills that fail at once.
	killAgainAfter = 200 * time.Millisecond
)

// begin starts the task that an action asks for. Fencing interrupts whatever
// runs; everything else waits for its turn.
func (a *Agent) begin(action ha.Action) {
	switch act := action.(type) {
	case ha.Fence:
		a.fenceNow()
		return
	case ha.Demote:
		a.demote()
		return
	case ha.GiveUp:
		a.giveUp(act.Successor)
		return
	case ha.EndHung:
		a.endHung()
		return
	default:
		if a.m.task.kind != ha.TaskNone {
			return
		}
		switch act := act.(type) {
		case ha.Bootstrap:
			a.bootstrap()
		case ha.ClaimBootstrap:
			a.claimBootstrap()
		case ha.FinishBootstrap:
			a.finishBootstrap()
		case ha.EndShutDown:
			a.startTask(ha.TaskStart, within(startLimit, a.pg.EndShutDown), nil)
		case ha.DiscardIncomplete:
			a.startTask(ha.TaskStart, a.pg.DiscardIncomplete, nil)
		case ha.Clone:
			a.clone(act)
		case ha.StartPrimary:
			a.startPostgres(postgres.Primary, "", act.Sync)
		case ha.StartReplica:
			a.startPostgres(postgres.Replica, act.Upstream, nil)
		case ha.Rejoin:
			a.rejoin(act)
		case ha.Follow:
			a.follow(act.Upstream)
		case ha.RestartReplica:
			a.restartReplica(act.Upstream)
		case ha.Promote:
			a.promote(act)
		case ha.Handover:
			a.handover(act)
		case ha.SetSync:
			a.setSync(act)
		}
	}
}

// fenceNow kills every process of PostgreSQL. The lease is dropped here and
// now: whatever answer still comes in, it is not taken up again.
func (a *Agent) fenceNow() {
	if a.m.fencing {
		return
	}
	a.m.fencing = true
	a.m.Tenure.Drop()
	a.startStop(func(context.Context) error {
		// The kill must go on even when the agent is told to end meanwhile.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), backoffMax)
		defer cancel()
		return a.killPostgres(ctx)
	}, a.disarm, func(err error) {
		a.m.fencing = false
		if err == nil || !a.pg.Running() {
			a.m.stoppedOnPurpose()
		}
	})
}

// killPostgres kills PostgreSQL, so that no start which was asked for before comes up any
// more. What lingers is left to the kernel. On any other error PostgreSQL may live: the
// guard keeps its deadline, and it is killed again.
func (a *Agent) killPostgres(ctx context.Context) error {
	if err := a.pg.Kill(ctx); err != nil && !errors.Is(err, fence.ErrLingering) {
		pause(ctx, killAgainAfter)
		return err
	}
	// The kill may have taken all the time that there was.
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*lingering)
	defer cancel()
	started, err := a.guard.overtake(again)
	if err != nil || !started {
		return err
	}
	if err := a.pg.Kill(again); err != nil && !errors.Is(err, fence.ErrLingering) {
		return err
	}
	return nil
}

// disarm disarms the guard when PostgreSQL was killed. It comes last before the lease is
// dropped: beats arm the guard again.
func (a *Agent) disarm(ctx context.Context) error {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), lingering)
	defer cancel()
	return a.disarmGuard(limit)
}

// demote stops PostgreSQL in an orderly way, for as long as a leader may serve nobody,
// and drops the lease when it has stopped. The guard stays armed until then.
func (a *Agent) demote() {
	if a.m.task.kind == ha.TaskDemote {
		return
	}
	scripts, limit := a.beforeStopLimit(), a.stopWithin()
	a.startStop(func(ctx context.Context) error {
		a.beforeStop(ctx, scripts)
		if err := a.pg.StopWithin(ctx, limit, nil); err != nil && !errors.Is(err, fence.ErrLingering) {
			return err
		}
		kill, cancel := context.WithTimeout(ctx, lingering)
		defer cancel()
		return a.killPostgres(kill)
	}, a.disarm, func(err error) {
		if err == nil {
			a.m.Tenure.Drop()
			a.m.stoppedOnPurpose()
		}
	})
}

// stoppedOnPurpose notes that PostgreSQL is down because it was told to stop.
func (m *loopState) stoppedOnPurpose() {
	m.pg.wasPrimary = m.pg.primary()
	m.pg.running, m.pg.observed.Running, m.pg.observed.Accepting = false, false, false
	m.pgDown, m.upstream = 0, ""
	m.adopted, m.AdoptedPaused, m.adoptedUnled = 0, false, false
}

// giveUp ends a leadership that PostgreSQL cannot fill.
func (a *Agent) giveUp(successor string) {
	if a.m.task.kind == ha.TaskDemote {
		return
	}
	a.startStop(func(ctx context.Context) error {
		kill, cancel := context.WithTimeout(ctx, lingering)
		defer cancel()
		return a.killPostgres(kill)
	}, a.disarm, func(err error) {
		if err == nil {
			a.m.Complete = false
			a.m.Tenure.GiveTo(successor)
			a.m.stoppedOnPurpose()
		}
	})
}

// endHung kills a postmaster that hangs. The lease is kept, and the guard armed: it is
// started in place then.
func (a *Agent) endHung() {
	if a.m.task.kind == ha.TaskDemote {
		return
	}
	a.startStop(func(ctx context.Context) error {
		kill, cancel := context.WithTimeout(ctx, lingering)
		defer cancel()
		return a.killPostgres(kill)
	}, nil, func(err error) {
		if err == nil {
			a.m.stoppedOnPurpose()
		}
	})
}

// bootstrap makes the shard if this member wins the key initialize, which its
// session holds: when this agent dies on the way, the key goes with the session
// and any member may try again.
func (a *Agent) bootstrap() {
	session := a.m.Session
	if session == "" {
		return
	}
	lost := false
	a.startTask(ha.TaskBootstrap, func(ctx context.Context) error {
		if err := a.store.BeginBootstrap(ctx, session); err != nil {
			if errors.Is(err, consul.ErrConflict) {
				lost = true // somebody else makes the shard
				return nil
			}
			return err
		}
		a.log.Info().Msg("bootstrapping a new shard")
		if _, err := a.pg.Bootstrap(ctx, a.cfg.Bootstrap); err != nil {
			// Whatever was made is marked as unfinished and cleared away later.
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), handoverLimit)
			defer cancel()
			return errors.Join(err, a.pg.Kill(clean), a.store.EndBootstrap(clean, session))
		}
		return nil
	}, func(error) {
		if lost {
			a.m.attempt = ha.Attempt{Kind: ha.TaskBootstrap, Failures: 1, NotUntil: a.clock().Add(backoffMin)}
		}
		a.m.Reread()
	})
}

// claimBootstrap takes the key initialize for what was bootstrapped under a session
// that is gone.
func (a *Agent) claimBootstrap() {
	session := a.m.Session
	a.startTask(ha.TaskBootstrap, func(ctx context.Context) error {
		limit, cancel := context.WithTimeout(ctx, handoverLimit)
		defer cancel()
		return a.store.BeginBootstrap(limit, session)
	}, func(error) { a.m.Reread() })
}

// finishBootstrap says to the data directory what Consul says by now: that it is the
// shard's. Until then it counts as unfinished, so that a bootstrap which Consul never
// heard of can be cleared away.
func (a *Agent) finishBootstrap() {
	id := a.m.data.SystemIdentifier
	a.startTask(ha.TaskBootstrap, func(context.Context) error { return a.pg.FinishBootstrap() }, func(err error) {
		if err == nil {
			a.log.Info().Str("system_identifier", id).Msg("bootstrapped")
		}
	})
}

// upstreamOf is how to reach a member's PostgreSQL.
func (a *Agent) upstreamOf(name string) (postgres.Upstream, error) {
	m, found := a.m.Snapshot.Member(name)
	if !found || !m.OK() {
		return postgres.Upstream{}, fmt.Errorf("member %s: its key in Consul is missing or not understood", name)
	}
	host, port, err := m.Value.Address()
	if err != nil {
		return postgres.Upstream{}, err
	}
	return postgres.Upstream{Name: name, Host: host, Port: port}, nil
}

// clone makes the data directory from another member, or without one (from is
// empty) by the operator's own method, and starts the replica.
func (a *Agent) clone(c ha.Clone) {
	from := c.From
	var source *postgres.Upstream
	if from != "" {
		up, err := a.upstreamOf(from)
		if err != nil {
			a.noteAttempt(ha.TaskClone, err)
			return
		}
		source = &up
	}
	shard := a.m.Snapshot.Initialize.Value
	a.startTask(ha.TaskClone, func(ctx context.Context) error {
		a.log.Info().Str("from", from).Msg("cloning")
		if err := a.pg.MakeReplica(ctx, source, shard, a.cloneProgress(from)); err != nil {
			return err
		}
		return a.startWithin(ctx, replicaOf(source, c.NoStream))
	}, func(err error) {
		if err == nil {
			a.followsUnless(c.NoStream, from)
			a.log.Info().Str("from", from).Msg("cloned and started")
		}
	})
}

// startPostgres starts PostgreSQL. A primary is started by a leader alone, and
// under an armed guard.
func (a *Agent) startPostgres(role postgres.Role, upstream string, waits *ha.SetSync) {
	as := postgres.StartAs{Role: role}
	if waits != nil {
		as.Sync = &postgres.SyncSetting{Names: waits.Standbys, Any: waits.Any}
	}
	memo := a.m.Memo()
	until, timing := a.m.Tenure.Until(), a.watchdogTiming()
	if upstream != "" {
		up, err := a.upstreamOf(upstream)
		if err != nil {
			a.noteAttempt(ha.TaskStart, err)
			return
		}
		as.Upstream = &up
	}
	a.m.pg.syncSet = false // a replica's file waits for nobody, and a primary's is set anew
	a.startTask(ha.TaskStart, func(ctx context.Context) error {
		if role == postgres.Primary {
			if err := a.awakenGuard(ctx); err != nil {
				return err
			}
			if err := a.armNow(ctx, memo); err != nil {
				return fmt.Errorf("the guard could not be armed, so no primary is started: %w", err)
			}
			if err := a.activateWatchdog(ctx, until, timing); err != nil {
				return fmt.Errorf("no primary is started: %w", err)
			}
		}
		return a.startWithin(ctx, as)
	}, func(err error) {
		if err == nil {
			a.follows(upstream)
		}
	})
}

// follows notes whom the replica follows by now.
func (a *Agent) follows(upstream string) {
	a.m.upstream = upstream
	if upstream == "" {
		a.m.pg.alone = a.clock()
	}
}

// replicaOf is how a replica of upstream is started; one that does not stream gets its
// WAL by restore_command alone.
func replicaOf(upstream *postgres.Upstream, noStream bool) postgres.StartAs {
	if noStream {
		upstream = nil
	}
	return postgres.StartAs{Role: postgres.Replica, Upstream: upstream}
}

// followsUnless notes that the replica follows upstream, or nobody if it does not stream.
func (a *Agent) followsUnless(noStream bool, upstream string) {
	if noStream {
		upstream = ""
	}
	a.follows(upstream)
}

// rejoin makes this member a replica of upstream, rewinding its data directory
// where its WAL has diverged, and cloning it anew only where the configuration
// allows that (I7).
func (a *Agent) rejoin(r ha.Rejoin) {
	upstream := r.Upstream
	up, err := a.upstreamOf(upstream)
	if err != nil {
		a.noteAttempt(ha.TaskRejoin, err)
		return
	}
	leader := a.m.Snapshot.LeaderName()
	primary, err := a.upstreamOf(leader)
	if err != nil {
		primary, leader = postgres.Upstream{}, ""
	}
	rewind, remove, limit := a.mayRewind(), a.mayRemoveData(), a.stopWithin()
	a.m.pg.syncSet = false
	a.startTask(ha.TaskRejoin, func(ctx context.Context) error {
		if err := a.pg.StopWithin(ctx, limit, nil); err != nil {
			return err
		}
		outcome, err := a.pg.Rewind(ctx, up, rewind)
		switch {
		case err == nil:
			a.log.Info().Str("upstream", upstream).Stringer("outcome", outcome).Msg("ready to follow")
		case remove == "" || ctx.Err() != nil || !errors.Is(err, postgres.ErrDiverged):
			return err // a rewind that could not even begin is tried again
		default:
			a.log.Warn().Err(err).Str("allowed_by", remove).Msg("cannot rewind; the data directory is replaced")
			// Whom this member follows need not be the leader (replicatefrom), nor answer.
			source := up
			if !a.pg.Answers(ctx, up) {
				source = primary
			}
			if err := a.pg.RemoveForReinit(ctx, postgres.Permission{
				NotLeader: leader != "" && leader != a.cfg.Name, LeaderReachable: leader != "" && a.pg.Reachable(ctx, primary), AllowedBy: remove,
			}); err != nil {
				return err
			}
			if err := a.pg.MakeReplica(ctx, &source, "", a.cloneProgress(source.Name)); err != nil {
				return err
			}
		}
		return a.startWithin(ctx, replicaOf(&up, r.NoStream))
	}, func(err error) {
		if err == nil {
			a.followsUnless(r.NoStream, upstream)
		}
	})
}

// follow points the running replica at another upstream, or at nobody.
func (a *Agent) follow(upstream string) {
	if upstream == "" {
		a.startTask(ha.TaskStart, within(startLimit, a.pg.Unfollow), func(err error) {
			if err == nil {
				a.follows("")
				a.m.pg.observed.ReplicationState = ""
				a.log.Info().Msg("following nobody")
			}
		})
		return
	}
	up, err := a.upstreamOf(upstream)
	if err != nil {
		a.noteAttempt(ha.TaskStart, err)
		return
	}
	a.startTask(ha.TaskStart, within(startLimit, func(ctx context.Context) error {
		return a.pg.Follow(ctx, up)
	}), func(err error) {
		if err == nil {
			a.m.upstream = upstream
			a.log.Info().Str("upstream", upstream).Msg("following")
		}
	})
}

// promote makes the replica the primary. The guard is armed before, so that the
// new primary cannot outlive the lease even if this agent dies on the way. The key sync
// is replaced when nothing is left to be done but the promotion itself.
func (a *Agent) promote(p ha.Promote) {
	memo, above := a.m.Memo(), a.m.Timeline()-1
	until, timing := a.m.Tenure.Until(), a.watchdogTiming()
	session, limit, before := a.m.Session, a.m.Dynamic.RetryTimeout, a.m.Snapshot.Sync
	var (
		seen      postgres.State
		forbidden error
		replaced  struct {
			index     uint64
			uncertain bool
			promoted  bool // or perhaps
		}
	)
	replace := func(ctx context.Context) error {
		if p.Sync == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		var err error
		replaced.index, err = a.store.WriteAsLeader(ctx, session, a.keys.Sync(), p.SyncIndex, *p.Sync)
		replaced.uncertain = errors.Is(err, consul.ErrUncertain)
		if err != nil {
			return fmt.Errorf("nothing is promoted: the key sync could not be replaced: %w", err)
		}
		return nil
	}
	a.startTask(ha.TaskPromote, func(ctx context.Context) error {
		if err := a.armNow(ctx, memo); err != nil {
			return fmt.Errorf("the guard could not be armed, so nothing is promoted: %w", err)
		}
		if err := a.activateWatchdog(ctx, until, timing); err != nil {
			return fmt.Errorf("nothing is promoted: %w", err)
		}
		if forbidden = a.prePromote(ctx); forbidden != nil {
			return errors.Join(forbidden, a.disarmGuard(ctx))
		}
		err := a.pg.PromoteAfter(ctx, above, replace)
		if err == nil {
			replaced.promoted = true
			seen, err = a.pg.Observe(ctx)
		} else if replaced.index != 0 {
			replaced.promoted = !a.unpromoted()
		}
		a.post(func() { // also when this task is interrupted
			if replaced.index != 0 {
				a.m.Wrote(replaced.index)
				a.m.SyncUncertain = false
				a.m.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *p.Sync, ModifyIndex: replaced.index}
			}
			a.m.SyncUncertain = a.m.SyncUncertain || replaced.uncertain
			a.m.SyncBefore = nil
			if !replaced.promoted && (replaced.index != 0 || replaced.uncertain) {
				a.m.SyncBefore = &before
			}
		})
		return err
	}, func(err error) {
		if forbidden != nil {
			a.forbidPromotion()
		}
		if err != nil {
			a.m.Reread()
			return
		}
		a.sawPostgres(seen, nil, nil)
		a.m.upstream = ""
		a.m.published.promotedTo = seen.Timeline
		a.log.Info().Int("timeline", seen.Timeline).Msg("promoted")
	})
}

// unpromoted makes sure that a promotion which failed does not happen after all, and
// tells whether that is certain. PostgreSQL may have been asked already, and goes on with
// it: so it is ended. It takes away standby.signal before it accepts the first commit.
func (a *Agent) unpromoted() bool {
	if a.ctx.Err() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), backoffMax)
	defer cancel()
	if err := a.pg.Kill(ctx); err != nil {
		a.log.Error().Err(err).Msg("a PostgreSQL whose promotion failed could not be ended")
		return false
	}
	left, seen := a.lookAtData(ctx)
	return seen && left.data.State == ha.DataValid && !left.data.wasPrimary
}

// awaitWAL waits until a member has received WAL of our timeline beyond
// lsn. A fast shutdown waits for connected standbys, so the first answer usually tells.
func (a *Agent) awaitWAL(ctx context.Context, successor api.Peer, timeline int, lsn int64) error {
	var last error
	for ctx.Err() == nil {
		status, err := a.peers.Observe(ctx, successor)
		if p := peerOf("", status); err == nil && p.Timeline == timeline && p.LSN > lsn {
			return nil
		}
		last = err
		pause(ctx, 20*time.Millisecond)
	}
	return errors.Join(ctx.Err(), last)
}

// setSync makes commits wait for standbys, then reads how far the WAL is: a
// standby that has more than that holds everything acknowledged before. What was
// in force is not known for certain from the beginning of the attempt on.
func (a *Agent) setSync(s ha.SetSync) {
	if a.m.settingSync {
		return
	}
	a.m.settingSync, a.m.pg.syncSet = true, false
	ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		set, err := a.pg.SetSynchronous(ctx, postgres.SyncSetting{Names: s.Standbys, Any: s.Any})
		return func() {
			a.m.settingSync = false
			if err != nil {
				a.log.Warn().Err(err).Msg("setting synchronous_standby_names failed")
				return
			}
			pg := &a.m.pg
			pg.syncNames, pg.syncAny, pg.syncSince, pg.syncValue, pg.syncSet = s.Standbys, s.Any, set.Since, set.Value, true
			pg.observed.SyncNames = set.Value // an older observation does not make it unsure again
			a.log.Info().Strs("standbys", s.Standbys).Int("any", s.Any).Msg("commits wait for these standbys")
			kick(a.kickPostgres)
		}
	})
}
