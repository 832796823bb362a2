// Command lab plays rounds of random faults on a whole installation and judges
// them (`make lab`; docs/reliability.md).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/e2e/faults"
)

func main() {
	c := command{}
	names := flag.String("faults", "", "names of faults, separated by commas (default: all)")
	list := flag.Bool("list", false, "list the faults and end")
	flag.IntVar(&c.rounds, "rounds", 0, "rounds to play (default: each fault once, in order)")
	flag.Uint64Var(&c.seed, "seed", 0, "seed of everything random (default: by chance)")
	flag.StringVar(&c.report, "report", "", "write all rounds to this file, as JSON, after each one")
	flag.StringVar(&c.artifacts, "artifacts", "", "keep logs and histories of violations in this directory (default: one of its own)")
	flag.BoolVar(&c.appendReport, "append", false, "add to what the report holds already")
	flag.IntVar(&c.options.TTL, "ttl", 0, "ttl of the shard, in seconds (default: Lictor's)")
	flag.BoolVar(&c.options.Async, "async", false, "asynchronous replication")
	flag.Func("set", "`name=value` of the shard's dynamic configuration, e.g. synchronous_mode=quorum; may be repeated", c.set)
	flag.DurationVar(&c.options.Outage, "outage", 20*time.Second, "how long faults last that only time ends")
	flag.StringVar(&c.options.Dir, "dir", "", "directory of the lab (default: a temporary one)")
	flag.DurationVar(&c.keepOver, "keep-over", 0, "keep logs and histories, too, of rounds in which writes stopped for longer")
	flag.BoolVar(&c.keep, "keep", false, "leave the lab's files, logs and data, in -dir")
	flag.Parse()
	chosen, err := faults.Choose(*names)
	if err == nil && *list {
		for _, f := range chosen {
			fmt.Println(f.Name)
		}
		return
	}
	c.faults = chosen
	if c.seed == 0 {
		c.seed = rand.Uint64()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err == nil {
		err = faults.Privileged()
	}
	if err == nil {
		err = c.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1) //nolint:gocritic // stop only takes the signal handler away
	}
}

// set notes one setting of the dynamic configuration.
func (c *command) set(s string) error {
	name, text, found := strings.Cut(s, "=")
	if !found || name == "" {
		return errors.New("must be name=value")
	}
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if c.options.Dynamic == nil {
		c.options.Dynamic = map[string]any{}
	}
	c.options.Dynamic[name] = value
	return nil
}

type command struct {
	options           faults.Options
	faults            []faults.Fault
	rounds            int
	seed              uint64
	report, artifacts string
	appendReport      bool
	keep              bool
	keepOver          time.Duration

	done []faults.Round
}

var errViolations = errors.New("promises were broken; the report says which")

func (c *command) run(ctx context.Context) error {
	if c.keep && c.options.Dir == "" {
		return errors.New("-keep needs -dir")
	}
	if c.options.Dir == "" {
		dir, err := os.MkdirTemp("", "lictor-faults-")
		if err != nil {
			return fmt.Errorf("directory of the lab: %w", err)
		}
		if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL's user must get in
			return fmt.Errorf("directory of the lab: %w", err)
		}
		defer os.RemoveAll(dir)
		c.options.Dir = filepath.Join(dir, "lab")
	}
	if c.artifacts == "" {
		dir, err := os.MkdirTemp("", "lictor-artifacts-")
		if err != nil {
			return fmt.Errorf("directory of the artifacts: %w", err)
		}
		defer os.Remove(dir) // it stays if there is something in it
		c.artifacts = dir
	}
	c.options.Progress = func(line string) {
		fmt.Fprintln(os.Stderr, time.Now().Format(time.TimeOnly), line)
	}
	if c.appendReport {
		if err := c.load(); err != nil {
			return err
		}
	}
	plan := c.plan()
	c.options.Progress(fmt.Sprintf("%d rounds, seed %d", len(plan), c.seed))
	for len(plan) > 0 {
		var err error
		if plan, err = c.onOneSite(ctx, plan); err != nil {
			return err
		}
	}
	return c.summary()
}

// plan is the sequence of faults: as asked for once each, or by chance.
func (c *command) plan() []faults.Fault {
	if c.rounds == 0 {
		return c.faults
	}
	random := rand.New(rand.NewPCG(c.seed, 0))
	var plan []faults.Fault
	for range c.rounds {
		plan = append(plan, c.faults[random.IntN(len(c.faults))])
	}
	return plan
}

