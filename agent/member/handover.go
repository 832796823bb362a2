package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// ErrTooLong: a handover has taken all the time that it may.
var ErrTooLong = errors.New("it has taken too long")

// errNotShutDown: nobody knows how far the WAL goes that the successor must have.
var errNotShutDown = errors.New("PostgreSQL has ended without a shutdown checkpoint, by a crash or a kill")

// handovers are planned changes of primary: they are carried out, and bouncers are told.
type handovers struct {
	*Shard
	local    *Local
	lead     *leadership
	work     *worker
	keys     *leaderKeys
	stop     *stopper
	postgres Postgres
	peers    Peers
	bouncers Bouncers

	// HandedOver is the request that was carried out last.
	HandedOver uint64
	// RolledBack is the one that was given up last. Consul may have it for a moment still.
	RolledBack ha.RolledBack
	// holding: clients are held for the handover under way. The route says so only
	// then: nobody is to wait for the checkpoint before it.
	holding bool
	// announced is a handover whose announcement is to be taken back.
	announced cluster.Handover
}

// planned is a handover under way.
type planned struct {
	*handovers
	plan     cluster.Handover
	receiver cluster.Member // of the WAL
	site     *pg.Upstream   // the other site, which receives it; nil: a member does
	onBusy   string
	asked    uint64 // the request that it carries out
	// replica is how far the WAL of a leader goes that was never promoted (in pause); 0: it
	// is a primary.
	replica int64

	announcing, stopped, dropped bool
}

// begin stops PostgreSQL while the lease goes on being renewed, makes sure
// that the successor has all of its WAL, and gives the lease to it. Without a
// successor it is an orderly stop: whoever is best may lead next.
func (h *handovers) begin(action ha.Handover) {
	successor, _ := h.Snapshot.Member(action.Successor)
	p := &planned{handovers: h, receiver: successor.Value, onBusy: action.OnBusy, asked: h.Snapshot.Failover.ModifyIndex, plan: cluster.Handover{
		ID: h.ID(), Leader: h.Name, Successor: action.Successor, Timeline: h.local.PG.Observed.Timeline,
		DeadlineMS: handoverLimit.Milliseconds(), State: cluster.HandoverAnnounced,
	}}
	if o := h.local.PG.Observed; o.InRecovery {
		p.replica = o.LSN()
	}
	scripts := min(h.stop.beforeStopLimit(), handoverLimit/2)
	h.holding = false
	steps := []step{func(w *Work, next func(error)) {
		h.After(handoverLimit, func() { w.breakOff(ErrTooLong) })
		next(nil)
	}}
	if action.Successor != "" { // the first, so that the shutdown checkpoint has little left to write
		steps = append(steps, h.postgres.Checkpoint, p.hold)
	}
	h.work.startTask(ha.TaskHandover, inOrder(append(steps, h.stop.beforeStop(scripts), p.followed, p.stopPostgres, func(_ *Work, next func(error)) {
		h.lead.GuardSupervisor.Disarm(func(err error) {
			p.dropped = err == nil // one that stays armed would kill the replica that comes up next
			next(err)
		})
	})...), p.ended)
	h.work.task.successor = action.Successor
}

// hold has the bouncers hold the shard's clients.
func (p *planned) hold(w *Work, next func(error)) {
	p.announcing = true
	p.bouncers.Hold(w, p.Session, p.plan, p.onBusy, func(err error) {
		if err == nil {
			p.holding = true
		}
		next(err)
	})
}

// over is the end of a handover to another site. One that was stopped and not started again is so on purpose.
func (p *planned) over(err error) {
	if p.stopped && err != nil && !p.postgres.Running() {
		p.local.stoppedOnPurpose()
	}
	if p.announcing {
		p.announced = p.plan
	}
}

// followed waits until the successor has all WAL of a replica, whose checkpoints are those
// of the last primary: they say nothing of what came after.
func (p *planned) followed(w *Work, next func(error)) {
	if p.plan.Successor == "" || p.replica == 0 {
		next(nil)
		return
	}
	p.awaitWAL(w, p.replica-1, nil, because(next, p.plan.Successor+" has not received all WAL, so it stays the replica"))
}

// stopPostgres stops PostgreSQL, with all of its WAL received by the successor, if there is one.
func (p *planned) stopPostgres(w *Work, next func(error)) {
	p.stopped = true
	if p.plan.Successor == "" && p.site == nil || p.replica > 0 {
		p.postgres.StopFor(w, nil, next)
		return
	}
	lacks := p.plan.Successor + " has not received all WAL, so it stays the replica"
	if p.site != nil {
		lacks = "the other site has not received all WAL, so promote-cluster is refused there"
	}
	received := func(checkpoint int64, done func(error)) { p.awaitWAL(w, checkpoint, nil, done) }
	p.postgres.StopFor(w, received, func(err error) {
		if err != nil {
			next(err)
			return
		}
		p.postgres.Look(w, 0, func(left Found, seen bool) {
			switch {
			case !seen:
				next(fmt.Errorf("the data directory does not tell how far its WAL goes: %w", w.Broken()))
				return
			case !left.Data.ShutDown: // it was killed: its last checkpoint says nothing of what came after
				next(errNotShutDown)
				return
			}
			received(left.Data.CheckpointLSN, because(next, lacks))
		})
	})
}

