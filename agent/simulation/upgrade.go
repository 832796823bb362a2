package simulation

import (
	"errors"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// This file is a major upgrade (design 5.31): another cluster, which goes on where the old one was shut down.

// Upgrade asks a member, if it leads, to make its data those of the next major version.
const Upgrade Kind = "upgrade"

// upgrade is what lies beside the data directory while a major upgrade goes on.
type upgrade struct {
	note     ha.Upgrade
	timeline int  // of the new cluster
	version  int  // of the old data
	stopped  bool // PostgreSQL was stopped for it
	placed   bool // the new cluster is in the place of the data
	aside    position
	made     *position // the new cluster; nil: it is not whole

	slots  []slot // of the old data
	oldest int64
}

func upgradeShard(w *world, e Event) func() {
	a := w.hosts[e.Member].agent
	if a == nil {
		return nil
	}
	a.post(func() {
		a.Upgrades.To(a.version+1, func(err error) { w.say("%s: the upgrade has ended: %v", a.host.name, err) })
	})
	return nil
}

// programsOf is the version whose programs an agent that begins now runs.
func programsOf(p *postgres) int {
	if u := p.upgrade; u != nil && (u.note.Index == 0 || !u.placed) {
		return u.version
	}
	if p.empty || p.made == workUnfinished {
		return max(p.wants, p.version)
	}
	return p.version
}

// upgradeNoted is the note as an agent finds it.
func upgradeNoted(p *postgres) *ha.Upgrade {
	if p.upgrade == nil {
		return nil
	}
	note := p.upgrade.note
	note.Fits = p.host.agent != nil && p.host.agent.version == p.upgrade.version+1
	return &note
}

// misfit reports whether the agent's programs are not those of the data.
func misfit(p *postgres) bool {
	return !p.empty && p.made == workNone && p.host.agent != nil && p.host.agent.version != p.version
}

// superseded reports whether a member has the data of a version from before an upgrade of the leader's.
func superseded(p *postgres, leader *host) bool {
	return leader != nil && leader != p.host && !p.empty && p.upgrade == nil && p.version < leader.pg.version
}

// upgradable is member.Postgres, with what a major upgrade does.
type upgradable struct{ inPostgres }

// beginAnew has the agent begin anew, when it has nothing to do.
func (a *agent) beginAnew() bool {
	if !a.Upgrades.BeginsAnew() || !a.Idle() || a.Stopping {
		return false
	}
	h := a.host
	h.w.say("%s: the agent begins anew", h.name)
	a.die()
	h.w.after(h.w.between(10*time.Millisecond, 300*time.Millisecond), h.revive)
	return true
}

func (p upgradable) BeginUpgrade(w *member.Work, _, above int, done func(error)) {
	p.part(w, 500*time.Millisecond, 5*time.Second, func() error {
		pg := &p.host.pg
		if pg.upgrade != nil || pg.aside != nil || pg.empty || pg.full > 0 {
			return errors.New("there is no room, or another one has not ended")
		}
		pg.upgrade = &upgrade{note: ha.Upgrade{From: pg.system}, version: pg.version, timeline: above + 1}
		if p.host.w.chance(0.05) {
			return errors.New("initdb failed")
		}
		return nil
	}, done)
}

func (p upgradable) UpgradeData(w *member.Work, done func(error)) {
	p.part(w, 0, 50*time.Millisecond, func() error {
		pg := &p.host.pg
		if pg.running || pg.orphans || pg.remains || !pg.clean || !pg.primary || pg.upgrade == nil {
			return errors.New("only data of a primary that were shut down are upgraded")
		}
		pg.upgrade.stopped = true
		return nil
	}, func(err error) {
		if err != nil {
			done(err)
			return
		}
		p.part(w, time.Second, 10*time.Second, p.link, done)
	})
}

// link is pg_upgrade, and the next timeline.
func (p upgradable) link() error {
	pg := &p.host.pg
	if pg.failing > 0 && p.host.w.chance(0.5) || pg.full > 0 || p.host.w.chance(0.1) {
		return errors.New("pg_upgrade failed")
	}
	u := pg.upgrade
	p.host.w.clusters++
	p.host.w.timeline = max(p.host.w.timeline, u.timeline)
	u.note.To = strconv.Itoa(7_000_000 + p.host.w.clusters)
	u.made = &position{branch: &branch{timeline: u.timeline, parent: pg.at.branch, fork: pg.at.lsn, restored: true}, lsn: pg.at.lsn + 1}
	return nil
}

func (p upgradable) PlaceUpgraded(w *member.Work, done func(member.Upgraded, error)) {
	var made member.Upgraded
	p.part(w, 0, 20*time.Millisecond, func() error {
		pg := &p.host.pg
		u := pg.upgrade
		if u == nil || u.made == nil || u.placed || pg.running || pg.remains {
			return errors.New("there is nothing to put in place, or PostgreSQL runs")
		}
		u.aside, u.slots, u.oldest = pg.at, pg.slots, pg.oldest
		pg.at, pg.system, pg.version, pg.slots, pg.oldest = *u.made, u.note.To, u.version+1, nil, u.made.lsn
		pg.checkpoint, u.placed = pg.at.lsn, true
		made = member.Upgraded{From: u.note.From, To: u.note.To, Timeline: u.timeline}
		return nil
	}, func(err error) { done(made, err) })
}

func (p upgradable) NoteAnnouncement(w *member.Work, index uint64, done func(error)) {
	p.part(w, 0, 50*time.Millisecond, func() error {
		u := p.host.pg.upgrade
		if u == nil || !u.placed {
			return errors.New("nothing was upgraded")
		}
		u.note.Index = index
		return nil
	}, done)
}

func (p upgradable) EndUpgrade(w *member.Work, done func(error)) {
	p.part(w, 0, 50*time.Millisecond, func() error {
		pg := &p.host.pg
		if pg.upgrade != nil && (!pg.upgrade.placed || misfit(pg)) {
			return errors.New("the programs are another version's")
		}
		if pg.upgrade != nil {
			p.host.w.judge.tally.Upgrades++
		}
		pg.upgrade = nil
		return nil
	}, done)
}

func (p upgradable) UndoUpgrade(w *member.Work, done func(error)) {
	p.part(w, 0, time.Second, func() error {
		pg := &p.host.pg
		if u := pg.upgrade; u != nil && u.placed {
			pg.at, pg.system, pg.version, pg.slots, pg.oldest = u.aside, u.note.From, u.version, u.slots, u.oldest
			pg.checkpoint, pg.primary, pg.clean = pg.at.lsn-120, true, true
		}
		pg.upgrade = nil
		return nil
	}, done)
}

func (c inConsul) Announce(limit time.Duration, a cluster.Announcement, done func(cluster.Indexes, error)) {
	m := &c.host.w.mutant
	ops := []op{
		{verb: checkSession, key: keyLeader, session: a.Session},
		expect(keyStatus, a.StatusIndex),
		expect(keyInitialize, a.InitializeIndex),
		{verb: set, key: keyInitialize, value: a.To},
		{verb: set, key: keyStatus, value: m.said(&c.host.w.judge, a.Status)},
	}
	ops = append(ops, replace(keySync, a.SyncIndex, a.Sync, false)...)
	ops = append(ops, expect(c.short(c.Keys.Route()), a.RouteIndex), op{verb: set, key: c.short(c.Keys.Route()), value: a.Route})
	c.transact(limit, ops, c.indexed(done))
}
