package member

import (
	"slices"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// View is what the decision rests on.
func (m *Member) View() ha.View {
	now := m.Now()
	v := ha.View{
		Shard: ha.Shard{
			Now: now, Name: m.Name, Config: m.Dynamic,
			Cluster: m.Snapshot, Read: m.Read, FirstRead: m.FirstRead, StatusSeen: m.StatusSeen, GoneBack: m.GoneBack, Confirmed: m.Confirmed, OwnerChangedAt: m.OwnerChangedAt, Session: m.Session,
			Promise: m.LeaseState.Promise(),
		},
		Wall: m.Wall(), Tags: m.TagsNow(), Fence: m.FenceMargins(),
		Lease: m.LeaseState.Lease(), Giving: m.LeaseState.Giving(), HandedOver: m.handovers.HandedOver, RolledBack: m.handovers.RolledBack,
		Peers: m.poll.Answers, PeersAsked: m.poll.Asked, PeersDone: !m.poll.Asking, PeersAskedLSN: m.poll.AskedLSN, PeersDetached: m.poll.AskedToDetach, Detached: m.Detached,
		Task: m.TaskKind(), Attempt: m.Attempt, Adopted: m.adopted.at, AdoptedUntil: m.adopted.until,
		AdoptedPaused: m.adopted.paused, AdoptedUnled: m.adopted.unled,
		Stopping:    m.Stopping,
		SyncWriting: m.writing[m.Keys.Sync()], SyncUncertain: m.SyncUncertain, SyncBefore: m.syncBefore,
	}
	v.Site = m.site
	v.Takeover = m.quorum.view()
	v.WatchdogOK, v.WatchdogProblem = m.Watchdog.OK()
	o := m.PG.Observed
	v.Postgres = ha.Postgres{
		RestoresAlone: (m.Data.State == ha.DataEmpty || m.Data.State == ha.DataIncomplete) && m.Postgres.ClonesWithoutLeader(),
		Resumable:     m.Data.State == ha.DataIncomplete && m.Data.Clone && m.Postgres.KeepsData(),
		Data:          m.Data.State, DataProblem: m.Data.Problem, SystemIdentifier: m.Data.SystemIdentifier,
		Running: m.PG.Running, Accepting: o.Accepting, Primary: m.PG.Primary(),
		Timeline: o.Timeline, LSN: o.LSN(), Replaying: o.Replaying, Restoring: m.Restoring(),
		Upstream: m.Upstream, Rejoined: m.rejoined, Outset: m.outset, Streaming: o.ReplicationState == pg.Streaming,
		ShutDown: m.PG.shutDown, DownSince: m.PGDown, UnservedSince: m.unservedSince,
		Hung: m.hangs(), Crashes: m.recentCrashes(now),
		SyncNames: m.commits.names, SyncAny: m.commits.any, SyncSince: m.commits.since,
		SyncUnsure:        m.commits.unsure(),
		SynchronousCommit: m.Postgres.SynchronousCommit(),
		DiskTrouble:       m.Disk, DiskSince: m.diskSince,
		Durable: ha.Durability{SynchronousCommit: o.SynchronousCommit, Fsync: o.Fsync && m.Postgres.Fsync(), StartRace: startRace(o.ServerVersion), ReplayPaused: o.ReplayPaused},
		Restore: m.Restore, Replacing: m.hidden, Upgrade: m.Upgrade, Strayed: m.remote.diverged, LacksSlots: m.slots.lacking(), Stranded: m.Stranded, Turn: m.rebuilder.hasTurn(),
	}
	if m.PG.Primary() {
		v.Postgres.Discards, _ = m.nextDiscarded()
	}
	if o.Undersized {
		v.Postgres.Undersized = o.Standstill
	}
	v.Postgres.Standbys = slices.Grow(v.Postgres.Standbys, len(o.Standbys))
	for _, s := range o.Standbys {
		v.Postgres.Standbys = append(v.Postgres.Standbys, ha.Standby{
			Name: s.ApplicationName, Streaming: s.State == pg.Streaming,
			Sync:     s.SyncState == "sync" || s.SyncState == "quorum",
			Foreign:  m.Dynamic.Takeover == cluster.TakeoverQuorum && m.quorum.hosts.foreign(s),
			WriteLSN: s.WriteLSN, FlushLSN: s.FlushLSN, ReplayLSN: s.ReplayLSN,
		})
	}
	if m.Shown != nil {
		return m.Shown(v)
	}
	return v
}
