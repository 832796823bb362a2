package simulation

import (
	"strings"
	"testing"
	"time"
)

// cutRewind is a former leader that comes back, has diverged, and whose agent is killed while it rewinds.
func cutRewind() Schedule {
	s := directed(3, map[string]any{"ttl": 8}, during(29, 16, LagReplica, b), during(29, 16, LagReplica, c), during(30, 20, HostLoss, a))
	for _, at := range []float64{53, 54, 55, 56, 57, 58} {
		s.Events = append(s.Events, during(at, 0.3, KillAgent, a))
	}
	return s
}

// What a rewind that was cut short leaves is never started. It is made anew: by the member itself where that is
// allowed, else by an operator, whom the member tells.
func TestRewindThatIsCutShort(t *testing.T) {
	tests := []struct {
		name, line string
		change     func(*Schedule)
	}{
		{"replaced", "the data directory is replaced", func(s *Schedule) { s.Replaces = []int{a} }},
		{"by policy", "a copy is made anew", func(s *Schedule) { s.Config["rebuild"] = "auto" }},
		{"by the operator", "the operator sees", func(*Schedule) {}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, cut, made := cutRewind(), 0, 0
			test.change(&s)
			for seed := uint64(1); seed <= 30; seed++ {
				s.Seed = seed
				was, anew := 0, 0
				r := Run(s, Options{Trace: func(_ time.Duration, line string) {
					if strings.Contains(line, "a rewind of it was cut short") {
						was = 1
					}
					if strings.Contains(line, test.line) {
						anew = 1
					}
				}})
				if r.Violation != nil {
					report(t, s, Options{})
					return
				}
				cut, made = cut+was, made+was*anew
			}
			t.Logf("cut short in %d of 30 runs, made anew in %d", cut, made)
			if cut == 0 || made < cut {
				t.Errorf("a rewind was cut short in %d of 30 runs, and the data were made anew as is wanted in %d", cut, made)
			}
		})
	}
}

// A member without use_pg_rewind says that it cannot go on, and is made anew.
func TestWithoutRewind(t *testing.T) {
	s := cutRewind()
	s.Events, s.NoRewind = s.Events[:3], []int{a}
	survived(t, s)
}

// Whoever was rewound is consistent, and answers, only with the WAL up to where its upstream was when the rewind
// ended. Where that upstream is lost and the shard goes on without this WAL, it is rewound again onto who leads now.
func TestRewoundOntoALeaderThatIsLost(t *testing.T) {
	waited := 0
	for tenths := range 30 {
		s := directed(3, map[string]any{"ttl": 8}, during(29, 17, LagReplica, c), during(50, 20, LagReplica, c), during(29.9, 16, LagReplica, b), during(30, 20, HostLoss, a),
			during(50.5+float64(tenths)/10, 30, HostLoss, b))
		s.Seed = uint64(tenths + 1)
		r := Run(s, Options{Trace: func(_ time.Duration, line string) {
			if strings.Contains(line, "may be nobody's; ") {
				waited++
			}
		}})
		if r.Violation != nil {
			report(t, s, Options{})
			return
		}
	}
	if waited == 0 {
		t.Error("no schedule reaches a replica that waits for WAL which nobody has")
	}
}
