package member

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// ErrStopping is what a request gets that the agent no longer carries out.
var ErrStopping = errors.New("the agent is stopping")

// MayRestart says why PostgreSQL cannot be restarted now.
func (m *Member) MayRestart() error {
	switch {
	case m.Stopping:
		return Refused{ErrStopping.Error()}
	case m.task != nil:
		return refused("%s already in progress", m.task.kind)
	case m.Data.State != ha.DataValid:
		return refused("there is no data directory to start PostgreSQL in")
	case m.PG.Primary() && !m.mayRunPrimary():
		return refused("it was a primary, and this member does not hold the lease")
	case m.PG.Primary() && !m.PG.Running:
		if _, wait := ha.PrimaryStart(m.View()); wait != "" {
			return refused("%s; try again", wait)
		}
	}
	return nil
}

// Restart restarts PostgreSQL in place, in its role. A leader keeps its lease and beats
// meanwhile.
func (m *Member) Restart(done func(error)) {
	if err := m.MayRestart(); err != nil {
		done(err)
		return
	}
	var start step
	var ended func(error)
	if m.PG.Primary() {
		// One that runs waits already for whom it is to wait for: its file says so.
		var anew ha.StartPrimary
		if !m.PG.Running {
			anew, _ = ha.PrimaryStart(m.View()) // MayRestart has heard what is to come before
		}
		start, ended = m.primaryStart(anew.Sync), func(error) { m.restInPause() }
	} else {
		upstream, as := m.Upstream, StartAs{}
		if up, err := m.upstreamOf(upstream); err == nil {
			as.Upstream = &up
		} else {
			upstream = "" // its key has gone; whoever leads next is followed then
		}
		start, ended = m.start(as), m.nowFollows(upstream)
	}
	// Standbys get the rest of the WAL when it is back.
	restart := inOrder(m.beforeStop(m.ScriptLimit), m.orderly(m.stopWithin(), true), start)
	m.startTask(ha.TaskRestart, func(w *Work, next func(error)) {
		restart(w, func(err error) { // also when it was broken off
			done(err)
			next(err)
		})
	}, ended)
}

// restartReplica restarts a replica whose replay goes on only after that. A synchronous
// standby has its leader let it go first.
func (m *Member) restartReplica(upstream string) {
	as, err := m.replica(upstream)
	if err != nil {
		m.noteAttempt(ha.TaskRestart, err)
		return
	}
	steps := []step{m.startsAgain}
	if upstream != "" {
		steps = append(steps, m.LeaveSync)
	}
	steps = append(steps, m.beforeStop(m.beforeStopLimit()), m.orderly(m.stopWithin(), false), m.start(as))
	m.startTask(ha.TaskRestart, m.thenInSync(steps...), func(err error) {
		if err == nil {
			m.Upstream = upstream
		}
	})
}

// thenInSync is steps for which this standby may have left the key sync; it may be in it
// again when they are over.
func (m *Member) thenInSync(steps ...step) step {
	return func(w *Work, next func(error)) {
		inOrder(steps...)(w, func(err error) {
			m.RejoinSync()
			next(err)
		})
	}
}

// syncLeave is how this standby is out of the key sync while it is stopped.
type syncLeave struct {
	LeavingSync bool // it asks the leader to do without it
}

// RejoinSync lets the leader take this member into the key sync again, for whoever has asked for LeaveSync.
func (s *syncLeave) RejoinSync() { s.LeavingSync = false }

// LeaveSync publishes the tag nosync and waits until the leader has taken this
// member out of the key sync, or, as there may be nobody to take its place, for two
// loop_waits, as Patroni does. Whoever asks for it asks for RejoinSync afterwards.
func (m *Member) LeaveSync(w *Work, next func(error)) {
	m.LeavingSync = true
	m.waiters.await(w, 2*m.Dynamic.LoopWait, func() bool {
		return !slices.ContainsFunc(m.Snapshot.Sync.Value.Standbys(), func(n string) bool { return strings.EqualFold(n, m.Name) })
	}, func(left bool) {
		if w != nil && w.Broken() != nil {
			next(w.Broken())
			return
		}
		if !left {
			m.Log.Warn().Msg("leader did not release this synchronous standby in time")
		}
		next(nil)
	})
}

