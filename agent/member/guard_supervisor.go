package member

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// PersistedState is what the guard is told: the deadline, and what it remembers for the agent.
type PersistedState struct {
	ha.PersistedState
	// Config is the dynamic configuration in force: Consul may be away.
	Config json.RawMessage `json:"config,omitempty"`
	// Unopened: the primary was started, and nobody is led to it yet (opening.go).
	Unopened bool `json:"unopened,omitempty"`

	KillAt  cluster.Instant `json:"-"` // the deadline; zero: there is no lease
	version uint64          // counts the persisted states: tasks may pass on theirs late
}

// Recalled is what the guard of an agent's earlier run knows.
type Recalled struct {
	PersistedState *PersistedState // nil: nothing
	// Until is the guard's deadline, zero when it is disarmed or when none runs.
	// It lies in the past when the guard has fired, or does not answer: then
	// nobody knows how long PostgreSQL may run.
	Until cluster.Instant
	// Paused: it rests on a pause that was in force. Unled: no run of this agent has
	// ever led with these data.
	Paused, Unled bool
	// Deadline is what the guard is known to have; zero: none, or it did not say.
	Deadline cluster.Instant
}

// adoption is how a primary is adopted with what was recalled.
func (r Recalled) adoption(now cluster.Instant) adoption {
	return adoption{at: now, until: r.Until, paused: r.Paused, unled: r.Unled}
}

// GuardSupervisor keeps the guard's deadline in step with the lease. Orders reach the guard one
// after another, so that an old deadline never arms it after a disarm; of those that the
// loop leaves, the latest replaces earlier ones.
type GuardSupervisor struct {
	port  GuardPort
	clock Clock
	later Later
	log   zerolog.Logger

	queue    []func(done func())
	busy     bool
	left     *order         // by the loop, not yet sent
	round    int            // of disarms
	grants   int            // deadlines of new leases that it was told
	persists uint64         // that were made
	newest   PersistedState // the latest of those that anybody passed on
	known    cluster.Instant
	may      cluster.Instant // the latest deadline that it may have: not each order is answered
	broken   string
	// resting: the guard may remember that a pause is in force.
	resting bool
	marked  mark
	marking mark // the latest that was asked for, and is not made yet
	marks   int  // that were asked for
}

// mark is what this run has written beside the data directory.
type mark int

const (
	unmarked mark = iota
	markedLed
	markedPaused
)

// order is what the loop wants of the guard.
type order struct {
	persisted PersistedState
	grant     bool // of a new lease
	disarm    bool
}

// errNotInTime: the guard was not told before it was too late.
var errNotInTime = errors.New("the guard has not answered in time")

// Recall takes in what the guard of an earlier run knows.
func (g *GuardSupervisor) Recall(r Recalled) {
	g.known, g.may = r.Deadline, r.Deadline
	g.resting = r.Paused
}

// arm leaves a new deadline of the present lease for the guard.
func (g *GuardSupervisor) arm(m PersistedState) { g.leave(order{persisted: m}) }

// grant leaves the deadline of a new lease for the guard.
func (g *GuardSupervisor) grant(m PersistedState) { g.leave(order{persisted: m, grant: true}) }

// standDown leaves for the guard that nothing is to be guarded, as the shard is
// paused, and that it is to remember so.
func (g *GuardSupervisor) standDown(m PersistedState) {
	g.resting = true
	g.leave(order{disarm: true, persisted: m})
}

// mayHaveDeadline reports whether the guard may have one, of this run or of an earlier one.
func (g *GuardSupervisor) mayHaveDeadline() bool { return !g.may.IsZero() }

func (g *GuardSupervisor) leave(o order) {
	if o.persisted.KillAt.IsZero() && !o.disarm {
		return
	}
	g.latest(o.persisted)
	queued := g.left != nil
	o.grant = o.grant || queued && g.left.grant && !o.disarm
	g.left = &o
	if queued {
		return
	}
	round := g.round
	g.enqueue(func(done func()) {
		if round != g.round { // a disarm came in between
			done()
			return
		}
		g.send(done)
	})
}

