package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	apiSystem = "lictor, leader's agent on one core"
	// apiRate is how many health checks a second the leader is asked.
	apiRate    = 2000
	apiFor     = 20 * time.Second
	apiClients = 64
	// apiLate is how much longer than its interval a beat may take to come, seconds.
	apiLate = 0.25
)

// healthChecks measures what health checks of load balancers cost the leader's agent,
// which has one core, and whether its HA loop keeps its rhythm meanwhile: the
// longest time between two beats, as Consul shows them. Each check is a connection
// of its own, or all clients keep theirs.
func (b *bench) healthChecks(ctx context.Context) error {
	l, err := loopbackLab(ctx)
	defer func() { closeLab(l) }()
	if err != nil {
		return err
	}
	s := l.Shard(0)
	leader, err := s.Leader(ctx)
	if err != nil {
		return err
	}
	agent := leader.Process("agent").PID()
	if err := pin(agent, 0); err != nil {
		return err
	}
	for _, way := range []struct {
		name string
		keep bool
	}{{"a connection each", false}, {"kept connections", true}} {
		what := fmt.Sprintf("%d GET /primary a second, %s: ", apiRate, way.name)
		cpu := figure{System: apiSystem, Scenario: what + "CPU of the agent", Unit: "% of a core", Target: 100}
		slowest := figure{System: apiSystem, Scenario: what + "99 % answered within", Unit: "ms", Target: 100}
		beat := figure{System: apiSystem, Scenario: what + "longest time between two beats", Unit: "s", Target: beatSeconds + apiLate}
		for range b.runs {
			before, err := cpuSeconds(agent)
			if err != nil {
				return err
			}
			measured, gap, err := askAndWatch(ctx, s, "http://"+leader.REST+"/primary", way.keep)
			if err != nil {
				return err
			}
			after, err := cpuSeconds(agent)
			if err != nil {
				return err
			}
			cpu.Values = append(cpu.Values, 100*(after-before)/apiFor.Seconds())
			slowest.Values = append(slowest.Values, float64(measured[len(measured)*99/100].Microseconds())/1000)
			beat.Values = append(beat.Values, gap.Seconds())
		}
		for _, f := range []figure{cpu, slowest, beat} {
			progress("   %s: %.2f %s", f.Scenario, f.median(), f.Unit)
		}
		b.figures = append(b.figures, cpu, slowest, beat)
	}
	return nil
}

// beatSeconds is how often a leader with the default ttl of 8 beats.
const beatSeconds = 2

// loopbackLab is a shard on this host, so that questions do not have to pass from
// one network namespace into another.
func loopbackLab(ctx context.Context) (*lab.Lab, error) {
	l, err := unstarted(ctx, lab.Options{Bouncers: -1})
	if err != nil {
		return nil, err
	}
	if err := l.Start(ctx); err != nil {
		return l, err
	}
	return l, whole(ctx, l.Shard(0))
}

// pin gives a process one core, all of its threads.
func pin(pid, core int) error {
	var set unix.CPUSet
	set.Set(core)
	tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return err
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pinning process %d to a core: %w", pid, err)
		}
	}
	return nil
}

// askAndWatch asks at the rate, and watches the beats meanwhile. It returns how long
// the answers took, sorted, and the longest time between two beats.
func askAndWatch(ctx context.Context, s *lab.Shard, url string, keep bool) (took []time.Duration, gap time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiFor)
	defer cancel()
	var watched error
	var watching sync.WaitGroup
	watching.Go(func() { gap, watched = longestBeat(ctx, s) })
	took, err = ask(ctx, url, keep)
	watching.Wait()
	if err = errors.Join(err, watched); err != nil {
		return nil, 0, err
	}
	if reached := float64(len(took)) / apiFor.Seconds(); reached < 0.99*apiRate {
		return nil, 0, fmt.Errorf("only %.0f of %d questions a second were answered", reached, apiRate)
	}
	return took, gap, nil
}

// ask asks until ctx ends.
func ask(ctx context.Context, url string, keep bool) ([]time.Duration, error) {
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: !keep, MaxIdleConnsPerHost: apiClients},
		Timeout:   5 * time.Second,
	}
	defer client.CloseIdleConnections()
	due := make(chan struct{}, apiRate)
	var asking sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	for range apiClients {
		asking.Go(func() {
			for range due {
				began := time.Now()
				err := question(ctx, client, url)
				mu.Lock()
				if err == nil {
					took = append(took, time.Since(began))
				} else if ctx.Err() == nil {
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	began, asked := time.Now(), 0
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		for ; asked < int(time.Since(began).Seconds()*apiRate); asked++ {
			select {
			case due <- struct{}{}:
			case <-ctx.Done():
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	close(due)
	asking.Wait()
	slices.Sort(took)
	return took, failed
}

func question(ctx context.Context, client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s answers %d", url, answer.StatusCode)
	}
	return nil
}

// longestBeat is the longest time between two beats until ctx ends.
func longestBeat(ctx context.Context, s *lab.Shard) (time.Duration, error) {
	var last int64
	var seen time.Time
	var longest time.Duration
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if longest == 0 {
				return 0, errors.New("no two beats were seen")
			}
			return max(longest, time.Since(seen)), nil
		}
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			if ctx.Err() != nil {
				continue
			}
			return 0, err
		}
		beat := snapshot.Status.Value.Lictor
		if beat == nil || beat.Number == last {
			continue
		}
		if now := time.Now(); !seen.IsZero() {
			longest, seen = max(longest, now.Sub(seen)), now
		} else {
			seen = now
		}
		last = beat.Number
	}
}
