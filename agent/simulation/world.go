package simulation

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// instant is true time since the beginning of the run. Members never see it:
// each has a clock of its own.
type instant = time.Duration

// event is something that happens at a moment of true time.
type event struct {
	at  instant
	seq uint64 // of two at one moment, the one that was planned first
	do  func()
}

// queue is a binary heap of events. (container/heap would allocate for each.)
type queue []event

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (q *queue) push(e event) {
	h := append(*q, e)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
	*q = h
}

func (q *queue) pop() event {
	h := *q
	first, last := h[0], len(h)-1
	h[0], h[last] = h[last], event{}
	h = h[:last]
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			break
		}
		if down+1 < last && h[down+1].before(h[down]) {
			down++
		}
		if !h[down].before(h[i]) {
			break
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
	*q = h
	return first
}

// world is one run.
type world struct {
	schedule Schedule
	mutant   Mutant
	now      instant
	seq      uint64
	events   queue
	random   *rand.Rand
	starts   *rand.Rand // how long primaries' starts take to be answered; nil: no time
	consul   consul
	net      network
	hosts    []*host
	remote   *host // the primary that a standby shard follows (remote.go), or the other site (sites.go)
	// remoteGone: it does not come back.
	remoteGone bool
	root       *branch // of all history
	judge      judge
	reader     reader         // of the logical slot
	config     map[string]any // the dynamic configuration as the operator has it
	parsed     map[uint64]cluster.Dynamic
	heals      []*heal
	clusters   int                                 // that were made by a bootstrap
	timeline   int                                 // the highest ever
	archived   map[*branch]int64                   // how far the archive has each
	trace      func(at time.Duration, line string) // nil: nobody listens
}

// host is a machine: a clock, a PostgreSQL, a guard, an agent.
type host struct {
	w      *world
	id     int
	name   string
	tags   map[string]any
	rate   float64 // of its clock
	offset instant // of its clock: uptime at the beginning

	up     bool
	frozen bool    // the whole host stands still
	thawed instant // when its processes last began to run again
	blind  instant // until then its clock may have it believe in a lease that is over
	// loose: its agent is back, and cannot tell the processes of the PostgreSQL that ran
	// meanwhile yet.
	loose bool
	// forgotten: it leads by what a snapshot of Consul that was restored does not say.
	forgotten bool
	// unaware: it knew nothing newer when a snapshot of Consul was restored, and nobody has
	// led on or taken the lock since.
	unaware bool
	// outlived: it led in pause, and a standby leads without which it acknowledges nothing.
	outlived bool
	// takenOver: its lease was not over when another member took the lock by quorum. Until takenOverUntil its
	// local commits may overlap with that one's.
	takenOver      bool
	takenOverUntil instant
	held           []func()
	asked          time.Time // when the task began that an operator has asked its agent for last
	beyond         instant   // since when it says that it cannot go on
	strands        instant   // since when it needs WAL that is gone, as the operator sees it
	covered        instant   // when it last reached a primary that has what was acknowledged

	pg       postgres
	goesBack int64 // by how much WAL a restore goes back
	guard    guard
	agent    *agent // nil: its process does not run
	// patroni is what a member runs in the agent's place (Schedule.Patroni); nil: its process
	// does not run.
	patroni *patroni
	mark    *mark // that this member has led; nil: none
	boot    int   // how often the host was booted
	// away: the operator or a fault keeps the agent from being started again.
	away int
}

// at plans something.
func (w *world) at(t instant, do func()) {
	w.seq++
	w.events.push(event{at: max(t, w.now), seq: w.seq, do: do})
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now+d, do) }

// between is a random duration.
func (w *world) between(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + time.Duration(w.random.Int64N(int64(high-low)))
}

func (w *world) chance(p float64) bool { return w.random.Float64() < p }

// mishap reports whether a start or a promotion breaks off without any fault.
func (w *world) mishap() bool { return !w.schedule.Calm && w.chance(0.01) }

// tooMuch is how many events no run has that makes sense: some loop spins.
const tooMuch = 2_000_000

// run lets time pass until the moment, or until something was violated.
func (w *world) run(until instant) {
	for len(w.events) > 0 && w.judge.violation == nil && w.events[0].at <= until {
		if w.seq > tooMuch {
			w.judge.fail("busy", "%d events so far, %d of them to come: %s", w.seq, len(w.events), w.judge.reasons())
		}
		e := w.events.pop()
		w.now = e.at
		e.do()
	}
	if w.judge.violation == nil {
		w.now = until
	}
}

func (w *world) say(format string, args ...any) {
	if w.trace != nil {
		w.trace(w.now, fmt.Sprintf(format, args...))
	}
}

// clock is the host's CLOCK_BOOTTIME.
func (h *host) clock() cluster.Instant {
	return cluster.Instant(h.offset + time.Duration(float64(h.w.now)*h.rate))
}

// wall is the time of day.
func (h *host) wall(at instant) time.Time { return time.Unix(0, 0).Add(at) }

