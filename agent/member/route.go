package member

import (
	"cmp"
	"reflect"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// routeWriter writes the route when the topology has changed.
type routeWriter struct {
	*Shard
	local     *Local
	work      *worker
	keys      *leaderKeys
	handovers *handovers
	bouncers  Bouncers

	// same is the route that was found to say the same as that in Consul with the index sameAt.
	same   cluster.Route
	sameAt uint64
	// routed is what the route was made of last, and when.
	routed   routeOf
	routedAt cluster.Instant
	readers  readers
}

// wanted is the route as this member would have it as the leader. It is
// not ok when there is nothing to say, or when the route in Consul belongs to
// another PostgreSQL cluster and must not be touched.
func (w *routeWriter) wanted() (cluster.Route, bool) {
	known := w.Snapshot.Route
	id := w.local.Data.SystemIdentifier
	if id == "" || w.local.Upgrade.Announced(w.Snapshot.Initialize.Value) { // the announcement has written it
		return cluster.Route{}, false
	}
	other := ""
	if known.OK() && known.Value.SystemIdentifier != id {
		other = cmp.Or(known.Value.SystemIdentifier, "none")
	}
	w.Problem("route of another cluster", "the route in Consul has another system identifier and is left alone: "+
		"two shards share namespace and scope, or the key must be deleted", other)
	if other != "" {
		return cluster.Route{}, false
	}
	r := cluster.Route{
		Version: cluster.RouteVersion, SystemIdentifier: id,
		State: w.state(), Timeline: w.local.PG.Observed.Timeline,
		Leader:   cluster.RouteMember{Name: w.Name, Host: w.Host, Port: w.Port, Tags: PublishedTags(w.Tags)},
		Replicas: w.replicas(),
	}
	if known.OK() {
		r.Succeeds = known.Value.Succeeds // for bouncers that were away
		if r.Timeline == 0 {
			r.Timeline = known.Value.Timeline
		}
		if known.Value.Leader.Name == r.Leader.Name {
			r.Since = known.Value.Since
		}
	}
	r.Timeline = max(r.Timeline, 1)
	if r.Since.IsZero() {
		r.Since = w.Wall().UTC().Truncate(time.Millisecond)
	}
	return r, true
}

func (w *routeWriter) state() cluster.RouteState {
	switch {
	case w.work.TaskKind() == ha.TaskHandover && w.work.Successor() != "" && w.handovers.holding:
		return cluster.RouteHandover
	case w.local.PG.Running && w.local.PG.Observed.Accepting && w.local.PG.Primary() && w.work.TaskKind() != ha.TaskDemote && w.work.TaskKind() != ha.TaskRestore && !w.local.held && !w.local.Opening():
		return cluster.RouteOpen
	case w.local.PG.Running && !w.local.PG.Primary() && !w.local.standsBy():
		return cluster.RoutePromoting
	default:
		return cluster.RouteDown
	}
}

// replicas lists the members that may serve reads (readers.go).
func (w *routeWriter) replicas() []cluster.RouteMember {
	replicas, now := []cluster.RouteMember{}, w.Now()
	before := readers{lagging: w.readers.lagging, silent: w.readers.silent}
	r := readers{passed: w.readers.passed, lagging: map[string]bool{}, silent: map[string]cluster.Instant{}}
	r.saw(now, w.local.PG.Observed)
	for _, other := range w.Snapshot.Members {
		name := other.Value.Name
		if !other.OK() || name == w.Name || other.Value.State != cluster.StateRunning || other.Value.Role != cluster.RoleReplica ||
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
		had := slices.ContainsFunc(w.Snapshot.Route.Value.Replicas, func(r cluster.RouteMember) bool { return r.Name == name })
		if !r.serve(now, w.local.PG.Observed, other.Value, had, w.Dynamic) {
			continue
		}
		replicas = append(replicas, cluster.RouteMember{Name: name, Host: host, Port: port, Tags: other.Value.Tags})
	}
	w.readers = r // who is no replica any more is forgotten
	return replicas[:min(len(replicas), cluster.MaxReplicas)]
}

// routeEvery is how often the route is looked at when nothing has changed but the time.
const routeEvery = time.Second

// routeOf is what a route is made of, by what changes with it.
type routeOf struct {
	route, shard uint64
	observed     cluster.Instant
	state        cluster.RouteState
}

// write writes the route when the topology has changed. Beats never touch
// it: bouncers read it with one blocking query for all shards.
func (w *routeWriter) write() {
	known, now := w.Snapshot.Route, w.Now()
	of := routeOf{known.ModifyIndex, w.Snapshot.Index, w.local.PG.ObservedAt, w.state()}
	if of == w.routed && now.Sub(w.routedAt) < routeEvery {
		return
	}
	r, ok := w.wanted()
	if !ok {
		return
	}
	if known.OK() && (known.ModifyIndex == w.sameAt && reflect.DeepEqual(r, w.same) || known.Value.SameTopology(r)) {
		w.same, w.sameAt = r, known.ModifyIndex // to compare it is dear
		w.routed, w.routedAt = of, now
		return
	}
	w.put(known, r)
}

// put writes a route that says something else than the one that is known.
func (w *routeWriter) put(known cluster.Entry[cluster.Route], r cluster.Route) {
	w.keys.WriteAsLeader("route", w.Keys.Route(), known.ModifyIndex, r, func(index uint64) {
		w.Snapshot.Route = cluster.Entry[cluster.Route]{Value: r, ModifyIndex: index}
		if !known.OK() || known.Value.State != r.State || known.Value.Leader.Name != r.Leader.Name || known.Value.Timeline != r.Timeline {
			w.bouncers.Poke(r, index)
		}
		w.Log.Info().Str("state", string(r.State)).Int("timeline", r.Timeline).Int("replicas", len(r.Replicas)).Msg("route written")
	})
}
