package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// Options say what the demo does. Zero values mean the defaults.
type Options struct {
	// Once runs without a terminal: start, lose a host, report, stop.
	Once bool
	// Report is the file that the figures are written to, as JSON.
	Report string
	// Scenario names the one scenario to run before the demo ends; with Once
	// it replaces host-loss. "all" runs every one.
	Scenario string
	// Keep leaves data and logs behind and says where.
	Keep bool
	// Async switches synchronous replication off: then an acknowledged row may
	// be lost with its host.
	Async bool
	// Dir holds everything that is written; default: a new one below the
	// system's temporary directory.
	Dir string

	Shards   int // 2
	Members  int // of each shard, 3
	Poolers  int // 2
	TTL      int // seconds; default: the agents' own
	Programs lab.Programs

	Out io.Writer // default os.Stdout
	// In is where keys come from when it is a terminal; default os.Stdin.
	In *os.File

	// What tests put in the place of Lictor.
	database lab.DatabaseSoftware
	pooler   lab.PoolerSoftware
}

// ErrLost says that a row which the application had been told is safe is not in
// the table any more.
var ErrLost = errors.New("acknowledged rows were lost")

// startTimeout bounds the start, which takes some 20 s on two idle cores.
const startTimeout = 3 * time.Minute

// stopTimeout bounds how long killed processes are waited for.
const stopTimeout = 30 * time.Second

func (o Options) withDefaults() Options {
	if o.Shards == 0 {
		o.Shards = 2
	}
	if o.Members == 0 {
		o.Members = 3
	}
	if o.Poolers == 0 {
		o.Poolers = 2
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.In == nil {
		o.In = os.Stdin
	}
	if o.Once && o.Scenario == "" {
		o.Scenario = hostLoss
	}
	return o
}

// Check returns what is wrong with the options, before anything is begun.
func (o Options) Check() error {
	if _, err := choose(o.Scenario); err != nil {
		return err
	}
	if o.Report == "" {
		return nil
	}
	return writable(o.Report)
}

// Run runs the demo until ctx ends, the user quits, or, with Once or Scenario,
// the scenarios are through. It stops everything that it started. Ending it by
// hand is no error.
func Run(ctx context.Context, opts Options) (err error) {
	opts = opts.withDefaults()
	if err := opts.Check(); err != nil {
		return err
	}
	chosen, err := choose(opts.Scenario)
	if err != nil {
		return err
	}
	// After the first signal the demo cleans up; a second one kills it as usual.
	ctx, stopSignals := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stopSignals()
	context.AfterFunc(ctx, stopSignals)

	dir, err := directory(opts.Dir)
	if err != nil {
		return err
	}
	d := &demo{opts: opts, out: newPrinter(opts.Out), begun: time.Now()}
	if err := d.open(ctx, dir); err != nil {
		if opts.Dir == "" {
			_ = os.Remove(dir) // empty: nothing was begun, or all is taken back
		}
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()

	err = d.start(ctx)
	switch {
	case err != nil:
	case len(chosen) > 0:
		err = d.runAll(ctx, chosen)
	default:
		err = d.interact(ctx)
	}
	switch {
	case ctx.Err() == nil:
		return d.explain(err)
	case len(chosen) > 0:
		return fmt.Errorf("interrupted before all was measured: %w", context.Cause(ctx))
	}
	return nil // whatever failed then failed because the user ended it
}

// directory makes the demo's directory, which PostgreSQL's user must be able to
// pass.
func directory(dir string) (string, error) {
	if dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("directory of the demo: %w", err)
		}
		return abs, nil
	}
	dir, err := os.MkdirTemp("", "lictor-demo-")
	if err != nil {
		return "", fmt.Errorf("directory of the demo: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("directory of the demo: %w", err)
	}
	return dir, nil
}

// demo is one run.
type demo struct {
	opts  Options
	out   *printer
	begun time.Time

	lab       *lab.Lab
	workloads []*lab.Workload // one for each shard
	startup   time.Duration
	results   []Result
}

func (d *demo) open(ctx context.Context, dir string) error {
	var err error
	d.lab, err = lab.New(ctx, lab.Options{
		Dir: dir, Shards: d.opts.Shards, Members: d.opts.Members, Bouncers: d.opts.Poolers,
		TTL: d.opts.TTL, Async: d.opts.Async, Programs: d.opts.Programs,
		Database: d.opts.database, Pooler: d.opts.pooler,
		Progress: func(line string) { d.say("%s", line) },
	})
	return err
}

// say prints a line with the time since the start.
func (d *demo) say(format string, args ...any) {
	d.out.line(fmt.Sprintf("%6.1f s  %s", time.Since(d.begun).Seconds(), fmt.Sprintf(format, args...)))
}

// start brings the cluster up until clients can write to every shard, then
// starts the clients and waits until every shard is whole.
func (d *demo) start(ctx context.Context) error {
	limited, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("gave up after %v", startTimeout))
	defer cancel()
	err := d.bringUp(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		// The text only: what was asked last has no fault of its own.
		return errors.New("the cluster was not up within " + startTimeout.String() + ", for which 20 s are enough on two idle cores: " + err.Error())
	}
	return err
}

