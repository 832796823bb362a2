package routes

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/bouncer/consul"
)

const (
	// hedgedRate is how many times a second the hedged watch's query may return.
	hedgedRate = 5
	// hedgeDelay is how much later than another address the one in use may say
	// that something has changed. It is what a bouncer may be late by when its
	// Consul agent hangs.
	hedgeDelay = 50 * time.Millisecond
	// hedgeListing is the same while it is reading a list, which takes its time when all have much
	// to do: to have all read it, too, would make that longer.
	hedgeListing = 250 * time.Millisecond
	// hedgeRest is the pause before it asks again, which is to be out of the way of what is done about the
	// answer (watchRest).
	hedgeRest = 20 * time.Millisecond
	// hedgePatience is how long the address in use may know less than another
	// one before it is taken for one that hangs. A follower learns of a write one
	// of Raft's heartbeats after the leader at the latest.
	hedgePatience = time.Second
)

// hedgedWatch keeps a second blocking query on prefix open, at another Consul
// address and for the names of the keys only, until ctx is done. A blocking query
// that is silent because its Consul hangs, or because its host was lost, looks
// just like one for which nothing has changed: the hedged watch tells the difference.
func (w *Watcher) hedgedWatch(ctx context.Context, prefix string) {
	if w.pool.Single() {
		return
	}
	consul.Blocking(ctx, hedgedRate, func(index uint64) (uint64, error) {
		next, inUse, err := w.query(ctx, index, watchWait, func(inUse int, options *api.QueryOptions) (*api.QueryMeta, error) {
			_, meta, err := w.pool.Client(inUse+1).KV().Keys(prefix, namespaces, options)
			return meta, err
		})
		if err == nil && next >= index {
			w.compare(ctx, prefix, next, inUse)
			rest(ctx, hedgeRest)
		}
		return next, err
	})
}

// compare waits for the address in use to say what another one has said. When it
// does not do so at once the routes are read elsewhere, when it does not do so at
// all somebody else takes its place.
func (w *Watcher) compare(ctx context.Context, prefix string, index uint64, inUse int) {
	if w.reached.await(ctx, prefix, index, hedgeDelay) || ctx.Err() != nil {
		return
	}
	if w.listing.Load() && w.reached.await(ctx, prefix, index, hedgeListing-hedgeDelay) {
		return
	}
	w.Poke()
	if w.reached.await(ctx, prefix, index, hedgePatience) || ctx.Err() != nil {
		return
	}
	w.log.Warn().Msg("a Consul address is silent while another one knows of changes; going on with the next")
	w.pool.Fail(inUse)
}

// progress is how far the blocking queries have come, by prefix.
type progress struct {
	mu      sync.Mutex
	indexes map[string]uint64
	moved   chan struct{}
}

func newProgress() *progress {
	return &progress{indexes: map[string]uint64{}, moved: make(chan struct{})}
}

func (p *progress) set(prefix string, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.move(prefix, index)
}

// raise is set, unless that would be a step back.
func (p *progress) raise(prefix string, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.move(prefix, max(index, p.indexes[prefix]))
}

func (p *progress) move(prefix string, index uint64) {
	p.indexes[prefix] = index
	close(p.moved)
	p.moved = make(chan struct{})
}

// has reports whether index is reached.
func (p *progress) has(prefix string, index uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.indexes[prefix] >= index
}

// await reports whether index is reached before limit is over.
func (p *progress) await(ctx context.Context, prefix string, index uint64, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		p.mu.Lock()
		reached, moved := p.indexes[prefix] >= index, p.moved
		p.mu.Unlock()
		if reached {
			return true
		}
		select {
		case <-moved:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}
