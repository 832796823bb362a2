package render

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// AnyName is the version to view shards with where no pgbouncer.ini is made of them:
// none is left out for its name.
func AnyName() pgbouncer.Version { return pgbouncer.Version{1, 25} }

// Shard is one shard as it is rendered.
type Shard struct {
	ID        config.ShardID
	Route     cluster.Route
	Confirmed bool
	// Fallback: clients of databases that no shard has go to its primary.
	Fallback bool
	// mode is that of its readers.
	mode    string
	readers Readers
	// Index is the ModifyIndex that Consul gave the route.
	Index     uint64
	Databases []config.Database
	// options are PgBouncer's for each of the names that it has of the shard; nil: there are none.
	options  map[string][]pgbouncer.Option
	template TemplateShard
	// offered, written and to are what Offered, Written and Readers return.
	offered, written []string
	to               string
}

// TemplateShard is what templates see of a shard.
type TemplateShard struct {
	Scope, Namespace string
	// Label tells shards apart: the scope or, where it is that of several, namespace:scope.
	Label     string
	Databases []config.Database
	PoolSize  int
	PoolMode  string
	State     cluster.RouteState
	Timeline  int
	// Mark is what the shard's comment says: its primary, and the timeline on which that serves.
	Mark string

	of *Shard
}

// Readers is where the readers of a shard go: a list of hosts that PgBouncer
// takes turns in, all on one port.
type Readers struct {
	Host string
	Port int
	// primary: there is no replica to read from.
	primary bool
	// unserved: there is no replica, and the primary takes no readers.
	unserved bool
	// elsewhere are the names of replicas that take readers, but listen on another port.
	elsewhere []string
}

// ShardRoute is what is known of a shard.
type ShardRoute struct {
	Route cluster.Route
	// Index is the index at which Consul had this route, CreateIndex that at which it got
	// its key. First is when the shard became known here: of two shards that want one
	// name of a database, the elder has it.
	Index, CreateIndex uint64
	First              time.Time
	// Confirmed: Consul said so since this bouncer started.
	Confirmed bool
	// Revision is the same as long as all of this is; 0: it is not known.
	Revision uint64
	// mark is what the shard's comment says in the place of what the route does; empty: nothing.
	mark string
}

// LeftOut is a shard or a value that is not in what was rendered.
type LeftOut struct {
	What string
	Err  error
}

// Viewer turns what is known into what is rendered, again and again, for one
// configuration: of a thousand shards one has changed. Its methods run on one goroutine.
type Viewer struct {
	config     config.Config
	configured map[config.ShardID]config.Shard
	version    pgbouncer.Version
	kept       map[config.ShardID]keptView
	// views and left are what the last call returned.
	views []*Shard
	left  []LeftOut
}

// keptView is a shard and what it was made of.
type keptView struct {
	view     *Shard
	revision uint64
	label    string
	// first and createIndex are its age.
	first       time.Time
	createIndex uint64
	// unfit is why it cannot be offered, whatever the others are called.
	unfit error
}

// NewViewer makes a viewer for a configuration.
func NewViewer(c config.Config) *Viewer {
	w := &Viewer{config: c, configured: map[config.ShardID]config.Shard{}}
	for _, s := range c.Shards {
		w.configured[s.ID()] = s
	}
	return w
}

// View is a viewer's for one time.
func View(c config.Config, shards map[config.ShardID]ShardRoute, version pgbouncer.Version) (views []*Shard, left []LeftOut) {
	return NewViewer(c).View(shards, version)
}

