package member

import (
	"reflect"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// routeToWrite is the route as this member would have it as the leader. It is
// not ok when there is nothing to say, or when the route in Consul belongs to
// another PostgreSQL cluster and must not be touched.
func (m *Member) routeToWrite() (cluster.Route, bool) {
	known := m.Snapshot.Route
	id := m.Data.SystemIdentifier
	if id == "" {
		return cluster.Route{}, false
	}
	if known.OK() && known.Value.SystemIdentifier != id {
		m.Once("route of another cluster", "the route in Consul has another system identifier and is left alone: "+
			"two shards share namespace and scope, or the key must be deleted", known.Value.SystemIdentifier)
		return cluster.Route{}, false
	}
	m.ClearOnce("route of another cluster")
	r := cluster.Route{
		Version: cluster.RouteVersion, SystemIdentifier: id,
		State: m.routeState(), Timeline: m.PG.Observed.Timeline,
		Leader:   cluster.RouteMember{Name: m.Name, Host: m.Host, Port: m.Port, Tags: PublishedTags(m.Tags)},
		Replicas: m.routeReplicas(),
	}
	if known.OK() {
		if r.Timeline == 0 {
			r.Timeline = known.Value.Timeline
		}
		if known.Value.Leader.Name == r.Leader.Name {
			r.Since = known.Value.Since
		}
	}
	r.Timeline = max(r.Timeline, 1)
	if r.Since.IsZero() {
		r.Since = m.Clock.Wall().UTC().Truncate(time.Millisecond)
	}
	return r, true
}

func (m *Member) routeState() cluster.RouteState {
	switch {
	case m.TaskKind() == ha.TaskHandover && m.Successor() != "" && m.published.holding:
		return cluster.RouteHandover
	case m.PG.Running && m.PG.Observed.Accepting && m.PG.Primary() && m.TaskKind() != ha.TaskDemote:
		return cluster.RouteOpen
	case m.PG.Running && !m.PG.Primary():
		return cluster.RoutePromoting
	default:
		return cluster.RouteDown
	}
}

// routeReplicas lists the members that may serve reads (readers.go).
func (m *Member) routeReplicas() []cluster.RouteMember {
	replicas, now := []cluster.RouteMember{}, m.now()
	before := readers{lagging: m.published.readers.lagging, silent: m.published.readers.silent}
	r := readers{passed: m.published.readers.passed, lagging: map[string]bool{}, silent: map[string]cluster.Instant{}}
	r.saw(now, m.PG.Observed)
	for _, other := range m.Snapshot.Members {
		name := other.Value.Name
		if !other.OK() || name == m.Name || other.Value.State != cluster.StateRunning || other.Value.Role != cluster.RoleReplica ||
			other.Value.Tag("noloadbalance") {
			continue
		}
		host, port, err := other.Value.Address()
		if err != nil {
			continue
		}
		r.lagging[name] = before.lagging[name]
		if since, silent := before.silent[name]; silent {
			r.silent[name] = since
		}
		had := slices.ContainsFunc(m.Snapshot.Route.Value.Replicas, func(r cluster.RouteMember) bool { return r.Name == name })
		if !r.serve(now, m.PG.Observed, other.Value, had, m.Dynamic) {
			continue
		}
		replicas = append(replicas, cluster.RouteMember{Name: name, Host: host, Port: port, Tags: other.Value.Tags})
	}
	m.published.readers = r // who is no replica any more is forgotten
	return replicas
}

// routeEvery is how often the route is looked at when nothing has changed but the time.
const routeEvery = time.Second

// routeOf is what a route is made of, by what changes with it.
type routeOf struct {
	route, shard uint64
	observed     cluster.Instant
	state        cluster.RouteState
}

// writeRoute writes the route when the topology has changed. Beats never touch
// it: bouncers read it with one blocking query for all shards.
func (m *Member) writeRoute() {
	p, known, now := &m.published, m.Snapshot.Route, m.now()
	of := routeOf{known.ModifyIndex, m.Snapshot.Index, m.PG.ObservedAt, m.routeState()}
	if of == p.routed && now.Sub(p.routedAt) < routeEvery {
		return
	}
	r, ok := m.routeToWrite()
	if !ok {
		return
	}
	if known.OK() && (known.ModifyIndex == p.routeAt && reflect.DeepEqual(r, p.route) || known.Value.SameTopology(r)) {
		p.route, p.routeAt = r, known.ModifyIndex // to compare it is dear
		p.routed, p.routedAt = of, now
		return
	}
	m.putRoute(known, r)
}

// putRoute writes a route that says something else than the one that is known.
func (m *Member) putRoute(known cluster.Entry[cluster.Route], r cluster.Route) {
	m.WriteAsLeader("route", m.Keys.Route(), known.ModifyIndex, r, func(index uint64) {
		m.Snapshot.Route = cluster.Entry[cluster.Route]{Value: r, ModifyIndex: index}
		if !known.OK() || known.Value.State != r.State || known.Value.Leader.Name != r.Leader.Name || known.Value.Timeline != r.Timeline {
			m.Bouncers.Poke(r, index)
		}
		m.Log.Info().Str("state", string(r.State)).Int("timeline", r.Timeline).Int("replicas", len(r.Replicas)).Msg("route written")
	})
}

// writeHistory publishes how the timelines before ours ended.
func (m *Member) writeHistory() {
	p, o := &m.published, &m.PG.Observed
	if !o.Accepting || o.InRecovery || o.Timeline <= 1 || p.history == o.Timeline || p.readingHistory || m.Writing(m.Keys.History()) {
		return
	}
	p.readingHistory = true
	timeline := o.Timeline
	m.Postgres.TimelineHistory(timeline, func(lines cluster.History, err error) {
		if err != nil {
			m.Once("timeline history", "the history of the timelines cannot be read", err.Error())
			m.Later.After(m.retryAfter(), func() { p.readingHistory = false })
			return
		}
		p.readingHistory = false
		m.ClearOnce("timeline history")
		if m.Leads() && m.PG.Observed.Timeline == timeline {
			m.putHistory(timeline, lines)
		}
	})
}

// putHistory writes the key history: what is known of a timeline's end stays.
func (m *Member) putHistory(timeline int, lines cluster.History) {
	known := m.Snapshot.History
	merged := make(cluster.History, 0, len(lines))
	for _, line := range lines {
		i := slices.IndexFunc(known.Value, func(h cluster.TimelineSwitch) bool {
			return h.Timeline == line.Timeline && h.LSN == line.LSN
		})
		switch {
		case i >= 0:
			line = known.Value[i]
		case line.Timeline == timeline-1:
			line.Time = m.Clock.Wall().Format("2006-01-02T15:04:05.000000-07:00")
			line.NewLeader = m.Name
		}
		merged = append(merged, line)
	}
	if n := m.Dynamic.MaxTimelinesHistory; n > 0 && len(merged) > n {
		merged = merged[len(merged)-n:]
	}
	m.WriteAsLeader("history", m.Keys.History(), known.ModifyIndex, merged, func(index uint64) {
		m.published.history = timeline
		m.Snapshot.History = cluster.Entry[cluster.History]{Value: merged, ModifyIndex: index}
	})
}
