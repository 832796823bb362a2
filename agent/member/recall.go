package member

import "github.com/lictor-ha/lictor/agent/cluster"

// LedMark is what is written beside the data directory: that this agent may have led with the
// PostgreSQL that runs, since a boot of the host, and until when, as far as was known at its last
// takeover; or that it rests on a pause; or that it led once, and has stopped that PostgreSQL since.
type LedMark struct {
	Until  cluster.Instant // zero: there was no lease
	Paused bool
	Ended  bool // PostgreSQL has stopped since, or is a replica
}

// LongAgo is a moment in the past.
const LongAgo = cluster.Instant(1)

// In is what a mark says in this boot of the host, nil: that this member has not led.
func (m LedMark) In(sameBoot bool) *LedMark {
	switch {
	case m.Ended: // in any boot
	case !sameBoot && m.Paused:
		return nil
	case !sameBoot: // whatever runs now was started past this agent, by data that another member's may have left behind
		m.Until = LongAgo
	case !m.Paused:
		m.Until = max(m.Until, LongAgo)
	}
	return &m
}

// GuardSays is what the guard of an agent's earlier run says.
type GuardSays struct {
	Runs, Answers  bool
	Fired          bool            // it has killed PostgreSQL since it was armed last
	Until          cluster.Instant // its deadline, zero when it is disarmed
	PersistedState *PersistedState
}

// Recall is what an agent that begins anew knows of a PostgreSQL that runs already. What no guard
// knows the mark says.
func Recall(g GuardSays, m *LedMark) Recalled {
	marked := m.recalled()
	switch {
	case !g.Runs:
		return marked
	case !g.Answers && marked.Paused:
		return marked
	case !g.Answers, g.Fired:
		return Recalled{Until: LongAgo}
	case !g.Until.IsZero():
		return Recalled{Until: g.Until, Deadline: g.Until, PersistedState: g.PersistedState}
	case g.PersistedState != nil && g.PersistedState.Paused:
		return Recalled{Paused: true, PersistedState: g.PersistedState}
	}
	return marked
}

// recalled is what the mark alone says.
func (m *LedMark) recalled() Recalled {
	switch {
	case m == nil:
		return Recalled{Unled: true}
	case m.Paused:
		return Recalled{Paused: true}
	case m.Ended: // a former leader's data: it may wait for Consul, and not for long
		return Recalled{}
	}
	return Recalled{Until: m.Until}
}
