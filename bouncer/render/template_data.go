package render

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"

	"github.com/lictor-ha/lictor/bouncer/consul"
)

const (
	// dataWait is how long a blocking query for a template's data lasts.
	dataWait = time.Minute
	// dataBound is how long Consul may take for an answer that has not to wait for a
	// change; after that another address is asked.
	dataBound = 5 * time.Second
	// dataPace is the shortest time between two queries for the same data.
	dataPace = 100 * time.Millisecond
	// dataRetry is the longest pause after an error.
	dataRetry = 10 * time.Second
	// pollPace is how often data is looked at that is not waited for, polls how many
	// connections that may take.
	pollPace = 30 * time.Second
	polls    = 4
	// dataGrace is how long close waits for queries under way.
	dataGrace = time.Second
)

// templateData brings the data that templates ask for by consul-template's functions
// (key, ls, service, secret, ...) and keeps it fresh. The dependencies are
// consul-template's; they are driven here because its watcher delays every
// change by 100 ms and leaves its goroutines to themselves.
type templateData struct {
	brain *template.Brain
	// news has an element when some data has changed.
	news chan struct{}
	// arrived counts the changes.
	arrived atomic.Uint64

	ctx     context.Context
	cancel  context.CancelFunc
	clients *templateClients
	fetched sync.WaitGroup
	// polling has an element for each look that is under way at data that is not waited for.
	polling  chan struct{}
	pollPace time.Duration

	mu       sync.Mutex
	followed map[string]*followed
}

// followed is one piece of data.
type followed struct {
	dependency dependency.Dependency
	cancel     context.CancelFunc
	err        error
}

// newTemplateData makes one; clients are needed at the first use only.
func newTemplateData(clients *templateClients) *templateData {
	ctx, cancel := context.WithCancel(context.Background())
	return &templateData{
		brain: template.NewBrain(), news: make(chan struct{}, 1), ctx: ctx, cancel: cancel,
		clients: clients, followed: map[string]*followed{}, polling: make(chan struct{}, polls), pollPace: pollPace,
	}
}

// follow begins to follow what is used and stops to follow the rest. The error says why
// there are no clients.
func (f *templateData) follow(used []dependency.Dependency) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := map[string]bool{}
	for _, d := range used {
		keep[d.String()] = true
		if f.followed[d.String()] != nil {
			continue
		}
		if _, err := f.clients.get(f.clients.pool.InUse()); err != nil {
			return fmt.Errorf("clients for the template's functions: %w", err)
		}
		ctx, cancel := context.WithCancel(f.ctx)
		item := &followed{dependency: d, cancel: cancel}
		f.followed[d.String()] = item
		f.fetched.Go(func() { f.fetch(ctx, item) })
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

// fetch asks for one piece of data again and again, at the address of Consul that the
// bouncer uses; at those after it when that one does not answer.
func (f *templateData) fetch(ctx context.Context, item *followed) {
	var index uint64
	pause, passed := dataPace, 0
	ports, polled := item.dependency.(memberPorts)
	var before any
	for ctx.Err() == nil {
		if polled {
			select {
			case f.polling <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
		data, meta, err := f.ask(ctx, item.dependency, index, passed)
		if polled {
			<-f.polling
		}
		if ctx.Err() != nil {
			return
		}
		moved := errors.Is(err, errMoved)
		if !moved {
			f.mu.Lock()
			item.err = err
			f.mu.Unlock()
		}
		switch {
		case moved:
			pause, passed = dataPace, 0
		case err != nil:
			pause = min(2*pause, dataRetry)
			if item.dependency.Type() == dependency.TypeConsul && consul.NoAnswer(err) {
				passed++
			}
		case polled:
			if !ports.isSame(data, before) {
				before = data
				f.brain.Remember(item.dependency, data)
				f.notify()
			}
			pause = f.pollPace
		case meta.LastIndex < index:
			index, pause = 0, dataPace
		default:
			// A key that is awaited (BlockOnNil) has not come as long as it is nil.
			if changed := meta.LastIndex != index; changed && (data != nil || !meta.BlockOnNil) {
				f.brain.Remember(item.dependency, data)
				f.notify()
			}
			index, pause = meta.LastIndex, dataPace
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
		}
	}
}

// errMoved says that the bouncer uses another address of Consul by now.
var errMoved = errors.New("another address of Consul is in use")

// ask makes one query at the address that is so many after the one in use. One that
// Consul holds too long is left to itself: it ends with its connection.
func (f *templateData) ask(ctx context.Context, d dependency.Dependency, index uint64, passed int) (any, *dependency.ResponseMetadata, error) {
	term, _, number, cancel := f.clients.pool.Use(ctx)
	defer cancel()
	set, err := f.clients.get(number + passed)
	if err != nil {
		return nil, nil, err
	}
	type answer struct {
		data any
		meta *dependency.ResponseMetadata
		err  error
	}
	answered := make(chan answer, 1)
	f.fetched.Go(func() {
		options := &dependency.QueryOptions{WaitIndex: index, WaitTime: dataWait, Datacenter: f.clients.config.Consul.DC}
		data, meta, err := d.Fetch(set, options)
		answered <- answer{data, meta, err}
	})
	if d.Type() != dependency.TypeConsul { // waits as long as its lease says
		select {
		case a := <-answered:
			return a.data, a.meta, a.err
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	bound := dataBound
	if index > 0 {
		bound += dataWait + dataWait/16 // Consul spreads the ends of waits
	}
	late := time.NewTimer(bound)
	defer late.Stop()
	select {
	case a := <-answered:
		if a.err != nil {
			f.clients.drop(set)
		}
		return a.data, a.meta, a.err
	case <-term.Done():
		return nil, nil, errMoved
	case <-late.C:
		f.clients.drop(set)
		return nil, nil, fmt.Errorf("%s: no answer from Consul within %s", d, bound)
	}
}

func (f *templateData) notify() {
	f.arrived.Add(1)
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// lastErr says why data does not come, if that is known.
func (f *templateData) lastErr() string {
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
// itself within dataWait without touching anything.
func (f *templateData) close() {
	f.cancel()
	f.mu.Lock()
	for _, item := range f.followed {
		item.stop()
	}
	f.followed = map[string]*followed{}
	f.mu.Unlock()
	ended := make(chan struct{})
	go func() { f.fetched.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(dataGrace):
	}
	if f.clients != nil {
		f.clients.close()
	}
}
