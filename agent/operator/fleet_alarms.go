package operator

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file judges a shard by what Consul tells of it: `lictor fleet` shows its
// alarms, `lictor doctor` says what to do about them.

// waitsForRestart is the one alarm that nothing is broken with.
const waitsForRestart = "waits for a restart"

// alarms says what is not as it should be with a shard, as far as Consul tells.
func (s fleetShard) alarms(namespace string, bouncers []cluster.Bouncer) []string {
	var alarms []string
	add := func(is bool, format string, args ...any) {
		if is {
			alarms = append(alarms, fmt.Sprintf(format, args...))
		}
	}
	snapshot, leaderName := s.snapshot, s.snapshot.LeaderName()
	beat := snapshot.Status.Value.Lictor
	add(leaderName == "", "no leader")
	for _, err := range snapshot.Problems() {
		add(true, "%v", err)
	}
	add(s.problem != nil, "the dynamic configuration is not valid")
	add(s.dynamic.Pause, "paused")
	leader, _ := snapshot.Member(leaderName)
	streams := beat != nil // Patroni 3 does not say
	for _, m := range snapshot.Members {
		v := m.Value
		add(m.OK() && v.State != cluster.StateRunning, "%s is %s", v.Name, v.State)
		add(v.PendingRestart, "%s %s", v.Name, waitsForRestart)
		if unheard(snapshot, m) {
			add(true, "%s has not been heard of since %s took over", v.Name, leaderName)
			continue
		}
		if v.Name == leaderName || v.State != cluster.StateRunning || leaderName == "" {
			continue
		}
		add(v.Role == cluster.RolePrimary || v.Role == cluster.RoleMaster, "%s says that it is a primary, too", v.Name)
		add(v.Timeline > 0 && leader.Value.Timeline > 0 && v.Timeline != leader.Value.Timeline, "%s is on timeline %d", v.Name, v.Timeline)
		add(streams && v.ReplicationState == "", "%s does not replicate", v.Name)
		lag := snapshot.Status.Value.OpTime - v.XLogLocation
		add(v.XLogLocation > 0 && s.dynamic.MaximumLagOnFailover > 0 && lag > s.dynamic.MaximumLagOnFailover, "%s lags %s", v.Name, size(lag))
	}
	add(len(snapshot.Members) == 1, "no replica")
	on := s.dynamic.SynchronousMode != "" && s.dynamic.SynchronousMode != cluster.SyncOff
	add(on && len(snapshot.Members) > 1 && len(snapshot.Sync.Value.Standbys()) == 0, "no synchronous standby")
	return append(alarms, s.routeAlarms(namespace, bouncers)...)
}

// unheard tells whether a member led before the present leader and has written
// nothing since. The key of a leader whose host has died outlives it for the rest of
// its session: it still says that a primary runs there, which is no more than what
// was true when it was written.
func unheard(s cluster.Snapshot, m cluster.Entry[cluster.Member]) bool {
	primary := m.Value.Role == cluster.RolePrimary || m.Value.Role == cluster.RoleMaster
	return m.OK() && primary && s.LeaderName() != "" && m.Value.Name != s.LeaderName() && m.ModifyIndex < s.Leader.ModifyIndex
}

func (s fleetShard) routeAlarms(namespace string, bouncers []cluster.Bouncer) []string {
	r, leader := s.snapshot.Route, s.snapshot.LeaderName()
	beat := s.snapshot.Status.Value.Lictor
	switch {
	case !r.Exists() && beat == nil: // Patroni writes none
		return nil
	case !r.Exists():
		return []string{"no route"}
	case r.Err != nil:
		return nil // among the problems
	case s.snapshot.Initialize.Value != "" && r.Value.SystemIdentifier != s.snapshot.Initialize.Value:
		return []string{"the route belongs to another cluster"}
	case leader != "" && r.Value.Leader.Name != leader:
		return []string{"the route leads to " + r.Value.Leader.Name}
	case r.Value.State != cluster.RouteOpen:
		return []string{"the route is " + string(r.Value.State)}
	}
	var alarms []string
	for _, b := range bouncers {
		if b.Serves(namespace, s.scope) {
			if problem := s.behind(namespace, b); problem != "" {
				alarms = append(alarms, problem)
			}
		}
	}
	return alarms
}
