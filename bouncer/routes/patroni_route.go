package routes

import (
	"fmt"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// patroniRoute makes a route of Patroni's own keys: `leader`, `initialize`,
// `status` and `members/`. before is what was known, now the time; a leader that
// stays keeps its Since, and a shard without a leader keeps the last one, with
// state down. It returns the index by which later knowledge is told from older.
func patroniRoute(s cluster.Snapshot, before *cluster.Route, maxLag int64, now time.Time) (cluster.Route, uint64, error) {
	r := cluster.Route{Version: cluster.RouteVersion, SystemIdentifier: s.Initialize.Value, Timeline: 1, State: cluster.RouteDown}
	index := max(s.Initialize.ModifyIndex, s.Leader.ModifyIndex)
	name := s.LeaderName()
	if name == "" {
		if before == nil {
			return r, 0, fmt.Errorf("it has no leader yet")
		}
		r = *before
		r.State = cluster.RouteDown
		return r, max(index, s.Index), nil
	}
	m, found := s.Member(name)
	if !found || !m.OK() {
		return r, 0, fmt.Errorf("its leader %s has no key of a member that can be read", name)
	}
	index = max(index, m.ModifyIndex)
	var err error
	if r.Leader, err = patroniMember(m.Value); err != nil {
		return r, 0, err
	}
	if r.Timeline = max(m.Value.Timeline, 1); before != nil && before.Leader.Name == name && before.SystemIdentifier == r.SystemIdentifier {
		r.Since = before.Since
		r.Timeline = max(r.Timeline, before.Timeline) // a member that starts writes none
	} else {
		r.Since = now.UTC().Truncate(time.Millisecond)
	}
	switch leads := cluster.IsPrimary(m.Value.Role); {
	case leads && m.Value.State == cluster.StateRunning:
		r.State = cluster.RouteOpen
	case !leads:
		r.State = cluster.RoutePromoting
	}
	for _, m := range s.Members {
		if one, ok := patroniReplica(m, name, s.Status, before, maxLag); ok {
			r.Replicas = append(r.Replicas, one)
			index = max(index, m.ModifyIndex)
		}
	}
	r.Replicas = r.Replicas[:min(len(r.Replicas), cluster.MaxReplicas)]
	return r, index, nil
}

// patroniReplica reports whether a member takes readers. One that was left out for
// its lag comes back at half of the limit, so that it does not come and go.
func patroniReplica(m cluster.Entry[cluster.Member], leader string, status cluster.Entry[cluster.Status], before *cluster.Route, maxLag int64) (cluster.RouteMember, bool) {
	v := m.Value
	if !m.OK() || v.Name == leader || v.Role != cluster.RoleReplica || v.State != cluster.StateRunning && v.State != "streaming" {
		return cluster.RouteMember{}, false
	}
	one, err := patroniMember(v)
	if err != nil {
		return cluster.RouteMember{}, false
	}
	limit := maxLag / 2
	if before == nil || slices.ContainsFunc(before.Replicas, func(r cluster.RouteMember) bool { return r.Name == v.Name }) {
		limit = maxLag
	}
	if status.OK() && status.Value.OpTime-v.XLogLocation > limit {
		return cluster.RouteMember{}, false
	}
	return one, true
}

func patroniMember(m cluster.Member) (cluster.RouteMember, error) {
	host, port, err := m.Address()
	if err != nil {
		return cluster.RouteMember{}, err
	}
	return cluster.RouteMember{Name: m.Name, Host: host, Port: port, Tags: m.Tags}, nil
}
