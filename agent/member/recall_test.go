package member

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/ha"
)

func TestRecallByGuardAndMark(t *testing.T) {
	paused, led := &PersistedState{PersistedState: ha.PersistedState{Paused: true}}, &PersistedState{KillAt: 70}
	answers := GuardSays{Runs: true, Answers: true}
	with := func(change func(*GuardSays)) GuardSays {
		g := answers
		change(&g)
		return g
	}
	armed := with(func(g *GuardSays) { g.Until, g.PersistedState = 70, led })
	tests := []struct {
		name  string
		guard GuardSays
		mark  *LedMark
		want  Recalled
	}{
		{"no guard, no mark", GuardSays{}, nil, Recalled{Unled: true}},
		{"no guard, a mark of a lease", GuardSays{}, &LedMark{Until: 50}, Recalled{Until: 50}},
		{"no guard, a mark of a pause", GuardSays{}, &LedMark{Paused: true}, Recalled{Paused: true}},
		{"no guard, a mark of what has ended", GuardSays{}, &LedMark{Ended: true}, Recalled{}},
		{"a guard that does not answer", GuardSays{Runs: true}, &LedMark{Until: 50}, Recalled{Until: LongAgo}},
		{"a guard that does not answer, never led", GuardSays{Runs: true}, nil, Recalled{Until: LongAgo}},
		{"a guard that does not answer, in a pause", GuardSays{Runs: true}, &LedMark{Paused: true}, Recalled{Paused: true}},
		{"a guard that has fired", with(func(g *GuardSays) { g.Fired = true }), &LedMark{Paused: true}, Recalled{Until: LongAgo}},
		{"a guard with a deadline", armed, &LedMark{Paused: true}, Recalled{Until: 70, Deadline: 70, PersistedState: led}},
		{"a guard that remembers a pause", with(func(g *GuardSays) { g.PersistedState = paused }), nil, Recalled{Paused: true, PersistedState: paused}},
		{"a guard that remembers something else", with(func(g *GuardSays) { g.PersistedState = led }), &LedMark{Until: 50}, Recalled{Until: 50}},
		{"a guard that knows nothing", answers, nil, Recalled{Unled: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Recall(test.guard, test.mark); got != test.want {
				t.Errorf("recalls %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestLedMarkInABoot(t *testing.T) {
	tests := []struct {
		name     string
		mark     LedMark
		sameBoot bool
		want     *LedMark
	}{
		{"a lease", LedMark{Until: 50}, true, &LedMark{Until: 50}},
		{"a lease that had no end", LedMark{}, true, &LedMark{Until: LongAgo}},
		{"a lease before the host was lost", LedMark{Until: 50}, false, &LedMark{Until: LongAgo}},
		{"a pause", LedMark{Paused: true}, true, &LedMark{Paused: true}},
		{"a pause before the host was lost", LedMark{Paused: true}, false, nil},
		{"ended", LedMark{Ended: true}, true, &LedMark{Ended: true}},
		{"ended before the host was lost", LedMark{Ended: true}, false, &LedMark{Ended: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := test.mark.In(test.sameBoot)
			if (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
				t.Errorf("says %+v, want %+v", got, test.want)
			}
		})
	}
}
