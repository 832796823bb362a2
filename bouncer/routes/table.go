package routes

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Known is what a bouncer knows of one shard.
type Known struct {
	Route cluster.Route `json:"route"`
	// ModifyIndex is the index at which Consul had this value.
	ModifyIndex uint64 `json:"modify_index"`
	// First is when the shard became known here, CreateIndex the index at which Consul got
	// its key: of two shards that want one name of a database, the elder has it.
	First       time.Time `json:"first,omitzero"`
	CreateIndex uint64    `json:"create_index,omitempty"`
	// Timeline is the highest one on which a primary served before this route.
	Timeline int `json:"timeline,omitempty"`
	// Gone: the keys of all shards vanished at once, this one's is missing
	// still. A route of whatever system identifier may take its place.
	Gone bool `json:"gone,omitempty"`
	// Patroni: this comes from Patroni's keys, not from a route.
	Patroni bool `json:"patroni,omitempty"`
	// Confirmed: Consul said so since this bouncer started. What comes from the
	// state file is good enough to send clients to, not to hold them back.
	Confirmed bool `json:"-"`
	// Revision is another one, and never 0, whenever any of this has changed.
	Revision uint64 `json:"-"`
}

// Answer is what Consul said of the routes prefix.
type Answer struct {
	Pairs []Pair
	// KnownLeader is Consul's word that it has a leader.
	KnownLeader bool
	// Filtered is Consul's word that there are keys which the token may not read.
	Filtered bool
	// Index is that of a blocking query's answer; 0: it is none.
	Index uint64
	// Consistent: read through a quorum, by somebody who noted Epoch before.
	Consistent bool
	Epoch      uint64
	// read is what the values of Pairs say, as far as they were read.
	read []*parsed
}

type Pair struct {
	Key         string
	Value       []byte
	ModifyIndex uint64
	CreateIndex uint64
}

// outcome is what an answer changed.
type outcome struct {
	// Changed shards, in order of their names.
	Changed []config.ShardID
	// Doubt: something in the answer must be confirmed by a consistent read
	// before it is believed.
	Doubt bool
	// News are the problems that are new, Solved those that are over.
	News, Solved []problem
}

// isNews reports whether something is to be done about it.
func (o outcome) isNews() bool { return len(o.Changed) > 0 || len(o.News) > 0 || len(o.Solved) > 0 }

// problem is what is wrong with one key, or with the whole answer (Key empty).
type problem struct {
	Key string
	Err error
}

var (
	// errForeign says that a route belongs to another PostgreSQL cluster.
	errForeign = errors.New("belongs to another PostgreSQL cluster")
	// errOlder says that a route leads to where the shard was before.
	errOlder = errors.New("is of an older timeline, as after the restore of a snapshot of Consul")
)

// newerThan reports how a route is older than what is known of its shard: a timeline of
// which clients were served never comes back, in whatever state its leader is. A member that is about
// to be promoted is on the one before, which may be that of a primary that nobody heard of the next one
// from; while it is, its PostgreSQL may go down there, too.
func (k Known) newerThan(route cluster.Route) error {
	least := k.served()
	switch route.State {
	case cluster.RouteOpen:
	case cluster.RoutePromoting:
		least--
	default:
		least = min(least, k.Route.Timeline)
	}
	if route.Timeline < least {
		return fmt.Errorf("has timeline %d, known is %d: it %w", route.Timeline, k.served(), errOlder)
	}
	return nil
}

// served is the highest timeline on which a primary served, as far as is known.
func (k Known) served() int {
	if k.Route.State != cluster.RouteOpen {
		return k.Timeline
	}
	return max(k.Timeline, k.Route.Timeline)
}

