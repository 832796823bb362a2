package consul

import (
	"context"
	"fmt"

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
