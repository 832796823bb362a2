package ha

import (
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// refusalAge is how old the answers may be on which a switchover is refused: they
// may have been given before it was asked for, to a leader on patrol.
const refusalAge = 300 * time.Millisecond

// handover: the operator asked the leader to give its place away (key
// failover). The request is carried out or refused, never left lying.
//
//	request                                  decision
//	for another leader, or for ourselves     clear it
//	scheduled later, or paused when due      wait until then
//	1.5 loop_waits late, or more             clear it
//	candidate can lead, or none named and
//	  some member can                        hand over
//	nobody can                               clear it, say why
//	it was tried                             clear it: whoever asked was told how it ended
func handover(v View) Decision {
	f := v.Cluster.Failover
	switch {
	case !f.Exists() || f.Err == nil && f.Value.Empty():
		return Decision{}
	case f.Err != nil:
		return do("the failover key is not understood and is cleared: "+f.Err.Error(), ClearFailover{f.ModifyIndex})
	}
	refuse := func(why string) Decision {
		return do("the switchover is refused: "+why, ClearFailover{f.ModifyIndex})
	}
	if !v.inTouch() {
		return Decision{}
	}
	if f.ModifyIndex == v.HandedOver {
		return do("the switchover has failed: the successor did not take the lock", ClearFailover{f.ModifyIndex})
	}
	if f.ModifyIndex == v.RolledBack.Request {
		return do(v.RolledBack.Why, ClearFailover{f.ModifyIndex})
	}
	request := f.Value
	if request.Leader != "" && request.Leader != v.Name && (request.Candidate == v.Name || request.Candidate == "") {
		return do("the switchover from "+request.Leader+" is done", ClearFailover{f.ModifyIndex})
	}
	if request.Leader != "" && request.Leader != v.Name {
		return refuse("it names " + request.Leader + " as the leader, which is " + v.Name)
	}
	if request.Candidate == v.Name && request.Leader == "" {
		return do("the failover to "+v.Name+" is done", ClearFailover{f.ModifyIndex})
	}
	if request.Candidate == v.Name {
		return refuse(v.Name + " leads already")
	}
	if at := request.ScheduledAt; at != nil {
		switch late := v.Wall.Sub(*at); {
		case late < 0:
			return Decision{}.by(v.Now.Add(-late))
		case v.Config.Pause:
			return Decision{}
		case late > v.Config.LoopWait*3/2:
			return refuse(fmt.Sprintf("it was scheduled for %s, too long ago", at.Format(time.RFC3339)))
		}
	}
	if v.Config.Pause && request.Candidate == "" {
		return refuse("in pause it needs a named candidate")
	}
	if !v.peersFresh() {
		return do("the leader, asked to switch over", AskPeers{})
	}
	if !v.PeersDone {
		return wait("the leader, asked to switch over")
	}
	best, why := Peer{}, "no other member answers"
	asked := v.asAsked()
	for _, p := range v.Peers {
		if request.Candidate != "" && p.Name != request.Candidate {
			continue
		}
		if problem := asked.successorProblem(p); problem != "" {
			why = p.Name + " " + problem
			continue
		}
		if best.Name == "" || v.better(p, best) {
			best = p
		}
	}
	if best.Name == "" && v.Now.Sub(v.PeersAsked) > refusalAge {
		return do("the leader, asked to switch over; asking the others anew", AskPeers{})
	}
	if best.Name == "" {
		return refuse(why)
	}
	if v.Lease.Consented {
		return wait("the leader, asked to switch over; first a beat must say that nobody may take over by quorum")
	}
	return do("switching over to "+best.Name, Handover{Successor: best.Name, OnBusy: request.OnBusy})
}

// askedToLead reports whether a switchover or failover that the operator has asked for, and
// that is not done, makes this member the leader.
func (v View) askedToLead() bool {
	f := v.Cluster.Failover
	r := f.Value
	return f.OK() && r.Leader != v.Name && (r.Candidate == v.Name || r.Candidate == "" && r.Leader != "") &&
		(r.ScheduledAt == nil || !v.Wall.Before(*r.ScheduledAt))
}

// asAsked is the view with the positions of this leader that the peers' answers can be
// compared with: those from before they were asked. It may have switched to another WAL
// segment since, which would pass for a lag of 16 MB.
func (v View) asAsked() View {
	if v.PeersAskedLSN > 0 {
		v.Postgres.LSN = min(v.Postgres.LSN, v.PeersAskedLSN)
		v.Cluster.Status.Value.OpTime = min(v.Cluster.Status.Value.OpTime, v.PeersAskedLSN)
	}
	return v
}

// successorProblem says why a member cannot take over from this leader now.
func (v View) successorProblem(p Peer) string {
	if problem := v.electable(p); problem != "" {
		return problem
	}
	if cluster.NoStream(p.Tags) {
		return "is tagged nostream: the last WAL of a primary that stops does not get into the archive"
	}
	if ours := v.Postgres.Timeline; p.Timeline > 0 && ours > 0 && p.Timeline != ours {
		// Its position may be beyond ours, and yet it has nothing of what we wrote.
		return fmt.Sprintf("is on timeline %d and does not follow timeline %d yet", p.Timeline, ours)
	}
	if lag := v.Postgres.LSN - p.LSN; lag > v.Config.MaximumLagOnFailover {
		return fmt.Sprintf("lags %d bytes behind, more than maximum_lag_on_failover", lag)
	}
	return ""
}

// giving: PostgreSQL was stopped and the lease dropped for somebody else, but
// Consul does not show it yet.
func giving(v View) (Decision, bool) {
	b := v.beat()
	if v.Giving == nil || b == nil || b.Owner != v.Name || b.Released || v.lockHolder() != v.Name {
		return Decision{}, false
	}
	if v.Lease.InFlight || v.Now.Before(v.Lease.NotBefore) {
		return wait("giving the lease up").by(v.Lease.NotBefore), true
	}
	return do("giving the lease up", Release{Successor: v.Giving.Successor}), true
}

// stopping: the agent was told to exit. PostgreSQL is stopped and the lease
// given up, so that another member can lead at once; in pause everything stays
// as it is (I5).
func stopping(v View) (Decision, bool) {
	if !v.Stopping {
		return Decision{}, false
	}
	if d, applies := giving(v); applies && !v.silent() {
		return d, true
	}
	switch {
	case v.Giving != nil && !v.Postgres.Running && v.silent():
		return do("stopped; Consul does not answer, so that the lease runs out there", Exit{}), true
	case v.Config.Pause:
		return do("stopping; the shard is paused, so PostgreSQL and the lock stay", Exit{}), true
	case v.Task == TaskInterrupted && !v.Postgres.Running && v.Lease.Until.IsZero():
		return do("stopped; what was interrupted does not end", Exit{}), true
	case v.Task != TaskNone:
		d := wait("stopping, after: " + string(v.Task))
		if !v.Lease.Until.IsZero() {
			d.Actions = v.unlessOverdue(d, renew(v)).Actions
		}
		return d.by(v.fenceNext()), true
	case !v.Lease.Until.IsZero() && v.mustGiveBack():
		d := v.giveBack()
		d.Actions = append(renew(v).Actions, d.Actions...)
		return d.by(v.fenceNext()), true
	case !v.Lease.Until.IsZero():
		return do("stopping: the lease is given up", Handover{}), true
	case v.Lease.InFlight:
		// A takeover that succeeds is given up in order; else the lock would stay.
		return wait("stopping, after Consul's answer"), true
	case v.Postgres.Running:
		return do("stopping", Demote{}), true
	default:
		return do("stopped", Exit{}), true
	}
}