// View turns what is known into what is rendered. A shard that cannot be
// offered, because its database has the name of another shard's or one that PgBouncer
// of this version cannot read, is left out and reported. A shard of the same revision as in
// the call before, unless that is 0, has the same address.
func (w *Viewer) View(shards map[config.ShardID]ShardRoute, version pgbouncer.Version) (views []*Shard, left []LeftOut) {
	if version != w.version {
		w.version, w.kept = version, nil
	}
	if w.update(shards) {
		return w.views, w.left
	}
	before := w.kept
	w.kept = make(map[config.ShardID]keptView, len(shards))
	owner, scopes := make(map[string]config.ShardID, 2*len(shards)), make(map[string]int, len(shards))
	for id := range shards {
		_, scope := id.Split()
		scopes[scope]++
	}
	for _, id := range eldestFirst(shards) {
		known := shards[id]
		namespace, scope := id.Split()
		label := scope
		if scopes[scope] > 1 {
			label = namespace + ":" + scope
		}
		one, have := before[id]
		if !have || one.revision == 0 || one.revision != known.Revision || one.label != label {
			one = w.make(id, known, label)
		}
		w.kept[id] = one
		v, err := one.view, one.unfit
		if err == nil {
			err = v.claim(owner)
		}
		if err != nil {
			left = append(left, LeftOut{string(id), err})
			continue
		}
		if v.readers.unserved && v.mode == config.ReadersStrict {
			left = append(left, LeftOut{string(id) + " readers", fmt.Errorf(
				"shard %s: no replica takes readers, and the primary takes none (readers: strict): the databases with _ro are not offered", id)})
		}
		views = append(views, v)
	}
	if to := w.config.FallbackShard(); to != "" && !slices.ContainsFunc(views, func(v *Shard) bool { return v.Fallback }) {
		left = append(left, LeftOut{"pgbouncer.fallback", fmt.Errorf("pgbouncer.fallback: no route of shard %s is known: there is no database *", to)})
	}
	for _, r := range w.config.Refused() {
		left = append(left, LeftOut{r.Name, r.Err})
	}
	for path, err := range w.config.UnknownOptions(version) {
		left = append(left, LeftOut{path, err})
	}
	slices.SortFunc(views, byID)
	w.views, w.left = views, left
	return views, left
}

func byID(a, b *Shard) int { return strings.Compare(string(a.ID), string(b.ID)) }

// update makes the views of those shards anew that have changed, and reports whether that is
// all there is to do: they are the same shards as before, and which of them has a name that
// several want, or what is left out, cannot have changed.
func (w *Viewer) update(shards map[config.ShardID]ShardRoute) bool {
	if w.kept == nil || len(shards) != len(w.kept) {
		return false
	}
	var changed []config.ShardID
	for id, known := range shards {
		old, have := w.kept[id]
		switch {
		case !have:
			return false
		case known.Revision != 0 && old.revision == known.Revision:
			continue
		case !old.first.Equal(known.First) || old.createIndex != known.CreateIndex:
			return false
		}
		changed = append(changed, id)
	}
	fresh := w.makeAll(changed, shards)
	for i, id := range changed {
		one, old := fresh[i], w.kept[id]
		if one.unfit != nil || old.unfit != nil || one.view.readers.unserved != old.view.readers.unserved {
			return false
		}
	}
	views := slices.Clone(w.views)
	for _, one := range fresh {
		w.kept[one.view.ID] = one
		// One that is not offered, for its name's sake, is not there.
		if at, offered := slices.BinarySearchFunc(views, one.view, byID); offered {
			views[at] = one.view
		}
	}
	w.views = views
	return true
}

// makeAll makes the views of shards that keep their labels. When they are many, as after the loss of a zone,
// every processor makes some.
func (w *Viewer) makeAll(ids []config.ShardID, shards map[config.ShardID]ShardRoute) []keptView {
	all := make([]keptView, len(ids))
	var making errgroup.Group
	making.SetLimit(runtime.GOMAXPROCS(0))
	for from := 0; from < len(ids); from += atOnce {
		making.Go(func() error {
			for i := from; i < min(from+atOnce, len(ids)); i++ {
				all[i] = w.make(ids[i], shards[ids[i]], w.kept[ids[i]].label)
			}
			return nil
		})
	}
	_ = making.Wait() // each has its own error
	return all
}