// Table holds what is known of every shard. Its rules: an answer that Consul
// gave without a leader changes nothing; a value that cannot be read changes
// nothing; a route of another PostgreSQL cluster that does not say that it succeeds
// the known one, or of an older timeline, changes nothing; what is older
// than what is known, or has vanished, is believed only when a consistent read
// says it too; and neither does a shard of the configuration vanish, nor do all
// shards at once, unless that is allowed.
type Table struct {
	keys       cluster.Keys
	only       map[config.ShardID]bool // nil: all
	patroni    map[config.ShardID]bool // those whose routes are not looked at
	allowEmpty bool

	mu sync.Mutex
	// shards are replaced, never changed.
	shards   map[config.ShardID]*Known
	problems map[string]error
	// wrong is what is wrong with shards that Patroni runs.
	wrong map[string]error
	// epoch grows with each merge, so that a slow read is not taken for news.
	epoch uint64
	// changes grows with each change of shards, revisions with each entry that is set.
	changes, revisions uint64
	// ahead are the shards whose route was read by itself, and by no list yet: one that was begun
	// before may have an older one. listed is the index of the last list.
	ahead  map[config.ShardID]bool
	listed uint64
	// batchTime is when the shards became known that the answer of epoch batch brought.
	batch     uint64
	batchTime time.Time
	pace      pace
}

func NewTable(c config.Config) *Table {
	b := &Table{
		keys: c.Keys(), allowEmpty: c.AllowEmpty, shards: map[config.ShardID]*Known{}, problems: map[string]error{},
		patroni: map[config.ShardID]bool{}, wrong: map[string]error{}, ahead: map[config.ShardID]bool{}, pace: newPace(),
	}
	if !c.ServesAll() {
		b.only = map[config.ShardID]bool{}
		for _, s := range c.Shards {
			b.only[s.ID()] = true
			b.patroni[s.ID()] = s.Patroni
		}
	}
	return b
}

// now returns the epoch; a consistent read notes it before it begins.
func (b *Table) now() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.epoch
}

func (b *Table) set(id config.ShardID, k Known) {
	b.revisions++
	k.Revision = b.revisions
	b.shards[id] = &k
}

// Known returns what is known of every shard, and a number that is the same as
// long as that is.
func (b *Table) Known() (shards map[config.ShardID]Known, changes uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	shards = make(map[config.ShardID]Known, len(b.shards))
	for id, k := range b.shards {
		shards[id] = *k
	}
	return shards, b.changes
}

// Each calls a function with what is known of every shard, of which it must change nothing, and
// returns how many there are, and Version.
func (b *Table) Each(call func(config.ShardID, *Known)) (n int, changes uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, k := range b.shards {
		call(id, k)
	}
	return len(b.shards), b.changes
}

// size is the number of shards that are known.
func (b *Table) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.shards)
}

// Version is the number that known returns.
func (b *Table) Version() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changes
}

// Has reports whether a shard's route is known as Consul had it at index, or later.
func (b *Table) Has(id config.ShardID, index uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k, found := b.heard(id)
	return found && k.Confirmed && k.ModifyIndex >= index
}

// Trouble returns the problems by key, or by shard where Patroni runs it.
func (b *Table) Trouble() map[string]error {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := maps.Clone(b.problems)
	maps.Copy(all, b.wrong)
	for id := range b.pace.flapping {
		if key := b.keys.Routes() + string(id); all[key] == nil {
			all[key] = errFlapping(id)
		}
	}
	return all
}

// Restore puts back what a state file had.
func (b *Table) Restore(shards map[config.ShardID]Known) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, k := range shards {
		if b.Serves(id) && checkShard(id) == nil && k.Route.Validate() == nil {
			k.Confirmed = false
			b.set(id, k)
			b.changes++
		}
	}
}

func (b *Table) Serves(id config.ShardID) bool { return b.only == nil || b.only[id] }