// when is the true time at which the host's clock shows i.
func (h *host) when(i cluster.Instant) instant {
	t := instant(float64(time.Duration(i)-h.offset) / h.rate)
	for h.offset+time.Duration(float64(t)*h.rate) < time.Duration(i) {
		t++ // a timer never fires early
	}
	return t
}

// process runs something on the host, later if the host stands still just now, never
// if it is down by then.
func (h *host) process(do func()) {
	switch {
	case !h.up:
	case h.frozen:
		h.held = append(h.held, do)
	default:
		do()
	}
}

// exempt tells whether of agent, guard and watcher of the host none runs, or did until
// just now: then only a watchdog could exclude two primaries (design 5.4). Nor is anything
// promised of who leads by what Consul has forgotten, beside a member that cannot know (5.2),
// nor of Patroni, which is bound by no lease.
func (h *host) exempt() bool {
	return h.frozen || h.w.schedule.runsPatroni(h.id) || h.outlived || h.forgotten || h.loose || h.unguarded() || h.thawed > 0 && h.w.now-h.thawed < time.Second || h.w.now < h.blind
}

// unguarded tells whether neither agent nor guard nor watcher runs as it must, and the
// kernel does not end PostgreSQL either: it does when the guard has died that started it,
// unless the postmaster stands still.
func (h *host) unguarded() bool {
	a := h.agent
	if a != nil && a.stopped == 0 && a.starved == 0 || h.guard.watcher.runs() {
		return false
	}
	if h.guard.alive {
		return h.guard.stopped > 0
	}
	return h.pg.hung || h.pg.orphans || h.pg.parent == nil
}

// changes does something to agent, guard or watcher, and notes when one of them runs
// again of which none did.
func (h *host) changes(do func()) {
	was := h.unguarded()
	do()
	if was && !h.unguarded() {
		h.back()
	}
}

// back notes that what ends PostgreSQL on this host runs again.
func (h *host) back() { h.thawed, h.loose = h.w.now, h.pg.unkillable > 0 }

// network is who can send to whom. Consul is the node after the members, the primary at another
// site the last one.
type network struct {
	w      *world
	nodes  int
	cut    []int // how many faults cut the way from i to j
	slow   []time.Duration
	late   []time.Duration // by how much each member's watch comes late
	status []int           // with which status Consul refuses each member's requests; 0: it does not
	held   []parcel
}

// stale is by how much an answer to a blocking query comes late, old by then.
func (n *network) stale(h *host) time.Duration {
	if n.late[h.id] == 0 {
		return 0
	}
	return n.w.between(0, n.late[h.id])
}

// parcel is a message on a way that is cut: its sender goes on sending it.
type parcel struct {
	from, to int
	do       func()
}

func (n *network) path(from, to int) int { return from*n.nodes + to }

func (n *network) open(from, to int) bool {
	return n.cut[n.path(from, to)] == 0 && n.alive(from) && n.alive(to)
}

// both tells whether a connection between the two works.
func (n *network) both(a, b int) bool { return n.open(a, b) && n.open(b, a) }

func (n *network) alive(node int) bool {
	return node >= len(n.w.hosts) || n.w.hosts[node].up && !n.w.hosts[node].frozen
}

// send carries a message: at once, when the way is open again, or never.
func (n *network) send(from, to int, do func()) {
	if n.cut[n.path(from, to)] > 0 {
		if n.w.chance(0.5) {
			n.held = append(n.held, parcel{from, to, do})
		}
		return
	}
	latency := n.w.between(100*time.Microsecond, 2*time.Millisecond)
	if s := n.slow[n.path(from, to)]; s > 0 {
		latency += n.w.between(0, s)
	}
	n.w.after(latency, do)
}

func (n *network) change(from, to, by int) {
	p := n.path(from, to)
	n.cut[p] += by
	if n.cut[p] > 0 {
		return
	}
	kept := n.held[:0]
	for _, parcel := range n.held {
		if parcel.from == from && parcel.to == to {
			n.w.after(n.w.between(0, 2*time.Second), parcel.do)
		} else {
			kept = append(kept, parcel)
		}
	}
	n.held = kept
}

// nameless reports whether the members' names cannot be told: Consul's DNS has them.
func (w *world) nameless() bool { return w.schedule.ConsulDNS && w.consul.state != consulUp }

// retryAfter is how soon something that failed is tried again.
func (w *world) retryAfter() time.Duration {
	return w.between(200*time.Millisecond, 400*time.Millisecond)
}

// log is a member's log, which is heard where a run is traced.
func (w *world) log(name string) zerolog.Logger {
	if w.trace == nil {
		return zerolog.Nop()
	}
	return zerolog.New(lines{w, name})
}

// lines are the lines of a member's log.
type lines struct {
	w    *world
	name string
}

func (l lines) Write(line []byte) (int, error) {
	l.w.say("%s: %s", l.name, strings.TrimSpace(string(line)))
	return len(line), nil
}
