package simulation

import (
	"cmp"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is what a takeover by quorum (design 5.30) needs of the world.

// reply is how a port answers.
type reply int

const (
	silence reply = iota
	refusal
	answer
)

// replies reports how PostgreSQL and the agent of a host that is reached answer a new connection.
func (h *host) replies() (database, rest reply) {
	database, rest = refusal, refusal
	switch {
	case h.pg.running && h.pg.hung:
		database = silence
	case h.pg.running:
		database = answer
	}
	switch {
	case h.agent != nil && (h.agent.stopped > 0 || h.agent.starved > 0):
		rest = silence
	case h.agent != nil || h.patroni != nil:
		rest = answer
	}
	return database, rest
}

// probe asks a host whether it is there. Refused on both ports counts as silence, on one it does not.
func probe(a *agent, to *host, limit time.Duration, done func(bool)) {
	w, over := a.host.w, false
	finish := func(answered bool) {
		if !over {
			over = true
			done(answered)
			a.step()
		}
	}
	a.later(a.dispatch(), func() {
		if to == nil || w.nameless() {
			return
		}
		w.net.send(a.host.id, to.id, func() {
			if !to.up || to.frozen {
				return
			}
			database, rest := to.replies()
			answered := database == answer || rest == answer || (database == refusal) != (rest == refusal)
			if answered || database == refusal && rest == refusal {
				w.net.send(to.id, a.host.id, func() { a.do(func() { finish(answered) }) })
			}
		})
	})
	w.at(a.host.when(a.host.clock().Add(limit)), func() {
		if !over {
			a.do(func() { finish(false) })
		}
	})
}

// bouncerMisses asks a bouncer, which is where Consul is, whether it misses a leader, too.
func bouncerMisses(a *agent, leader *host, limit, silent time.Duration, done func(string, error)) {
	const knocks = 4
	w, over := a.host.w, false
	me, there := a.host.id, len(w.hosts)
	finish := func(name string, err error) {
		if !over {
			over = true
			done(name, err)
			a.step()
		}
	}
	a.later(limit, func() { finish("", errSilent) })
	a.later(a.dispatch(), func() {
		w.net.send(me, there, func() {
			if w.consul.state == consulDown || leader == nil {
				return
			}
			answered := false
			for i := range knocks {
				w.after(time.Duration(i)*silent/knocks, func() {
					w.net.send(there, leader.id, func() {
						if leader.up && !leader.frozen {
							w.net.send(leader.id, there, func() { answered = true })
						}
					})
				})
			}
			w.after(silent, func() {
				name := "bouncer"
				if answered && !w.mutant.WitnessLies {
					name = ""
				}
				w.net.send(there, me, func() { a.do(func() { finish(name, nil) }) })
			})
		})
	})
}

// KeepDetachment writes the note, and what PostgreSQL would follow after a restart.
func (p inPostgres) KeepDetachment(w *member.Work, d pg.Detachment, done func(error)) {
	p.work(w, func(done func(error)) {
		p.host.pg.onDisk(func() {
			if p.host.pg.full > 0 || p.host.w.mishap() {
				done(errors.New("the note could not be written"))
				return
			}
			p.host.pg.detachment = &d
			done(nil)
		})
	}, done)
}

func (p inPostgres) DropDetachment(_ time.Duration, d pg.Detachment, done func(error)) {
	p.work(nil, func(done func(error)) {
		p.host.pg.onDisk(func() {
			if kept := p.host.pg.detachment; kept != nil && kept.Status == d.Status {
				p.host.pg.detachment = nil
			}
			done(nil)
		})
	}, done)
}

// answerStart tells the agent that PostgreSQL has started. A primary may be seen to accept before that, where a takeover by quorum
// makes a difference of it; what is drawn for that comes from numbers of their own.
func (h *host) answerStart(primary bool, done func(error)) {
	if !primary || h.w.starts == nil {
		done(nil)
		return
	}
	took := time.Duration(h.w.starts.Int64N(int64(300 * time.Millisecond)))
	h.pg.later(took/2, func() {
		if a := h.agent; a != nil {
			a.do(a.lookAtPostgres)
		}
	}, func() {})
	h.pg.later(took, func() { done(nil) }, func() { done(errStopped) })
}

// byQuorum reports whether the status that is replaced lets its standbys stand in for the lease.
func byQuorum(replaced cluster.Status) bool {
	return replaced.Lictor != nil && replaced.Lictor.Consents()
}

// takenOverByQuorum notes a takeover by quorum: of a replica that leaves the key sync to itself.
func (j *judge) takenOverByQuorum(h *host, ops []op) {
	h.takenOver, j.newest, j.quorum = false, h, false
	for _, o := range ops {
		if key, is := o.value.(cluster.Sync); is && o.verb == set && o.key == keySync {
			j.quorum = byQuorum(j.status) && key.Leader == h.name && !h.pg.primary
		}
	}
	if !j.quorum {
		return
	}
	j.tally.ByQuorum++
	if old := j.w.hostNamed(j.status.Lictor.Owner); old != nil && old != h {
		old.takenOver, old.takenOverUntil = true, j.w.now+time.Duration(float64(j.status.Lictor.Lease())*1.02)
	}
}

// overlaps reports whether local commits of a leader that was replaced before its lease was over may overlap with
// its successor's.
func (h *host) overlaps() bool { return h.takenOver && h.w.now < h.takenOverUntil }

// leadsTo notes that clients are led to a primary, by its route or its REST API, and see what it has recovered.
func (j *judge) leadsTo(h *host) {
	if b := h.pg.at.branch; h.pg.primary && h.pg.recovered > 0 && b.shown < h.pg.recovered {
		b.shown = h.pg.recovered
		j.shown = append(j.shown, b)
	}
}

// hasWhatWasShown (design 5.30): who takes over by quorum has what clients were led to after a recovery.
func (j *judge) hasWhatWasShown(h *host, from position) {
	for _, b := range j.shown {
		if has := from.upTo(b); has < b.shown {
			j.fail("I2", "%s has taken over by quorum with %d of timeline %d, where %d was shown", h.name, has, b.timeline, b.shown)
		}
	}
}

// SetCommit is an operator's change of synchronous_commit, to Text.
const SetCommit Kind = "set-synchronous-commit"

func takeoverFaults() map[Kind]fault {
	return map[Kind]fault{SetCommit: {inject: func(w *world, e Event) func() {
		w.reconfigure(map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"synchronous_commit": e.Text}}})
		return nil
	}}}
}

// ByQuorum is a schedule with takeover: quorum, which needs a synchronous mode. What it draws comes from numbers of its
// own, so that the rest stays what it was.
func ByQuorum(s Schedule) Schedule {
	r := rand.New(rand.NewPCG(s.Seed, 3))
	s.Config, s.Patroni = maps.Clone(s.Config), nil
	s.Config["takeover"] = "quorum"
	if s.Config["synchronous_mode"] == nil {
		s.Config["synchronous_mode"] = []any{true, "quorum"}[r.IntN(2)]
	}
	s.Events = slices.Clone(s.Events)
	for at := r.ExpFloat64() * 200; at < s.Length.Seconds(); at += r.ExpFloat64() * 200 {
		s.Events = append(s.Events, Event{At: time.Duration(at * float64(time.Second)), Kind: SetCommit, Text: []string{"off", "on", "on"}[r.IntN(3)]})
	}
	slices.SortStableFunc(s.Events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	return s
}

// takeoverPeer is a member as others ask it for its part in a takeover by quorum.
func takeoverPeer(a *agent) member.TakeoverPeer { return member.TakeoverPeer{Member: a.Member} }
