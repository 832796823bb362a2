package simulation

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// This file is a shard that nobody has made yet, and data directories that are not the shard's
// or not whole.

// work says what a data directory is marked as, beside it.
type work int

const (
	workNone       work = iota
	workUnfinished      // a bootstrap or clone of the agent's own that has not ended
	workMade            // a bootstrap that has ended, and Consul may not know
)

func (p *postgres) data() ha.DataState {
	switch {
	case p.aside != nil && p.aside.old != nil:
		return ha.DataSetAside
	case p.upgrade != nil && p.upgrade.stopped:
		return ha.DataUpgrading
	case p.empty:
		return ha.DataEmpty
	case p.made == workUnfinished:
		return ha.DataIncomplete
	case p.made == workMade:
		return ha.DataBootstrapped
	}
	if misfit(p) {
		return ha.DataForeign
	}
	return ha.DataValid
}

// bootstrap makes a cluster of its own in the empty data directory.
func (p *postgres) bootstrap(done func(error)) {
	w := p.host.w
	if !p.empty {
		done(errors.New("there is something in the data directory"))
		return
	}
	p.empty, p.made, p.cloned = false, workUnfinished, false
	life := p.life
	w.after(p.takes(100*time.Millisecond, 5*time.Second), func() {
		p.host.process(func() {
			p.halfWay(func() {
				switch {
				case p.life != life:
					done(errStopped)
				case p.failing > 0 && w.chance(0.5), p.full > 0, w.mishap():
					done(errors.New("initdb failed"))
				default:
					w.clusters++
					p.system = strconv.Itoa(7_000_000 + w.clusters)
					p.at, p.primary, p.clean = position{branch: &branch{timeline: 1}, lsn: 1000}, true, true
					done(nil)
				}
			}, func() { done(errStopped) })
		})
	})
}

// discard clears away what is not whole.
func (p *postgres) discard() {
	p.life++ // whatever fills it is ended
	p.ruined = false
	p.slots, p.oldest = nil, 0
	p.at, p.needs, p.empty, p.made, p.system, p.primary, p.aside = position{branch: p.host.w.root}, position{}, true, workNone, "", false, nil
	p.upgrade = nil
}

func (p inPostgres) Bootstrap(w *member.Work, done func(error)) {
	pg := &p.host.pg
	p.work(w, func(done func(error)) { pg.onDisk(func() { p.do(func() { pg.bootstrap(done) }) }) }, func(err error) {
		if err == nil && pg.made == workUnfinished {
			pg.made = workMade
		}
		done(err)
	})
}

func (p inPostgres) FinishBootstrap(w *member.Work, done func(error)) {
	pg := &p.host.pg
	p.work(w, func(done func(error)) {
		pg.onDisk(func() {
			p.do(func() {
				if pg.made == workMade {
					pg.made = workNone
				}
				done(nil)
			})
		})
	}, done)
}

func (p inPostgres) DiscardIncomplete(w *member.Work, done func(error)) {
	pg := &p.host.pg
	p.work(w, func(done func(error)) {
		pg.onDisk(func() {
			p.do(func() {
				if pg.made == workNone || pg.running {
					done(errors.New("it is not marked as unfinished"))
					return
				}
				p.host.w.judge.removes(p.host)
				pg.discard()
				done(nil)
			})
		})
	}, done)
}

func (c inConsul) BeginBootstrap(_ *member.Work, limit time.Duration, session string, done func(error)) {
	c.transact(limit, []op{expect(keyInitialize, 0), {verb: lock, key: keyInitialize, session: session, value: ""}}, only(done))
}

func (c inConsul) EndBootstrap(limit time.Duration, session string, done func(error)) {
	c.transact(limit, []op{{verb: checkSession, key: keyInitialize, session: session}, {verb: del, key: keyInitialize}}, only(done))
}

