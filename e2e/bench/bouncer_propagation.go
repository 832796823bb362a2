package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	propagationRuns = 200
	peerRuns        = 50
	stormShards     = 1000
	// settleLeast and settleMost are between two changes: each is a lone one, and
	// not in step with anything that is done regularly.
	settleLeast = 200 * time.Millisecond
	settleMost  = 400 * time.Millisecond
)

// everyRoute makes a bouncer serve all routes that there are.
func everyRoute(_ *lab.Bouncer, config map[string]any) { delete(config, "shards") }

// propagation measures how soon a leader's change in Consul is in PgBouncer, what
// a thousand of them at once take, and what a bouncer costs that has nothing to do.
func propagation(ctx context.Context, r *bouncerReport) error {
	r.Propagation, r.Requests, r.CPUByShards = map[string]percentiles{}, map[string]float64{}, map[string]float64{}
	r.ConsulTemplate = &peerFigures{Propagation: map[string]percentiles{}, Requests: map[string]float64{}}
	template, err := program(ctx, "CONSUL_TEMPLATE_BIN", "e2e/tools/consul-template.sh")
	if err != nil {
		return err
	}
	for _, n := range []int{1, 100, stormShards} {
		if err := r.lictorAt(ctx, n); err != nil {
			return fmt.Errorf("%d shards: %w", n, err)
		}
		if err := r.peerAt(ctx, n, template); err != nil {
			return fmt.Errorf("%d shards, consul-template: %w", n, err)
		}
	}
	return nil
}

// routesFigures are of one keeper of routes at one number of shards.
type routesFigures struct {
	propagation           percentiles
	storm                 float64 // ms
	requests, cpu         float64 // of an idle minute; cpu in seconds
	memory, memoryAtStorm float64 // MiB; the latter is the most until after the storm
}

func (r *bouncerReport) lictorAt(ctx context.Context, n int) error {
	// Asking for the status of many shards costs time itself: not meanwhile.
	pace := 10*time.Millisecond + time.Duration(n)*200*time.Microsecond
	f, err := measureRoutes(ctx, n, lab.LictorBouncer{Edit: everyRoute}, propagationRuns,
		func(ctx context.Context, g *rig, shards ...int) (time.Time, error) {
			verified, err := g.awaitVerified(ctx, pace, shards...)
			if err == nil {
				_, err = g.awaitShown(ctx, pace, shards...)
			}
			return verified, err
		})
	if err != nil {
		return err
	}
	at := strconv.Itoa(n)
	r.Propagation[at], r.Requests[at], r.CPUByShards[at] = f.propagation, f.requests, f.cpu
	r.Storm, r.CPU, r.Memory, r.MemoryMost = f.storm, f.cpu, f.memory, f.memoryAtStorm // the last are those of most shards
	progress("%d shards: %+v", n, f)
	return nil
}

func (r *bouncerReport) peerAt(ctx context.Context, n int, template string) error {
	pace := 2*time.Millisecond + time.Duration(n)*20*time.Microsecond
	f, err := measureRoutes(ctx, n, consulTemplate{template, lictorRoutes}, peerRuns,
		func(ctx context.Context, g *rig, shards ...int) (time.Time, error) {
			return g.awaitShown(ctx, pace, shards...)
		})
	if err != nil {
		return err
	}
	at, peer := strconv.Itoa(n), r.ConsulTemplate
	peer.Propagation[at], peer.Requests[at] = f.propagation, f.requests
	peer.Storm, peer.CPU, peer.Memory = f.storm, f.cpu, f.memory
	progress("%d shards, consul-template: %+v", n, f)
	return nil
}

// arrival waits until changed leaders are in PgBouncer, and returns when they were.
type arrival func(ctx context.Context, g *rig, shards ...int) (time.Time, error)

// measureRoutes has leaders change one after another, at stormShards all at once,
// and then nothing happen.
func measureRoutes(ctx context.Context, n int, software lab.PoolerSoftware, runs int, await arrival) (f routesFigures, err error) {
	g, err := newRig(ctx, n, software)
	if err != nil {
		return f, err
	}
	defer g.close()
	took, err := g.changes(ctx, runs, await)
	if err != nil {
		return f, err
	}
	f.propagation = summarize(took)
	if n == stormShards {
		begun, err := g.change(ctx, all(n)...)
		if err != nil {
			return f, err
		}
		end, err := await(ctx, g, all(n)...)
		if err != nil {
			return f, err
		}
		f.storm = milliseconds(end.Sub(begun))
		if f.memoryAtStorm, err = memoryMiB(g.keeper.PID(), "VmHWM"); err != nil {
			return f, err
		}
	}
	f.requests, f.cpu, f.memory, err = g.idle(ctx)
	return f, err
}

// changes has one leader after another change, and returns how long each took.
func (g *rig) changes(ctx context.Context, runs int, await arrival) (took []time.Duration, err error) {
	for range runs {
		if err := sleep(ctx, settleLeast+rand.N(settleMost-settleLeast)); err != nil {
			return nil, err
		}
		shard := rand.N(len(g.routes))
		begun, err := g.change(ctx, shard)
		if err != nil {
			return nil, err
		}
		end, err := await(ctx, g, shard)
		if err != nil {
			return nil, err
		}
		took = append(took, end.Sub(begun))
	}
	return took, nil
}
