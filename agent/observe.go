package agent

import (
	"context"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/printable"
)

// dataLooker looks at the data directory, for whoever asks.
type dataLooker struct {
	*runner
	pg   *postgres.Instance
	busy chan struct{} // holds one while it is looked at
}

// look looks at the data directory. It reports false when ctx has ended first. A disk
// that hangs keeps one look, and no more.
func (d *dataLooker) look(ctx context.Context) (member.Found, bool) {
	select {
	case d.busy <- struct{}{}:
	case <-ctx.Done():
		return member.Found{}, false
	}
	looked := make(chan member.Found, 1)
	d.goDo(func(context.Context) {
		defer func() { <-d.busy }()
		data, err := d.pg.DataDir(ctx)
		if ctx.Err() != nil {
			return
		}
		found := dataOf(data, err)
		found.Restores = restoresOf(d.pg, data)
		looked <- member.Found{Data: found, Loss: d.pg.Loss(), Restore: restoreOf(d.pg), Upgrade: upgradeOf(d.pg), Detachment: d.pg.Detachment(), Stray: d.pg.Stray()}
	})
	select {
	case f := <-looked:
		return f, true
	case <-ctx.Done():
		return member.Found{}, false
	}
}

// show makes the loop's state readable for the REST API.
func (a *Agent) show(reason string) {
	a.tellOfWatcher()
	o := a.m.PG.Observed
	now := a.clock()
	state := &api.State{
		At: time.Now(), LoopAt: time.Now(), Name: a.cfg.Name, Scope: a.cfg.Scope, Version: publicVersion(a.version), Tags: member.PublishedTags(a.m.TagsNow()),
		Cluster: a.m.Snapshot, Dynamic: a.m.Dynamic, ConsulSeen: a.m.ReadWall, Reason: reason, Refused: a.m.Refused, RestoreUnfinished: a.m.RestoreUnfinished(),
		Leader: a.m.LeaseState.Held(now), LeaseLeft: a.m.LeaseLeft(), FailsafeActive: a.m.FailsafeInForce(), OtherPrimaries: a.m.others, Watchdog: a.watchdog.State(),
		Member: a.m.Value(), Task: api.Progress{Kind: string(a.m.TaskKind()), Since: a.m.TaskSince()}, Problems: a.problems(),
		Archiver: a.m.archiver, WALRoom: a.m.walRoom, Backups: a.m.backups, Verified: a.m.verified,
		Postgres: api.Postgres{
			State: a.m.StateName(), Accepting: o.Accepting && a.m.PG.Running, InRecovery: !a.m.PG.Primary(),
			StartTime: o.StartTime, ServerVersion: o.ServerVersion, SystemIdentifier: a.m.Data.SystemIdentifier,
			Timeline: o.Timeline, LSN: o.LSN(), ReceivedLSN: o.ReceivedLSN, ReplayedLSN: o.ReplayedLSN,
			ReplayedAt: o.ReplayedAt, ReplayPaused: o.ReplayPaused, Standstill: o.Standstill,
			Replaying: o.Replaying, Restoring: a.m.Restoring(), ReplicationState: o.ReplicationState,
			PendingRestart: o.PendingRestart,
		},
	}
	state.Opening = a.m.Opening()
	state.Detached, state.ObservedDetached = a.m.Detaching()
	state.Attempts = member.TakeoverPeer{Member: a.m.Member}.DetachedFor()
	if at := a.m.PG.ObservedAt; !at.IsZero() {
		state.ObservedAt = state.At.Add(-now.Sub(at))
	}
	state.GuardRunning, state.GuardArmedFor = a.m.GuardSupervisor.Shown()
	if o.InRecovery {
		state.Postgres.LeaderLSN = a.m.LeaderLSN()
	}
	for _, s := range o.Standbys {
		state.Postgres.Standbys = append(state.Postgres.Standbys, api.Standby{
			User: s.User, ApplicationName: s.ApplicationName, ClientAddr: s.ClientAddr,
			State: s.State, SyncState: s.SyncState, SyncPriority: s.SyncPriority,
		})
	}
	a.showStatus(reason)
	a.board.show(state)
}

// problems are those that were logged and last, and the values that PostgreSQL refuses.
func (a *Agent) problems() []string {
	all := a.m.Logged()
	for _, why := range a.pg.Refused() {
		all = append(all, "PostgreSQL refuses the value of a parameter, which is not used: "+why)
	}
	slices.Sort(all)
	for i := range all {
		all[i] = printable.Short(all[i], mostOfAProblem)
	}
	return all[:min(len(all), mostProblems)]
}

// What is shown of problems at most: how many, and bytes of each.
const (
	mostProblems   = 16
	mostOfAProblem = 500
)

// margins are the moments before the end of a lease at which PostgreSQL is stopped and killed.
func margins(cfg config.Config) func(time.Duration) ha.FenceMargins {
	return func(ttl time.Duration) ha.FenceMargins {
		demote, kill := cfg.Lictor.Fence.Margins(ttl)
		return ha.FenceMargins{DemoteBefore: demote, KillBefore: kill}
	}
}