// make makes the view of one shard.
func (w *Viewer) make(id config.ShardID, known ShardRoute, label string) keptView {
	var (
		s         = w.configured[id]
		databases []config.Database
		unfit     error
	)
	if s.Scope == "" {
		s, databases = discovered(id)
	} else {
		databases, unfit = s.ParseDatabases()
	}
	v := &Shard{
		ID: id, Route: known.Route, Confirmed: known.Confirmed, Index: known.Index, Databases: databases,
		mode: w.config.ReadersOf(s), Fallback: w.config.IsFallback(id),
	}
	v.template = TemplateShard{
		Scope: s.Scope, Namespace: s.Namespace, Label: label, PoolSize: s.PoolSize, PoolMode: s.PoolMode,
		State: v.Route.State, Timeline: v.Route.Timeline, Databases: databases, of: v,
		Mark: cmp.Or(known.mark, shardMark(v.Route.Leader.Name, serves(v.Route))),
	}
	if unfit == nil {
		unfit = v.fit(w.version)
	}
	if unfit == nil {
		v.readers = w.readersOf(id, v.Route, v.mode)
		v.name()
		if w.config.HasDatabaseOptions(s) {
			v.options = map[string][]pgbouncer.Option{}
			for _, name := range v.Offered() {
				v.options[name] = w.config.DatabaseOptions(s, name, w.version)
			}
		}
	}
	return keptView{v, known.Revision, label, known.First, known.CreateIndex, unfit}
}

// eldestFirst orders shards by when they became known, so that a new one takes no name
// that another has. Of those that came together it is the one whose key Consul has had
// for longer: so all bouncers choose the same.
func eldestFirst(shards map[config.ShardID]ShardRoute) []config.ShardID {
	return slices.SortedFunc(maps.Keys(shards), func(a, b config.ShardID) int {
		x, y := shards[a], shards[b]
		return cmp.Or(x.First.Compare(y.First), cmp.Compare(x.CreateIndex, y.CreateIndex), strings.Compare(string(a), string(b)))
	})
}

// discovered is a shard that the configuration does not name; its scope is its
// database.
func discovered(id config.ShardID) (config.Shard, []config.Database) {
	namespace, scope := id.Split()
	return config.Shard{Namespace: namespace, Scope: scope}, []config.Database{{Name: scope, DBName: scope}}
}

// fit fails where PgBouncer cannot read the name of a database.
func (v *Shard) fit(version pgbouncer.Version) error {
	for _, d := range v.Databases {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("shard %s is not offered: database %w", v.ID, err)
		}
		if err := pgbouncer.CheckName(d.Name, version); err != nil {
			return fmt.Errorf("shard %s is not offered: database %w, and name=dbname where PostgreSQL has another name (shards in bouncer.yml)", v.ID, err)
		}
	}
	return nil
}

// claim takes the names of the shard's databases, unless another shard has one of them.
func (v *Shard) claim(owner map[string]config.ShardID) error {
	for _, d := range v.Databases {
		for _, name := range d.Names(v.mode) {
			if other, taken := owner[name]; taken {
				return fmt.Errorf("shard %s is not offered: PgBouncer's database %q already belongs to shard %s; "+
					"list both under shards with databases of their own", v.ID, name, other)
			}
		}
	}
	for _, d := range v.Databases {
		for _, name := range d.Names(v.mode) {
			owner[name] = v.ID
		}
	}
	return nil
}

// replicas lists the replicas that take readers.
func replicas(r cluster.Route) []cluster.RouteMember {
	return slices.DeleteFunc(slices.Clone(r.Replicas), func(m cluster.RouteMember) bool {
		return cluster.Member{Tags: m.Tags}.Tag("noloadbalance")
	})
}

// readersOf chooses as this bouncer does.
func (w *Viewer) readersOf(id config.ShardID, r cluster.Route, mode string) Readers {
	return chooseReaders(r, w.config.Name+"/"+string(id), mode)
}

