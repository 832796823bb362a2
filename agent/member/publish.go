package member

import (
	"maps"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// Publish tells others what has changed. It is to be called after every step.
func (m *Member) Publish() {
	if m.Read.IsZero() || m.Exit {
		return
	}
	m.key.touch(m.Value())
	m.handovers.end()
	leads := m.Leads()
	if leads {
		m.route.write()
		m.history.write()
		m.checkpoint.make()
	} else { // what only a leader finds is no problem of this member's any more
		delete(m.logged, "events")
		delete(m.logged, "route of another cluster")
	}
	if m.task == nil && (leads != m.PG.Observed.InRecovery || m.standbyLeads()) {
		m.slots.keep()
		m.slots.advance()
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
		Pause: m.PauseInForce() && m.GuardSupervisor.standsDown(),
		// Always there: without it the others believe who answers at this address, unproved.
		Lictor: &cluster.MemberLictor{
			Problems: len(m.shell.Problems()), Config: m.Snapshot.Config.ModifyIndex, QuorumTakeover: true, Succession: true, Postgres: m.Postgres.Major(),
		},
		ScheduledRestart: m.shell.ScheduledRestart(),
	}
	v.Lictor.Copying, v.Lictor.Made = m.shell.Copying()
	v.Lictor.Stranded, v.Lictor.Rebuild = m.Stranded, m.rebuilder.waits
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
		v.Lictor.SyncedSlots = strings.Join(m.syncedSlots(&o), ",")
	} else if m.checkpoint.missing() {
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
	case m.standsBy() && m.PG.Running && m.Leads():
		return cluster.RoleStandbyLeader
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
	case ha.TaskRestart, ha.TaskRestore:
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

// memberKey is this member's own key in Consul, as it was written last.
type memberKey struct {
	*Shard
	consul Consul
	reread func()

	value    cluster.Member
	touched  cluster.Instant
	session  string // the session that it is bound to
	index    uint64 // that Consul gave it then
	touching bool
}

// touch writes the member key when it has changed, or when it is not bound to
// our session.
func (k *memberKey) touch(value cluster.Member) {
	session := k.Session
	if k.touching || session == "" {
		return
	}
	entry, exists := k.Snapshot.Member(k.Name)
	ours := exists && entry.Session == session
	bound := k.session == session && (ours || !k.settled())
	if k.settled() && ours && entry.ModifyIndex != k.index {
		bound = false // an earlier write of ours has landed late, or Consul has gone back
	}
	if bound && !k.worthWriting(value) {
		return
	}
	index := uint64(0)
	if exists && entry.Session != session && k.session != session {
		index = entry.ModifyIndex
	}
	k.touching = true
	k.consul.Touch(k.Dynamic.RetryTimeout, session, index, value, func(written uint64, err error) {
		if err == nil {
			k.touching = false
			k.value, k.session, k.touched, k.index = value, session, k.Now(), written
			return
		}
		k.Log.Debug().Err(err).Msg("writing the member key failed")
		k.session = ""
		k.reread()
		k.After(k.retryAfter(), func() { k.touching = false })
	})
}

// worthWriting keeps mere progress in the WAL from being written more often than
// once a loop_wait.
func (k *memberKey) worthWriting(value cluster.Member) bool {
	before := k.value
	if before.EqualButPositions(value) {
		return k.Now().Sub(k.touched) >= k.Dynamic.LoopWait && !before.Equal(value)
	}
	return true
}

// settled reports whether Consul's answers must by now show our last member key.
func (k *memberKey) settled() bool {
	return k.Read.Sub(k.touched) > time.Second
}
