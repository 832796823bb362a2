package member

import (
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// slotsEvery is how often slots are looked at when the members stay the same.
const slotsEvery = 10 * time.Second

// keepSlots keeps a replication slot for every member that streams from this one, so
// that one that is away for a while finds its WAL. A replica does, too, for those that
// replicate from it; and what it kept as a primary it drops, as that holds WAL back for
// ever.
func (m *Member) keepSlots() {
	p := &m.published
	if p.slotting || !m.PG.Observed.Accepting || m.Dynamic.Pause || !m.Postgres.UseSlots() {
		return
	}
	names := slotsFor(m.Snapshot, m.Name, !m.PG.Observed.InRecovery)
	key := strings.Join(names, ",")
	if m.PG.Observed.InRecovery {
		key = "replica," + key
	}
	if key == p.slots && m.now().Sub(p.slotsAt) < slotsEvery {
		return
	}
	p.slotting = true
	m.Postgres.SyncSlots(slotsEvery, names, m.Dynamic, func(err error) {
		p.slotting = false
		p.slotsAt = m.now()
		if err != nil {
			m.Once("slots", "replication slots could not be brought up to date", err.Error())
			return
		}
		m.ClearOnce("slots")
		p.slots = key
	})
}

// slotsFor are the members that stream from a member, as each decides (ha.View): from the
// one that it is to replicate from if that runs, else from the primary.
func slotsFor(s cluster.Snapshot, name string, primary bool) []string {
	var names []string
	for _, m := range s.Members {
		if !m.OK() || m.Value.Name == name || cluster.NoStream(m.Value.Tags) || !primary && m.Value.Name == s.LeaderName() {
			continue
		}
		from, _ := m.Value.Tags["replicatefrom"].(string)
		other, found := s.Member(from)
		if from == name || primary && (!found || !other.OK() || other.Value.State != cluster.StateRunning) {
			names = append(names, m.Value.Name)
		}
	}
	return names
}

// checkpointAfterPromotion makes the new timeline's first checkpoint, before
// which nobody can rewind to it.
func (m *Member) checkpointAfterPromotion() {
	p := &m.published
	o := m.PG.Observed
	if p.checkpointing || !o.Accepting || o.InRecovery || p.promotedTo != o.Timeline || p.checkpointed == o.Timeline {
		return
	}
	p.checkpointing = true
	timeline := o.Timeline
	m.Postgres.Checkpoint(nil, func(err error) {
		p.checkpointing = false
		if err != nil {
			m.Log.Warn().Err(err).Msg("the checkpoint after the promotion failed")
			return
		}
		p.checkpointed = timeline
	})
}
