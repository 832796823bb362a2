package member

import (
	"maps"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// published remembers what was told to others, so that nothing is written
// twice.
type published struct {
	value    cluster.Member // under the member key
	touched  cluster.Instant
	session  string // the session that it is bound to
	index    uint64 // that Consul gave it then
	touching bool
	slots    string // the members that slots were made for, and when
	slotsAt  cluster.Instant
	slotting bool
	// route is the one that was found to say the same as that in Consul with this index.
	route   cluster.Route
	routeAt uint64
	// routed is what the route was made of last, and when.
	routed   routeOf
	routedAt cluster.Instant
	history  int // the timeline whose history was written
	// readingHistory: it is being read, or cannot be for now.
	readingHistory bool
	// checkpointed is the timeline whose first checkpoint was made.
	checkpointed  int
	checkpointing bool
	promotedTo    int
	// holding: clients are held for the handover under way. The route says so only
	// then: nobody is to wait for the checkpoint before it.
	holding bool
	// announced is a handover whose announcement is to be taken back.
	announced cluster.Handover
	readers   readers
}

// Publish tells others what has changed. It is to be called after every step.
func (m *Member) Publish() {
	if m.Read.IsZero() || m.Exit {
		return
	}
	m.touch()
	m.endHandover()
	leads := m.Leads()
	if leads {
		m.writeRoute()
		m.writeHistory()
		m.checkpointAfterPromotion()
	} else { // what only a leader finds is no problem of this member's any more
		delete(m.told, "events")
		delete(m.told, "route of another cluster")
	}
	if leads != m.PG.Observed.InRecovery {
		m.keepSlots()
	}
}

// Value is what this member says of itself under its own key.
func (m *Member) Value() cluster.Member {
	o := m.PG.Observed
	v := cluster.Member{
		Name: m.Name, ConnURL: m.ConnURL, APIURL: m.APIURL, ProxyURL: m.ProxyURL, Version: m.Version,
		State: m.StateName(), Role: m.RoleName(),
		Tags: PublishedTags(m.TagsNow()),
		// Not before the guard stands down: whoever sees it may end the agent.
		Pause: m.PauseInForce() && m.Guardian.standsDown(),
		// Always there: without it the others believe who answers at this address, unproved.
		Lictor:           &cluster.MemberLictor{Problems: len(m.shell.Problems())},
		ScheduledRestart: m.shell.ScheduledRestart(),
	}
	if m.LeavingSync {
		v.Tags = withNosync(v.Tags)
	}
	if !o.Accepting {
		return v
	}
	v.XLogLocation, v.Timeline = o.LSN(), o.Timeline
	if o.InRecovery {
		v.ReceiveLSN, v.ReplayLSN = o.ReceivedLSN, o.ReplayedLSN
		v.ReplicationState, v.ReplayStandsStill = o.ReplicationState, o.Standstill
		v.Lictor.LeaderLSN = m.LeaderLSN()
	} else if m.published.promotedTo == o.Timeline && m.published.checkpointed != o.Timeline {
		done := false
		v.CheckpointAfterPromote = &done
	}
	if len(o.PendingRestart) > 0 {
		v.PendingRestart, v.PendingRestartReason = true, o.PendingRestart
	}
	return v
}

// RoleName is the role as Patroni names it.
func (m *Member) RoleName() string {
	switch {
	case m.Data.State != ha.DataValid:
		return cluster.RoleUninitialized
	case m.PG.Running && m.PG.Primary():
		return m.PrimaryWord
	default:
		return cluster.RoleReplica
	}
}

// StateName is the state of PostgreSQL in Patroni's words.
func (m *Member) StateName() string {
	switch m.TaskKind() {
	case ha.TaskBootstrap:
		return cluster.StateInitializing
	case ha.TaskClone, ha.TaskReinit:
		return cluster.StateCreating
	case ha.TaskRestart:
		return cluster.StateRestarting
	case ha.TaskDemote, ha.TaskHandover:
		if m.PG.Running {
			return cluster.StateStopping
		}
	}
	switch {
	case m.PG.Running && m.PG.Observed.Accepting:
		return cluster.StateRunning
	case m.PG.Running && m.PG.Observed.Stopping:
		return cluster.StateStopping
	case m.PG.Running:
		return cluster.StateStarting
	case m.Attempt.Kind == ha.TaskStart && m.Attempt.Failures > 0:
		return cluster.StateStartFailed
	case !m.PGDown.IsZero():
		return cluster.StateCrashed
	default:
		return cluster.StateStopped
	}
}

// PublishedTags leaves out what Patroni leaves out: its boolean tags when they
// are not true.
func PublishedTags(tags map[string]any) map[string]any {
	if len(tags) == 0 {
		return nil
	}
	out := map[string]any{}
	for name, value := range tags {
		switch name {
		case "nofailover", "clonefrom", "noloadbalance", "nosync", "nostream":
			_, byPriority := tags[map[string]string{"nofailover": "failover_priority", "nosync": "sync_priority"}[name]]
			if !(cluster.Member{Tags: tags}).Tag(name) && !byPriority {
				continue
			}
		}
		out[name] = value
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// withNosync are the tags of a member that must not be a synchronous standby for
// now.
func withNosync(tags map[string]any) map[string]any {
	out := map[string]any{"nosync": true}
	maps.Copy(out, tags)
	out["nosync"] = true
	if _, set := out["sync_priority"]; set {
		out["sync_priority"] = 0
	}
	return out
}

// touch writes the member key when it has changed, or when it is not bound to
// our session.
func (m *Member) touch() {
	p := &m.published
	if p.touching || m.Session == "" {
		return
	}
	value, session := m.Value(), m.Session
	entry, exists := m.Snapshot.Member(m.Name)
	ours := exists && entry.Session == session
	bound := p.session == session && (ours || !m.settled())
	if m.settled() && ours && entry.ModifyIndex > p.index {
		bound = false // an earlier write of ours has landed late
	}
	if bound && !m.worthWriting(value) {
		return
	}
	index := uint64(0)
	if exists && entry.Session != session && p.session != session {
		index = entry.ModifyIndex
	}
	p.touching = true
	m.Consul.Touch(m.Dynamic.RetryTimeout, session, index, value, func(written uint64, err error) {
		if err == nil {
			p.touching = false
			p.value, p.session, p.touched, p.index = value, session, m.now(), written
			return
		}
		m.Log.Debug().Err(err).Msg("writing the member key failed")
		p.session = ""
		m.Reread()
		m.Later.After(m.retryAfter(), func() { p.touching = false })
	})
}

// worthWriting keeps mere progress in the WAL from being written more often than
// once a loop_wait.
func (m *Member) worthWriting(value cluster.Member) bool {
	before := m.published.value
	if before.EqualButPositions(value) {
		return m.now().Sub(m.published.touched) >= m.Dynamic.LoopWait && !before.Equal(value)
	}
	return true
}

// settled reports whether Consul's answers must by now show our last member key.
func (m *Member) settled() bool {
	return m.Read.Sub(m.published.touched) > time.Second
}
