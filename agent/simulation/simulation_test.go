package simulation

import (
	"flag"
	"fmt"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	simSeeds   = flag.Uint64("sim.seeds", 0, "how many random schedules to run; 0: 150, or 40 with the race detector or -short")
	simFirst   = flag.Uint64("sim.first", 1, "the seed of the first of them")
	simTimings = flag.Uint64("sim.timings", 0, "how many seeds, each with other timings, a schedule is run with that is written by hand; 0: 10, or 3 with the race detector or -short")
	simMutant  = flag.String("sim.mutant", "", "the rule to switch off, a field of Mutant: how easily do random schedules notice?")
	simQuorum  = flag.Bool("sim.quorum", false, "all random schedules are run with takeover: quorum, and not every eighth")
	simKind    = flag.String("sim.kind", "", "a kind of event that happens six times more in each random schedule")
	simSeed    = flag.Uint64("sim.seed", 0, "run the schedule of this seed alone, and tell everything that happens")
)

// few reports whether a part of the runs must do: `make test-unit` is to be quick,
// `make test` has all of them.
func few() bool { return raceEnabled || testing.Short() }

// timings is how many seeds a schedule is run with that is written by hand.
func timings() uint64 {
	switch {
	case *simTimings > 0:
		return *simTimings
	case few():
		return 3
	}
	return 10
}

// TestRandomSchedules runs random schedules of ten simulated minutes, on all cores.
// A seed that fails is shrunk and printed.
func TestRandomSchedules(t *testing.T) {
	o := Options{Mutant: mutantNamed(t, *simMutant)}
	if *simSeed != 0 {
		replay(t, generate(*simSeed), o)
		return
	}
	seeds := *simSeeds
	if seeds == 0 {
		seeds = 150
		if few() {
			seeds = 40
		}
	}
	began := time.Now()
	// Little lives long here, so the garbage can wait.
	defer debug.SetGCPercent(debug.SetGCPercent(3000))
	var next, byQuorum, takeovers, promotions, commits, failsafe atomic.Uint64
	var workers sync.WaitGroup
	var mu sync.Mutex
	var failed []uint64
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				i := next.Add(1) - 1
				mu.Lock()
				enough := len(failed) >= 5
				mu.Unlock()
				if i >= seeds || enough {
					return
				}
				r := Run(generate(*simFirst+i), o)
				takeovers.Add(uint64(r.Tally.Takeovers))
				byQuorum.Add(uint64(r.Tally.ByQuorum))
				promotions.Add(uint64(r.Tally.Promotions))
				commits.Add(uint64(r.Tally.Commits))
				failsafe.Add(uint64(r.Tally.Failsafe))
				if r.Violation != nil {
					mu.Lock()
					failed = append(failed, *simFirst+i)
					mu.Unlock()
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d schedules in %s: %d takeovers, %d by quorum, %d promotions, %d commits, %d failsafe rounds",
		min(next.Load(), seeds), time.Since(began).Round(time.Millisecond), takeovers.Load(), byQuorum.Load(), promotions.Load(), commits.Load(), failsafe.Load())
	for i, seed := range failed {
		if i >= 3 {
			t.Errorf("seed %d fails, too", seed)
			continue
		}
		report(t, generate(seed), o)
	}
}

// quorumEvery is of how many random schedules one is run with takeover: quorum.
const quorumEvery = 8

// generate makes the random schedule of a seed, as the flags want it.
func generate(seed uint64) Schedule {
	s := Generate(seed)
	if *simKind != "" {
		s = Often(s, Kind(*simKind))
	}
	if *simQuorum || seed%quorumEvery == 0 {
		return ByQuorum(s)
	}
	return s
}

// report shrinks a failing schedule and prints it.
func report(t *testing.T, s Schedule, o Options) {
	t.Helper()
	short := Shrink(s, o, 400)
	t.Errorf("seed %d: %v\nfails as well when shortened to: %v\n%s\nreplay: go test ./agent/simulation -run TestRandomSchedules -sim.seed %d -v",
		s.Seed, Run(s, o).Violation, Run(short, o).Violation, short, s.Seed)
}

// replay runs one schedule and prints what happens, shrunk if it fails.
func replay(t *testing.T, s Schedule, o Options) {
	t.Helper()
	tell(t, Shrink(s, o, 1000), o)
}

// tell runs one schedule and prints what happens.
func tell(t *testing.T, s Schedule, o Options) {
	t.Helper()
	var lines strings.Builder
	o.Trace = func(at time.Duration, line string) { fmt.Fprintf(&lines, "%10.4f %s\n", at.Seconds(), line) }
	r := Run(s, o)
	t.Logf("%s%s", lines.String(), s)
	if r.Violation != nil {
		t.Error(r.Violation)
	}
}

// mutantNamed switches one rule off.
func mutantNamed(t *testing.T, name string) Mutant {
	t.Helper()
	var m Mutant
	if name != "" {
		field := reflect.ValueOf(&m).Elem().FieldByName(name)
		if !field.IsValid() {
			t.Fatalf("-sim.mutant: %q is no field of Mutant", name)
		}
		field.SetBool(true)
	}
	return m
}

// TestARunIsDeterministic runs a schedule twice and compares all that happened.
func TestARunIsDeterministic(t *testing.T) {
	run := func(seed uint64) string {
		var lines strings.Builder
		Run(Generate(seed), Options{Trace: func(at time.Duration, line string) { fmt.Fprintln(&lines, at, line) }})
		return lines.String()
	}
	for seed := uint64(1); seed <= 3; seed++ {
		if first, second := run(seed), run(seed); first != second {
			t.Fatalf("seed %d: two runs differ:\n%s\n%s", seed, first, second)
		}
	}
}
