package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// What is told follows from what is seen, each thing once.
func TestTeller(t *testing.T) {
	first := time.Date(2026, 11, 21, 12, 0, 0, 123456000, time.UTC)
	later := first.Add(time.Minute)
	up := func(role string, started time.Time) situation {
		return situation{up: true, role: role, started: started}
	}
	busy := func(task ha.TaskKind, s situation) situation { s.task = task; return s }
	down := situation{down: true, role: "replica"}
	stopping, leading, reloaded := down, down, up("replica", first)
	stopping.stopping, leading.leads, reloaded.reloaded = true, true, true
	for name, test := range map[string]struct {
		told postgres.Told
		seen []situation
		want []string
	}{
		"bootstrap tells nothing until it is over": {
			seen: []situation{busy(ha.TaskBootstrap, up("primary", first)), down, busy(ha.TaskStart, down), up("primary", later), up("primary", later)},
			want: []string{"on_start primary"},
		},
		"promotion": {
			seen: []situation{up("replica", first), busy(ha.TaskPromote, up("primary", first)), up("primary", first)},
			want: []string{"on_start replica", "on_role_change primary"},
		},
		"restart by the agent": {
			seen: []situation{up("primary", first), busy(ha.TaskRestart, leading), up("primary", first), up("primary", later)},
			want: []string{"on_start primary", "on_restart primary"},
		},
		"crash": {
			seen: []situation{up("primary", first), leading, busy(ha.TaskStart, leading), up("primary", later)},
			want: []string{"on_start primary", "on_start primary"},
		},
		"switchover, on the former primary": {
			seen: []situation{up("primary", first), busy(ha.TaskHandover, up("primary", first)), down, busy(ha.TaskRejoin, down), up("replica", later)},
			want: []string{"on_start primary", "on_role_change replica"},
		},
		"a lease that was lost": {
			seen: []situation{up("primary", first), busy(ha.TaskDemote, up("primary", first)), down, down, busy(ha.TaskStart, down), up("replica", later)},
			want: []string{"on_start primary", "on_role_change demoted", "on_role_change replica"},
		},
		"orderly stop": {
			seen: []situation{up("primary", first), busy(ha.TaskHandover, stopping), stopping, stopping},
			want: []string{"on_start primary", "on_stop primary"},
		},
		"start after an orderly stop": {
			told: postgres.Told{Role: "primary"},
			seen: []situation{up("replica", first)},
			want: []string{"on_start replica"},
		},
		"the agent alone was started anew": {
			told: postgres.Told{Role: "primary", Started: first},
			seen: []situation{up("primary", first)},
		},
		"the agent crashed, and PostgreSQL with its lease": {
			told: postgres.Told{Role: "primary", Started: first},
			seen: []situation{down, up("replica", later)},
			want: []string{"on_role_change replica"},
		},
		"reload": {
			seen: []situation{up("replica", first), reloaded, up("replica", first)},
			want: []string{"on_start replica", "on_reload replica"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := teller{told: test.told}
			var got []string
			for _, s := range test.seen {
				s.primary = c.told.Role == "primary"
				if action, role := c.next(s); action != "" {
					got = append(got, action+" "+role)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("told %q, want %q", got, test.want)
			}
		})
	}
}

// Scripts run in order, one at a time, each within its limit, and what was told is
// kept before each.
func TestCallbacksRunInOrder(t *testing.T) {
	var log strings.Builder
	c := newCallbacks(zerolog.New(&log))
	var mu sync.Mutex
	var did []string
	running := 0
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		did = append(did, fmt.Sprintf(format, args...))
	}
	release := make(chan struct{})
	c.keep = func(told postgres.Told) error { note("keep %s", told.Role); return nil }
	c.run = func(_ context.Context, action, role, _ string) error {
		mu.Lock()
		if running++; running > 1 {
			t.Error("two scripts at a time")
		}
		mu.Unlock()
		defer func() { mu.Lock(); running--; mu.Unlock() }()
		<-release
		note("%s %s", action, role)
		return errors.New("exit status 1")
	}
	ended := make(chan struct{}, 10)
	c.ended = func() { ended <- struct{}{} }
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	working.Go(func() { c.work(ctx) })
	c.add(callback{action: "on_start", role: "replica", command: "x", told: postgres.Told{Role: "replica"}})
	c.add(callback{action: "on_role_change", role: "primary", command: "x", told: postgres.Told{Role: "primary"}})
	c.add(callback{action: "on_reload", role: "primary", told: postgres.Told{Role: "primary"}}) // no command
	if c.idle() {
		t.Error("idle with scripts to be run")
	}
	close(release)
	c.finish(time.Minute)
	<-ended
	if !c.idle() {
		t.Error("not idle when all was run")
	}
	c.finish(time.Minute) // at once
	cancel()
	working.Wait()
	want := []string{"keep replica", "on_start replica", "keep primary", "on_role_change primary", "keep primary"}
	if !slices.Equal(did, want) {
		t.Errorf("did %q, want %q", did, want)
	}
	if n := strings.Count(log.String(), "a callback failed"); n != 2 {
		t.Errorf("%d failures were logged, want 2: %s", n, log.String())
	}
}

// A stop does not wait for ever for a script.
func TestFinishEndsAStuckCallback(t *testing.T) {
	c := newCallbacks(zerolog.Nop())
	began := make(chan struct{})
	c.keep = func(postgres.Told) error { return nil }
	c.run = func(ctx context.Context, _, _, _ string) error { close(began); <-ctx.Done(); return ctx.Err() }
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	working.Go(func() { c.work(ctx) })
	c.add(callback{action: "on_stop", role: "primary", command: "x"})
	<-began
	c.finish(time.Millisecond)
	cancel()
	working.Wait()
}
