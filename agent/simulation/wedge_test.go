package simulation

import (
	"testing"
	"time"
)

// TestNoWedge is I4 while one fault of the leader lasts: another member leads, or this one
// goes on, and commits are acknowledged again within a minute. (An agent that is starved
// leads on as long as it beats in time, and is interrupted now and then.)
func TestNoWedge(t *testing.T) {
	for _, mode := range []any{false, true, "quorum"} {
		for _, kind := range []Kind{
			KillAgent, StopAgent, EndAgent, StopGuard, KillAgentAndGuard, StopWatcher, HangPostmaster, StopPostmaster,
			Orphans, HangDisk, DiskFull, FailPostgres, HostLoss, FreezeHost, PauseVM, Isolate, CutFromMembers, SlowNetwork, LateWatch,
			ConsulError,
		} {
			s := directed(4, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}),
				during(29, 200, kind, a).with(map[Kind]int{ConsulError: 403, SlowNetwork: 300}[kind]))
			t.Run(string(kind), func(t *testing.T) { serves(t, s) })
		}
		// What is done half-way, or cannot be ended, after the primary has crashed.
		for _, kind := range []Kind{HangDisk, HangWork, KillFails, Linger, FailPostgres, DiskFull} {
			s := directed(4, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}), during(29, 200, kind, a), ev(30, KillPostmaster, a))
			t.Run("crash and "+string(kind), func(t *testing.T) { serves(t, s) })
		}
		// A restore hangs as it begins, and so nothing ends that has told nobody.
		s := directed(4, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}), during(29, 200, HangDisk, a), ev(30, Restore, a).with(200), ev(31, KillPostmaster, a))
		t.Run("crash and a restore that hangs", func(t *testing.T) { serves(t, s) })
	}
}

// serves checks that commits are acknowledged in every ten seconds of the last minute, while
// the faults go on.
func serves(t *testing.T, s Schedule) {
	t.Helper()
	t.Parallel()
	for seed := uint64(1); seed <= 3; seed++ {
		s.Seed = seed
		if why := s.stands(time.Minute); why != nil {
			t.Errorf("seed %d: %v\n%s", seed, why, s)
			return
		}
	}
}

// stands plays a schedule and says what was violated by its end, or in which ten seconds
// after settled nothing was acknowledged.
func (s Schedule) stands(settled time.Duration) *Violation {
	w := newWorld(s, Options{})
	for _, e := range s.Events {
		w.at(e.At, func() { w.inject(e) })
	}
	for at := s.Events[0].At + settled; at < s.Length+settled; at += 10 * time.Second {
		w.run(at)
		before := w.judge.tally.Commits
		w.run(at + 10*time.Second)
		if w.judge.violation == nil && w.judge.tally.Commits == before {
			w.judge.fail("I4", "nothing was acknowledged in ten seconds: %s", w.judge.reasons())
		}
		if w.judge.violation != nil {
			return w.judge.violation
		}
	}
	return nil
}
