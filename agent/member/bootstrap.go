package member

import (
	"errors"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// bootstrapper makes a new shard, which needs the key initialize.
type bootstrapper struct {
	*Shard
	work       *worker
	local      *Local
	leaseState *ha.LeaseState
	consul     Consul
	postgres   Postgres
	reread     func()
}

// begin makes the shard if this member wins the key initialize, which its
// session holds: when this agent dies on the way, the key goes with the session
// and any member may try again.
//
// The standby of another shard is a copy of its primary, from: that is a replica as any
// other, but for the key that the first takeover writes (ha.Register). Two that copied it
// by mistake would do no harm.
func (b *bootstrapper) begin(from string) {
	session := b.Session
	if session == "" {
		return
	}
	fill, err := b.maker(from)
	if err != nil {
		b.work.noteAttempt(ha.TaskBootstrap, err)
		return
	}
	lost := false
	b.work.startTask(ha.TaskBootstrap, func(w *Work, next func(error)) {
		b.consul.BeginBootstrap(w, b.Dynamic.RetryTimeout, session, func(err error) {
			switch {
			case errors.Is(err, cluster.ErrConflict):
				lost = true // somebody else makes the shard
				next(nil)
			case err != nil:
				next(err)
			default:
				b.Log.Info().Str("from", from).Msg("bootstrapping a new shard")
				fill(w, func(err error) {
					if err != nil {
						b.undo(session, err, next)
						return
					}
					next(nil)
				})
			}
		})
	}, func(error) {
		if lost {
			b.work.Attempt = ha.Attempt{Kind: ha.TaskBootstrap, Failures: 1, NotUntil: b.Now().Add(backoffMin)}
		}
		b.reread()
	})
}

// maker is the step that makes the data directory.
func (b *bootstrapper) maker(from string) (step, error) {
	if from == "" {
		return b.postgres.Bootstrap, nil
	}
	up, err := b.upstreamOf(from)
	return func(w *Work, next func(error)) { b.postgres.MakeReplica(w, &up, "", next) }, err
}

// undo ends a bootstrap that failed: whatever was made is marked as unfinished and
// cleared away later.
func (b *bootstrapper) undo(session string, why error, next func(error)) {
	b.postgres.Kill(nil, handoverLimit, func(killed error) {
		b.consul.EndBootstrap(handoverLimit, session, func(ended error) { next(errors.Join(why, killed, ended)) })
	})
}

// claim takes the key initialize for what was bootstrapped under a session
// that is gone.
func (b *bootstrapper) claim() {
	session := b.Session
	b.work.startTask(ha.TaskBootstrap, func(w *Work, next func(error)) {
		b.consul.BeginBootstrap(w, handoverLimit, session, next)
	}, func(error) { b.reread() })
}

// finish says to the data directory what Consul says by now: that it is the
// shard's. Until then it counts as unfinished, so that a bootstrap which Consul never
// heard of can be cleared away.
func (b *bootstrapper) finish() {
	id := b.local.Data.SystemIdentifier
	b.work.startTask(ha.TaskBootstrap, b.postgres.FinishBootstrap, func(err error) {
		if err == nil {
			b.Log.Info().Str("system_identifier", id).Msg("bootstrapped")
		}
	})
}

// copied reports whether there is a copy of a remote primary that waits for its first lease.
func (b *bootstrapper) copied() bool {
	return b.local.Data.State == ha.DataValid && b.Dynamic.StandbyCluster.On()
}

// clearStale ends a bootstrap of this member's that nobody works on any more:
// one of this run that has failed and could not say so, or one that an earlier run left
// behind with its session, instead of waiting for that one's TTL.
func (b *bootstrapper) clearStale(snapshot cluster.Snapshot) {
	init, session := snapshot.Initialize, b.Session
	if !init.Exists() || init.Value != "" || init.Session == "" || session == "" || b.work.task != nil ||
		init.Session == session && (b.local.Data.State == ha.DataBootstrapped || b.copied() || b.leaseState.Writing()) {
		return
	}
	cleared := func(err error) {
		if err != nil && !errors.Is(err, cluster.ErrConflict) {
			b.Log.Warn().Err(err).Msg("clearing away our own unfinished bootstrap in Consul")
		}
	}
	if init.Session == session {
		b.consul.EndBootstrap(b.Dynamic.RetryTimeout, session, cleared)
		return
	}
	b.consul.EndSession(b.Dynamic.RetryTimeout, init.Session, b.SessionName, cleared)
}
