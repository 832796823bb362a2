package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// loss says that the data were replaced (agent/postgres/loss.go).
type loss struct {
	id   int
	goal ha.Goal
}

func (p *postgres) data() ha.DataState {
	if p.empty {
		return ha.DataEmpty
	}
	return ha.DataValid
}

// noteLoss is written before the data are touched.
func (p *postgres) noteLoss() {
	p.losses++
	p.loss = &loss{id: p.losses}
}

// keepLoss keeps what is known by now, unless there was another loss since.
func (p *postgres) keepLoss(l loss) error {
	if p.loss == nil || p.loss.id != l.id {
		return errors.New("the data have been replaced again meanwhile")
	}
	p.loss = &l
	return nil
}

func (p *postgres) forgetLoss(id int) {
	if p.loss != nil && p.loss.id == id {
		p.loss = nil
	}
}

// clone fills the empty data directory from a member that runs, which may lag.
func (p *postgres) clone(from *host, done func(error)) {
	p.noteLoss()
	p.at, p.empty = position{branch: p.host.w.root}, true
	life := p.life
	p.host.w.after(p.takes(100*time.Millisecond, 3*time.Second), func() {
		p.host.process(func() {
			switch {
			case p.life != life:
				done(errStopped)
			case !from.up || from.frozen || !from.pg.ready || from.pg.empty || !p.host.w.net.both(p.host.id, from.id):
				done(errors.New("the source is not reachable"))
			default:
				p.at, p.empty, p.primary = from.pg.replayed(), false, false
				done(nil)
			}
		})
	})
}

// restoring reports whether the data were replaced and may not have again what they had
// acknowledged (agent/loss.go).
func (a *agent) restoring() bool {
	return a.task != nil && a.task.replaces || a.loss != nil
}

// mindLoss asks the leader which position this member must come to.
func (a *agent) mindLoss(v ha.View) {
	l := a.loss
	if l == nil || a.task != nil {
		return
	}
	leads := v.Postgres.Running && v.Postgres.Accepting && v.Postgres.Primary
	if leads || l.goal.Reached(v.Postgres) {
		a.loss = nil
		a.later(a.dispatch(), func() { a.host.pg.forgetLoss(l.id) })
		return
	}
	leader := a.Snapshot.LeaderName()
	m, found := a.Snapshot.Member(leader)
	if a.askingGoal || leader == a.host.name || !found || m.Value.Role != cluster.RolePrimary || !l.goal.Outdated(m.Value.Timeline) {
		return
	}
	a.askingGoal = true
	aimed := *l
	a.later(a.host.w.between(time.Millisecond, 50*time.Millisecond), func() {
		up := a.host.w.hostNamed(leader)
		err := errors.New("the leader is not reachable, or no primary")
		if up.up && !up.frozen && up.pg.ready && up.pg.primary && a.host.w.net.both(a.host.id, up.id) {
			aimed.goal = ha.Goal{Timeline: up.pg.at.branch.timeline, LSN: up.pg.at.lsn}
			err = a.host.pg.keepLoss(aimed)
		}
		if err != nil {
			a.later(a.host.w.retryAfter(), func() { a.askingGoal = false; a.step() })
			return
		}
		a.askingGoal = false
		if a.loss != nil && a.loss.id == aimed.id {
			a.loss = &aimed
		}
		a.step()
	})
}

// clone makes the data directory from another member and starts the replica.
func (a *agent) clone(c ha.Clone) {
	upstream := unless(c.NoStream, c.From)
	a.startTask(ha.TaskClone, func(t *task) { a.remake(t, c.From, upstream) }, func(err error) {
		if err == nil {
			a.follows(upstream)
		}
	})
}

// remake clones from one member and starts as a replica of another.
func (a *agent) remake(t *task, from, upstream string) {
	a.host.pg.clone(a.host.w.hostNamed(from), func(err error) {
		if err != nil {
			t.ends(err)
			return
		}
		start := func() { a.host.pg.start(false, upstream, nil, t.ends) }
		a.host.pg.onDisk(func() { t.then(func() { t.launch(false, start) }) })
	})
}

// reinitialize replaces this replica's data, as the operator asked. The leader may not
// have let this synchronous standby go by then (agent/reinit.go).
func (a *agent) reinitialize() {
	leader := a.Snapshot.LeaderName()
	if leader == a.host.name || a.Tenure.Held(a.host.clock()) || leader == "" || a.task != nil || a.Parted > 0 {
		return
	}
	source := leader
	for _, h := range a.host.w.hosts { // a member with the tag clonefrom, say
		if h != a.host && h.name != leader && h.pg.ready && !h.pg.primary && a.host.w.chance(0.5) {
			source = h.name
		}
	}
	upstream := unless(cluster.NoStream(a.tags()), leader)
	a.startTask(ha.TaskReinit, func(t *task) {
		up := a.host.w.hostNamed(leader)
		if !up.up || up.frozen || !up.pg.ready || !up.pg.primary || !a.host.w.net.both(a.host.id, up.id) {
			t.end(errors.New("the leader does not answer, so the data directory stays"))
			return
		}
		a.host.pg.stop(func(error) { t.then(func() { a.remake(t, source, upstream) }) })
	}, func(err error) {
		if err == nil {
			a.follows(upstream)
		}
	})
}

// follows notes whom the replica follows by now.
func (a *agent) follows(upstream string) {
	a.upstream = upstream
	if upstream == "" {
		a.alone = a.host.clock()
	}
}
