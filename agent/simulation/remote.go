package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is a shard that is the standby of another one (Schedule.Standby, design 5.27): the
// other site is one primary that writes all the time, is lost, and may come back. What goes on
// there is none of the shard's.

// The kinds of event of such a shard.
const (
	LoseRemote Kind = "lose-remote" // its primary is gone for For
	EndStandby Kind = "end-standby" // it is gone for good, and the operator removes standby_cluster
	// BeginStandby makes a shard with a primary the standby of another one, whose primary has
	// left its history.
	BeginStandby Kind = "begin-standby"
)

// standbyConfig is the setting standby_cluster.
func standbyConfig() map[string]any { return map[string]any{"host": "remote"} }

func newRemote(w *world, id int) *host {
	r := &host{w: w, id: id, name: "remote", rate: 1, up: true}
	r.pg = postgres{host: r, at: position{w.root, 1000}, system: systemIdentifier, primary: !w.schedule.Sites, running: true, ready: true}
	return r
}

// isStandby reports whether the operator has the shard follow the remote primary.
func (w *world) isStandby() bool { return w.config["standby_cluster"] != nil }

// remoteWrites lets the remote primary write.
func (w *world) remoteWrites() {
	switch {
	case !w.remote.up:
	case w.remote.pg.primary:
		w.remote.pg.at.lsn += 100 + w.random.Int64N(3000)
	default:
		w.remoteReceives()
	}
}

func remoteFaults() map[Kind]fault {
	return map[Kind]fault{
		LoseRemote: {inject: func(w *world, _ Event) func() {
			w.remote.up = false
			return func() { w.remote.up = !w.remoteGone }
		}},
		EndStandby: {inject: func(w *world, _ Event) func() {
			w.remote.up, w.remoteGone = false, true
			w.reconfigure(map[string]any{"standby_cluster": nil})
			return nil
		}},
		BeginStandby: {inject: func(w *world, _ Event) func() {
			w.timeline++
			at := position{branch: &branch{timeline: w.timeline, parent: w.root, fork: 1000}, lsn: 1001}
			w.remote.pg.at = at
			w.judge.forget() // what the shard has beyond that is lost by the operator's choice
			w.judge.demoting = true
			w.reconfigure(map[string]any{"standby_cluster": standbyConfig()})
			return nil
		}},
	}
}

func (p inPostgres) CheckRemote(w *member.Work, _ time.Duration, up pg.Upstream, _ bool, done func(bool, error)) {
	strayed := false
	p.work(w, func(done func(error)) {
		p.later(p.host.w.between(time.Millisecond, 20*time.Millisecond), func() {
			if !p.answers(up, true) {
				done(errors.New("the remote primary does not answer"))
				return
			}
			strayed = !p.host.w.remote.pg.at.holds(p.host.pg.at)
			done(nil)
		})
	}, func(err error) { done(strayed, err) })
}

// noPrimary is I1 in a standby shard: no member accepts commits at any time. One that was made
// the standby of another one may, until it has heard of that and has stopped.
func (j *judge) noPrimary(h *host) {
	if j.w.isStandby() && !j.demoting {
		j.fail("I1", "%s accepts commits in a standby shard", h.name)
	}
	if j.beside {
		j.fail("I1", "%s accepts commits beside the other site's primary", h.name)
	}
}

// wholeStandby is I4 in a standby shard: one member follows the remote primary, the others follow
// that one, and none is a primary.
func (j *judge) wholeStandby() string {
	leader := j.w.hostNamed(j.w.consul.leaderNamed())
	if leader == nil || leader.agent == nil || !leader.agent.Leads() {
		return "nobody leads: " + j.reasons()
	}
	for _, h := range j.w.hosts {
		switch {
		case h.pg.writable:
			return h.name + " accepts commits: " + j.reasons()
		case !h.pg.streaming:
			return h.name + " receives nothing: " + j.reasons()
		case (h == leader) != cluster.IsRemote(h.pg.upstream):
			return h.name + " follows " + h.pg.upstream + ": " + j.reasons()
		}
	}
	return ""
}
