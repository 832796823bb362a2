package bouncer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
)

const (
	// feedWait is how long a blocking query for a template's data lasts.
	feedWait = time.Minute
	// feedPace is the shortest time between two queries for the same data.
	feedPace = 100 * time.Millisecond
	// feedRetry is the longest pause after an error.
	feedRetry = 10 * time.Second
	// feedGrace is how long close waits for queries under way.
	feedGrace = time.Second
)

// feed brings the data that templates ask for by consul-template's functions
// (key, ls, service, secret, ...) and keeps it fresh. The dependencies are
// consul-template's; they are driven here because its watcher delays every
// change by 100 ms and leaves its goroutines to themselves.
type feed struct {
	brain *template.Brain
	// news has an element when some data has changed.
	news chan struct{}
	// arrived counts the changes.
	arrived atomic.Uint64

	ctx     context.Context
	cancel  context.CancelFunc
	clients func() (*dependency.ClientSet, error)
	fetched sync.WaitGroup

	mu       sync.Mutex
	set      *dependency.ClientSet
	followed map[string]*followed
}

// followed is one piece of data.
type followed struct {
	dependency dependency.Dependency
	cancel     context.CancelFunc
	err        error
}

// newFeed makes a feed; clients is asked at the first use.
func newFeed(clients func() (*dependency.ClientSet, error)) *feed {
	ctx, cancel := context.WithCancel(context.Background())
	return &feed{
		brain: template.NewBrain(), news: make(chan struct{}, 1), ctx: ctx, cancel: cancel,
		clients: clients, followed: map[string]*followed{},
	}
}

// follow begins to follow what is used and stops to follow the rest.
func (f *feed) follow(used []dependency.Dependency) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := map[string]bool{}
	for _, d := range used {
		keep[d.String()] = true
		if f.followed[d.String()] != nil {
			continue
		}
		if f.set == nil {
			set, err := f.clients()
			if err != nil {
				return fmt.Errorf("clients for the template's functions: %w", err)
			}
			f.set = set
		}
		ctx, cancel := context.WithCancel(f.ctx)
		item := &followed{dependency: d, cancel: cancel}
		f.followed[d.String()] = item
		f.fetched.Go(func() { f.fetch(ctx, item, f.set) })
	}
	for name, item := range f.followed {
		if !keep[name] {
			item.stop()
			f.brain.Forget(item.dependency)
			delete(f.followed, name)
		}
	}
	return nil
}

func (i *followed) stop() {
	i.cancel()
	i.dependency.Stop()
}

// fetch asks for one piece of data again and again.
func (f *feed) fetch(ctx context.Context, item *followed, set *dependency.ClientSet) {
	var index uint64
	pause := feedPace
	for ctx.Err() == nil {
		data, meta, err := item.dependency.Fetch(set, &dependency.QueryOptions{WaitIndex: index, WaitTime: feedWait})
		if ctx.Err() != nil {
			return
		}
		f.mu.Lock()
		item.err = err
		f.mu.Unlock()
		switch {
		case err != nil:
			pause = min(2*pause, feedRetry)
		case meta.LastIndex < index:
			index, pause = 0, feedPace
		default:
			// A key that is awaited (BlockOnNil) has not come as long as it is nil.
			if changed := meta.LastIndex != index; changed && (data != nil || !meta.BlockOnNil) {
				f.brain.Remember(item.dependency, data)
				f.notify()
			}
			index, pause = meta.LastIndex, feedPace
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
		}
	}
}

func (f *feed) notify() {
	f.arrived.Add(1)
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// excuse says why data does not come, if that is known.
func (f *feed) excuse() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, item := range f.followed {
		if item.err != nil {
			return fmt.Sprintf(" (%v)", item.err)
		}
	}
	return ""
}

// close stops everything. A query that Consul holds cannot be cut short by way
// of consul-template's interface: it is waited for only briefly, and ends by
// itself within feedWait without touching anything.
func (f *feed) close() {
	f.cancel()
	f.mu.Lock()
	for _, item := range f.followed {
		item.stop()
	}
	f.followed = map[string]*followed{}
	set := f.set
	f.mu.Unlock()
	ended := make(chan struct{})
	go func() { f.fetched.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(feedGrace):
	}
	if set != nil {
		set.Stop()
	}
}
