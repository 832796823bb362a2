package simulation

import (
	"errors"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// found is what a look at the data directory shows.
func (p *postgres) found() member.Found {
	found := member.Found{Loss: p.loss, Detachment: p.host.w.mutant.note(p.detachment), Restore: p.note(), Upgrade: upgradeNoted(p), Stray: p.running && p.stray, Data: member.Data{
		State: p.data(), SystemIdentifier: p.system, Timeline: p.at.branch.timeline, CheckpointLSN: p.checkpoint, Clone: p.made == workUnfinished && p.cloned, ShutDown: p.clean, WasPrimary: p.primary,
		Restores: member.RestoresIn(p.at.history(), p.at.branch.timeline),
	}}
	switch found.Data.State {
	case ha.DataUpgrading:
		found.Data = member.Data{State: ha.DataUpgrading, SystemIdentifier: p.upgrade.note.From, WasPrimary: p.primary}
	case ha.DataForeign:
		found.Data = member.Data{State: ha.DataForeign, Problem: "of another version"}
	}
	return found
}

// noteLoss is written before the data are touched.
func (p *postgres) noteLoss() {
	p.losses++
	p.loss = &pg.Loss{ID: strconv.Itoa(p.losses)}
}

// keepLoss keeps what is known by now, unless there was another loss since.
func (p *postgres) keepLoss(l pg.Loss) error {
	if p.loss == nil || p.loss.ID != l.ID {
		return errors.New("the data have been replaced again meanwhile")
	}
	p.loss = &l
	return nil
}

func (p *postgres) forgetLoss(id string) {
	if p.loss != nil && p.loss.ID == id {
		p.loss = nil
	}
}

// remove empties the data directory.
func (p *postgres) remove() {
	p.noteLoss()
	p.slots, p.oldest = nil, 0
	p.at, p.needs, p.empty, p.made, p.system, p.ruined = position{branch: p.host.w.root}, position{}, true, workNone, "", false
}

// clone fills the empty data directory from a member that runs, which may lag.
func (p *postgres) clone(from *host, done func(error)) {
	if p.made == workUnfinished && p.cloned && p.host.w.schedule.KeepsClones {
		p.noteLoss() // as each try does
	} else {
		p.remove()
	}
	p.empty, p.made, p.cloned = false, workUnfinished, true
	life := p.life
	p.host.w.after(p.takes(100*time.Millisecond, 3*time.Second), func() {
		p.host.process(func() {
			p.halfWay(func() { p.onDisk(func() { p.copied(life, from, done) }) }, func() { done(errStopped) })
		})
	})
}

// copied ends a clone.
func (p *postgres) copied(life int, from *host, done func(error)) {
	switch {
	case p.life != life:
		done(errStopped)
	case p.full > 0:
		done(errors.New("no space left on device"))
	case !from.up || from.frozen || !from.pg.ready || from.pg.empty || from.pg.made == workUnfinished || !p.host.w.net.both(p.host.id, from.id):
		done(errors.New("the source is not reachable"))
	case p.host.agent != nil && p.host.agent.version != from.pg.version:
		done(errors.New("the source is of another version than the programs"))
	default:
		p.at, p.system, p.primary = from.pg.replayed(), from.pg.system, false
		p.version = from.pg.version
		p.oldest = p.at.lsn
		done(nil)
	}
}
