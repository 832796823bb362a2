package member

import (
	"errors"
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// remoteWatch finds out, for a standby leader that receives nothing, whether its WAL is none of the
// remote primary's: after a failover there, say. Then no waiting helps.
type remoteWatch struct {
	*Shard
	local    *Local
	postgres Postgres

	// waits: it receives nothing now; asking: the answer is under way.
	waits, asking bool
	next          cluster.Instant
	// diverged: it has, and nothing was received since.
	diverged bool
	// beyond says why no attempt makes the data fit to follow the remote primary; empty: one may. It
	// is so by the settings of then.
	beyond string
	by     rejoinBy
}

// rejoinBy is what decides whether another attempt may go otherwise.
type rejoinBy struct {
	upstream string
	rewinds  bool
}

func (r *remoteWatch) rejoinsBy() rejoinBy {
	return rejoinBy{upstream: r.Dynamic.StandbyCluster.Upstream(), rewinds: r.MayRewind()}
}

// gaveUp notes how an attempt to follow the remote primary has ended. Where none can succeed PostgreSQL is left
// running, for its readers, and is not stopped for another.
func (r *remoteWatch) gaveUp(err error) {
	r.beyond, r.by = "", r.rejoinsBy()
	if errors.Is(err, ErrBeyondRewind) {
		r.beyond, r.diverged = err.Error(), false
	}
}

// mind looks after a standby leader that follows the remote primary. It is to be called when no task is
// under way.
func (r *remoteWatch) mind(seen ha.Postgres) {
	const topic, message = "remote primary", "nothing is received from the remote primary"
	r.waits = r.standbyLeads() && seen.Accepting && !seen.Primary && !seen.Streaming && cluster.IsRemote(seen.Upstream)
	if !r.waits {
		r.diverged = false
	}
	if !r.standbyLeads() || seen.Streaming || r.by != r.rejoinsBy() {
		r.beyond = ""
	}
	r.Problem("standby leader", "the standby leader cannot follow the remote primary with its data", r.beyond)
	r.tellOfItself()
	if !r.standbyLeads() || seen.Accepting && !r.waits {
		r.Problem(topic, message, "")
	}
	if !r.waits || r.asking || r.Now().Before(r.next) {
		return
	}
	up, err := r.upstreamOf(seen.Upstream)
	if err != nil {
		return
	}
	r.asking = true
	edge := r.local.edge
	r.postgres.CheckRemote(nil, r.Dynamic.RetryTimeout, up, false, func(diverged bool, err error) {
		r.asking, r.next = false, r.Now().Add(r.Dynamic.LoopWait)
		if !r.waits {
			return // it receives, or leads no standby shard any more
		}
		r.Failure(topic, message, err)
		r.diverged = diverged && r.local.edge == edge && r.beyond == ""
	})
}

// tellOfItself says that the shard is to follow one of its own members: it may receive its own WAL from there, and
// nobody has any other.
func (r *remoteWatch) tellOfItself() {
	detail := ""
	c := r.Dynamic.StandbyCluster
	if own := r.Snapshot.CheckSite(c.Host, c.Port); own != nil && r.standbyLeads() {
		detail = own.Error() + ": lictor promote-cluster makes this site one with a primary again"
	}
	r.Problem("standby_cluster", "standby_cluster names no other site", detail)
}

// rejoinRemote makes this member, the leader of a standby shard, a replica of the remote primary.
// A PostgreSQL that runs is stopped only for one that can be followed, or for a site that is to be promoted: that
// one gets all WAL first. One that is down is
// started even where the remote primary does not answer: it serves readers, and may be promoted. So is a standby that
// was stopped for a rewind that no attempt can make (one that is half-written is not startable).
// Its data are never replaced, as it is the leader (I7).
func (m *Member) rejoinRemote(up pg.Upstream, allowed bool) {
	m.commits.set = false
	running, primary := m.PG.Running, m.PG.Running && m.PG.Primary()
	toSite := m.handovers.toSite(up)
	m.startTask(ha.TaskRejoin, func(w *Work, next func(error)) {
		m.Postgres.CheckRemote(w, startLimit, up, primary, func(diverged bool, err error) {
			start := m.start(StartAs{Upstream: &up})
			rest := []step{start}
			switch {
			case err == nil && diverged && running && !primary && !allowed:
				next(fmt.Errorf("PostgreSQL runs on as it is: %w, as it is not allowed: set use_pg_rewind", ErrBeyondRewind))
				return
			case err != nil && primary && !errors.Is(err, ErrDiverged):
				m.askStandby(w, up, func(problem error) {
					if problem != nil {
						next(fmt.Errorf("PostgreSQL runs on as it is: %w", errors.Join(err, problem)))
						return
					}
					inOrder(append([]step{toSite.stopForSite}, rest...)...)(w, next)
				})
				return
			case err != nil && running:
				next(fmt.Errorf("PostgreSQL runs on as it is: %w", err))
				return
			case errors.Is(err, ErrDiverged):
				next(err)
				return
			case err != nil:
				m.Log.Warn().Err(err).Msg("started as a standby without the remote primary")
			default:
				rest = append([]step{m.orderly(m.stopWithin(), false), m.archiveLast(primary && up.Host == ""), func(w *Work, next func(error)) {
					m.Postgres.Rewind(w, up, allowed, func(err error) {
						if !running || primary || !errors.Is(err, ErrDiverged) || w.Broken() != nil {
							next(err)
							return
						}
						start(w, func(started error) { next(errors.Join(err, started)) }) // for its readers
					})
				}}, rest...)
			}
			inOrder(rest...)(w, next)
		})
	}, func(err error) {
		toSite.over(err)
		m.remote.gaveUp(err)
		m.nowFollows(up.Name)(err)
	})
}

// archiveLast is the step by which a site that follows by the archive alone gets the last WAL of this one; wanted: there is
// such a site.
func (m *Member) archiveLast(wanted bool) step {
	return func(w *Work, next func(error)) {
		if !wanted {
			next(nil)
			return
		}
		m.Postgres.ArchiveLast(w, m.ScriptLimit, func(err error) {
			if err != nil {
				m.Log.Warn().Err(err).Msg("the other site may lack the shutdown checkpoint, and this one cannot follow it then")
			}
			next(w.Broken())
		})
	}
}

// askStandby says why a site that has no primary cannot take over from this one, by what it answers.
func (m *Member) askStandby(w *Work, up pg.Upstream, done func(problem error)) {
	o := m.PG.Observed
	m.Postgres.AskSite(w, m.Dynamic.RetryTimeout, up, o.Timeline, func(site cluster.Site, err error) {
		switch {
		case err == nil && site.Primary:
			err = errors.New("it has a primary by now, and is asked again")
		case err == nil:
			err = site.CanTakeOver(o.Timeline, o.LSN(), m.Dynamic.MaximumLagOnFailover)
		}
		done(err)
	})
}