// onOneSite plays until the plan is done or the site is wrecked, and returns what
// is left.
func (c *command) onOneSite(ctx context.Context, plan []faults.Fault) (rest []faults.Fault, err error) {
	startCtx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("not up after 3 minutes"))
	defer cancel()
	site, err := faults.Open(startCtx, c.options)
	if err != nil {
		return nil, err
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, site.Close(closeCtx, c.keep))
	}()
	runner := &faults.Runner{Site: site, Seed: c.seed + uint64(len(c.done)), Artifacts: c.artifacts, KeepOver: c.keepOver}
	for i, f := range plan {
		if f.Available != nil {
			if err := f.Available(site); err != nil {
				c.options.Progress(f.Name + " is left out: " + err.Error())
				continue
			}
		}
		c.options.Progress(fmt.Sprintf("round %d: %s", len(c.done)+1, f.Name))
		round, err := runner.Play(ctx, f)
		if err != nil {
			return nil, err
		}
		round.Number = len(c.done) + 1
		c.done = append(c.done, round)
		c.options.Progress(line(round))
		if err := c.save(); err != nil {
			return nil, err
		}
		if round.Wrecked {
			return plan[i+1:], nil
		}
	}
	return nil, nil
}

func line(r faults.Round) string {
	margin := "-"
	if r.MarginMS != nil {
		margin = fmt.Sprintf("%.0f", *r.MarginMS)
	}
	return fmt.Sprintf("%-28s gap %6d ms at %d ms (calm %d, limit %d), errors %d, acked %d, lost %d, overlap %.1f ms, margin %s ms, %s -> %s, whole %.1f s after %.1f s, porcupine %s (%d), violations %d",
		r.Fault, r.WriteGapMS, r.GapAfterMS, r.CalmGapMS, r.GapLimitMS, r.ClientErrors, r.Acked, r.Lost, r.OverlapMS, margin,
		r.LeaderBefore, r.LeaderAfter, float64(r.WholeMS)/1000, float64(r.HeldMS)/1000, r.Verdict, r.Checked, len(r.Violations))
}

func (c *command) load() error {
	content, err := os.ReadFile(c.report)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(content, &c.done)
	}
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func (c *command) save() error {
	if c.report == "" {
		return nil
	}
	content, err := json.MarshalIndent(c.done, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.WriteFile(c.report, append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// summary says what came of each fault, over all rounds of the report.
func (c *command) summary() error {
	byFault := map[string][]faults.Round{}
	var names []string
	bad, undecided := 0, 0
	for _, r := range c.done {
		if _, seen := byFault[r.Fault]; !seen {
			names = append(names, r.Fault)
		}
		byFault[r.Fault] = append(byFault[r.Fault], r)
		if len(r.Violations) > 0 {
			bad++
		}
		if r.Verdict == faults.Undecided {
			undecided++
		}
	}
	fmt.Printf("| fault | rounds | write gap, median (worst) ms | lost | overlap ms | margin, least ms | violations |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, name := range names {
		fmt.Println(row(name, byFault[name]))
	}
	fmt.Printf("\n%d rounds, %d with violations, %d histories that the checker could not decide in time\n", len(c.done), bad, undecided)
	for _, r := range c.done {
		for _, v := range r.Violations {
			fmt.Printf("round %d, %s, seed %d: %s\n", r.Number, r.Fault, r.Seed, v)
		}
	}
	if bad > 0 {
		return errViolations
	}
	return nil
}

func row(name string, rounds []faults.Round) string {
	var gaps []int64
	var lost int64
	var overlap float64
	margin, violations := "-", 0
	least := 0.0
	for _, r := range rounds {
		gaps = append(gaps, r.WriteGapMS)
		lost += r.Lost
		overlap = max(overlap, r.OverlapMS)
		violations += len(r.Violations)
		if r.MarginMS != nil && (margin == "-" || *r.MarginMS < least) {
			least = *r.MarginMS
			margin = fmt.Sprintf("%.0f", least)
		}
	}
	slices.Sort(gaps)
	return fmt.Sprintf("| %s | %d | %d (%d) | %d | %.1f | %s | %d |",
		name, len(rounds), gaps[len(gaps)/2], gaps[len(gaps)-1], lost, overlap, margin, violations)
}
