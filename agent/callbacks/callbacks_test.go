package callbacks

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
	up := func(role string, started time.Time) Situation {
		return Situation{Up: true, Role: role, Started: started}
	}
	busy := func(task ha.TaskKind, s Situation) Situation { s.Task = task; return s }
	down := Situation{Down: true, Role: "replica"}
	stopping, leading, reloaded := down, down, up("replica", first)
	stopping.Stopping, leading.Leads, reloaded.Reloaded = true, true, true
	for name, test := range map[string]struct {
		told postgres.CallbackState
		seen []Situation
		want []string
	}{
		"bootstrap tells nothing until it is over": {
			seen: []Situation{busy(ha.TaskBootstrap, up("primary", first)), down, busy(ha.TaskStart, down), up("primary", later), up("primary", later)},
			want: []string{"on_start primary"},
		},
		"promotion": {
			seen: []Situation{up("replica", first), busy(ha.TaskPromote, up("primary", first)), up("primary", first)},
			want: []string{"on_start replica", "on_role_change primary"},
		},
		"a standby leader begins as a replica": {
			seen: []Situation{up("standby_leader", first), up("standby_leader", first), up("standby_leader", later), up("standby_leader", later)},
			want: []string{"on_start replica", "on_role_change standby_leader", "on_start replica", "on_role_change standby_leader"},
		},
		"a primary that becomes one": {
			seen: []Situation{up("primary", first), busy(ha.TaskRejoin, down), up("standby_leader", later)},
			want: []string{"on_start primary", "on_role_change standby_leader"},
		},
		"restart by the agent": {
			seen: []Situation{up("primary", first), busy(ha.TaskRestart, leading), up("primary", first), up("primary", later)},
			want: []string{"on_start primary", "on_restart primary"},
		},
		"crash": {
			seen: []Situation{up("primary", first), leading, busy(ha.TaskStart, leading), up("primary", later)},
			want: []string{"on_start primary", "on_start primary"},
		},
		"switchover, on the former primary": {
			seen: []Situation{up("primary", first), busy(ha.TaskHandover, up("primary", first)), down, busy(ha.TaskRejoin, down), up("replica", later)},
			want: []string{"on_start primary", "on_role_change replica"},
		},
		"a lease that was lost": {
			seen: []Situation{up("primary", first), busy(ha.TaskDemote, up("primary", first)), down, down, busy(ha.TaskStart, down), up("replica", later)},
			want: []string{"on_start primary", "on_role_change demoted", "on_role_change replica"},
		},
		"orderly stop": {
			seen: []Situation{up("primary", first), busy(ha.TaskHandover, stopping), stopping, stopping},
			want: []string{"on_start primary", "on_stop primary"},
		},
		"start after an orderly stop": {
			told: postgres.CallbackState{Role: "primary"},
			seen: []Situation{up("replica", first)},
			want: []string{"on_start replica"},
		},
		"the agent alone was started anew": {
			told: postgres.CallbackState{Role: "primary", Started: first},
			seen: []Situation{up("primary", first)},
		},
		"the agent crashed, and PostgreSQL with its lease": {
			told: postgres.CallbackState{Role: "primary", Started: first},
			seen: []Situation{down, up("replica", later)},
			want: []string{"on_role_change replica"},
		},
		"reload": {
			seen: []Situation{up("replica", first), reloaded, up("replica", first)},
			want: []string{"on_start replica", "on_reload replica"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := CallbackState{LastNotified: test.told}
			var got []string
			for _, s := range test.seen {
				s.Primary = c.LastNotified.Role == "primary"
				if action, role := c.Next(s); action != "" {
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
	c := New(zerolog.New(&log))
	var mu sync.Mutex
	var did []string
	running := 0
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		did = append(did, fmt.Sprintf(format, args...))
	}
	release := make(chan struct{})
	c.Keep = func(told postgres.CallbackState) error { note("keep %s", told.Role); return nil }
	c.Run = func(_ context.Context, action, role, _ string) error {
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
	c.Ended = func() { ended <- struct{}{} }
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	working.Go(func() { c.Work(ctx) })
	c.Add(Callback{Action: "on_start", Role: "replica", Command: "x", LastNotified: postgres.CallbackState{Role: "replica"}})
	c.Add(Callback{Action: "on_role_change", Role: "primary", Command: "x", LastNotified: postgres.CallbackState{Role: "primary"}})
	c.Add(Callback{Action: "on_reload", Role: "primary", LastNotified: postgres.CallbackState{Role: "primary"}}) // no command
	if c.Idle() {
		t.Error("idle with scripts to be run")
	}
	close(release)
	c.Finish(time.Minute)
	<-ended
	if !c.Idle() {
		t.Error("not idle when all was run")
	}
	c.Finish(time.Minute) // at once
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
	c := New(zerolog.Nop())
	began := make(chan struct{})
	c.Keep = func(postgres.CallbackState) error { return nil }
	c.Run = func(ctx context.Context, _, _, _ string) error { close(began); <-ctx.Done(); return ctx.Err() }
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	working.Go(func() { c.Work(ctx) })
	c.Add(Callback{Action: "on_stop", Role: "primary", Command: "x"})
	<-began
	c.Finish(time.Millisecond)
	cancel()
	working.Wait()
}