// chooseReaders picks the replicas for a shard's readers. PgBouncer takes turns
// in a list of hosts, but has one port for all of them: where replicas listen
// on several ports the largest group is taken and, of equal ones, each bouncer
// takes its own.
func chooseReaders(r cluster.Route, seed, mode string) Readers {
	if mode == config.ReadersOff {
		return Readers{unserved: true}
	}
	members := replicas(r)
	switch {
	case len(members) == 0 && mode == config.ReadersStrict:
		return Readers{unserved: true}
	case len(members) == 0:
		return Readers{Host: r.Leader.Host, Port: r.Leader.Port, primary: true}
	case !slices.ContainsFunc(members, func(m cluster.RouteMember) bool { return m.Port != members[0].Port }):
		hosts := make([]string, len(members))
		for i, m := range members {
			hosts[i] = m.Host
		}
		slices.Sort(hosts)
		return Readers{Host: strings.Join(hosts, ","), Port: members[0].Port}
	}
	groups := map[int][]string{}
	for _, m := range members {
		groups[m.Port] = append(groups[m.Port], m.Host)
	}
	largest := 0
	for _, hosts := range groups {
		largest = max(largest, len(hosts))
	}
	maps.DeleteFunc(groups, func(_ int, hosts []string) bool { return len(hosts) < largest })
	ports := slices.Sorted(maps.Keys(groups))
	h := fnv.New32a()
	h.Write([]byte(seed)) // a hash takes every write
	port := ports[int(h.Sum32()%uint32(len(ports)))]
	slices.Sort(groups[port])
	to := Readers{Host: strings.Join(groups[port], ","), Port: port}
	for _, m := range members {
		if m.Port != port {
			to.elsewhere = append(to.elsewhere, m.Name)
		}
	}
	return to
}

// name notes the names of the shard's databases: they are asked for in each pass.
func (v *Shard) name() {
	v.written, v.offered = make([]string, 0, len(v.Databases)), make([]string, 0, 2*len(v.Databases))
	for _, d := range v.Databases {
		v.written, v.offered = append(v.written, d.Name), append(v.offered, d.Name)
		if v.readers.unserved {
			continue
		}
		readers := d.ReadOnlyName()
		v.offered = append(v.offered, readers)
		if v.readers.primary {
			v.written = append(v.written, readers)
		}
	}
	v.offered, v.written = slices.Clip(v.offered), slices.Clip(v.written) // others append to them
	v.to = v.readers.place()
}

// Offered lists all databases of the shard; the list must not be changed.
func (v *Shard) Offered() []string { return v.offered }

// Readers tells where readers of the shard go, in words or as hosts and a port, and the
// replicas that would take them and get none, as they listen on another port.
func (v *Shard) Readers() (to string, elsewhere []string) {
	switch {
	case v.mode == config.ReadersOff:
		return "off", nil
	case v.readers.unserved:
		return "none", nil
	case v.readers.primary:
		return "primary", nil
	}
	return v.to, v.readers.elsewhere
}

// lines are those of its databases in pgbouncer.ini, those of its readers included. A template that
// calls a function for each part of each line takes three times as long for a thousand shards.
func (v *Shard) lines(version pgbouncer.Version) ([]string, error) {
	list := make([]string, 0, 2*len(v.Databases))
	add := func(name, to string, d config.Database) error {
		quoted, err := pgbouncer.QuoteName(name, version)
		if err == nil {
			list = append(list, quoted+to+pgbouncer.QuoteValue(d.DBName)+pgbouncer.FormatOptions(v.options[name]))
		}
		return err
	}
	leads := func(host string, port int) string {
		return " = host=" + pgbouncer.QuoteValue(host) + " port=" + strconv.Itoa(port) + " dbname="
	}
	primary, readers := leads(v.Route.Leader.Host, v.Route.Leader.Port), leads(v.readers.Host, v.readers.Port)
	for _, d := range v.Databases {
		if err := add(d.Name, primary, d); err != nil {
			return nil, err
		}
		if v.readers.Host == "" {
			continue
		}
		if err := add(d.ReadOnlyName(), readers, d); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// place is the hosts and their port.
func (r Readers) place() string {
	hosts := r.Host
	if strings.ContainsAny(hosts, ",:") {
		hosts = "[" + hosts + "]"
	}
	return hosts + ":" + strconv.Itoa(r.Port)
}

// Written lists the databases that lead to the primary: those to be held while
// there is none. The list must not be changed.
func (v *Shard) Written() []string { return v.written }