func (d *demo) bringUp(ctx context.Context) error {
	mode := "synchronous"
	if d.opts.Async {
		mode = "asynchronous"
	}
	d.say("%d shards of %d members, %s replication, in %s", d.opts.Shards, d.opts.Members, mode, d.lab.Dir)
	if err := d.lab.Start(ctx); err != nil {
		return err
	}
	if err := d.eachShard(ctx, func(ctx context.Context, s *lab.Shard) error {
		leader, err := s.AwaitLeader(ctx)
		if err != nil {
			return err
		}
		d.say("%s: %s is the primary", s.Name, leader.Name)
		return s.Prepare(ctx)
	}); err != nil {
		return err
	}
	if err := d.lab.AwaitServing(ctx); err != nil {
		return err
	}
	d.startup = time.Since(d.begun)
	d.say("serving: every shard takes writes through the load balancer")
	for _, s := range d.lab.Shards() {
		// The clients outlive the start; close ends them.
		d.workloads = append(d.workloads, s.StartWorkload(context.WithoutCancel(ctx), lab.WorkloadOptions{Keep: time.Hour}))
	}
	return d.eachShard(ctx, func(ctx context.Context, s *lab.Shard) error {
		if err := d.awaitWhole(ctx, s); err != nil {
			return err
		}
		d.say("%s: whole, %d replicas stream", s.Name, d.opts.Members-1)
		return nil
	})
}

// awaitWhole waits until a shard can lose any host and still lose no row.
func (d *demo) awaitWhole(ctx context.Context, s *lab.Shard) error {
	if _, err := s.AwaitHealthy(ctx); err != nil {
		return err
	}
	if d.opts.Async || d.opts.Members == 1 {
		return nil
	}
	return s.AwaitSync(ctx)
}

func (d *demo) eachShard(ctx context.Context, f func(context.Context, *lab.Shard) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range d.lab.Shards() {
		group.Go(func() error { return f(ctx, s) })
	}
	return group.Wait()
}

// explain adds the ends of the logs to an error that the user can do nothing
// about without them.
func (d *demo) explain(err error) error {
	if err == nil || errors.Is(err, ErrLost) {
		return err
	}
	return fmt.Errorf("%w\n\nThe ends of the logs:\n%s", err, d.lab.LogTail(8))
}

// close stops the clients and the cluster and removes its data, or keeps it.
func (d *demo) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	for _, w := range d.workloads {
		w.Stop()
	}
	if !d.opts.Keep {
		d.say("stopping everything and removing its data")
		return d.lab.Close(ctx)
	}
	var errs []error
	for _, w := range d.workloads {
		errs = append(errs, w.Save(d.lab.Dir))
	}
	errs = append(errs, d.lab.Stop(ctx))
	d.say("stopped; data, logs and the clients' records are in %s", d.lab.Dir)
	return errors.Join(errs...)
}

// runAll runs scenarios one after another, prints what the clients saw, and
// writes the report.
func (d *demo) runAll(ctx context.Context, chosen []scenario) error {
	var lost int64
	for _, s := range chosen {
		result, err := d.play(ctx, s, d.lab.Shard(0), func(line string) { d.say("%s", line) })
		if err != nil {
			return err
		}
		for _, line := range result.lines() {
			d.out.line("          " + line)
		}
		lost += result.LostAcked
	}
	if d.opts.Report != "" {
		if err := writeReport(d.opts.Report, d.report()); err != nil {
			return err
		}
	}
	if lost > 0 {
		return fmt.Errorf("%d %w", lost, ErrLost)
	}
	return nil
}

func (d *demo) report() Report {
	return Report{Shards: d.opts.Shards, StartupMS: d.startup.Milliseconds(), Scenarios: d.results}
}