// send passes on what the loop left last.
func (g *GuardSupervisor) send(done func()) {
	o := g.left
	g.left = nil
	switch {
	case o == nil: // a disarm has superseded it
		done()
	case o.disarm:
		g.port.StandDown(g.latest(o.persisted), func(err error) {
			g.note(0, err)
			if err == nil && g.marked != markedPaused && g.marking != markedPaused {
				g.mark(0, markedPaused, func(err error) {
					if err != nil {
						g.note(0, err)
					}
				})
			}
			done()
		})
	default:
		g.tell(o.persisted, o.grant, func(error) { done() }) // noted
	}
}

// enqueue runs a job when all that were asked for before are done.
func (g *GuardSupervisor) enqueue(job func(done func())) {
	g.queue = append(g.queue, job)
	g.next()
}

// inTurn gives an order when all that were given before are answered.
func (g *GuardSupervisor) inTurn(give func(told func(error)), done func(error)) {
	g.enqueue(func(next func()) {
		give(func(err error) {
			next()
			done(err)
		})
	})
}

func (g *GuardSupervisor) next() {
	for !g.busy && len(g.queue) > 0 {
		job := g.queue[0]
		g.queue = g.queue[1:]
		g.busy = true
		job(func() {
			g.busy = false
			g.next()
		})
	}
}

// latest is the newest persisted state that anybody has passed on: m, or one by which the loop
// has superseded the task that passes on m.
func (g *GuardSupervisor) latest(m PersistedState) PersistedState {
	if m.version > g.newest.version {
		g.newest = m
	}
	return g.newest
}

// tell has the guard take the latest deadline.
func (g *GuardSupervisor) tell(m PersistedState, grant bool, done func(error)) {
	m = g.latest(m)
	if g.may.Before(m.KillAt) {
		g.may = m.KillAt
	}
	if grant {
		g.grants++
	}
	g.port.Arm(m, grant, func(err error) {
		g.note(m.KillAt, err)
		done(err)
	})
}

// ArmNow sets the deadline of a new lease; done hears when the guard has it. Work that was
// broken off while the mark was made, or while the guard was busy, arms nothing any more: the
// guard may have been disarmed by what came in between.
func (g *GuardSupervisor) ArmNow(w *Work, m PersistedState, done func(error)) {
	g.lead(m.KillAt, func(err error) {
		if err != nil {
			done(err)
			return
		}
		g.inTurn(func(told func(error)) {
			if w != nil && w.Broken() != nil {
				told(w.Broken())
				return
			}
			g.tell(m, true, told)
		}, done)
	})
}

// lead makes sure that there is a mark of a lease that may last until then, unless there is
// one of a lease already: the guard has the deadlines of what follows. A pause is over
// with it.
func (g *GuardSupervisor) lead(until cluster.Instant, done func(error)) {
	if until.IsZero() || g.marked == markedLed {
		done(nil)
		return
	}
	g.mark(until, markedLed, done)
}

// mark makes a mark. Until it is made, nobody knows what the disk says: whoever relies on
// another one meanwhile asks for it anew.
func (g *GuardSupervisor) mark(until cluster.Instant, as mark, done func(error)) {
	g.marks++
	latest := g.marks
	g.marked, g.marking = unmarked, as
	g.port.Mark(until, as == markedPaused, func(err error) {
		if latest == g.marks {
			g.marking = unmarked
			if err == nil {
				g.marked = as
			}
		}
		done(err)
	})
}

// leads makes sure, before a beat or takeover is sent, that a restarted agent will know
// of the lease: until is its end, should it succeed. What the guard remembers of a pause
// is forgotten before a status says that there is none.
func (g *GuardSupervisor) leads(m PersistedState, until cluster.Instant, limit time.Duration, done func(error)) {
	if m.Paused && g.resting || g.marked == markedLed && !g.resting { // mostly
		done(nil)
		return
	}
	done = g.within(limit, done)
	g.lead(until, func(err error) {
		if err != nil || !g.resting || m.Paused {
			done(err)
			return
		}
		g.inTurn(func(told func(error)) {
			if m := g.latest(m); m.KillAt.IsZero() {
				g.port.Remember(m, told)
			} else {
				g.tell(m, false, told)
			}
		}, func(err error) {
			if err == nil {
				g.resting = false
			}
			because(done, "the pause cannot end before the guard knows")(err)
		})
	})
}