// Merge takes an answer in.
func (b *Table) Merge(a Answer) outcome {
	var out outcome
	if !a.KnownLeader {
		return out
	}
	if a.read == nil {
		all := b.gather()
		for some := range slices.Chunk(a.Pairs, readAtOnce) {
			all.begin(some)
		}
		_, a.read = all.done()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// An answer that began before the last merge may be older than it.
	final := a.Consistent && a.Epoch == b.epoch
	b.epoch++
	if a.Index < b.listed || final { // Consul may have been set back
		clear(b.ahead)
	}
	b.listed = a.Index
	problems, present := map[string]error{}, make(map[config.ShardID]bool, len(a.Pairs))
	for i, p := range a.Pairs {
		id, err := b.shardOf(p.Key)
		if err != nil {
			problems[p.Key] = err
			continue
		}
		if !b.Serves(id) || b.patroni[id] {
			continue
		}
		present[id] = true
		if k, _ := b.heard(id); b.ahead[id] && p.ModifyIndex < k.ModifyIndex && a.Index > 0 && a.Index < k.ModifyIndex {
			continue
		}
		delete(b.ahead, id)
		b.take(id, p, a.read[i], final, problems, &out)
	}
	b.forget(present, final, a.Filtered, problems, &out)
	out.News, out.Solved = b.report(problems)
	slices.Sort(out.Changed)
	if len(out.Changed) > 0 {
		b.changes++
	}
	return out
}

// mergeOne takes in one route that was read consistently. What is older than what is
// known, or has vanished, is left to a read of all.
func (b *Table) mergeOne(id config.ShardID, p Pair) outcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out outcome
	if !b.Serves(id) || b.patroni[id] {
		return out
	}
	problems := maps.Clone(b.problems)
	before, _ := b.heard(id)
	delete(problems, p.Key)
	b.take(id, p, nil, false, problems, &out)
	out.News, out.Solved = b.report(problems)
	if after, _ := b.heard(id); after.ModifyIndex != before.ModifyIndex {
		b.epoch++ // a read of all that has begun may be older
		b.ahead[id] = true
	}
	if len(out.Changed) > 0 {
		b.changes++
	}
	return out
}

// Knows reports whether a shard is served here and there is, or was, a route of it.
func (b *Table) Knows(id config.ShardID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, found := b.shards[id]
	return found && b.Serves(id)
}

