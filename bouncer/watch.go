package bouncer

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	// readHolding is how often the routes are read while clients are held.
	readHolding = time.Second
)

// watcher learns the routes and the handovers from Consul: by one blocking query
// for each, and by consistent reads of the routes when it is poked or when the
// book is in doubt.
type watcher struct {
	log       zerolog.Logger
	pool      *consul.Pool
	book      *book
	handovers *handovers
	// changed is called when the book or the handovers have changed.
	changed func()
	pokes   chan struct{}
	// reads limits how fast pokes are followed.
	reads *rate.Limiter
	// reached is how far the blocking queries have come.
	reached *progress
	// holding tells whether clients are held: then the routes are read again and
	// again, in case that nobody else tells of the new primary.
	holding func() bool

	mu sync.Mutex
	// since is when Consul answered first after a failure, or since when it
	// does not.
	since    time.Time
	err      error
	answered bool
	// handoverErr is why the handovers cannot be watched.
	handoverErr error
}

func newWatcher(log zerolog.Logger, pool *consul.Pool, b *book, h *handovers, changed func()) *watcher {
	return &watcher{
		log: log, pool: pool, book: b, handovers: h, changed: changed, pokes: make(chan struct{}, 1), since: time.Now(),
		reads: rate.NewLimiter(20, 20), reached: newProgress(), holding: func() bool { return false },
	}
}

// watch follows the routes until ctx is done.
func (w *watcher) watch(ctx context.Context) {
	prefix := w.book.keys.Routes()
	var guarded sync.WaitGroup
	defer guarded.Wait()
	guarded.Go(func() { w.sentinel(ctx, prefix) })
	w.follow(ctx, prefix, w.failed, func(pairs api.KVPairs, _ uint64) {
		w.take(answer{Pairs: convert(pairs), KnownLeader: true})
	})
}

// watchHandovers follows the handovers until ctx is done.
func (w *watcher) watchHandovers(ctx context.Context) {
	w.follow(ctx, w.handovers.keys.Handovers(), w.noHandovers, func(pairs api.KVPairs, index uint64) {
		w.noHandovers(nil)
		changed, ended, problems := w.handovers.merge(pairs, index)
		for _, p := range problems {
			w.log.Error().Str("key", p.Key).Msg(p.Err.Error())
		}
		w.heard(changed, ended)
	})
}

// heard acts on what was heard of handovers.
func (w *watcher) heard(changed, ended bool) {
	if ended {
		w.poke()
	}
	if changed {
		w.changed()
	}
}

// noHandovers says so once when the handovers cannot be watched while the routes
// can, a missing permission for instance: then clients of a planned switchover
// see errors.
func (w *watcher) noHandovers(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.handoverErr == nil && w.err == nil {
		w.log.Warn().Err(err).Msg("handovers cannot be watched")
	}
	w.handoverErr = err
}

// take hands an answer to the book and says what it made of it.
func (w *watcher) take(a answer) {
	w.works()
	w.note(w.book.merge(a))
}

// note says what the book has made of an answer, and has it acted upon.
func (w *watcher) note(out outcome) {
	for _, p := range out.News {
		event := w.log.Error().Str("key", p.Key)
		if errors.Is(p.Err, errForeign) {
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
		w.poke()
	}
	if len(out.Changed) > 0 || len(out.News) > 0 || len(out.Solved) > 0 {
		w.changed()
	}
}

func abridge(ids []config.ShardID) []config.ShardID { return ids[:min(len(ids), 20)] }

func convert(pairs api.KVPairs) []pair {
	list := make([]pair, len(pairs))
	for i, p := range pairs {
		list[i] = pair{p.Key, p.Value, p.ModifyIndex, p.CreateIndex}
	}
	return list
}

// poke asks for a consistent read; one that is asked for already will do.
func (w *watcher) poke() {
	select {
	case w.pokes <- struct{}{}:
	default:
	}
}

// serve follows pokes until ctx is done.
func (w *watcher) serve(ctx context.Context) {
	again := time.NewTicker(readHolding)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.pokes:
		case <-again.C:
			if !w.holding() {
				continue
			}
		}
		if w.reads.Wait(ctx) != nil {
			return
		}
		if w.refresh(ctx) != nil && w.handovers.ending() {
			select {
			case <-time.After(readAgain):
			case <-ctx.Done():
			}
			w.poke()
		}
	}
}

// refresh reads the routes consistently and takes them in.
func (w *watcher) refresh(ctx context.Context) error {
	begun := time.Now()
	a, err := w.read(ctx)
	if err != nil {
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

// read reads all routes consistently, from the first Consul address that answers.
func (w *watcher) read(ctx context.Context) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	epoch := w.book.now()
	pairs, err := consul.Hedged(ctx, w.pool, func(ctx context.Context, c *api.Client) (api.KVPairs, error) {
		pairs, meta, err := c.KV().List(w.book.keys.Routes(), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return pairs, consul.Led(meta, err)
	})
	if err != nil {
		return answer{}, fmt.Errorf("reading %s: %w", w.book.keys.Routes(), err)
	}
	return answer{Pairs: convert(pairs), KnownLeader: true, Consistent: true, Epoch: epoch}, nil
}

// readHandover reads the handover of one shard consistently.
func (w *watcher) readHandover(ctx context.Context, id config.ShardID) error {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	key := w.handovers.keys.Handovers() + string(id)
	pair, err := consul.Hedged(ctx, w.pool, func(ctx context.Context, c *api.Client) (*api.KVPair, error) {
		pair, meta, err := c.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return pair, consul.Led(meta, err)
	})
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	changed, ended, err := w.handovers.put(id, pair)
	w.heard(changed, ended)
	return err
}

// readRoute reads the route of one shard consistently.
func (w *watcher) readRoute(ctx context.Context, id config.ShardID) error {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	key := w.book.keys.Routes() + string(id)
	found, err := consul.Hedged(ctx, w.pool, func(ctx context.Context, c *api.Client) (*api.KVPair, error) {
		pair, meta, err := c.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return pair, consul.Led(meta, err)
	})
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	if found != nil {
		w.note(w.book.mergeOne(id, pair{found.Key, found.Value, found.ModifyIndex, found.CreateIndex}))
	}
	return nil
}

// works and failed say so once per change.
func (w *watcher) works() {
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

func (w *watcher) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.since = time.Now()
		w.log.Warn().Err(err).Msg("Consul cannot be reached; PgBouncer keeps the last good routes until it is back")
	}
	w.err = err
}

func (w *watcher) hasAnswered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered
}

// consulStatus is what /status says of Consul.
type consulStatus struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Error     string    `json:"error,omitempty"`
}

func (w *watcher) status() consulStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := consulStatus{Connected: w.answered && w.err == nil, Since: w.since.UTC()}
	if w.err != nil {
		s.Error = w.err.Error()
	}
	return s
}
