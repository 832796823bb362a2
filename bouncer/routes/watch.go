package routes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

const (
	readBound = 5 * time.Second
	// readAgain is the pause before a read that failed is tried again, while
	// something waits for it.
	readAgain = 200 * time.Millisecond
	// manyRoutes is from how many on the list of all routes is put off for one that is poked:
	// for pokePatience until it is read, and then for listDelay.
	manyRoutes   = 100
	pokePatience = 10 * time.Millisecond
	listDelay    = 100 * time.Millisecond
	// One change after the other is waited for, before the list is read, until there was none
	// for gatherQuiet or gatherMost is over.
	gatherQuiet = 5 * time.Millisecond
	gatherMost  = 50 * time.Millisecond
	// manyChanges at once are no lone failovers: until againMost is over the list is read
	// again as long as there is more.
	manyChanges = 16
	againMost   = 100 * time.Millisecond
	// watchRest is the pause before the routes are watched further after news. The question has three
	// processes work, on the host that is to bring PgBouncer to the news: a few milliseconds. What
	// changes meanwhile waits for that anyway.
	watchRest = 3 * time.Millisecond
	// readHolding is how often the routes are read while clients are held.
	readHolding = time.Second
)

// Watcher learns the routes and the handovers from Consul: by one blocking query
// for each (hedgedWatch adds one at another address), by a read of one route when its agent pokes,
// and by consistent reads of all when the table is in doubt.
type Watcher struct {
	log       zerolog.Logger
	pool      *consul.Pool
	table     *Table
	handovers *Handovers
	// changed is called when the table or the handovers have changed.
	changed func()
	pokes   chan struct{}
	// ends has an element when a handover has ended.
	ends chan struct{}
	// reads limits how fast pokes are followed.
	reads *rate.Limiter
	// reached is how far the blocking queries have come, poked the reads of single routes.
	reached, poked *progress
	hurry          chan struct{}
	// last is the index of the last list of all routes, of Watch's goroutine alone.
	last uint64
	// listing: the list of all routes is being read.
	listing atomic.Bool
	// doubted: something is in doubt, and the list of all routes was not read since.
	doubted atomic.Bool
	// Holding reports whether clients are held: then the routes are read again and
	// again, in case that nobody else tells of the new primary.
	Holding func() bool

	mu sync.Mutex
	// since is when Consul answered first after a failure, or since when it
	// does not.
	since    time.Time
	err      error
	answered bool
	// handoverErr is why the handovers cannot be watched.
	handoverErr error
}

func NewWatcher(log zerolog.Logger, pool *consul.Pool, b *Table, h *Handovers, changed func()) *Watcher {
	return &Watcher{
		log: log, pool: pool, table: b, handovers: h, changed: changed, pokes: make(chan struct{}, 1), ends: make(chan struct{}, 1), since: time.Now(),
		reads: rate.NewLimiter(20, 20), reached: newProgress(), poked: newProgress(), hurry: make(chan struct{}, 1), Holding: func() bool { return false },
	}
}

// Watch follows the routes until ctx is done.
func (w *Watcher) Watch(ctx context.Context) {
	prefix := w.table.keys.Routes()
	var guarded sync.WaitGroup
	defer guarded.Wait()
	guarded.Go(func() { w.hedgedWatch(ctx, prefix) })
	consul.Blocking(ctx, watchRate, func(index uint64) (uint64, error) {
		if index > 0 && w.table.size() >= manyRoutes {
			next, err := w.awaitChange(ctx, prefix, index)
			if err != nil || next <= index {
				return next, err
			}
			return w.list(ctx, prefix, 0, w.awaitQuiet(ctx, prefix, next))
		}
		return w.list(ctx, prefix, index, 0)
	})
}

