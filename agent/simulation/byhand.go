package simulation

import (
	"slices"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ByHand is what an operator does to a PostgreSQL without a word to its agent, once every
// member says that the shard is paused: Text is stop, start, restart, kill or promote.
const ByHand Kind = "by-hand"

func byHand(w *world, e Event) func() {
	h := w.hosts[e.Member]
	p := &h.pg
	if !w.judge.paused || !h.up || h.frozen || p.orphans || p.remains || p.diskHangs > 0 {
		return nil
	}
	switch e.Text {
	case "stop":
		p.stop(func(error) {})
	case "kill":
		p.end()
	case "start":
		p.startByHand()
	case "restart":
		p.stop(func(error) { p.startByHand() })
	case "promote":
		if w.judge.mayBecomePrimary(h) && p.ready && !p.primary {
			w.judge.byHand, w.judge.made = h, h
			p.ask(0, func(error) { w.judge.byHand = nil })
		}
	}
	return nil
}

// startByHand starts PostgreSQL as its files say, unless that makes a second primary. Its agent
// has to find out.
func (p *postgres) startByHand() {
	if p.running || p.primary && !p.host.w.judge.mayBecomePrimary(p.host) || !p.host.w.judge.paused || p.data() != "valid" {
		return
	}
	p.start(p.primary, p.aim, nil, func(error) {})
	p.stray, p.parent = p.running, nil
	if p.primary {
		p.host.w.judge.made = p.host
		p.host.w.judge.chosen(p.at)
	}
}

// chosen: an operator has started a primary by hand. What it lacks is lost by the operator's choice.
func (j *judge) chosen(at position) {
	for _, b := range j.branches {
		if at.upTo(b) < b.promised {
			j.forget()
			j.clean = nil
			return
		}
	}
}

// settled reports whether the operator may end a pause: a primary of its own making leads by
// now, as lictor list shows. One that does not after a while it stops before.
func (j *judge) settled(patience bool) bool {
	h := j.made
	if h == nil || !h.pg.running || j.w.consul.leaderNamed() == h.name {
		return true
	}
	if !patience {
		h.pg.end()
	}
	return !patience
}

// mayBecomePrimary reports whether an operator makes a primary of this member: no other one
// runs or is being promoted by hand, no switchover goes on, and nobody else holds the lock, in Consul
// and by what the member itself shows.
func (j *judge) mayBecomePrimary(of *host) bool {
	holder, shown := j.w.consul.leaderNamed(), ""
	if of.agent != nil {
		shown = of.agent.Snapshot.LeaderName()
	}
	if _, asked := j.w.consul.keys[keyFailover]; asked || j.byHand != nil && j.byHand != of {
		return false
	}
	if j.w.consul.state != consulUp || holder != "" && holder != of.name || shown != "" && shown != of.name {
		return false
	}
	for _, h := range j.w.hosts {
		if h.pg.running && h.pg.primary || h.pg.writable {
			return false
		}
	}
	return true
}

// seesPause notes when an operator sees that the shard is paused: every member says so in
// Consul (lictor pause --wait, patronictl pause --wait). It is, for the operator, until it is ended.
func (j *judge) seesPause() {
	if on, _ := j.w.config["pause"].(bool); !on {
		j.paused = false
		return
	}
	if j.paused || j.wentBack {
		return
	}
	index := j.w.consul.keys[keyConfig].index
	if j.w.mutant.PauseOfBefore {
		index = 0
	}
	for _, h := range j.w.hosts {
		e, found := j.w.consul.keys[keyMembers+h.name]
		if !found || !e.value.(cluster.Member).SaysPaused(true, index) {
			return
		}
	}
	j.paused, j.pausedAt = true, j.w.now
	j.w.say("every member says that the shard is paused")
}

// acts is I5, for what the operator sees: in pause nobody does this to a PostgreSQL on its own.
// An agent that was told to end, a task from before, one that the operator asked for, the two that
// take part in a switchover, and a primary beside the one that holds the lock are none of that.
func (j *judge) acts(h *host, what string) {
	if !j.paused || j.wentBack {
		return
	}
	holder := j.w.consul.leaderNamed()
	e, asked := j.w.consul.keys[keyFailover]
	asked = asked && slices.Contains([]string{e.value.(cluster.Failover).Candidate, e.value.(cluster.Failover).Leader}, h.name)
	if a := h.agent; asked || slices.Contains(j.switched, h) || holder != "" && holder != h.name && h.pg.primary || a != nil && (a.Stopping || a.LeaseState.Giving() != nil) {
		return
	}
	if a := h.agent; a != nil && !a.TaskSince().IsZero() && (a.TaskSince().Equal(h.asked) || a.TaskSince().Sub(h.wall(j.pausedAt)) <= 0) {
		return
	}
	j.fail("I5", "%s: %s, though every member says that the shard is paused", h.name, what)
}