// BeginRebuild takes the turn of the shard: a host of the simulator has one member.
func (c inConsul) BeginRebuild(limit time.Duration, session, name, _ string, done func(error)) {
	c.transact(limit, []op{{verb: lock, key: keyRebuild, session: session, value: name}}, only(done))
}

func (c inConsul) EndRebuild(limit time.Duration, session, _ string, hostOnly bool, done func(error)) {
	if hostOnly {
		c.later(0, func() { done(nil) })
		return
	}
	c.transact(limit, []op{{verb: checkSession, key: keyRebuild, session: session}, {verb: del, key: keyRebuild}}, func(_ map[string]uint64, err error) {
		if errors.Is(err, cluster.ErrConflict) {
			err = nil // it was not its own
		}
		done(err)
	})
}

func (c inConsul) EndSession(limit time.Duration, session, name string, done func(error)) {
	ask(c.agent, limit, func(consul *consul) (struct{}, error) {
		if s := consul.session(session); s != nil && name == "shard-"+consul.w.hosts[s.owner].name {
			consul.end(s)
		}
		return struct{}{}, nil
	}, func(_ struct{}, err error) { done(err); c.step() })
}

// only hears how a transaction ended.
func only(done func(error)) func(map[string]uint64, error) {
	return func(_ map[string]uint64, err error) { done(err) }
}

// covers keeps when each member last reached a primary that has all that it has of what was
// acknowledged in synchronous mode.
func (j *judge) covers() {
	for _, h := range j.w.hosts {
		if j.w.isStandby() { // what it has is the remote primary's
			h.covered = j.w.now
		}
		for _, other := range j.w.hosts {
			if other != h && other.pg.writable && other.up && !other.frozen && j.w.net.both(h.id, other.id) && j.holdsPromised(other, h) {
				h.covered = j.w.now
			}
		}
	}
}

// holdsPromised reports whether other has all that h has of what was acknowledged in synchronous
// mode.
func (j *judge) holdsPromised(other, h *host) bool {
	return !slices.ContainsFunc(j.branches, func(b *branch) bool {
		return other.pg.at.upTo(b) < min(h.pg.at.upTo(b), b.promised)
	})
}

// removesFor is I7 for data that give way to a copy: there is a primary, which this member reaches,
// that has what was acknowledged. It may have gone while the answer was under way. (Looked at now, too: a
// member whose host stood still asks and hears before the next look.)
func (j *judge) removesFor(h *host) {
	j.covers()
	if !h.pg.empty && j.w.now > h.covered+2*time.Second {
		j.fail("I7", "%s removes its data, and has reached no primary for %s that has what was acknowledged", h.name, j.w.now-h.covered)
	}
	j.removes(h)
}

// removes is I7: a member removes its data.
func (j *judge) removes(h *host) {
	shard, _ := j.w.consul.keys[keyInitialize].value.(string)
	switch {
	case h.pg.empty || h.pg.at.branch.acked == 0 || h.pg.system != shard:
	case j.w.consul.leaderNamed() == h.name, h.pg.running:
		j.fail("I7", "%s removes its data, and is the leader or runs", h.name)
	}
}

// oneShard: whoever accepts commits is of the shard that Consul names, from its first one on.
func (j *judge) oneShard(h *host) {
	if e, found := j.w.consul.keys[keyInitialize]; found && e.value != "" && e.value != h.pg.system && !j.wentBack {
		j.fail("I1", "%s accepts commits in cluster %s; the shard's is %s", h.name, h.pg.system, e.value)
	}
}

// registers are the operations of a takeover that say which cluster the shard's is.
func registers(t cluster.TakeOver) []op {
	switch {
	case t.Bootstrapped:
		return []op{{verb: unlock, key: keyInitialize, session: t.Session, value: t.Initialize}}
	case t.Initialize != "":
		return []op{expect(keyInitialize, 0), {verb: set, key: keyInitialize, value: t.Initialize}}
	}
	return nil
}
