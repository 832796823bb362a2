package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

var (
	// ErrConflict: the transaction was refused as a whole, because a key has
	// changed since it was read or the lock is not held by the session.
	ErrConflict = cluster.ErrConflict
	// ErrUncertain: the request may or may not take effect, now or later.
	ErrUncertain = cluster.ErrUncertain
	// errNoLeader: the Consul that answered has no leader itself.
	errNoLeader = errors.New("consul has no leader")
	// ErrNoSession: Consul does not know the session (any more).
	ErrNoSession = errors.New("the Consul session is gone")
)

// Store reads and writes one shard in Consul, through the first of its
// addresses that works.
type Store struct {
	keys    cluster.Keys
	clients []endpoint
	current atomic.Int64
}

type endpoint struct {
	address string
	*api.Client
}

// New makes a store for a shard. It does not connect.
func New(configs []*api.Config, keys cluster.Keys) (*Store, error) {
	if len(configs) == 0 {
		return nil, errors.New("consul: no address is configured")
	}
	s := &Store{keys: keys}
	for _, c := range configs {
		client, err := api.NewClient(c)
		if err != nil {
			return nil, fmt.Errorf("consul: address %s: %w", c.Address, err)
		}
		s.clients = append(s.clients, endpoint{c.Address, client})
	}
	return s, nil
}

// attemptShare bounds one attempt when there is another address to try: a
// Consul agent that hangs must not use up the whole time of a request.
const attemptShare = 3

// try runs f against the address that worked last, then against the others in
// order, until one answers or ctx ends. Only transport errors and answers of a
// Consul that has no leader lead on to the next address.
func (s *Store) try(ctx context.Context, f func(context.Context, *api.Client) error) error {
	start := s.current.Load()
	var errs []error
	for i := range s.clients {
		n := (start + int64(i)) % int64(len(s.clients))
		c := s.clients[n]
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if deadline, ok := ctx.Deadline(); ok && i < len(s.clients)-1 {
			attempt, cancel = context.WithTimeout(ctx, time.Until(deadline)/attemptShare)
		}
		err := f(attempt, c.Client)
		cancel()
		if err == nil || !unavailable(err) {
			s.current.CompareAndSwap(start, n)
			return err
		}
		errs = append(errs, fmt.Errorf("consul at %s: %w", c.address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// holdFor is how long Consul may hold a blocking query: its answer that nothing
// has changed must come before the attempt is over, or a quiet shard would look
// like a Consul that hangs. (Consul adds up to 1/16 of jitter.)
func holdFor(ctx context.Context, wait time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)*3/4)
	}
	return wait
}

// unavailable reports whether an error says nothing about the request itself.
func unavailable(err error) bool {
	var status api.StatusError
	if errors.As(err, &status) {
		return status.Code >= http.StatusInternalServerError && !strings.Contains(status.Body, "invalid session") ||
			status.Code == http.StatusTooManyRequests
	}
	var netErr net.Error
	return errors.Is(err, errNoLeader) || errors.As(err, &netErr) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// refused reports whether Consul itself said no (permission denied, bad request,
// too many requests): the request took no effect.
func refused(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code < http.StatusInternalServerError
}

// neverSent reports whether a request cannot have reached Consul.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// Read reads the shard with a quorum round trip ("consistent" mode).
func (s *Store) Read(ctx context.Context) (cluster.Snapshot, error) {
	var snapshot cluster.Snapshot
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		opts := (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
		pairs, meta, err := c.KV().List(s.keys.Prefix(), opts)
		if err != nil {
			return err
		}
		// An empty answer is no proof that the shard is empty, unless it comes
		// with an index from a Consul that has a leader.
		if meta.LastIndex == 0 || !meta.KnownLeader {
			return errNoLeader
		}
		kvs := toKVs(pairs)
		route, _, err := c.KV().Get(s.keys.Route(), opts)
		if err != nil {
			return err
		}
		if route != nil {
			kvs = append(kvs, toKV(route))
		}
		snapshot = cluster.ParseSnapshot(s.keys, kvs, meta.LastIndex)
		return nil
	})
	if err != nil {
		return cluster.Snapshot{}, fmt.Errorf("reading the shard %s: %w", s.keys.Prefix(), err)
	}
	return snapshot, nil
}

// Watch waits until something under the shard's prefix has changed since index,
// or until wait is over. It returns the shard as it stands then, without the
// route (which lies under another prefix), and the index to wait from next.
//
// Index rules: https://developer.hashicorp.com/consul/api-docs/features/blocking,
// "Implementation details".
func (s *Store) Watch(ctx context.Context, index uint64, wait time.Duration) (cluster.Snapshot, uint64, error) {
	var snapshot cluster.Snapshot
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		opts := (&api.QueryOptions{WaitIndex: index, WaitTime: holdFor(ctx, wait)}).WithContext(ctx)
		pairs, meta, err := c.KV().List(s.keys.Prefix(), opts)
		switch {
		case err != nil:
			return err
		case meta.LastIndex == 0 || !meta.KnownLeader:
			return errNoLeader
		}
		snapshot = cluster.ParseSnapshot(s.keys, toKVs(pairs), meta.LastIndex)
		if meta.LastIndex < index {
			index = 0 // went back: a snapshot was restored, or a key deleted
		} else {
			index = meta.LastIndex
		}
		return nil
	})
	if err != nil {
		return cluster.Snapshot{}, index, fmt.Errorf("watching the shard %s: %w", s.keys.Prefix(), err)
	}
	return snapshot, index, nil
}

// WatchRoute waits until the shard's route has changed since index, or until
// wait is over.
func (s *Store) WatchRoute(ctx context.Context, index uint64, wait time.Duration) (cluster.Entry[cluster.Route], uint64, error) {
	var route cluster.Entry[cluster.Route]
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		opts := (&api.QueryOptions{WaitIndex: index, WaitTime: holdFor(ctx, wait)}).WithContext(ctx)
		pair, meta, err := c.KV().Get(s.keys.Route(), opts)
		switch {
		case err != nil:
			return err
		case meta.LastIndex == 0 || !meta.KnownLeader:
			return errNoLeader
		}
		route = cluster.Entry[cluster.Route]{}
		if pair != nil {
			route = cluster.ParseSnapshot(s.keys, []cluster.KV{toKV(pair)}, meta.LastIndex).Route
		}
		if meta.LastIndex < index {
			index = 0
		} else {
			index = meta.LastIndex
		}
		return nil
	})
	if err != nil {
		return route, index, fmt.Errorf("watching the route %s: %w", s.keys.Route(), err)
	}
	return route, index, nil
}

func toKVs(pairs api.KVPairs) []cluster.KV {
	kvs := make([]cluster.KV, 0, len(pairs))
	for _, p := range pairs {
		kvs = append(kvs, toKV(p))
	}
	return kvs
}

func toKV(p *api.KVPair) cluster.KV {
	return cluster.KV{Key: p.Key, Value: p.Value, Session: p.Session, ModifyIndex: p.ModifyIndex}
}
