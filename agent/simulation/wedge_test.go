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
			ConsulError, StopBoth, SessionLoss,
		} {
			s := directed(4, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}),
				during(29, 200, kind, a).with(map[Kind]int{ConsulError: 403, SlowNetwork: 300}[kind]))
			t.Run(string(kind), func(t *testing.T) { serves(t, s) })
			if mode != false {
				quorum := s
				quorum.Config = hangs(byStandbys(mode, 8))
				t.Run("takeover by quorum, "+string(kind), func(t *testing.T) { serves(t, quorum) })
			}
		}
		for name, cut := range map[string]Event{
			"from Consul": during(29, 200, CutBoth, a).to(4), "to Consul": during(29, 200, CutOneWay, a).to(4), "answers of Consul": during(29, 200, CutOneWay, 4).to(a),
			"from a member": during(29, 200, CutBoth, a).to(b), "to a member": during(29, 200, CutOneWay, a).to(b), "of a member": during(29, 200, CutOneWay, b).to(a),
		} {
			s := directed(4, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}), cut)
			t.Run("cut "+name, func(t *testing.T) { serves(t, s) })
		}
		// What is done half-way, or cannot be ended, after the primary has crashed.
		for _, kind := range []Kind{HangDisk, HangWork, KillFails, Linger, FailPostgres, DiskFull} {
			s := directed(4, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}), during(29, 200, kind, a), ev(30, KillPostmaster, a))
			t.Run("crash and "+string(kind), func(t *testing.T) { serves(t, s) })
		}
		// A restore hangs as it begins, and so nothing ends that has told nobody.
		s := directed(4, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}), during(29, 200, HangDisk, a), ev(30, Restore, a).with(200), ev(31, KillPostmaster, a))
		t.Run("crash and a restore that hangs", func(t *testing.T) { serves(t, s) })
		// What becomes of the only standby is none of the leader's.
		for _, kind := range []Kind{
			HostLoss, FreezeHost, PauseVM, Isolate, CutFromMembers, KillAgent, StopAgent, StopPostmaster, HangDisk, DiskFull, KillAgentAndGuard, StopBoth, FailPostgres, LoseData,
		} {
			s := directed(2, hangs(map[string]any{"ttl": 8, "synchronous_mode": mode}), during(29, 200, kind, b))
			t.Run("the only standby, "+string(kind), func(t *testing.T) { serves(t, s) })
		}
		// In pause nobody but the operator touches a PostgreSQL that serves.
		for _, kind := range []Kind{KillAgent, StopAgent, StopGuard, StopBoth, StopWatcher, Isolate, ConsulDown, ConsulHang, SessionLoss, SlowNetwork} {
			s := directed(4, map[string]any{"ttl": 8}, during(20, 300, Pause, a), during(29, 200, kind, a).with(map[Kind]int{SlowNetwork: 300}[kind]))
			t.Run("pause, "+string(kind), func(t *testing.T) { serves(t, s) })
		}
	}
	// The leader of a shard that is the standby of another one: somebody receives what is written there.
	for _, kind := range []Kind{
		KillAgent, StopAgent, EndAgent, HangPostmaster, StopPostmaster, HangDisk, DiskFull, FailPostgres, HostLoss, FreezeHost, PauseVM, Isolate, CutFromMembers, SessionLoss,
	} {
		s := standbyShard(hangs(map[string]any{"ttl": 8}), during(29, 200, kind, a))
		t.Run("a standby shard, "+string(kind), func(t *testing.T) { serves(t, s) })
	}
}

// A leader whose disk hangs ceases to lead.
func TestMutantDiskUnseen(t *testing.T) {
	t.Parallel()
	s := directed(4, hangs(map[string]any{"ttl": 8}), during(29, 200, HangDisk, a))
	wedged := func(m Mutant) bool { return s.stands(Options{Mutant: m}, time.Minute) != nil }
	for s.Seed = 1; s.Seed <= 10; s.Seed++ {
		if !wedged(Mutant{DiskUnseen: true}) {
			t.Errorf("seed %d: the rule can be left out without anything noticing", s.Seed)
		}
	}
}

// Settings of whom commits wait for were given up while the disk hung. When it answers they come to an end after
// the last one: what they write is what was asked for last. (Seed 26020838: the simulator had each write its own.)
func TestMutantSettingLate(t *testing.T) {
	s := directed(3, map[string]any{"ttl": 15, "synchronous_mode": "quorum"}, during(29, 30, LagReplica, c), during(30, 26, PauseVM, a),
		during(33, 54, HangDisk, a), during(50, 34, CutBoth, a).to(b), during(50, 34, CutBoth, a).to(c),
		during(87.04, 60, LagReplica, b), during(87.04, 60, LagReplica, c), during(87.2, 60, HostLoss, a))
	s.NoFailover = []int{b}
	killed(t, Mutant{SettingLate: true}, s, "I2")
}

// serves checks that commits are acknowledged in every ten seconds of the last minute, while
// the faults go on.
func serves(t *testing.T, s Schedule) {
	t.Helper()
	t.Parallel()
	for seed := uint64(1); seed <= max(1, min(3, timings()/3)); seed++ {
		s.Seed = seed
		if why := s.stands(Options{}, time.Minute); why != nil {
			t.Errorf("seed %d: %v\n%s", seed, why, s)
			return
		}
	}
}

// stands plays a schedule and says what was violated by its end, or in which ten seconds
// after settled nothing was acknowledged.
func (s Schedule) stands(o Options, settled time.Duration) *Violation {
	w := newWorld(s, o)
	for _, e := range s.Events {
		w.at(e.At, func() { w.inject(e) })
	}
	for at := s.Events[0].At + settled; at < s.Length+settled; at += 10 * time.Second {
		w.run(at)
		before := w.progress()
		w.run(at + 10*time.Second)
		if w.judge.violation == nil && w.progress() == before {
			w.judge.fail("I4", "nothing was acknowledged in ten seconds: %s", w.judge.reasons())
		}
		if w.judge.violation != nil {
			return w.judge.violation
		}
	}
	return nil
}

// progress is how much the shard has acknowledged, or received from the one that it is a standby of.
func (w *world) progress() int {
	if !w.isStandby() {
		return w.judge.tally.Commits
	}
	most := int64(0)
	for _, h := range w.hosts {
		if h.up && !h.frozen {
			most = max(most, h.pg.at.lsn)
		}
	}
	return int(most)
}
