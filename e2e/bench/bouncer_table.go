package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// What `make bench ONLY=bouncer/fast` is held to.
const (
	ratioTarget  = 1.6 // of p50 at 1,000 shards and PgBouncer's own time
	p99Target    = 60  // ms, at 1,000 shards
	oneTarget    = 5   // ms, p50 at 1 shard
	stormTarget  = 100 // ms
	memoryTarget = 40  // MiB
	freedTarget  = 1000
)

// table writes what was measured of propagation and lost primaries as the page
// docs/benchmarks-bouncer.md has it.
func (r *bouncerReport) table(w io.Writer) {
	var b strings.Builder
	if len(r.Propagation) > 0 {
		b.WriteString("\n| shards | RELOAD and SHOW DATABASES alone, p50 | Lictor p50 | of it | p99 | consul-template p50 | p99 | sooner | load average |\n" +
			"| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	}
	for _, at := range sizes(r.Propagation) {
		ours, alone, peer := r.Propagation[at], r.Alone[at], r.ConsulTemplate.Propagation[at]
		sooner := ours.P50 < peer.P50 && ours.P99 < peer.P99
		fmt.Fprintf(&b, "| %s | %.1f | %.1f | %.2f x | %.1f | %.1f | %.1f | %s | %.1f |\n",
			at, alone.P50, ours.P50, ours.P50/alone.P50, ours.P99, peer.P50, peer.P99, met(sooner), r.LoadBySize[at])
	}
	b.WriteString("\n| | measured | target |\n| --- | --- | --- |\n")
	line := func(what string, value float64, unit string, target float64) {
		fmt.Fprintf(&b, "| %s | %.1f%s | <= %g%s, %s |\n", what, value, unit, target, unit, met(value <= target))
	}
	most := strconv.Itoa(stormShards)
	if f, measured := r.Propagation[most]; measured {
		line("p50 at 1,000 shards, in times of RELOAD and SHOW DATABASES alone", f.P50/r.Alone[most].P50, "", ratioTarget)
		line("p99 at 1,000 shards", f.P99, " ms", p99Target)
		line(fmt.Sprintf("1,000 changes at once, all there, median of %d (poked by all agents: %.1f ms; consul-template %.1f ms)", storms, r.StormPoked, r.ConsulTemplate.Storm), r.Storm, " ms", stormTarget)
		line(fmt.Sprintf("resident memory at 1,000 shards after %d changes (the most, after 1,000 at once: %.1f MiB; consul-template %.1f MiB)",
			f.Runs, r.MemoryMost, r.ConsulTemplate.Memory), r.Memory, " MiB", memoryTarget)
	}
	if f, measured := r.Propagation["1"]; measured {
		line("p50 at 1 shard", f.P50, " ms", oneTarget)
	}
	if r.Lost != nil {
		line("1,000 primaries lost at once: the last client is free", r.Lost.Last, " ms", freedTarget)
		line(fmt.Sprintf("passes over 100 ms, of %d", r.Lost.Passes), float64(r.Lost.Slow), "", 0)
	}
	fmt.Fprintf(&b, "\nLoad averages: %v before, %.1f after.\n", r.Load, loadAverage())
	_, _ = io.WriteString(w, b.String()) // it is on the terminal
}

func met(yes bool) string {
	if yes {
		return "met"
	}
	return "missed"
}

// sizes are the numbers of shards, the smallest first.
func sizes(figures map[string]percentiles) (list []string) {
	for at := range figures {
		list = append(list, at)
	}
	slices.SortFunc(list, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return list
}
