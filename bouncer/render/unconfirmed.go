package render

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// The state file may be older than what is installed, and Consul may be silent: then the newer of
// both counts. A shard's comment in pgbouncer.ini says of which timeline its lines are.

// markPrefix begins a shard's comment in the shipped template.
const markPrefix = "; shard "

// shardMark is what stands behind the shard in its comment: the primary, and the timeline on which that
// serves. One that is being promoted will serve on the next, so that the end of the promotion is no
// reason for another RELOAD; 0: it is not known.
func shardMark(leader string, timeline int) string {
	if timeline == 0 {
		return leader
	}
	return leader + markTimeline + strconv.Itoa(timeline)
}

const markTimeline = ", timeline "

// serves is the timeline on which a route's leader serves, or will.
func serves(r cluster.Route) int {
	if r.State == cluster.RoutePromoting {
		return r.Timeline + 1
	}
	return r.Timeline
}

// parseMark reads a line that may be a shard's comment.
func parseMark(line string) (id config.ShardID, leader string, timeline int, ok bool) {
	rest, is := strings.CutPrefix(line, markPrefix)
	shard, said, found := strings.Cut(rest, ": ")
	if !is || !found {
		return "", "", 0, false
	}
	leader = said
	if at := strings.LastIndex(said, markTimeline); at >= 0 {
		number, err := strconv.Atoi(said[at+len(markTimeline):])
		if err != nil || number < 0 {
			return "", "", 0, false
		}
		leader, timeline = said[:at], number
	}
	return config.ShardID(shard), leader, timeline, true
}

// Installed is what PgBouncer's file says of shards.
type Installed struct {
	file  pgbouncer.File
	marks map[config.ShardID]installedMark
}

type installedMark struct {
	leader   string
	timeline int
}

// ParseInstalled reads the file that is installed. What is no file of the bouncer's says nothing.
func ParseInstalled(text []byte) Installed {
	file, err := pgbouncer.ParseFile(text)
	if err != nil {
		return Installed{}
	}
	i := Installed{file, map[config.ShardID]installedMark{}}
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		if id, leader, timeline, ok := parseMark(string(line)); ok {
			i.marks[id] = installedMark{leader, timeline}
		}
	}
	return i
}

// Keep returns what is known of a shard that Consul has not confirmed since the start, changed so that its
// databases stay where they are. Where the file and PgBouncer agree, or PgBouncer does not run,
// an open route of a later timeline than the file's is newer, and stays as it is.
func (w *Viewer) Keep(id config.ShardID, known ShardRoute, installed Installed, standing map[string]pgbouncer.Database) (_ ShardRoute, kept bool) {
	s := w.configured[id]
	databases, err := s.ParseDatabases()
	if s.Scope == "" {
		s, databases = discovered(id)
	}
	if err != nil || len(databases) == 0 {
		return known, false
	}
	d := databases[0]
	at, found := placeIn(d.Name, installed.file, standing)
	if !found {
		return known, false
	}
	said, marked := installed.marks[id], false
	if inFile, written := entryPlace(d.Name, installed.file); written && inFile == at {
		marked = said.timeline > 0
	}
	route := known.Route
	if marked && route.State == cluster.RouteOpen && route.Timeline > said.timeline {
		return known, false
	}
	mode := w.config.ReadersOf(s)
	leads := at == (pgbouncer.Address{Host: route.Leader.Host, Port: route.Leader.Port})
	readers, read := placeIn(d.ReadOnlyName(), installed.file, standing)
	if chosen := w.readersOf(id, route, mode); leads && (!read || chosen.unserved || chosen.Host == readers.Host && chosen.Port == readers.Port) {
		return known, false
	}
	members := append([]cluster.RouteMember{route.Leader}, route.Replicas...)
	if !leads {
		route.Leader, route.State = memberAt(members, at.Host, at.Port, said.leader, marked), cluster.RouteOpen
		known.mark = route.Leader.Name
		if marked {
			route.Timeline, known.mark = said.timeline, shardMark(route.Leader.Name, said.timeline)
		}
		if slices.ContainsFunc(databases, func(d config.Database) bool { return standing[d.Name].Paused }) {
			route.State = cluster.RoutePromoting // an earlier bouncer has waited for something
		}
	}
	if route.Replicas = nil; read && readers != at {
		for host := range strings.SplitSeq(readers.Host, ",") {
			route.Replicas = append(route.Replicas, memberAt(members, host, readers.Port, "", false))
		}
	}
	known.Route, known.Revision = route, 0
	return known, true
}

// memberAt is the member at an address, by a name if there is one for it.
func memberAt(members []cluster.RouteMember, host string, port int, name string, named bool) cluster.RouteMember {
	if i := slices.IndexFunc(members, func(m cluster.RouteMember) bool { return m.Host == host && m.Port == port }); i >= 0 {
		return members[i]
	}
	if !named {
		name = fmt.Sprintf("%s:%d", host, port)
	}
	return cluster.RouteMember{Name: name, Host: host, Port: port}
}

// placeIn is where a database leads: in PgBouncer, if it is there, else by its file.
func placeIn(name string, file pgbouncer.File, standing map[string]pgbouncer.Database) (pgbouncer.Address, bool) {
	if d, stands := standing[name]; stands {
		return pgbouncer.Address{Host: d.Host, Port: d.Port}, d.Host != ""
	}
	at, written := entryPlace(name, file)
	return at, written && at.Host != ""
}

func entryPlace(name string, file pgbouncer.File) (pgbouncer.Address, bool) {
	e, written := file.Database(name)
	return pgbouncer.Address{Host: e.Host(), Port: e.Port()}, written
}