// Missing are configured shards of which nothing is known.
func (b *Table) Missing() (list []config.ShardID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.only {
		if _, found := b.shards[id]; !found {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// mostHosts is how many hosts of one shard's Hosts has: whoever writes its route may name as many as
// it likes, and each costs a look for an address.
const mostHosts = 32

// Hosts are those of the members that routes have, of each shard the first ones.
func (b *Table) Hosts() (hosts []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := map[string]bool{}
	for _, k := range b.shards {
		members := append([]cluster.RouteMember{k.Route.Leader}, k.Route.Replicas...)
		for _, m := range members[:min(len(members), mostHosts)] {
			if !seen[m.Host] {
				seen[m.Host] = true
				hosts = append(hosts, m.Host)
			}
		}
	}
	return hosts
}

// first is since when a shard is known, now for a new one. Those of one answer have one
// time.
func (b *Table) first(id config.ShardID) time.Time {
	if old, have := b.heard(id); have {
		return old.First
	}
	if b.batch != b.epoch || b.batchTime.IsZero() {
		b.batch, b.batchTime = b.epoch, time.Now().UTC()
	}
	return b.batchTime
}

// parsed is what a value says.
type parsed struct {
	route cluster.Route
	err   error
}

// gathered are routes of a list that comes. The values that were changed, as far as their indexes tell, are read
// meanwhile. When they are many, as after the loss of a zone, every processor reads some, and nobody
// waits for the table: the pass that brings PgBouncer to those before them asks for it, too.
type gathered struct {
	table   *Table
	next    []Pair // which are too few yet
	some    []*someRoutes
	reading errgroup.Group
}

// someRoutes are read one after the other; read is nil where none was changed.
type someRoutes struct {
	pairs []Pair
	read  []*parsed
}

func (b *Table) gather() *gathered {
	g := &gathered{table: b}
	g.reading.SetLimit(runtime.GOMAXPROCS(0))
	return g
}

// add adds a route.
func (g *gathered) add(p Pair) {
	if g.next == nil {
		g.next = make([]Pair, 0, readAtOnce)
	}
	if g.next = append(g.next, p); len(g.next) == readAtOnce {
		g.begin(g.next)
		g.next = nil
	}
}

// begin begins to read some.
func (g *gathered) begin(pairs []Pair) {
	some := &someRoutes{pairs: pairs}
	g.some = append(g.some, some)
	fresh := g.table.unread(pairs)
	if len(fresh) == 0 {
		return
	}
	some.read = make([]*parsed, len(pairs))
	g.reading.Go(func() error {
		for _, i := range fresh {
			route, err := cluster.ParseRoute(pairs[i].Value)
			some.read[i] = &parsed{route, err}
		}
		return nil
	})
}

// done is all that was added, and what was read of it.
func (g *gathered) done() (pairs []Pair, read []*parsed) {
	if g.next != nil {
		g.begin(g.next)
	}
	_ = g.reading.Wait() // each has its own error
	pairs, read = make([]Pair, 0, len(g.some)*readAtOnce), make([]*parsed, len(g.some)*readAtOnce)
	for _, some := range g.some {
		copy(read[len(pairs):], some.read)
		pairs = append(pairs, some.pairs...)
	}
	return pairs, read[:len(pairs)]
}

// unread are the places of values that are not those that are known.
func (b *Table) unread(pairs []Pair) (fresh []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, p := range pairs {
		id, err := b.shardOf(p.Key)
		if err != nil {
			continue
		}
		if old, have := b.heard(id); !have || p.ModifyIndex != old.ModifyIndex {
			fresh = append(fresh, i)
		}
	}
	return fresh
}

// shardOf is the shard whose route a key has. Its name is part of the key: there may be thousands,
// again and again.
func (b *Table) shardOf(key string) (config.ShardID, error) {
	namespace, scope, err := b.keys.SplitRoute(key)
	if err != nil {
		return "", err
	}
	return config.ShardID(key[len(key)-len(namespace)-len("/")-len(scope):]), nil
}

// readAtOnce is how many values are read one after the other.
const readAtOnce = 64

// take takes one route in; read is what its value says, nil: it was not read yet.
func (b *Table) take(id config.ShardID, p Pair, read *parsed, final bool, problems map[string]error, out *outcome) {
	old, have := b.heard(id)
	if have && !old.Patroni && p.ModifyIndex < old.ModifyIndex && !final {
		out.Doubt = true
		if said := b.problems[p.Key]; said != nil { // nor is that over
			problems[p.Key] = said
		}
		return
	}
	if have && !final && old.Confirmed && !old.Gone && !old.Patroni && p.ModifyIndex == old.ModifyIndex {
		return // the same value: a thousand routes are not read for the sake of one
	}
	if read == nil {
		route, err := cluster.ParseRoute(p.Value)
		read = &parsed{route, err}
	}
	err := b.refuses(id, old, have, read)
	b.complain(id, p.Key, err, problems)
	if err != nil {
		return
	}
	now := Known{Route: read.route, ModifyIndex: p.ModifyIndex, First: b.first(id), CreateIndex: p.CreateIndex, Confirmed: true}
	if have && !old.Gone {
		now.Timeline = old.served()
	}
	if b.admit(id, now) {
		out.Changed = append(out.Changed, id)
	}
}

// refuses tells why a route is not taken in after what is known of its shard.
func (b *Table) refuses(id config.ShardID, old Known, have bool, read *parsed) error {
	route, err := read.route, read.err
	if e := checkShard(id); e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("route of shard %s is malformed; its last good value stays: %w", printable.Text(string(id)), err)
	}
	if !have || old.Gone {
		return nil
	}
	switch known := old.Route.SystemIdentifier; {
	case route.SystemIdentifier == known:
	case route.Announces(known) && route.Timeline <= old.served():
		// An upgrade goes on with the next timeline: this was put together by hand, or comes back.
		return fmt.Errorf("route of shard %s announces system identifier %s after %s on timeline %d, known is %d: it %w and is refused; "+
			"if the shard was made anew on purpose, delete the key first", id, route.SystemIdentifier, known, route.Timeline, old.served(), errOlder)
	case !route.Announces(known):
		return fmt.Errorf("route of shard %s has system identifier %s, known is %s: it %w and is refused; "+
			"if the shard was made anew on purpose, delete the key first", id, route.SystemIdentifier, known, errForeign)
	}
	if err := old.newerThan(route); err != nil {
		return fmt.Errorf("route of shard %s %w and is refused; if the shard was set back on purpose, delete the key first", id, err)
	}
	return nil
}

// forget lets the shards go whose keys are gone, unless the configuration names them:
// somebody may have deleted a key by mistake, or an ACL filters the list. Where Consul says that one
// does, none goes. Those that vanished all at once stay, also when some of them come back: that is a Consul which lost its data
// and is being filled again, not somebody who takes shards out of service.
func (b *Table) forget(present map[config.ShardID]bool, final, filtered bool, problems map[string]error, out *outcome) {
	var fresh, gone []config.ShardID
	routed := 0
	for id, k := range b.shards {
		if k.Patroni {
			continue
		}
		routed++
		switch {
		case present[id]:
		case k.Gone:
			gone = append(gone, id)
		default:
			fresh = append(fresh, id)
		}
	}
	slices.Sort(fresh)
	for id := range b.pace.waiting {
		if _, known := b.shards[id]; !known && !present[id] {
			delete(b.pace.waiting, id)
		}
	}
	if filtered && len(fresh) > 0 && b.only == nil && !b.allowEmpty {
		problems[""] = fmt.Errorf("the routes of %v are not among those that the token may read below %s, which are not all: their last known routes stay "+
			"(give it the right to read the whole prefix, list the shards in bouncer.yml, or let them go by allow_empty: true)", fresh, b.keys.Routes())
		return
	}
	switch {
	case len(fresh) > 0 && !final:
		out.Doubt = true
	case b.allowEmpty || b.only == nil && len(fresh) > 0 && len(fresh)+len(gone) < routed:
		if b.allowEmpty {
			fresh, gone = append(fresh, gone...), nil
		}
		for _, id := range fresh {
			delete(b.shards, id)
			delete(b.pace.waiting, id)
			out.Changed = append(out.Changed, id)
		}
	default:
		for _, id := range fresh {
			b.lose(id)
		}
		gone = append(gone, fresh...)
	}
	if len(gone) > 0 {
		slices.Sort(gone)
		if b.only != nil {
			problems[""] = fmt.Errorf("the routes of %v have vanished from %s; their last known routes stay "+
				"(a shard leaves when it is taken out of shards in bouncer.yml)", gone, b.keys.Routes())
			return
		}
		problems[""] = fmt.Errorf("the routes of all shards have vanished from %s at once; still missing are %v, "+
			"whose last known routes stay (allow_empty: true lets them go)", b.keys.Routes(), gone)
	}
}

// report remembers the problems and returns those that came and went.
func (b *Table) report(problems map[string]error) (news, solved []problem) {
	for _, key := range slices.Sorted(maps.Keys(problems)) {
		if old := b.problems[key]; old == nil || old.Error() != problems[key].Error() {
			news = append(news, problem{key, problems[key]})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(b.problems)) {
		if problems[key] == nil {
			solved = append(solved, problem{key, b.problems[key]})
		}
	}
	b.problems = problems
	return news, solved
}

// checkShard refuses the key of a route that does not name a shard; the members that
// a route names have been checked by cluster.Route.
func checkShard(id config.ShardID) error {
	namespace, scope := id.Split()
	if err := cluster.CheckNamespace(namespace); err != nil {
		return fmt.Errorf("its namespace %s %w", printable.Quote(namespace), err)
	}
	if err := cluster.CheckName(scope); err != nil {
		return fmt.Errorf("its scope %s %w", printable.Quote(scope), err)
	}
	return nil
}
