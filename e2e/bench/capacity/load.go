package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
)

// load is the members of all shards.
type load struct {
	o         options
	addresses []string
	tasks     sync.WaitGroup
	cancel    context.CancelFunc
	// What was done so far.
	renews, answers, bytes, open, lastAnswer atomic.Int64

	mu     sync.Mutex
	beats  []time.Duration
	failed int
}

func newLoad(o options, addresses []string) *load { return &load{o: o, addresses: addresses} }

func (l *load) beatEvery() time.Duration {
	return cluster.Timing{TTL: l.o.ttl, LoopWait: l.o.loopWait}.BeatInterval()
}

func (l *load) renewEvery() time.Duration { return min(l.o.loopWait, consul.SessionTTL(l.o.ttl)/3) }

// The formula of docs/capacity.md.
func (l *load) writesPerSecond() float64 {
	perShard := 1 / l.beatEvery().Seconds()
	if l.o.busy {
		perShard += float64(l.o.members) / l.o.loopWait.Seconds()
	}
	return float64(l.o.shards) * perShard
}

func (l *load) renewsPerSecond() float64 {
	return float64(l.o.shards*l.o.members) / l.renewEvery().Seconds()
}

func (l *load) answersPerSecond() float64 { return l.writesPerSecond() * float64(l.o.members) }

func (l *load) watches() float64 { return float64(2 * l.o.shards * l.o.members) }

// start makes all shards and begins.
func (l *load) start(ctx context.Context) error {
	ctx, l.cancel = context.WithCancel(ctx)
	for n := range l.o.shards {
		if err := l.shard(ctx, n); err != nil {
			return fmt.Errorf("shard %d: %w", n, err)
		}
	}
	return nil
}

func (l *load) stop() {
	if l.cancel != nil {
		l.cancel()
	}
	l.tasks.Wait()
}

// shard makes one shard in Consul and starts its members.
func (l *load) shard(ctx context.Context, n int) error {
	keys := cluster.NewKeys(cluster.DefaultNamespace, fmt.Sprintf("shard%04d", n), cluster.DefaultRoutesPrefix)
	for m := range l.o.members {
		member := fmt.Sprintf("db%d", m+1)
		// Each member has its Consul agent; here each has one of the servers.
		store, err := l.store(keys, n+m)
		if err != nil {
			return err
		}
		session, err := store.CreateSession(ctx, consul.Session{Name: "load", TTL: l.o.ttl})
		if err != nil {
			return err
		}
		value := cluster.Member{
			Name: member, ConnURL: "postgres://10.20.30.40:5432/postgres", APIURL: "http://10.20.30.40:8008/patroni", State: cluster.StateRunning,
			Role: cluster.RoleReplica, Version: "0.1.0", Timeline: 3, XLogLocation: 1 << 40, ReceiveLSN: 1 << 40, ReplayLSN: 1 << 40, ReplicationState: "streaming",
		}
		if _, err := store.Touch(ctx, session, 0, value); err != nil {
			return err
		}
		if m == 0 {
			if err := l.lead(ctx, store, session, member); err != nil {
				return err
			}
		}
		l.every(ctx, l.renewEvery(), func(ctx context.Context) {
			if store.RenewSession(ctx, session) == nil {
				l.renews.Add(1)
			}
		})
		if l.o.busy {
			l.every(ctx, l.o.loopWait, func(ctx context.Context) {
				value.XLogLocation += 8192
				if _, err := store.Touch(ctx, session, 0, value); err != nil {
					l.fail(ctx, err)
				}
			})
		}
		l.watch(ctx, store)
	}
	return nil
}

