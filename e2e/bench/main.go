// Command bench measures Lictor against the figures that it is held to, and
// Debian's Patroni with consul-template beside it in the same run (`make bench`).
// All write gaps are from the clients' own records.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/e2e/demo"
	"github.com/lictor-ha/lictor/e2e/lab"
)

func main() {
	markdown := flag.String("markdown", "", "write a page to this file")
	report := flag.String("report", "", "write all runs as JSON to this file")
	only := flag.String("only", "", "names of series, separated by commas (default: all)")
	scenarios := flag.String("scenarios", "", "parts of names of scenarios, separated by commas (default: all)")
	resume := flag.Bool("resume", false, "keep the figures that the report holds already, and measure what it lacks")
	runs := flag.Int("runs", 5, "runs of each scenario")
	sizes := flag.String("shards", "1,12,100,1000", "for how many shards -only bouncer/fast measures")
	flag.Parse()
	// A lab is closed also when somebody ends the benchmark.
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ended, time.Hour)
	defer cancel()
	if suite, part, _ := strings.Cut(*only, "/"); suite == "bouncer" {
		if err := bouncerSuite(ctx, *report, part, strings.Split(*sizes, ",")); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{markdown: *markdown, report: *report, runs: *runs}
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	if *scenarios != "" {
		b.scenarios = strings.Split(*scenarios, ",")
	}
	if *resume {
		if err := b.load(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
	}
	if err := b.all(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figure is one line of the result: all runs of one scenario on one system.
type figure struct {
	System   string    `json:"system"`
	Scenario string    `json:"scenario"`
	Unit     string    `json:"unit"`
	Target   float64   `json:"target,omitempty"` // 0: none
	Values   []float64 `json:"values"`
	Errors   []int     `json:"client_errors,omitempty"`
	Lost     int64     `json:"lost_acked"`
	// Ended says why fewer runs were made than asked for.
	Ended string `json:"ended,omitempty"`
}

func (f figure) median() float64 { return median(f.Values) }

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

type bench struct {
	markdown, report string
	only             []string
	scenarios        []string
	runs             int
	figures          []figure
}

// system is something that keeps a shard available.
type system struct {
	name    string
	options lab.Options
	// targets in seconds, by scenario; what is missing is not measured.
	scenarios map[string]float64
	// peer: what it cannot do is a result, not an error.
	peer bool
}

const (
	hostLoss   = "host lost, silent: write gap"
	switchover = "switchover: write gap"
	crash      = "postmaster killed: write gap"

	undisturbed  = "nothing for 60 s: write gap"
	consulKilled = "all Consul servers killed for 60 s: write gap"
	consulHangs  = "all Consul servers stopped (SIGSTOP) for 60 s: write gap"
	outage       = time.Minute

	demoSystem = "lictor, demo"
	idleSystem = "lictor, agents (30/10/10)"
)

func (b *bench) all(ctx context.Context) error {
	template, err := program(ctx, "CONSUL_TEMPLATE_BIN", "e2e/tools/consul-template.sh")
	if err != nil {
		return err
	}
	patroni := func(ttl, loopWait, retry int) lab.Options {
		return lab.Options{
			TTL: ttl, LoopWait: loopWait, RetryTimeout: retry,
			Database: lab.Patroni{}, Pooler: consulTemplate{template, patroniRoutes},
		}
	}
	systems := []system{
		{"lictor, defaults (ttl 8)", lab.Options{}, map[string]float64{hostLoss: 11, switchover: 1.5, crash: 3, undisturbed: 0, consulKilled: 0, consulHangs: 0}, false},
		{"lictor, ttl 3", lab.Options{TTL: 3}, map[string]float64{hostLoss: 4.5}, false},
		{"lictor, ttl 5", lab.Options{TTL: 5}, map[string]float64{hostLoss: 7}, false},
		{"patroni, fast (20/1/3)", patroni(20, 1, 3), map[string]float64{hostLoss: 0, switchover: 0, crash: 0}, true},
		{"patroni, defaults (30/10/10)", patroni(30, 10, 10), map[string]float64{hostLoss: 0, switchover: 0, crash: 0}, true},
	}
	steps := []struct {
		name string
		run  func(context.Context) error
	}{{"start", b.start}, {"idle", b.idle}, {"api: commands", b.commands}, {"api", b.healthChecks}}
	for _, s := range systems {
		steps = append(steps, struct {
			name string
			run  func(context.Context) error
		}{s.name, func(ctx context.Context) error { return b.measure(ctx, s) }})
	}
	for _, step := range steps {
		if !chosen(b.only, step.name) {
			continue
		}
		if b.begun(step.name) {
			continue
		}
		progress("%s", step.name)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		if err := b.write(); err != nil {
			return err
		}
	}
	return nil
}

// chosen reports whether a name has one of these parts; without parts every name is chosen.
func chosen(parts []string, name string) bool {
	return parts == nil || slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(name, part) })
}

// program is the path that an environment variable names, else the one that a
// script prints.
func program(ctx context.Context, variable, script string) (string, error) {
	if path := os.Getenv(variable); path != "" {
		return path, nil
	}
	out, err := exec.CommandContext(ctx, script).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", script, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// newLab builds a shard on hosts that can be cut off, with Consul on hosts of
// its own, and waits until it is whole.
func newLab(ctx context.Context, o lab.Options) (*lab.Lab, error) {
	o.Substrate = lab.Netns
	l, err := unstarted(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := l.Start(ctx); err != nil {
		return l, err
	}
	s := l.Shard(0)
	if err := whole(ctx, s); err != nil {
		return l, err
	}
	if o.Bouncers < 0 {
		return l, nil
	}
	if err := s.Prepare(ctx); err != nil {
		return l, err
	}
	return l, l.AwaitServing(ctx)
}

// unstarted makes a lab in a directory of its own, which it removes.
func unstarted(ctx context.Context, o lab.Options) (*lab.Lab, error) {
	dir, err := os.MkdirTemp("", "lictor-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL's user must get in
		return nil, err
	}
	o.Dir = dir
	return lab.New(ctx, o)
}

func whole(ctx context.Context, s *lab.Shard) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if _, err := s.AwaitHealthy(ctx); err != nil {
		return err
	}
	return s.AwaitSync(ctx)
}

func closeLab(l *lab.Lab) {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench: closing the lab:", err)
	}
}

func (b *bench) measure(ctx context.Context, sys system) error {
	l, err := newLab(ctx, sys.options)
	defer func() { closeLab(l) }()
	if err != nil {
		return err
	}
	for _, scenario := range []string{undisturbed, consulKilled, consulHangs, switchover, crash, hostLoss} {
		target, wanted := sys.scenarios[scenario]
		if !wanted || b.has(sys.name, scenario) || !chosen(b.scenarios, scenario) {
			continue
		}
		f := figure{System: sys.name, Scenario: scenario, Unit: "s", Target: target}
		for range b.runs {
			gap, errs, lost, err := once(ctx, l, scenario)
			if err != nil && sys.peer && len(f.Values) > 0 {
				f.Ended = err.Error()
				progress("   %s: ended: %v", scenario, err)
				break
			}
			if err != nil {
				return fmt.Errorf("%s: %w", scenario, err)
			}
			f.Values, f.Errors = append(f.Values, gap.Seconds()), append(f.Errors, errs)
			f.Lost += lost
			progress("   %s: %.2f s, %d errors, %d lost", scenario, gap.Seconds(), errs, lost)
		}
		b.figures = append(b.figures, f)
		if err := b.write(); err != nil {
			return err
		}
	}
	return nil
}

// once runs one scenario under clients, from a whole shard to a whole shard.
func once(ctx context.Context, l *lab.Lab, scenario string) (gap time.Duration, errs int, lost int64, err error) {
	s := l.Shard(0)
	if err := whole(ctx, s); err != nil {
		return 0, 0, 0, err
	}
	old, err := s.Leader(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	w := s.StartWorkload(ctx, lab.WorkloadOptions{})
	defer w.Stop()
	if err := moreWrites(ctx, w); err != nil {
		return 0, 0, 0, err
	}
	from := time.Now()
	switch scenario {
	case undisturbed:
		err = sleep(ctx, outage)
	case consulKilled:
		err = errors.Join(consulServers(ctx, l, (*lab.ConsulServer).Kill), sleep(ctx, outage), l.StartConsul(ctx))
	case consulHangs:
		err = errors.Join(consulServers(ctx, l, (*lab.ConsulServer).Freeze), sleep(ctx, outage), consulServers(ctx, l, (*lab.ConsulServer).Thaw))
	case switchover:
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			return 0, 0, 0, err
		}
		if err := s.Switchover(ctx, old, s.Member(snapshot.Sync.Value.Standbys()[0])); err != nil {
			return 0, 0, 0, err
		}
	case crash:
		postmaster, err := old.Postmaster()
		if err != nil {
			return 0, 0, 0, err
		}
		if err := postmaster.Signal(syscall.SIGKILL); err != nil {
			return 0, 0, 0, err
		}
	case hostLoss:
		if err := old.PowerOff(ctx); err != nil {
			return 0, 0, 0, err
		}
		if _, err := s.AwaitLeader(ctx, old); err != nil {
			return 0, 0, 0, err
		}
	}
	if err != nil {
		return 0, 0, 0, err
	}
	if err := moreWrites(ctx, w); err != nil {
		return 0, 0, 0, err
	}
	if scenario == hostLoss {
		if err := old.Start(ctx); err != nil {
			return 0, 0, 0, err
		}
	}
	if err := whole(ctx, s); err != nil {
		return 0, 0, 0, err
	}
	if err := moreWrites(ctx, w); err != nil {
		return 0, 0, 0, err
	}
	to := time.Now()
	w.Stop()
	loss, err := w.LostAcked(ctx)
	return w.Writes.LongestGap(from, to), len(w.Writes.Errors(from, to)), loss.Lost, err
}

func consulServers(ctx context.Context, l *lab.Lab, do func(*lab.ConsulServer, context.Context) error) error {
	var errs []error
	for _, c := range l.ConsulServers() {
		errs = append(errs, do(c, ctx))
	}
	return errors.Join(errs...)
}

func progress(format string, args ...any) {
	fmt.Fprintln(os.Stderr, time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// moreWrites waits until the clients have had some more rows acknowledged.
func moreWrites(ctx context.Context, w *lab.Workload) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	from := w.Writes.Acked()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for w.Writes.Acked() < from+50 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("clients cannot write: %w", ctx.Err())
		}
	}
	return nil
}

