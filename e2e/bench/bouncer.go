package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// bouncerReport is what `make bench ONLY=bouncer` writes. All times are in
// milliseconds unless their name says otherwise.
type bouncerReport struct {
	Switchover  *switchoverFigures     `json:"switchover,omitempty"`
	Propagation map[string]percentiles `json:"propagation,omitempty"`
	// Alone is RELOAD and SHOW DATABASES of the same file, measured between the changes.
	Alone map[string]percentiles `json:"reload_and_show_alone,omitempty"`
	// LoadBySize is the machine's load average after each number of shards.
	LoadBySize map[string]float64 `json:"load_average_by_shards,omitempty"`
	Storm      float64            `json:"storm_1000_ms,omitempty"`
	StormPoked float64            `json:"storm_1000_poked_ms,omitempty"`
	// Requests counts what an idle bouncer asks of Consul, by number of shards.
	Requests map[string]float64 `json:"consul_requests_per_minute,omitempty"`
	// CPU is that of a bouncer without clients at 1,000 shards.
	CPU         float64            `json:"cpu_idle_s_per_minute"`
	CPUByShards map[string]float64 `json:"cpu_idle_s_per_minute_by_shards,omitempty"`
	Lost        *lostFigures       `json:"lost_primaries,omitempty"`
	Memory      float64            `json:"memory_mib_1000_shards,omitempty"`
	MemoryMost  float64            `json:"memory_most_mib_1000_shards,omitempty"`
	MemoryIdle  float64            `json:"memory_idle_mib_1000_shards,omitempty"`
	ZoneLoss    *zoneFigures       `json:"zone_loss,omitempty"`
	// Losses are of unplanned failovers, by what was lost.
	Losses         map[string]*lossFigures `json:"unplanned,omitempty"`
	ConsulTemplate *peerFigures            `json:"consul_template,omitempty"`
	// Load is the machine's load average over a minute, before and after.
	Load []float64 `json:"load_average"`
}

type percentiles struct {
	P50  float64 `json:"p50_ms"`
	P99  float64 `json:"p99_ms"`
	Most float64 `json:"most_ms"`
	Runs int     `json:"runs"`
}

// peerFigures are consul-template's, measured until SHOW DATABASES of its
// PgBouncer has the change: it does not look itself.
type peerFigures struct {
	Propagation map[string]percentiles `json:"propagation"`
	Storm       float64                `json:"storm_1000_ms"`
	Requests    map[string]float64     `json:"consul_requests_per_minute"`
	CPU         float64                `json:"cpu_idle_s_per_minute"`
	Memory      float64                `json:"memory_mib_1000_shards"`
	MemoryIdle  float64                `json:"memory_idle_mib_1000_shards"`
}

// bouncerSuite measures the bouncer. part, when it is not empty, is one of
// fast, idle, switchover, unplanned and zone.
func bouncerSuite(ctx context.Context, report, part string, sizes []string) error {
	r := bouncerReport{Load: []float64{loadAverage()}}
	if part != "" && report != "" { // go on with what is there
		if content, err := os.ReadFile(report); err == nil {
			if err := json.Unmarshal(content, &r); err != nil {
				return fmt.Errorf("%s: %w", report, err)
			}
			r.Load = append(r.Load, loadAverage())
		}
	}
	for _, step := range []struct {
		name string
		run  func(context.Context, *bouncerReport) error
	}{{"fast", func(ctx context.Context, r *bouncerReport) error { return fast(ctx, r, sizes) }}, {"idle", idleBouncers}, {"switchover", switchovers}, {"unplanned", losses}, {"zone", zoneLoss}} {
		if part != "" && part != step.name {
			continue
		}
		progress("%s", step.name)
		if err := step.run(ctx, &r); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		r.Load = append(r.Load, loadAverage())
		if err := r.write(report); err != nil {
			return err
		}
	}
	return nil
}

func (r bouncerReport) write(path string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if path == "" {
		_, err = fmt.Println(string(content))
		return err
	}
	return os.WriteFile(path, append(content, '\n'), 0o644)
}

// loadAverage is the first number of /proc/loadavg.
func loadAverage() float64 {
	content, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	var load float64
	if _, err := fmt.Fscan(strings.NewReader(string(content)), &load); err != nil {
		return -1
	}
	return load
}

// summarize picks the nearest-rank percentiles.
func summarize(values []time.Duration) percentiles {
	sorted := slices.Sorted(slices.Values(values))
	rank := func(p float64) float64 {
		return milliseconds(sorted[max(int(math.Ceil(p*float64(len(sorted)))), 1)-1])
	}
	return percentiles{P50: rank(0.5), P99: rank(0.99), Most: rank(1), Runs: len(sorted)}
}

func milliseconds(d time.Duration) float64 { return math.Round(float64(d.Microseconds())/100) / 10 }
