package simulation

import (
	"errors"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is two sites that take turns (Schedule.Sites, design 5.27): the shard, and the other site, which is a standby
// of it at first. That site is one host with an operator of its own.

// The kinds of event of two sites.
const (
	// HandOverSite: the operators hand over: demote-cluster here, promote-cluster there, which goes by the
	// other site's guard. If that does not come about within For, it is taken back here.
	HandOverSite Kind = "hand-over-site"
	// PromoteRemote: the other site's operator promotes it, whatever becomes of this site, which is made its
	// standby after For.
	PromoteRemote Kind = "promote-remote"
	// EndBeside removes standby_cluster for For, though the other site's primary lives.
	EndBeside Kind = "end-beside"
)

// otherSiteConfig is the setting other_site.
func otherSiteConfig() map[string]any { return map[string]any{"host": "remote"} }

func sitesFaults() map[Kind]fault {
	return map[Kind]fault{
		HandOverSite: {inject: handOverSite},
		PromoteRemote: {inject: func(w *world, _ Event) func() {
			w.promoteRemote()
			return func() {
				w.judge.forget() // what was written here meanwhile is lost by the operator's choice
				w.judge.fenced()
				w.judge.demoting = true
				w.reconfigure(map[string]any{"standby_cluster": standbyConfig()})
			}
		}},
		EndBeside: {inject: func(w *world, _ Event) func() {
			w.judge.beside = true
			w.reconfigure(map[string]any{"standby_cluster": nil})
			return func() {
				w.judge.beside = false
				w.reconfigure(map[string]any{"standby_cluster": standbyConfig()})
			}
		}},
	}
}

// handOverSite is what both operators do.
func handOverSite(w *world, _ Event) func() {
	w.judge.demoting = true
	w.reconfigure(map[string]any{"standby_cluster": standbyConfig()})
	over := false
	var look func()
	look = func() {
		switch {
		case over:
		case w.mayPromoteRemote():
			over = true
			w.promoteRemote()
			w.judge.handedOverSite()
		default:
			w.after(time.Second, look)
		}
	}
	w.after(time.Second, look)
	return func() {
		if !over {
			over = true
			w.reconfigure(map[string]any{"standby_cluster": nil})
		}
	}
}

// mayPromoteRemote is the other site's guard, after its operator has been told that this one is demoted.
func (w *world) mayPromoteRemote() bool {
	leader := w.hostNamed(w.consul.leaderNamed())
	if !w.remote.up || leader == nil || leader.agent == nil || !leader.agent.Leads() || !leader.pg.ready || leader.pg.primary || leader.pg.replaying() {
		return false
	}
	return !slices.ContainsFunc(w.hosts, func(h *host) bool {
		return h.up && !h.frozen && h.pg.ready && (h.pg.primary || !w.remote.pg.at.holds(h.pg.at)) && w.net.both(h.id, w.remote.id)
	})
}

// promoteRemote promotes the other site on a timeline of its own.
func (w *world) promoteRemote() {
	r := &w.remote.pg
	w.timeline++
	r.at = position{branch: &branch{timeline: w.timeline, parent: r.at.branch, fork: r.at.lsn}, lsn: r.at.lsn + 1}
	r.primary = true
	w.say("the other site is promoted to timeline %d at %d", r.at.branch.timeline, r.at.branch.fork)
}

// remoteReceives has the other site's standby receive what this site's primary has.
func (w *world) remoteReceives() {
	for _, h := range w.hosts {
		if h.pg.writable && h.up && !h.frozen && h.pg.at.holds(w.remote.pg.at) && w.net.both(h.id, w.remote.id) && w.chance(0.7) {
			w.remote.pg.at = h.pg.at
		}
	}
}

// drainToRemote is the end of its walsender at a shutdown.
func (p *postgres) drainToRemote() {
	r := p.host.w.remote
	if r.up && !r.pg.primary && p.at.holds(r.pg.at) && p.host.w.net.both(p.host.id, r.id) && p.host.w.chance(0.9) {
		r.pg.at = p.at
	}
}

func (p inPostgres) AskSite(w *member.Work, _ time.Duration, _ pg.Upstream, _ int, done func(cluster.Site, error)) {
	var site cluster.Site
	p.work(w, func(done func(error)) {
		p.later(p.host.w.between(time.Millisecond, 20*time.Millisecond), func() {
			r := p.host.w.remote
			if !r.up || !p.host.w.net.both(p.host.id, r.id) {
				done(errors.New("the other site does not answer"))
				return
			}
			common := r.pg.at.branch
			for common != nil && (position{p.host.pg.at.branch, p.host.pg.at.lsn}).upTo(common) == 0 {
				common = common.parent
			}
			site = cluster.Site{Address: "remote:5432", Primary: r.pg.primary, Timeline: r.pg.at.branch.timeline, LSN: r.pg.at.lsn}
			if common != nil && site.Primary {
				site.Common, site.Left = common.timeline, common != r.pg.at.branch
			}
			done(nil)
		})
	}, func(err error) { done(site, err) })
}

func (p inPostgres) ArchiveLast(w *member.Work, _ time.Duration, done func(error)) {
	p.work(w, func(done func(error)) { done(nil) }, done)
}

// handedOverSite: the other site was promoted after this one was demoted. No member accepts commits, and the
// other site holds those that were acknowledged, unless a host with some of them was lost.
func (j *judge) handedOverSite() {
	for _, h := range j.w.hosts {
		if h.pg.writable && h.up {
			j.fail("I1", "the other site is promoted while %s accepts commits", h.name)
		}
	}
	at := j.w.remote.pg.at
	for b := at.branch.parent; b != nil && !j.w.schedule.loses(); b = b.parent {
		if has := at.upTo(b); has < b.acked {
			j.fail("I3", "the other site is promoted with %d of timeline %d, acknowledged was %d", has, b.timeline, b.acked)
		}
	}
	j.demoting = false
	j.forget()
}

// loses reports whether something other than the two operators' acts happens.
func (s Schedule) loses() bool {
	return slices.ContainsFunc(s.Events, func(e Event) bool { return e.Kind != HandOverSite })
}

// fenced: the other site has taken over long ago, and this one can see it: nobody accepts commits, and all
// serve readers.
func (j *judge) fenced() {
	quiet := !slices.ContainsFunc(j.w.schedule.Events, func(e Event) bool {
		return !slices.Contains([]Kind{PromoteRemote, KillPostmaster, Switchover, EndAgent}, e.Kind)
	})
	for _, h := range j.w.hosts {
		switch {
		case !quiet || !h.up:
		case h.pg.writable:
			j.fail("I1", "%s accepts commits beside the other site, which has taken over", h.name)
		case !h.pg.ready:
			j.fail("I4", "%s serves no readers, the other site having taken over: %s", h.name, j.reasons())
		}
	}
}

// unsited switches the guards of two sites off.
func unsited(v ha.View) ha.View {
	v.Site = ha.SiteView{}
	if b := v.Cluster.Status.Value.Lictor; b != nil {
		forgets := *b
		forgets.Succeeded = 0
		v.Cluster.Status.Value.Lictor = &forgets
	}
	return v
}
