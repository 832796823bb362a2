package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	propagationRuns = 200
	peerRuns        = 50
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
	for _, n := range []int{1, 100, 1000} {
		if err := r.lictorAt(ctx, n); err != nil {
			return fmt.Errorf("%d shards: %w", n, err)
		}
		if err := r.peerAt(ctx, n, template); err != nil {
			return fmt.Errorf("%d shards, consul-template: %w", n, err)
		}
	}
	return nil
}

func (r *bouncerReport) lictorAt(ctx context.Context, n int) error {
	g, err := newRig(ctx, n, lab.LictorBouncer{Edit: everyRoute})
	if err != nil {
		return err
	}
	defer g.close()
	// Asking for the status of many shards costs time itself: not meanwhile.
	pace := 10*time.Millisecond + time.Duration(n)*200*time.Microsecond
	took, err := g.changes(ctx, propagationRuns, func(ctx context.Context, shard int) (time.Time, error) {
		verified, err := g.awaitVerified(ctx, pace, shard)
		if err == nil {
			_, err = g.awaitShown(ctx, pace, shard)
		}
		return verified, err
	})
	if err != nil {
		return err
	}
	at := strconv.Itoa(n)
	r.Propagation[at] = summarize(took)
	progress("%d shards: %+v", n, r.Propagation[at])
	if n == 1000 {
		begun, err := g.change(ctx, all(n)...)
		if err != nil {
			return err
		}
		end, err := g.awaitVerified(ctx, pace, all(n)...)
		if err != nil {
			return err
		}
		r.Storm = milliseconds(end.Sub(begun))
		if r.MemoryMost, err = memoryMost(g.keeper.PID()); err != nil {
			return err
		}
	}
	requests, cpu, memory, err := g.idle(ctx)
	if err != nil {
		return err
	}
	r.Requests[at], r.CPUByShards[at] = requests, cpu
	r.CPU, r.Memory = cpu, memory // the last is that of most shards
	progress("%d shards: storm %.0f ms, idle %.0f requests, %.2f s CPU, %.1f MiB", n, r.Storm, requests, cpu, memory)
	return nil
}

// changes has one leader after another change, and returns how long each took.
func (g *rig) changes(ctx context.Context, runs int, await func(context.Context, int) (time.Time, error)) (took []time.Duration, err error) {
	for range runs {
		if err := sleep(ctx, settleLeast+rand.N(settleMost-settleLeast)); err != nil {
			return nil, err
		}
		shard := rand.N(len(g.routes))
		begun, err := g.change(ctx, shard)
		if err != nil {
			return nil, err
		}
		end, err := await(ctx, shard)
		if err != nil {
			return nil, err
		}
		took = append(took, end.Sub(begun))
	}
	return took, nil
}

func (r *bouncerReport) peerAt(ctx context.Context, n int, template string) error {
	g, err := newRig(ctx, n, consulTemplateRoutes{program: template})
	if err != nil {
		return err
	}
	defer g.close()
	pace := 2*time.Millisecond + time.Duration(n)*20*time.Microsecond
	took, err := g.changes(ctx, peerRuns, func(ctx context.Context, shard int) (time.Time, error) {
		return g.awaitShown(ctx, pace, shard)
	})
	if err != nil {
		return err
	}
	at, peer := strconv.Itoa(n), r.ConsulTemplate
	peer.Propagation[at] = summarize(took)
	if n == 1000 {
		begun, err := g.change(ctx, all(n)...)
		if err != nil {
			return err
		}
		end, err := g.awaitShown(ctx, pace, all(n)...)
		if err != nil {
			return err
		}
		peer.Storm = milliseconds(end.Sub(begun))
	}
	if peer.Requests[at], peer.CPU, peer.Memory, err = g.idle(ctx); err != nil {
		return err
	}
	progress("%d shards, consul-template: %+v, storm %.0f ms, idle %.0f requests, %.2f s CPU, %.1f MiB", n, peer.Propagation[at],
		peer.Storm, peer.Requests[at], peer.CPU, peer.Memory)
	return nil
}

// memoryMost is the peak of a process's resident memory in MiB.
func memoryMost(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmHWM", pid)
}

// consulTemplateRoutes keeps PgBouncer's routes by consul-template, from the same
// keys and with the same databases as Lictor's bouncer.
type consulTemplateRoutes struct{ program string }

const everyRouteTemplate = `{{ range tree "lictor/routes/service" }}{{ $r := .Value | parseJSON }}` +
	`{{ .Key }} = host={{ $r.leader.host }} port={{ $r.leader.port }} dbname={{ .Key }}
{{ .Key }}_ro = host={{ range $i, $m := $r.replicas }}{{ if $i }},{{ end }}{{ $m.host }}{{ end }} port={{ $r.leader.port }} dbname={{ .Key }}
{{ end }}`

func (c consulTemplateRoutes) Install(l *lab.Lab, b *lab.Bouncer) ([]lab.Spec, error) {
	spec, err := b.PgBouncerSpec()
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(b.ConfigPath)
	if err != nil {
		return nil, err
	}
	pid := filepath.Join(b.Dir, "pgbouncer.pid")
	settings := fmt.Sprintf(tuned, pid)
	if err := os.WriteFile(b.ConfigPath, append(content, settings...), 0o644); err != nil {
		return nil, err
	}
	template := strings.Replace(string(content), "[databases]\n", "[databases]\n"+everyRouteTemplate+"\n", 1) + settings
	source := filepath.Join(b.Dir, "pgbouncer.ini.ctmpl")
	if err := os.WriteFile(source, []byte(template), 0o644); err != nil {
		return nil, err
	}
	return []lab.Spec{spec, {
		Name: "consul-template", Path: c.program, Args: []string{
			"-consul-addr", l.ConsulHosts()[0], "-template", source + ":" + b.ConfigPath + ":kill -HUP $(cat " + pid + ") || true",
		},
	}}, nil
}

// Health is empty: the balancer tries PgBouncer itself.
func (consulTemplateRoutes) Health(*lab.Bouncer) string { return "" }
