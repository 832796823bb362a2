package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	propagationRuns = 150
	peerRuns        = 100
	stormShards     = 1000
	storms          = 5
	// settleLeast and settleMost are between two changes: each is a lone one, not in step
	// with anything that is done regularly, and none that consul-template puts off (it
	// renders ten times a second at most).
	settleLeast = 150 * time.Millisecond
	settleMost  = 250 * time.Millisecond
	// settleAlone is between a change and a RELOAD that is measured by itself.
	settleAlone = 50 * time.Millisecond
)

// everyRoute makes a bouncer serve all routes that there are.
func everyRoute(_ *lab.Bouncer, config map[string]any) { delete(config, "shards") }

// fast measures how fast a bouncer is, and prints it.
func fast(ctx context.Context, r *bouncerReport, sizes []string) error {
	if err := propagation(ctx, r, sizes); err != nil {
		return err
	}
	if slices.Contains(sizes, strconv.Itoa(stormShards)) {
		if err := lostPrimaries(ctx, r); err != nil {
			return fmt.Errorf("lost primaries: %w", err)
		}
	}
	r.table(os.Stdout)
	return nil
}

// propagation measures how soon a leader's change in Consul is in PgBouncer, what
// a thousand of them at once take, and what consul-template does in the same run.
func propagation(ctx context.Context, r *bouncerReport, sizes []string) error {
	r.Propagation, r.Alone, r.LoadBySize = map[string]percentiles{}, map[string]percentiles{}, map[string]float64{}
	r.ConsulTemplate = &peerFigures{Propagation: map[string]percentiles{}, Requests: map[string]float64{}}
	template, err := consulTemplateProgram(ctx)
	if err != nil {
		return err
	}
	for _, size := range sizes {
		n, err := strconv.Atoi(size)
		if err != nil {
			return fmt.Errorf("-shards: %w", err)
		}
		if err := r.lictorAt(ctx, n); err != nil {
			return fmt.Errorf("%d shards: %w", n, err)
		}
		if err := r.peerAt(ctx, n, template); err != nil {
			return fmt.Errorf("%d shards, consul-template: %w", n, err)
		}
		r.LoadBySize[size] = loadAverage()
	}
	return nil
}

func consulTemplateProgram(ctx context.Context) (string, error) {
	return program(ctx, "CONSUL_TEMPLATE_BIN", "e2e/tools/consul-template.sh")
}

// routesFigures are of one keeper of routes at one number of shards.
type routesFigures struct {
	propagation percentiles
	// alone is a RELOAD with SHOW DATABASES of the same file, between the changes.
	alone percentiles
	// storm is of all changes at once when nobody pokes, poked when all agents do; in ms.
	storm, poked  float64
	memory        float64 // MiB, before the storm
	memoryAtStorm float64 // MiB, the most until after the storm
}

func (r *bouncerReport) lictorAt(ctx context.Context, n int) error {
	g, err := newRig(ctx, n, lab.LictorBouncer{Edit: everyRoute})
	if err != nil {
		return err
	}
	defer g.close()
	// Asking for the status of many shards costs time itself: not meanwhile.
	pace := 10*time.Millisecond + time.Duration(n)*100*time.Microsecond
	f, err := g.measure(ctx, propagationRuns, func(ctx context.Context, shards ...int) (time.Time, error) {
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
	r.Propagation[at], r.Alone[at] = f.propagation, f.alone
	r.Storm, r.StormPoked, r.Memory, r.MemoryMost = f.storm, f.poked, f.memory, f.memoryAtStorm // the last are those of most shards
	progress("%d shards: %+v", n, f)
	return nil
}

func (r *bouncerReport) peerAt(ctx context.Context, n int, template string) error {
	g, err := newRig(ctx, n, consulTemplate{template, lictorRoutes})
	if err != nil {
		return err
	}
	defer g.close()
	pace := 2*time.Millisecond + time.Duration(n)*20*time.Microsecond
	f, err := g.measure(ctx, peerRuns, func(ctx context.Context, shards ...int) (time.Time, error) {
		return g.awaitShown(ctx, pace, shards...)
	})
	if err != nil {
		return err
	}
	peer := r.ConsulTemplate
	peer.Propagation[strconv.Itoa(n)], peer.Storm, peer.Memory = f.propagation, f.storm, f.memory
	progress("%d shards, consul-template: %+v", n, f)
	return nil
}

// arrival waits until changed leaders are in PgBouncer, and returns when they were.
type arrival func(ctx context.Context, shards ...int) (time.Time, error)

// measure has leaders change one after another, and at stormShards all at once.
func (r *rig) measure(ctx context.Context, runs int, await arrival) (f routesFigures, err error) {
	took, alone, err := r.changes(ctx, runs, await)
	if err != nil {
		return f, err
	}
	f.propagation, f.alone = summarize(took), summarize(alone)
	if f.memory, err = memoryMiB(r.keeper.PID(), "VmRSS"); err != nil || len(r.routes) < stormShards {
		return f, err
	}
	if f.storm, err = r.storm(ctx, false, await); err != nil {
		return f, err
	}
	if r.lictor {
		if f.poked, err = r.storm(ctx, true, await); err != nil {
			return f, err
		}
	}
	f.memoryAtStorm, err = memoryMiB(r.keeper.PID(), "VmHWM")
	return f, err
}

// storm has all leaders change at once some times, and returns the median.
func (r *rig) storm(ctx context.Context, poked bool, await arrival) (ms float64, err error) {
	var took []float64
	for range storms {
		if err := sleep(ctx, time.Second); err != nil {
			return 0, err
		}
		begun, err := r.lead(ctx, poked, all(stormShards))
		if err != nil {
			return 0, err
		}
		end, err := await(ctx, all(stormShards)...)
		if err != nil {
			return 0, err
		}
		took = append(took, milliseconds(end.Sub(begun)))
	}
	return median(took), nil
}

// changes has one leader after another change, and returns how long each took, and how
// long PgBouncer alone takes for the same file.
func (r *rig) changes(ctx context.Context, runs int, await arrival) (took, alone []time.Duration, err error) {
	for range runs {
		if err := sleep(ctx, settleLeast+rand.N(settleMost-settleLeast)); err != nil {
			return nil, nil, err
		}
		shard := rand.N(len(r.routes))
		begun, err := r.change(ctx, shard)
		if err != nil {
			return nil, nil, err
		}
		end, err := await(ctx, shard)
		if err != nil {
			return nil, nil, err
		}
		took = append(took, end.Sub(begun))
		if err := sleep(ctx, settleAlone); err != nil {
			return nil, nil, err
		}
		begun = time.Now()
		if err := r.admin.Reload(ctx); err != nil {
			return nil, nil, err
		}
		if _, err := r.admin.Databases(ctx); err != nil {
			return nil, nil, err
		}
		alone = append(alone, time.Since(begun))
	}
	return took, alone, nil
}