// start measures how long the demo's cluster takes until it serves.
func (b *bench) start(ctx context.Context) error {
	f := figure{System: demoSystem, Scenario: "2 shards of 3 serve after the start", Unit: "s", Target: 40}
	for range b.runs {
		dir, err := os.MkdirTemp("", "lictor-bench-")
		if err != nil {
			return err
		}
		path := filepath.Join(dir, "report.json")
		var out bytes.Buffer
		if err := demo.Run(ctx, demo.Options{Once: true, Report: path, Out: &out}); err != nil {
			return fmt.Errorf("demo: %w: %s", err, out.Bytes())
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var report struct {
			StartupMS int64 `json:"startup_ms"`
		}
		if err := json.Unmarshal(content, &report); err != nil {
			return err
		}
		f.Values = append(f.Values, float64(report.StartupMS)/1000)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	b.figures = append(b.figures, f)
	return nil
}

// idle measures what an agent of an idle shard at loop_wait 10 costs.
func (b *bench) idle(ctx context.Context) error {
	l, err := newLab(ctx, lab.Options{TTL: 30, LoopWait: 10, RetryTimeout: 10, Bouncers: -1})
	defer func() { closeLab(l) }()
	if err != nil {
		return err
	}
	before := map[string]float64{}
	memory := figure{System: idleSystem, Scenario: "resident memory of an agent", Unit: "MiB", Target: 40}
	cpu := figure{System: idleSystem, Scenario: "CPU of an idle agent in a minute", Unit: "s", Target: 0.05}
	for _, m := range l.Members() {
		if before[m.Name], err = cpuSeconds(m.Process("agent").PID()); err != nil {
			return err
		}
	}
	if err := sleep(ctx, time.Minute); err != nil {
		return err
	}
	for _, m := range l.Members() {
		pid := m.Process("agent").PID()
		now, err := cpuSeconds(pid)
		if err != nil {
			return err
		}
		rss, err := memoryMiB(pid, "VmRSS")
		if err != nil {
			return err
		}
		cpu.Values, memory.Values = append(cpu.Values, now-before[m.Name]), append(memory.Values, rss)
	}
	b.figures = append(b.figures, memory, cpu)
	return nil
}

// cpuSeconds is the processor time of a process by its CPU-time clock
// (clock_getcpuclockid(3); the number of that clock: Linux, posix-timers_types.h). The
// times in /proc/PID/stat are counted by the tick in some kernels, which misses or
// overrates a process that runs for microseconds.
func cpuSeconds(pid int) (float64, error) {
	const scheduled = 2 // CPUCLOCK_SCHED: what the scheduler has accounted
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &used); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(used.Nano()).Seconds(), nil
}

// memoryMiB is a figure of a process's memory by its name in /proc/PID/status: VmRSS
// is what is resident now, VmHWM the most so far.
func memoryMiB(pid int, name string) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d: no %s", pid, name)
}

