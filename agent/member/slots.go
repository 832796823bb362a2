package member

import (
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// slotsEvery is how often slots are looked at when the members stay the same.
const slotsEvery = 10 * time.Second

// slotKeeper keeps replication slots for the members that stream from this one.
type slotKeeper struct {
	*Shard
	local    *Local
	postgres Postgres

	kept    string // the members that slots were made for
	at      cluster.Instant
	keeping bool
}

// keep keeps a replication slot for every member that streams from this one, so
// that one that is away for a while finds its WAL. A replica does, too, for those that
// replicate from it; and what it kept as a primary it drops, as that holds WAL back for
// ever. In pause none is dropped, and those are made without which nobody can follow.
func (k *slotKeeper) keep() {
	o := &k.local.PG.Observed
	if k.keeping || !o.Accepting || !k.postgres.UseSlots() {
		return
	}
	names := slotsFor(k.Snapshot, k.Name, !o.InRecovery)
	key := strings.Join(names, ",")
	if o.InRecovery {
		key = "replica," + key
	}
	if key == k.kept && k.Now().Sub(k.at) < slotsEvery {
		return
	}
	k.keeping = true
	k.postgres.SyncSlots(slotsEvery, names, k.Dynamic, func(err error) {
		k.keeping = false
		k.at = k.Now()
		k.Failure("slots", "replication slots could not be brought up to date", err)
		if err == nil {
			k.kept = key
		}
	})
}

// slotsFor are the members that stream from a member, as each decides. On a primary also
// those that follow it for want of one that they may cascade from.
func slotsFor(s cluster.Snapshot, name string, primary bool) []string {
	var names []string
	for _, m := range s.Members {
		if !m.OK() || m.Value.Name == name || cluster.NoStream(m.Value.Tags) || !primary && m.Value.Name == s.LeaderName() {
			continue
		}
		from, _ := m.Value.Tags["replicatefrom"].(string)
		if from == name && !s.InRing(m.Value.Name) || primary && s.Upstream(m.Value.Name, m.Value.Tags, name) == name {
			names = append(names, m.Value.Name)
		}
	}
	return names
}
