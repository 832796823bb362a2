package bouncer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
)

const (
	// watchWait is how long one blocking query lasts when nothing changes. It
	// also limits for how long a Consul agent that hangs goes unnoticed by the
	// watch; the presence's renewals notice it sooner.
	watchWait = 30 * time.Second
	// watchGrace: Consul adds up to a sixteenth to the wait.
	watchGrace = watchWait/16 + 3*time.Second
	// watchBackoffLeast and -Most limit the pause after an error.
	watchBackoffLeast = 200 * time.Millisecond
	watchBackoffMost  = 10 * time.Second
	// readHedge is how long a poke's read waits for one Consul address before
	// it also asks the next.
	readHedge = 100 * time.Millisecond
	readBound = 5 * time.Second
)

// watcher learns the routes from Consul: by one blocking query, and by
// consistent reads when it is poked or when the book is in doubt.
type watcher struct {
	log  zerolog.Logger
	pool *consulPool
	book *book
	// changed is called when the book has changed.
	changed func()
	pokes   chan struct{}
	// restarts limits how fast the blocking query may return, reads how fast
	// pokes are followed.
	restarts, reads *rate.Limiter

	mu sync.Mutex
	// since is when Consul answered first after a failure, or since when it
	// does not.
	since    time.Time
	err      error
	answered bool
}

func newWatcher(log zerolog.Logger, pool *consulPool, b *book, changed func()) *watcher {
	return &watcher{
		log: log, pool: pool, book: b, changed: changed, pokes: make(chan struct{}, 1), since: time.Now(),
		restarts: rate.NewLimiter(20, 20), reads: rate.NewLimiter(20, 20),
	}
}

// errNoLeader: the answer came from a Consul that has no leader.
var errNoLeader = errors.New("consul has no leader")

// watch runs the blocking query until ctx is done.
func (w *watcher) watch(ctx context.Context) {
	var index uint64
	pause := watchBackoffLeast
	for w.restarts.Wait(ctx) == nil {
		next, number, err := w.query(ctx, index)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && next < index:
			// The index may go back when the newest key is deleted or Consul was
			// restored: what it then says of changes is of no use.
			index = 0
		case err == nil:
			index, pause = max(next, 1), watchBackoffLeast
		default:
			index = 0
			w.failed(err)
			if noAnswer(err) {
				w.pool.fail(number)
			}
			select {
			case <-time.After(pause/2 + rand.N(pause)):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, watchBackoffMost)
		}
	}
}

// query asks once and hands the answer to the book. It is cut short when
// somebody finds the Consul address not to answer.
func (w *watcher) query(parent context.Context, index uint64) (next uint64, number int, err error) {
	ctx, client, number, end := w.pool.use(parent)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, watchWait+watchGrace)
	defer cancel()
	options := &api.QueryOptions{WaitIndex: index, WaitTime: watchWait}
	pairs, meta, err := client.KV().List(w.book.keys.Routes(), options.WithContext(ctx))
	if err == nil && !meta.KnownLeader {
		err = errNoLeader
	}
	if err != nil {
		return 0, number, fmt.Errorf("watching %s: %w", w.book.keys.Routes(), err)
	}
	if meta.LastIndex >= index {
		w.take(answer{Pairs: convert(pairs), KnownLeader: meta.KnownLeader})
	}
	return meta.LastIndex, number, nil
}

// take hands an answer to the book and says what it made of it.
func (w *watcher) take(a answer) {
	w.works()
	out := w.book.merge(a)
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

func abridge(ids []shardID) []shardID { return ids[:min(len(ids), 20)] }

func convert(pairs api.KVPairs) []pair {
	list := make([]pair, len(pairs))
	for i, p := range pairs {
		list[i] = pair{p.Key, p.Value, p.ModifyIndex}
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.pokes:
		}
		if w.reads.Wait(ctx) != nil {
			return
		}
		a, err := w.read(ctx)
		if err != nil {
			if ctx.Err() == nil {
				w.failed(err)
			}
			continue
		}
		w.take(a)
	}
}

// read reads all routes consistently, from the first Consul address that
// answers: each next one is asked too when those before it are slow.
func (w *watcher) read(ctx context.Context) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	epoch := w.book.now()
	type result struct {
		answer answer
		err    error
	}
	clients := w.pool.inOrder()
	results := make(chan result, len(clients))
	var asked sync.WaitGroup
	defer asked.Wait() // after cancel
	defer cancel()
	ask := func(client *api.Client) {
		pairs, meta, err := client.KV().List(w.book.keys.Routes(), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err == nil && !meta.KnownLeader {
			err = errNoLeader
		}
		if err != nil {
			results <- result{err: err}
			return
		}
		results <- result{answer: answer{Pairs: convert(pairs), KnownLeader: true, Consistent: true, Epoch: epoch}}
	}
	var errs []error
	next, open := 0, 0
	hedge := time.NewTimer(0)
	defer hedge.Stop()
	for {
		select {
		case <-hedge.C:
			if next < len(clients) {
				client := clients[next]
				asked.Go(func() { ask(client) })
				next, open = next+1, open+1
				hedge.Reset(readHedge)
			}
		case r := <-results:
			if r.err == nil {
				return r.answer, nil
			}
			errs = append(errs, r.err)
			open--
			if open == 0 && next == len(clients) {
				return answer{}, fmt.Errorf("reading %s: %w", w.book.keys.Routes(), errors.Join(errs...))
			}
			hedge.Reset(0)
		}
	}
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
