package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// ErrTooLong: a handover has taken all the time that it may.
var ErrTooLong = errors.New("it has taken too long")

// errNotShutDown: nobody knows how far the WAL goes that the successor must have.
var errNotShutDown = errors.New("PostgreSQL has ended without a shutdown checkpoint, by a crash or a kill")

// planned is a handover under way.
type planned struct {
	*Member
	plan     cluster.Handover
	receiver cluster.Member // of the WAL
	onBusy   string
	asked    uint64 // the request that it carries out

	announced, stopped, dropped bool
}

// handover stops PostgreSQL while the lease goes on being renewed, makes sure
// that the successor has all of its WAL, and gives the lease to it. Without a
// successor it is an orderly stop: whoever is best may lead next.
func (m *Member) handover(h ha.Handover) {
	successor, _ := m.Snapshot.Member(h.Successor)
	p := &planned{Member: m, receiver: successor.Value, onBusy: h.OnBusy, asked: m.Snapshot.Failover.ModifyIndex, plan: cluster.Handover{
		ID: m.ID(), Leader: m.Name, Successor: h.Successor, Timeline: m.PG.Observed.Timeline,
		DeadlineMS: handoverLimit.Milliseconds(), State: cluster.HandoverAnnounced,
	}}
	scripts := min(m.beforeStopLimit(), handoverLimit/2)
	m.handovers.holding = false
	steps := []step{func(w *Work, next func(error)) {
		m.After(handoverLimit, func() { w.breakOff(ErrTooLong) })
		next(nil)
	}}
	if h.Successor != "" { // the first, so that the shutdown checkpoint has little left to write
		steps = append(steps, m.Postgres.Checkpoint, p.hold)
	}
	m.startTask(ha.TaskHandover, inOrder(append(steps, m.beforeStop(scripts), p.stop, func(_ *Work, next func(error)) {
		p.dropped = true
		m.GuardSupervisor.Disarm(next)
	})...), p.ended)
	m.task.successor = h.Successor
}

// hold has the bouncers hold the shard's clients.
func (p *planned) hold(w *Work, next func(error)) {
	p.announced = true
	p.Bouncers.Hold(w, p.Session, p.plan, p.onBusy, func(err error) {
		if err == nil {
			p.handovers.holding = true
		}
		next(err)
	})
}

// stop stops PostgreSQL, with all of its WAL received by the successor, if there is one.
func (p *planned) stop(w *Work, next func(error)) {
	p.stopped = true
	if p.plan.Successor == "" {
		p.Postgres.StopFor(w, nil, next)
		return
	}
	received := func(checkpoint int64, done func(error)) { p.awaitWAL(w, checkpoint, nil, done) }
	p.Postgres.StopFor(w, received, func(err error) {
		if err != nil {
			next(err)
			return
		}
		p.Postgres.Look(w, 0, func(left Found, seen bool) {
			switch {
			case !seen:
				next(fmt.Errorf("the data directory does not tell how far its WAL goes: %w", w.Broken()))
				return
			case !left.Data.ShutDown: // it was killed: its last checkpoint says nothing of what came after
				next(errNotShutDown)
				return
			}
			received(left.Data.CheckpointLSN, because(next, p.plan.Successor+" has not received all WAL, so it stays the replica"))
		})
	})
}

// pollWAL is how often a successor is asked how far it is.
const pollWAL = 20 * time.Millisecond

// awaitWAL waits until the successor has received WAL of our timeline beyond
// lsn. A fast shutdown waits for connected standbys, so the first answer usually tells.
func (p *planned) awaitWAL(w *Work, lsn int64, last error, done func(error)) {
	if why := w.Broken(); why != nil {
		done(errors.Join(why, last))
		return
	}
	p.Peers.Observe(peerPatience, p.receiver, func(seen Seen, err error) {
		if err == nil && seen.Timeline == p.plan.Timeline && seen.LSN > lsn {
			done(nil)
			return
		}
		p.After(pollWAL, func() { p.awaitWAL(w, lsn, err, done) })
	})
}

func (p *planned) ended(err error) {
	if p.stopped {
		p.stoppedOnPurpose()
	}
	if p.announced {
		p.handovers.announced = p.plan
	}
	successor := p.plan.Successor
	if p.dropped {
		if successor != "" {
			p.handovers.HandedOver = p.asked
		}
		p.giveTo(successor, successor != "")
		return
	}
	p.Refused = fmt.Sprintf("rolled back: %v", err)
	p.ClearFailover(p.Snapshot.Failover.ModifyIndex)
}

// handovers is what bouncers are told of planned changes of primary.
type handovers struct {
	*Shard
	local    *Local
	lead     *leadership
	work     *worker
	keys     *leaderKeys
	bouncers Bouncers

	// HandedOver is the request that was carried out last.
	HandedOver uint64
	// holding: clients are held for the handover under way. The route says so only
	// then: nobody is to wait for the checkpoint before it.
	holding bool
	// announced is a handover whose announcement is to be taken back.
	announced cluster.Handover
}

// end takes back the announcement of a handover that is over: this member
// leads and serves again, or another one does. The routes tell the bouncers the
// rest.
func (h *handovers) end() {
	plan, leader := h.announced, h.Snapshot.LeaderName()
	serving := h.lead.Tenure.Held(h.Now()) && h.local.PG.Running && h.local.PG.Observed.Accepting && h.local.PG.Primary() && !h.keys.Writing(h.Keys.Route())
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
