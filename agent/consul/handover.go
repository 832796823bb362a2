package consul

import (
	"context"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Announce writes the announcement of a handover and locks it with the leader's
// session, so that it is void when the leader is gone. What an earlier handover
// left is replaced.
func (s *Store) Announce(ctx context.Context, session string, h cluster.Handover) error {
	ops := ops{}
	ops.add(api.KVCheckSession, s.keys.Leader(), session, 0, nil)
	ops.add(api.KVDelete, s.keys.Handover(), "", 0, nil)
	ops.lockJSON(s.keys.Handover(), session, h)
	_, err := s.commit(ctx, "handover", ops)
	return err
}

// EndHandover takes the announcement back. It is no error when another leader's
// stands there, or none.
func (s *Store) EndHandover(ctx context.Context, session string) error {
	return s.try(ctx, func(ctx context.Context, c *api.Client) error {
		pair, _, err := c.KV().Get(s.keys.Handover(), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err != nil || pair == nil || pair.Session != session {
			return err
		}
		_, _, err = c.KV().DeleteCAS(pair, (&api.WriteOptions{}).WithContext(ctx))
		return err
	})
}

// Bouncers lists the bouncers that have registered. Keys that make no sense are
// passed over: a bouncer that cannot be told reads of everything in Consul.
func (s *Store) Bouncers(ctx context.Context) ([]cluster.Bouncer, error) {
	var bouncers []cluster.Bouncer
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		pairs, _, err := c.KV().List(s.keys.Bouncers(), (&api.QueryOptions{}).WithContext(ctx))
		bouncers = bouncers[:0]
		for _, p := range pairs {
			if b, err := cluster.ParseBouncer(strings.TrimPrefix(p.Key, s.keys.Bouncers()), p.Value); err == nil && p.Session != "" {
				bouncers = append(bouncers, b)
			}
		}
		return err
	})
	return bouncers, err
}
