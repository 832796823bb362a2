package consul

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"
)

// Get reads one key with a quorum round trip. A key that does not exist has index
// 0.
func (s *Store) Get(ctx context.Context, key string) (value []byte, index uint64, err error) {
	err = s.try(ctx, func(ctx context.Context, c *api.Client) error {
		value, index = nil, 0
		pair, _, err := c.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if pair != nil {
			value, index = pair.Value, pair.ModifyIndex
		}
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading the key %s: %w", key, err)
	}
	return value, index, nil
}

// WatchKey waits until one key changes, at most wait. It returns its value, nil when
// there is none, its ModifyIndex, and the index to wait with next.
func (s *Store) WatchKey(ctx context.Context, key string, index uint64, wait time.Duration) (value []byte, modified, next uint64, err error) {
	err = s.try(ctx, func(ctx context.Context, c *api.Client) error {
		opts := (&api.QueryOptions{WaitIndex: index, WaitTime: holdFor(ctx, wait)}).WithContext(ctx)
		pair, meta, err := c.KV().Get(key, opts)
		switch {
		case err != nil:
			return err
		case meta.LastIndex == 0 || !meta.KnownLeader:
			return errNoLeader
		}
		value, modified, next = nil, 0, meta.LastIndex
		if pair != nil {
			value, modified = pair.Value, pair.ModifyIndex
		}
		if next < index {
			next = 0 // Consul has gone back
		}
		return nil
	})
	if err != nil {
		return nil, 0, 0, fmt.Errorf("watching the key %s: %w", key, err)
	}
	return value, modified, next, nil
}