// list takes the list of all routes in, when it is newer than index. One that knows of reached will
// do: where that is not 0, whichever server of Consul has it may answer. When many have changed at once more are likely to,
// while it is read: it is read again then, a few times, before anything is done about it. A
// thousand changes take one RELOAD, and not one for those that came first.
func (w *Watcher) list(ctx context.Context, prefix string, index, reached uint64) (next uint64, err error) {
	w.listing.Store(index == 0)
	defer w.listing.Store(false)
	begun := time.Now()
	var outcomes []outcome
	for again := true; again; {
		changed := 0
		var a Answer
		next, err = w.ask(ctx, prefix, index, reached, w.failed, func(c *api.Client, options *api.QueryOptions) (meta *api.QueryMeta, err error) {
			a, meta, err = w.readList(c, options)
			return meta, err
		}, func(meta *api.QueryMeta) {
			a.KnownLeader, a.Index = true, meta.LastIndex
			out := w.table.Merge(a)
			w.works() // when it is known what Consul has answered
			changed, outcomes = len(out.Changed), append(outcomes, out)
		})
		if err == nil && next > 0 {
			if next < w.last { // Consul may have been set back
				w.poked.set(prefix, 0)
			}
			w.last = next
		}
		again = err == nil && changed >= manyChanges && time.Since(begun) < againMost
		if again {
			reached, again = w.hasMore(ctx, prefix, next)
		}
		if again { // the rest of them is waited for, as for the first list
			reached, _ = w.gather(ctx, prefix, reached, gatherQuiet)
		}
		index = 0
	}
	w.act(outcomes...)
	if slices.ContainsFunc(outcomes, outcome.isNews) {
		rest(ctx, watchRest)
	}
	return next, err
}