// load takes in the figures of the report.
func (b *bench) load() error {
	content, err := os.ReadFile(b.report)
	if err != nil {
		return err
	}
	var report struct {
		Figures []figure `json:"figures"`
	}
	if err := json.Unmarshal(content, &report); err != nil {
		return fmt.Errorf("%s: %w", b.report, err)
	}
	b.figures = report.Figures
	return b.write()
}

// begun tells whether the report that is resumed has what start or idle measure.
func (b *bench) begun(step string) bool {
	system := map[string]string{"start": demoSystem, "idle": idleSystem, "api: commands": commandSystem, "api": apiSystem}[step]
	return slices.ContainsFunc(b.figures, func(f figure) bool { return f.System == system })
}

func (b *bench) has(system, scenario string) bool {
	return slices.ContainsFunc(b.figures, func(f figure) bool { return f.System == system && f.Scenario == scenario })
}

func (b *bench) write() error {
	if b.report != "" {
		content, err := json.MarshalIndent(map[string]any{"figures": b.figures}, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.report, append(content, '\n'), 0o644); err != nil {
			return err
		}
	}
	if b.markdown == "" {
		return nil
	}
	return os.WriteFile(b.markdown, []byte(b.page()), 0o644)
}

func (b *bench) page() string {
	var p strings.Builder
	var uname unix.Utsname
	_ = unix.Uname(&uname)
	fmt.Fprintf(&p, `# Benchmarks

Written by `+"`make bench`"+` on %s; every figure was measured by it (`+"`ARGS=-resume`"+` goes on where an earlier run ended). %d cores, Linux %s, PostgreSQL 15, PgBouncer 1.18, HAProxy, Consul 1.20.1
with raft_multiplier 1 on three hosts of its own, Patroni 3.0.2 with consul-template 0.41.1 as the peer. Hosts are network namespaces; a lost host is
silent. One shard of three members, synchronous replication, two PgBouncers with the same settings behind HAProxy. A client inserts a row every
10 ms; a write gap is the longest time between two acknowledged inserts. Patroni's three numbers are ttl, loop_wait and retry_timeout. What stands in no line was not measured.

| what | system | median | range | runs | target | client errors | acknowledged rows lost |
| --- | --- | --- | --- | --- | --- | --- | --- |
`, time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), unix.ByteSliceToString(uname.Release[:]))
	figures := slices.Clone(b.figures)
	slices.SortStableFunc(figures, func(a, b figure) int { return strings.Compare(a.Scenario, b.Scenario) })
	for _, f := range figures {
		target, errs := "", ""
		if f.Target > 0 {
			met := "met"
			if f.median() > f.Target {
				met = "**missed**"
			}
			target = fmt.Sprintf("<= %g %s, %s", f.Target, f.Unit, met)
		}
		if len(f.Errors) > 0 {
			errs = fmt.Sprintf("%d to %d", slices.Min(f.Errors), slices.Max(f.Errors))
		}
		fmt.Fprintf(&p, "| %s | %s | %.2f %s | %.2f to %.2f | %d | %s | %s | %d |\n", f.Scenario, f.System, f.median(), f.Unit,
			slices.Min(f.Values), slices.Max(f.Values), len(f.Values), target, errs, f.Lost)
	}
	for _, f := range figures {
		if f.Ended != "" {
			fmt.Fprintf(&p, "\n%s, %s: no more runs, as the shard did not come back within three minutes in the next (%s).\n", f.Scenario, f.System, f.Ended)
		}
	}
	return p.String()
}