// pollWAL is how often a successor is asked how far it is, and pollSite how often another site: with a connection
// for each of its hosts.
const (
	pollWAL  = 20 * time.Millisecond
	pollSite = 100 * time.Millisecond
)

// awaitWAL waits until the successor has received WAL of our timeline beyond
// lsn. A fast shutdown waits for connected standbys, so the first answer usually tells.
func (p *planned) awaitWAL(w *Work, lsn int64, last error, done func(error)) {
	if why := w.Broken(); why != nil {
		done(errors.Join(why, last))
		return
	}
	heard := func(timeline int, at int64, again time.Duration, err error) {
		if err == nil && timeline == p.plan.Timeline && at > lsn {
			done(nil)
			return
		}
		p.After(again, func() { p.awaitWAL(w, lsn, err, done) })
	}
	if p.site != nil {
		p.postgres.AskSite(nil, peerPatience, *p.site, p.plan.Timeline, func(seen cluster.Site, err error) {
			heard(seen.Timeline, seen.LSN, pollSite, err)
		})
		return
	}
	p.peers.Observe(peerPatience, p.receiver, func(seen Seen, err error) { heard(seen.Timeline, seen.LSN, pollWAL, err) })
}

// toSite is a handover to the standby leader of another site: bouncers hold the clients, PostgreSQL is stopped,
// and the other site has all of its WAL. The lease is kept.
func (h *handovers) toSite(site pg.Upstream) *planned {
	h.holding = false
	return &planned{handovers: h, site: &site, plan: cluster.Handover{
		ID: h.ID(), Leader: h.Name, Timeline: h.local.PG.Observed.Timeline, DeadlineMS: handoverLimit.Milliseconds(), State: cluster.HandoverAnnounced,
	}}
}

// toItself is a handover to this member itself, on a later timeline: bouncers hold the clients as for any, and the lease is
// kept.
func (h *handovers) toItself() *planned {
	h.holding = false
	return &planned{handovers: h, plan: cluster.Handover{
		ID: h.ID(), Leader: h.Name, Timeline: h.local.PG.Observed.Timeline, DeadlineMS: handoverLimit.Milliseconds(), State: cluster.HandoverAnnounced,
	}}
}

// within bounds steps during which clients are held.
func (p *planned) within(limit time.Duration, steps ...step) step {
	return func(w *Work, next func(error)) {
		over := false
		p.After(limit, func() {
			if !over {
				w.breakOff(ErrTooLong)
			}
		})
		inOrder(steps...)(w, func(err error) {
			over = true
			next(err)
		})
	}
}

// stopForSite are the steps of such a handover.
func (p *planned) stopForSite(w *Work, next func(error)) {
	p.within(handoverLimit, p.postgres.Checkpoint, p.hold, p.stop.beforeStop(min(p.stop.beforeStopLimit(), handoverLimit/2)), p.stopPostgres)(w, next)
}

func (p *planned) ended(err error) {
	if p.stopped {
		p.local.stoppedOnPurpose()
	}
	if p.announcing {
		p.announced = p.plan
	}
	successor := p.plan.Successor
	if p.dropped {
		if successor != "" {
			p.HandedOver = p.asked
		}
		p.lead.giveTo(successor, successor != "" && p.replica == 0)
		return
	}
	p.keys.Refused = fmt.Sprintf("rolled back: %v", err)
	p.RolledBack = ha.RolledBack{Request: p.asked, Why: p.keys.Refused}
	p.keys.ClearFailover(p.Snapshot.Failover.ModifyIndex)
}

// end takes back the announcement of a handover that is over: this member
// leads and serves again, or another one does. The routes tell the bouncers the
// rest.
func (h *handovers) end() {
	plan, leader := h.announced, h.Snapshot.LeaderName()
	serving := h.lead.LeaseState.Held(h.Now()) && h.local.serves() && !h.keys.Writing(h.Keys.Route())
	other := leader != "" && leader != h.Name && h.Snapshot.Route.Value.Leader.Name != h.Name
	if plan.ID == "" || h.work.TaskKind() == ha.TaskHandover || !serving && !other {
		return
	}
	h.announced = cluster.Handover{}
	plan.State = cluster.HandoverDone
	if serving {
		plan.State = cluster.HandoverCancelled
	}
	h.bouncers.EndHandover(h.Dynamic.RetryTimeout, h.Session, plan, func(err error) {
		if err != nil {
			h.Log.Warn().Err(err).Msg("the announcement of the handover could not be taken back; it ends with its deadline")
		}
	})
}