// rest waits for so long.
func rest(ctx context.Context, pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

// hasMore reports whether any route has changed since index, and at which one.
func (w *Watcher) hasMore(ctx context.Context, prefix string, index uint64) (next uint64, more bool) {
	next, _, err := w.queryNames(ctx, prefix, 0, 0)
	return next, err == nil && next > index
}

// queryNames asks for the names of the routes' namespaces, waiting so long for a change since index.
func (w *Watcher) queryNames(ctx context.Context, prefix string, index uint64, wait time.Duration) (next uint64, inUse int, err error) {
	next, inUse, err = w.query(ctx, index, wait, func(inUse int, options *api.QueryOptions) (*api.QueryMeta, error) {
		_, meta, err := w.pool.Client(inUse).KV().Keys(prefix, namespaces, options)
		return meta, err
	})
	if err == nil && next >= index {
		w.works()
		w.reached.set(prefix, next)
	}
	return next, inUse, err
}

// namespaces is the separator of keys: those up to the next one are few, and change as the
// routes below do.
const namespaces = "/"

// awaitChange waits until any route has changed since index. The list of many routes takes
// longer to read than PgBouncer's RELOAD: the names of their namespaces are enough for that.
func (w *Watcher) awaitChange(ctx context.Context, prefix string, index uint64) (uint64, error) {
	next, number, err := w.queryNames(ctx, prefix, index, watchWait)
	if err != nil && ctx.Err() == nil {
		w.lost(prefix, number, err, w.failed)
	}
	return next, err
}

// awaitQuiet waits for what is worth to be waited for before the list of all routes is read: for
// the changes that come with the one of index, and while the route that has changed is brought to
// PgBouncer, if its agent has told of it and it was read by itself: the list may have more news,
// but not of that one. It returns the index that was reached.
func (w *Watcher) awaitQuiet(ctx context.Context, prefix string, index uint64) (reached uint64) {
	index, rested := w.gather(ctx, prefix, index, pokePatience)
	if !rested || !w.poked.has(prefix, index) {
		return index
	}
	select {
	case <-time.After(listDelay):
	case <-w.hurry:
	case <-ctx.Done():
	}
	return index
}

// gather waits until no route has changed since index for so long at first, then for gatherQuiet, or reports
// false when gatherMost is over. It returns the index that was reached.
func (w *Watcher) gather(ctx context.Context, prefix string, index uint64, wait time.Duration) (reached uint64, rested bool) {
	for end := time.Now().Add(gatherMost); ; wait = gatherQuiet {
		next, _, err := w.queryNames(ctx, prefix, index, wait)
		if err != nil || next <= index {
			return index, true
		}
		if index = next; time.Now().After(end) {
			return index, false
		}
	}
}

// Hurry has the list of all routes put off no longer.
func (w *Watcher) Hurry() {
	select {
	case w.hurry <- struct{}{}:
	default:
	}
}

// WatchHandovers follows the handovers until ctx is done.
func (w *Watcher) WatchHandovers(ctx context.Context) {
	w.follow(ctx, w.handovers.keys.Handovers(), w.noHandovers, func(pairs api.KVPairs, meta *api.QueryMeta) {
		w.noHandovers(nil)
		changed, ended, problems := w.handovers.merge(pairs, meta.LastIndex)
		for _, p := range problems {
			w.log.Error().Str("key", p.Key).Msg(p.Err.Error())
		}
		w.heard(changed, ended)
	})
}

// heard acts on what was heard of handovers.
func (w *Watcher) heard(changed, ended bool) {
	if ended {
		select {
		case w.ends <- struct{}{}:
		default:
		}
	}
	if changed {
		w.changed()
	}
}

// noHandovers says so once when the handovers cannot be watched while the routes
// can, a missing permission for instance: then clients of a planned switchover
// see errors.
func (w *Watcher) noHandovers(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.handoverErr == nil && w.err == nil {
		w.log.Warn().Err(err).Msg("handovers cannot be watched")
	}
	w.handoverErr = err
}

// take hands an answer to the table and says what it made of it.
func (w *Watcher) take(a Answer) {
	out := w.table.Merge(a)
	w.works()
	w.act(out)
}

// act has what the table has made of answers acted upon, and then says it: to write the log takes
// longer than to read a route.
func (w *Watcher) act(outcomes ...outcome) {
	if slices.ContainsFunc(outcomes, outcome.isNews) {
		w.changed()
	}
	for _, out := range outcomes {
		w.say(out)
	}
}

// say tells what the table has made of an answer.
func (w *Watcher) say(out outcome) {
	for _, p := range out.News {
		event := w.log.Error().Str("key", p.Key)
		if errors.Is(p.Err, errForeign) || errors.Is(p.Err, errOlder) {
			event = event.Bool("alarm", true)
		}
		event.Msg(p.Err.Error())
	}
	for _, p := range out.Solved {
		w.log.Info().Str("key", p.Key).Msg("solved: " + p.Err.Error())
	}
	if len(out.Changed) > 0 {
		w.log.Info().Interface("shards", abridge(out.Changed)).Msg("routes have changed")
	}
	if out.Doubt {
		w.doubted.Store(true)
		w.Poke()
	}
}

func abridge(ids []config.ShardID) []config.ShardID { return ids[:min(len(ids), 20)] }

// Poke asks for a consistent read; one that is asked for already will do.
func (w *Watcher) Poke() {
	select {
	case w.pokes <- struct{}{}:
	default:
	}
}

// Serve follows pokes until ctx is done.
func (w *Watcher) Serve(ctx context.Context) {
	again := time.NewTicker(readHolding)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ends:
			if w.readEnded(ctx) {
				continue
			}
		case <-w.pokes:
		case <-again.C:
			if !w.Holding() {
				continue
			}
		}
		if w.reads.Wait(ctx) != nil {
			return
		}
		if w.Refresh(ctx) != nil && (w.doubted.Load() || len(w.handovers.ending()) > 0) {
			select {
			case <-time.After(readAgain):
			case <-ctx.Done():
			}
			w.Poke()
		}
	}
}

// readEnded reads the route of each shard whose handover has ended, alone: whoever may write one shard's
// keys would have all bouncers list all routes. False: the list is to be read, as they are many, or one
// could not be read.
func (w *Watcher) readEnded(ctx context.Context) bool {
	ids := w.handovers.ending()
	if len(ids) >= manyChanges {
		return false
	}
	for _, id := range ids {
		begun := w.handovers.clock()
		if err := w.ReadRoute(ctx, id, NoIndex); err != nil {
			return ctx.Err() != nil
		}
		if w.handovers.refreshed(begun, id) {
			w.changed()
		}
	}
	return true
}

// Refresh reads the routes consistently and takes them in.
func (w *Watcher) Refresh(ctx context.Context) error {
	begun, doubted := time.Now(), w.doubted.Swap(false)
	a, err := w.ReadAll(ctx)
	if err != nil {
		if doubted {
			w.doubted.Store(true)
			w.Poke() // it may not be Serve that asked
		}
		if ctx.Err() == nil {
			w.failed(err)
		}
		return err
	}
	w.take(a)
	if w.handovers.refreshed(begun) {
		w.changed()
	}
	return nil
}