// lead takes the lock as a new shard's first leader does, and beats from then on.
func (l *load) lead(ctx context.Context, store *consul.Store, session, member string) error {
	status := cluster.Status{OpTime: 1 << 40, Slots: map[string]int64{"db2": 1 << 40, "db3": 1 << 40}, Lictor: &cluster.Beat{LeaseMS: l.o.ttl.Milliseconds(), Number: 1, Owner: member}}
	route := cluster.Route{
		Leader: cluster.RouteMember{Name: member, Host: "10.20.30.40", Port: 5432}, Timeline: 3, State: cluster.RouteOpen, SystemIdentifier: "7710607218816675352",
		Replicas: []cluster.RouteMember{{Name: "db2", Host: "10.20.30.41", Port: 5432}, {Name: "db3", Host: "10.20.30.42", Port: 5432}},
	}
	indexes, err := store.TakeOver(ctx, consul.TakeOver{
		Session: session, Name: member, Status: status, Route: &route, Initialize: "7710607218816675352",
		Config: []byte(`{"ttl":8,"loop_wait":2,"synchronous_mode":true,"postgresql":{"use_pg_rewind":true,"parameters":{"max_connections":100}}}`),
	})
	if err != nil {
		return err
	}
	index := uint64(0)
	for key, i := range indexes {
		if strings.HasSuffix(key, "/status") {
			index = i
		}
	}
	l.every(ctx, l.beatEvery(), func(ctx context.Context) {
		beat := *status.Lictor
		beat.Number++
		status.Lictor = &beat
		if l.o.busy {
			status.OpTime += 8192
		}
		sent := time.Now()
		next, err := store.Beat(ctx, session, index, status)
		if err != nil {
			l.fail(ctx, err)
			return
		}
		index = next
		l.mu.Lock()
		l.beats = append(l.beats, time.Since(sent))
		l.mu.Unlock()
	})
	return nil
}

// watch keeps the two blocking queries of a member open.
func (l *load) watch(ctx context.Context, store *consul.Store) {
	const wait = 30 * time.Second
	follow := func(ask func(index uint64) (uint64, error)) {
		l.tasks.Go(func() {
			l.open.Add(1)
			defer l.open.Add(-1)
			for index := uint64(0); ctx.Err() == nil; {
				next, err := ask(index)
				if err != nil {
					l.fail(ctx, err)
					_ = sleep(ctx, time.Second)
				}
				index = next
			}
		})
	}
	follow(func(index uint64) (uint64, error) {
		_, next, err := store.Watch(ctx, index, wait)
		return next, err
	})
	follow(func(index uint64) (uint64, error) {
		_, next, err := store.WatchRoute(ctx, index, wait)
		return next, err
	})
}

// every calls f again and again until ctx is done.
func (l *load) every(ctx context.Context, d time.Duration, f func(context.Context)) {
	l.tasks.Go(func() {
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				limited, cancel := context.WithTimeout(ctx, l.o.ttl)
				f(limited)
				cancel()
			case <-ctx.Done():
				return
			}
		}
	})
}

func (l *load) fail(ctx context.Context, err error) {
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		l.mu.Lock()
		l.failed++
		l.mu.Unlock()
		fmt.Println("failed:", err)
	}
}

func (l *load) latencies() (p50, p99, worst time.Duration, failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.beats) == 0 {
		return 0, 0, 0, l.failed
	}
	sorted := slices.Sorted(slices.Values(l.beats))
	return sorted[len(sorted)/2], sorted[len(sorted)*99/100], sorted[len(sorted)-1], l.failed
}

// store is an agent's way to Consul, whose answers to watches of the shard are
// counted.
func (l *load) store(keys cluster.Keys, n int) (*consul.Store, error) {
	config := &api.Config{Address: l.addresses[n%len(l.addresses)]}
	config.HttpClient = &http.Client{Transport: &counting{load: l, next: &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute}}}
	return consul.New([]*api.Config{config}, keys)
}

// counting counts answers of blocking queries on a whole shard, and their bytes.
type counting struct {
	load *load
	next http.RoundTripper
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(r)
	query := r.URL.Query()
	if err != nil || !query.Has("recurse") || !query.Has("index") {
		return answer, err
	}
	c.load.answers.Add(1)
	answer.Body = &countingBody{ReadCloser: answer.Body, load: c.load}
	return answer, nil
}

type countingBody struct {
	io.ReadCloser
	load *load
	read int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	b.load.bytes.Add(int64(n))
	return n, err
}

func (b *countingBody) Close() error {
	b.load.lastAnswer.Store(b.read)
	return b.ReadCloser.Close()
}