// Reinitialize replaces this replica's data directory by a new clone: from the leader, or
// from a running replica with the tag clonefrom. force: it comes before a task that can be
// done again. An error says why it is not begun.
func (m *Member) Reinitialize(fromLeader, force bool) error {
	leader := m.Snapshot.LeaderName()
	switch {
	case m.Stopping:
		return Refused{ErrStopping.Error()}
	case leader == m.Name || m.LeaseState.Held(m.Now()):
		return refused("I am the leader, can not reinitialize")
	case leader == "":
		return refused("Cluster has no leader, can not reinitialize")
	case m.task != nil && (!force || !m.repeatable()):
		return refused("%s already in progress", m.task.kind)
	case m.Restore != nil || m.Data.State == ha.DataSetAside: // what is in the place of the old data is nobody's to remove
		return refused("a restore is not undone yet")
	case m.upgradeUnfinished():
		return errUpgradeUnfinished
	}
	up, err := m.upstreamOf(leader)
	if err != nil {
		return Refused{err.Error()}
	}
	source := up
	version, err := m.Upgrades.superseded(leader)
	if err != nil {
		return err
	}
	if name := m.Snapshot.CloneSource(m.Name, leader); !fromLeader && name != leader && version == 0 {
		if source, err = m.upstreamOf(name); err != nil {
			return Refused{err.Error()}
		}
	}
	if m.Detached > 0 {
		return refused("a candidate for the leadership counts on what this member has: try again when the shard has a leader")
	}
	stays := func() error {
		switch {
		case m.Snapshot.LeaderName() != leader:
			return fmt.Errorf("%s does not lead any more", leader)
		case m.Detached > 0:
			return errors.New("a candidate for the leadership counts on what this member has")
		}
		return nil
	}
	m.InterruptTask()
	m.startTask(ha.TaskReinit, m.makeAnew(copyAnew{up: up, source: source, allowedBy: "POST /reinitialize", version: version, may: stays}),
		m.nowFollows(unless(cluster.NoStream(m.TagsNow()), leader)))
	return nil
}

// copyAnew is how a replica's data are made anew.
type copyAnew struct {
	// up is the shard's leader, whom it follows then; source is whom the copy is made from.
	up, source pg.Upstream
	allowedBy  string // who asks for it
	version    int    // to which the shard was upgraded since; zero: it was not
	// may says why it must not be done now; removed, if set, hears that the data are gone.
	may     func() error
	removed func()
}

// makeAnew replaces this replica's data by a copy. Whether it may is asked before PostgreSQL is
// stopped, which takes a while, and again when it has stopped; if not, PostgreSQL is started again
// as it was.
func (m *Member) makeAnew(c copyAnew) step {
	shard, noStream := m.Snapshot.Initialize.Value, cluster.NoStream(m.TagsNow())
	ran := m.PG.Running && !m.PG.Primary()
	as, err := m.replica(m.Upstream)
	if err != nil {
		as = replicaOf(&c.up, noStream)
	}
	may := func(w *Work, next func(error)) {
		if err := c.may(); err != nil {
			next(fmt.Errorf("the data directory stays: %w", err))
			return
		}
		m.Postgres.Answers(w, c.up, m.leaderIsPrimary(), shard, func(problem error) {
			err := c.may()
			if problem != nil {
				err = fmt.Errorf("the leader %s does not answer: %w", c.up.Name, problem)
			}
			if err != nil {
				err = fmt.Errorf("the data directory stays: %w", err)
			}
			next(err)
		})
	}
	return m.thenInSync(m.LeaveSync, may, m.orderly(m.stopWithin(), false), func(w *Work, next func(error)) {
		may(w, func(err error) {
			if err == nil || !ran || w.Broken() != nil {
				next(err)
				return
			}
			m.start(as)(w, func(failed error) { next(errors.Join(err, failed)) })
		})
	}, func(w *Work, next func(error)) {
		m.Postgres.RemoveForReinit(w, pg.Permission{NotLeader: true, LeaderReachable: true, AllowedBy: c.allowedBy, Shard: shard, Version: c.version}, func(err error) {
			if err == nil {
				m.Upgrades.unfit = m.Upgrades.unfit || c.version != 0 && c.version != m.Postgres.Major()
				m.Stranded = ""
				if c.removed != nil {
					c.removed()
				}
			}
			next(err)
		})
	}, func(w *Work, next func(error)) {
		if m.Upgrades.unfit { // an agent with the programs for it does that
			next(nil)
			return
		}
		inOrder(func(w *Work, next func(error)) {
			m.Log.Info().Str("from", c.source.Name).Str("allowed_by", c.allowedBy).Msg("a copy is made anew")
			m.Postgres.MakeReplica(w, &c.source, shard, next)
		}, m.start(replicaOf(&c.up, noStream)))(w, next)
	})
}
