package bouncer

import (
	"context"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
)

const (
	// busyPace is how often the transactions are counted whose end a handover
	// waits for.
	busyPace = 50 * time.Millisecond
	// quietPace is how often the waiting clients are counted when all have ended.
	quietPace = 500 * time.Millisecond
)

// answer tells the leaders of announced handovers how their shards stand here.
func (c *reconciler) answer(ctx context.Context, link pooler.LinkState, views []*shard) {
	c.counting = 0
	all := c.handovers.Current()
	if len(all) == 0 {
		return
	}
	var pools map[string]pooler.PoolCount
	offered := map[config.ShardID]*shard{}
	for _, v := range views {
		offered[v.ID] = v
	}
	for id, one := range all {
		if one.Over {
			continue
		}
		a := cluster.HandoverAnswer{ID: one.Value.ID, Bouncer: c.config.Name}
		v := offered[id]
		switch h := c.holds[id]; {
		case !link.Up || c.standing == nil:
			a.Problem = "PgBouncer cannot be reached"
		case v == nil:
			a.Paused = true // no client can ask for it
		case v.handover == nil:
			continue // over by now
		case h != nil && h.expired:
			a.Problem = "the clients were released, hold_timeout is over"
		default:
			if pools == nil {
				pools = c.countPools(ctx)
			}
			a.Paused = pools != nil
			for _, name := range c.written(v) {
				d, exists := c.standing[name]
				a.Paused = a.Paused && (!exists || d.Paused)
				a.Busy += pools[name].Active
				a.ClientsWaiting += pools[name].Waiting
			}
			if !a.Paused {
				a.Problem = "PgBouncer has not accepted PAUSE yet"
			}
			if !a.Quiet() {
				c.counting = busyPace
			} else if c.counting == 0 {
				c.counting = quietPace
			}
		}
		c.respond(id, a)
	}
}

// countPools is what PgBouncer's pools are doing, nil when that is not known.
func (c *reconciler) countPools(ctx context.Context) map[string]pooler.PoolCount {
	counts, err := c.console.CountPools(ctx)
	if err != nil {
		c.log.Debug().Err(err).Msg("PgBouncer's pools cannot be looked at")
	}
	return counts
}