// shorten waits until the guard has no later deadline than this one: before a beat
// is sent which makes the lease shorter (design 5.1). It does
// not wait for a guard that has none.
func (g *GuardSupervisor) shorten(m PersistedState, limit time.Duration, done func(error)) {
	if m = g.latest(m); m.KillAt.IsZero() || !m.KillAt.Before(g.may) {
		done(nil)
		return
	}
	done = because(g.within(limit, done), "the lease cannot be made shorter before the guard knows")
	g.inTurn(func(told func(error)) { g.tell(m, false, told) }, done)
}

// within calls done once, after limit at the latest.
func (g *GuardSupervisor) within(limit time.Duration, done func(error)) func(error) {
	over := false
	once := func(err error) {
		if !over {
			over = true
			done(err)
		}
	}
	g.later.After(limit, func() { once(errNotInTime) })
	return once
}

// remember has the guard remember a persisted state; done hears when it does.
func (g *GuardSupervisor) remember(m PersistedState, done func(error)) {
	g.inTurn(func(told func(error)) { g.port.Remember(g.latest(m), told) }, done)
}

// Disarm takes the deadline away; done hears when it is. What the loop has left before is
// void, and what it leaves before that, unless it is a new lease: a deadline that stayed would kill the replica that
// comes up next.
func (g *GuardSupervisor) Disarm(done func(error)) { g.disarm(func() {}, done) }

// DisarmWithin is Disarm, for which the guard has no longer than limit. The mark has a
// limit of its own (GuardPort): one that cannot be changed yet keeps no lease from ending.
func (g *GuardSupervisor) DisarmWithin(limit time.Duration, done func(error)) {
	answered, over := false, false
	g.later.After(limit, func() {
		if !answered {
			over = true
			done(errNotInTime)
		}
	})
	g.disarm(func() { answered = true }, func(err error) {
		if !over {
			done(err)
		}
	})
}

func (g *GuardSupervisor) disarm(answered func(), done func(error)) {
	g.left = nil
	g.round++
	g.enqueue(func(next func()) {
		if g.left != nil && !g.left.grant {
			g.left = nil
		}
		grants := g.grants
		g.port.Disarm(func(err error) {
			answered()
			g.note(0, err)
			next()
			if err != nil {
				done(err)
				return
			}
			g.resting, g.marked, g.marking = false, unmarked, unmarked
			g.marks++
			g.port.Unmark(func() {
				if g.grants != grants || g.left != nil && g.left.grant || g.left == nil && !g.mayHaveDeadline() {
					done(nil)
					return
				}
				g.disarm(func() {}, done) // a beat of the lease that ends has armed it while its mark was changed
			})
		})
	})
}

// idle reports whether the guard has been told all that the loop left.
func (g *GuardSupervisor) idle() bool { return !g.busy && len(g.queue) == 0 && g.left == nil }

// note remembers what the guard has, and says once when it cannot be told.
func (g *GuardSupervisor) note(until cluster.Instant, err error) {
	if err == nil {
		g.known, g.may = until, until
		if g.broken != "" {
			g.log.Info().Msg("the guard is told again")
		}
		g.broken = ""
		return
	}
	if g.broken == "" {
		g.log.Error().Err(err).Msg("the guard cannot be told the deadline; it keeps the one it has")
	}
	g.broken = err.Error()
}

// standsDown reports whether the guard is known to kill nothing on its own, and the mark
// says no less.
func (g *GuardSupervisor) standsDown() bool {
	return g.known.IsZero() && g.broken == "" && g.marking != markedPaused
}

// Shown is the guard's state for the API: whether it can be told, and for how long it is
// still armed.
func (g *GuardSupervisor) Shown() (running bool, armedFor time.Duration) {
	if !g.known.IsZero() {
		armedFor = max(0, g.known.Sub(g.clock.Now()))
	}
	return g.broken == "", armedFor
}