// ReadAll reads all routes consistently, from the first Consul address that answers.
func (w *Watcher) ReadAll(ctx context.Context) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	epoch := w.table.now()
	a, err := consul.Hedged(ctx, w.pool, func(ctx context.Context, c *api.Client) (Answer, error) {
		a, meta, err := w.readList(c, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err := consul.Led(meta, err); err != nil {
			return Answer{}, err
		}
		a.KnownLeader, a.Consistent, a.Epoch = true, true, epoch
		return a, nil
	})
	if err != nil {
		return Answer{}, fmt.Errorf("reading %s: %w", w.table.keys.Routes(), err)
	}
	return a, nil
}

// readList reads the list of all routes, and those that are new while it comes.
func (w *Watcher) readList(c *api.Client, options *api.QueryOptions) (Answer, *api.QueryMeta, error) {
	routes := w.table.gather()
	_, meta, err := c.KV().List(w.table.keys.Routes(), options.WithContext(consul.EachPair(options.Context(), func(p api.KVPair) {
		routes.add(Pair{p.Key, p.Value, p.ModifyIndex, p.CreateIndex})
	})))
	var a Answer
	a.Pairs, a.read = routes.done()
	if err == nil {
		a.Filtered = meta.ResultsFilteredByACLs
	}
	return a, meta, err
}

// ReadHandover reads the handover of one shard consistently.
func (w *Watcher) ReadHandover(ctx context.Context, id config.ShardID) error {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	key, before := w.handovers.keys.Handovers()+string(id), w.handovers.indexOf(id)
	pair, err := consul.Hedged(ctx, w.pool, func(ctx context.Context, c *api.Client) (*api.KVPair, error) {
		pair, meta, err := c.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return pair, consul.Led(meta, err)
	})
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	changed, ended, err := w.handovers.put(id, pair, before)
	w.heard(changed, ended)
	return err
}

// ReadRoute reads the route of one shard. Consul is said to have had it at index; NoIndex has it read
// consistently.
func (w *Watcher) ReadRoute(ctx context.Context, id config.ShardID, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	key := w.table.keys.Routes() + string(id)
	read := func(consistent bool) (*api.KVPair, error) {
		return consul.Hedged(ctx, w.pool, func(ctx context.Context, c *api.Client) (*api.KVPair, error) {
			pair, meta, err := c.KV().Get(key, (&api.QueryOptions{RequireConsistent: consistent}).WithContext(ctx))
			return pair, consul.Led(meta, err)
		})
	}
	found, err := (*api.KVPair)(nil), error(nil)
	if index != NoIndex { // what is known then or later is as new as what was said
		found, err = read(false)
	}
	if found == nil || err != nil || found.ModifyIndex < index {
		found, err = read(true)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	if found != nil {
		defer w.poked.raise(w.table.keys.Routes(), found.ModifyIndex)
		w.act(w.table.mergeOne(id, Pair{found.Key, found.Value, found.ModifyIndex, found.CreateIndex}))
	}
	return nil
}

// works and failed say so once per change.
func (w *Watcher) works() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.answered && w.err == nil {
		return
	}
	if w.err != nil {
		w.log.Info().Dur("after", time.Since(w.since)).Msg("Consul answers again")
	}
	w.answered, w.err, w.since = true, nil, time.Now()
}

func (w *Watcher) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.since = time.Now()
		w.log.Warn().Err(err).Msg("Consul cannot be reached; PgBouncer keeps the last good routes until it is back")
	}
	w.err = err
}

func (w *Watcher) HasAnswered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered
}

// ConsulStatus is what /status says of Consul.
type ConsulStatus struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Error     string    `json:"error,omitempty"`
}

func (w *Watcher) Status() ConsulStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := ConsulStatus{Connected: w.answered && w.err == nil, Since: w.since.UTC()}
	if w.err != nil {
		s.Error = w.err.Error()
	}
	return s
}
