package simulation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Violation is an invariant that did not hold.
type Violation struct {
	At        time.Duration // true time since the beginning
	Invariant string        // I1 to I8 (design 5.24)
	Text      string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%s at %.3fs: %s", v.Invariant, v.At.Seconds(), v.Text)
}

// judge watches over a run. It sees everything, which no member does.
type judge struct {
	w         *world
	demoting  bool // the shard was made a standby, and had a primary
	beside    bool // it was a standby, and the other site's primary lives
	violation *Violation
	status    cluster.Status // in Consul
	replaced  cluster.Status // by the last takeover
	branches  []*branch      // with commits that the key sync vouches for
	clean     *cleanHandover
	// paused: an operator sees that the shard is paused, since pausedAt (byhand.go).
	paused   bool
	byHand   *host   // whom the operator promotes
	made     *host   // of whom the operator has made a primary in this pause
	switched []*host // who led when the operator asked for switchovers in this pause
	pausedAt instant
	// wentBack: Consul has been put back to an earlier state, and since then nobody has taken the
	// lock or led on who knows better. otherSync: nor has a leader written the key sync: what it
	// names is of another time, and nothing is promised by it.
	wentBack, otherSync bool
	// newest has taken the lock last, quorum: by quorum. shown are branches of which clients have seen what
	// nobody may have acknowledged.
	newest *host
	quorum bool
	shown  []*branch
	tally  Tally
	cuts   []cut // what restores have discarded
	// unsaid is up to which timeline WAL was discarded before Consul was put back to a state that
	// does not say so, and nobody who knows it by its data has led since; zero: Consul knows.
	unsaid int
}

// Tally counts what happened in a run, so that a test can tell that it tested
// something.
type Tally struct {
	Promotions, Takeovers, Commits, Failsafe int
	// ByQuorum is how many takeovers replaced a leader whose lease was not over.
	ByQuorum int
	// Restores is how many restores to an earlier moment have come to their end.
	Restores int
	// Upgrades is how many major upgrades have come to their end.
	Upgrades int
	// Copies is how many copies of logical slots were made.
	Copies int
	// Interruptions is how often a primary ceased to accept commits.
	Interruptions int
}

// cleanHandover is a switchover whose successor has all WAL.
type cleanHandover struct {
	by, to   string
	branch   *branch
	released instant // when Consul showed it; zero: not yet
	taken    string  // by whom
	early    bool    // taken while it was the successor's alone
}

func (j *judge) fail(invariant, format string, args ...any) {
	if j.violation != nil {
		return
	}
	j.violation = &Violation{At: j.w.now, Invariant: invariant, Text: fmt.Sprintf(format, args...)}
	j.w.say("VIOLATION %v", j.violation)
}

// onePrimary is I1 for local commits: it is not asked of hosts whose processes do not run.
func (j *judge) onePrimary() {
	var first *host
	for _, h := range j.w.hosts {
		if !h.pg.writable || !h.up || h.exempt() || h.overlaps() {
			continue
		}
		if first != nil {
			j.fail("I1", "%s and %s accept commits at one time", first.name, h.name)
			return
		}
		first = h
	}
}

// alone: whoever takes the lock does so when nobody else can accept commits any more,
// long before it does so itself. That is stronger than I1, and what the lease is for.
func (j *judge) alone(h *host) {
	for _, other := range j.w.hosts {
		other.forgotten = other.pg.writable && (other.forgotten || other != h && h.unaware)
		other.outlived = other.outlived && other.pg.writable || other != h && j.outlives(other, h)
		if other != h && other.pg.writable && other.up && !other.exempt() && !other.overlaps() {
			j.fail("I1", "%s takes the lock while %s accepts commits", h.name, other.name)
		}
	}
}

// outlives reports whether a primary that led in pause waits for standbys, of which h is one.
func (j *judge) outlives(other, h *host) bool {
	b := j.status.Lictor
	key, found := j.w.consul.keys[keySync].value.(cluster.Sync)
	return other.pg.writable && b != nil && b.Owner == other.name && b.Paused && !b.Released &&
		found && key.Leader == other.name && key.Has(h.name) && len(other.pg.waits.names) > 0
}

func (j *judge) writable(h *host) {
	j.w.say("%s: accepts commits (timeline %d at %d)", h.name, h.pg.at.branch.timeline, h.pg.at.lsn)
	if c := j.clean; c != nil && c.by == h.name && c.taken == "" {
		j.clean = nil // its lock was its own again before it could give it away: it goes on
	}
	h.loose, h.forgotten = false, false
	j.onePrimary()
	j.noPrimary(h)
	j.oneShard(h)
	j.backFrom(h)
}

// archiveAlone: nothing that is acknowledged rests on a member tagged nostream, which
// receives from nobody.
func (j *judge) archiveAlone() {
	for _, h := range j.w.hosts {
		if !cluster.NoStream(h.tags) {
			continue
		}
		if h.pg.streaming || h.pg.upstream != "" {
			j.fail("I2", "%s is tagged nostream and follows %s", h.name, h.pg.upstream)
		}
		for _, primary := range j.w.hosts {
			if slices.Contains(primary.pg.waits.names, h.name) {
				j.fail("I2", "%s is tagged nostream and %s waits for it", h.name, primary.name)
			}
		}
	}
}

// acknowledged: a client was told that its commit is safe.
func (j *judge) acknowledged(h *host, lsn int64) {
	b := h.pg.at.branch
	if h.outlived && !j.mayOverlap(h) {
		j.notBeside(h)
	}
	j.tally.Commits++
	if n := j.newest; h.takenOver && n != nil && n != h && n.pg.at.upTo(b) < lsn {
		j.fail("I2", "%s has a commit acknowledged at %d of timeline %d, of which %s, which has taken over by quorum, has %d", h.name, lsn, b.timeline, n.name, n.pg.at.upTo(b))
	}
	if len(h.pg.waits.names) > 0 && !j.local(h) {
		j.onlySynchronous(h)
	}
	if !h.exempt() {
		b.acked = max(b.acked, lsn)
	}
	if j.vouched(h) {
		if b.promised == 0 {
			j.branches = append(j.branches, b)
		}
		b.promised = max(b.promised, lsn)
	}
}

// onlySynchronous is I1 for commits that wait for standbys: nothing exempts a host from it.
// Whatever stands still there, its standbys acknowledge nothing beside another primary.
func (j *judge) onlySynchronous(h *host) {
	for _, other := range j.w.hosts {
		if other != h && other.acceptsCommits() {
			j.fail("I1", "%s has a commit acknowledged by %s while %s accepts commits", h.name, h.pg.waits.value(), other.name)
		}
	}
}

// acceptsCommits reports whether a host does, but for one that stands still.
func (h *host) acceptsCommits() bool { return h.pg.writable && h.up && !h.exempt() && !h.overlaps() }

// local reports whether the commits of a primary wait for nobody, whomever synchronous_standby_names names:
// synchronous_commit is off, as the operator has configured it, and nobody takes over by quorum on the strength of them.
func (j *judge) local(h *host) bool {
	b := j.status.Lictor
	return h.pg.unsynchronous && !h.takenOver && (b == nil || b.Owner != h.name || !b.Consents())
}

// mayOverlap reports whether the commits of a primary that led in pause may overlap with those of the member that has
// led since (design 5.14): they wait for nobody.
func (j *judge) mayOverlap(h *host) bool {
	b := j.status.Lictor
	return h.outlived && j.local(h) && b != nil && b.Owner != h.name
}

// notBeside: a primary that led in pause acknowledges nothing beside the next one, whatever
// its own setting of whom commits wait for has become.
func (j *judge) notBeside(h *host) {
	for _, other := range j.w.hosts {
		if other != h && other.acceptsCommits() && !other.outlived {
			j.fail("I1", "%s, which led in pause, has a commit acknowledged while %s accepts commits", h.name, other.name)
		}
	}
}

// vouched tells whether a commit is acknowledged in synchronous mode: the key sync
// stands, and it or the lock is the member's own, or its PostgreSQL still waits for
// standbys. One that stood still while the mode was switched on by another leader
// promises nothing.
func (j *judge) vouched(h *host) bool {
	e, found := j.w.consul.keys[keySync]
	if h.pg.unsynchronous && (!byQuorum(j.status) || j.local(h)) {
		return false // as it is configured, and it is another member's beat that consents
	}
	return found && !j.otherSync && (e.value.(cluster.Sync).Leader == h.name || j.w.consul.leaderNamed() == h.name || len(h.pg.waits.names) > 0)
}

// promoted: a member has become a primary from a position.
func (j *judge) promoted(h *host, from position) {
	j.tally.Promotions++
	j.w.say("%s: promoted from timeline %d at %d", h.name, from.branch.timeline, from.lsn)
	if h == j.byHand { // whatever that loses is the operator's choice
		j.forget()
		j.clean = nil
		return
	}
	if cluster.NoFailover(h.tags) {
		j.fail("I6", "%s is tagged nofailover and was promoted", h.name)
	}
	if h.exempt() && (j.w.consul.leaderNamed() != h.name || j.w.schedule.runsPatroni(h.id)) {
		return // it stood still in the middle of it, and is fenced now
	}
	for _, b := range j.branches {
		if has := from.upTo(b); has < b.promised {
			j.fail("I2", "%s was promoted with %d of timeline %d, where %d was acknowledged in synchronous mode", h.name, has, b.timeline, b.promised)
		}
	}
	if j.quorum {
		j.hasWhatWasShown(h, from)
	}
	if lag := j.replaced.OpTime - j.known(from); lag > maximumLag {
		j.fail("I3", "%s was promoted %d bytes behind the last position in Consul", h.name, lag)
	}
	if c := j.clean; c != nil && c.taken == h.name {
		if has := from.upTo(c.branch); has < c.branch.acked && (h.name == c.to || c.early) {
			j.fail("I3", "%s handed over to %s; %s was promoted with %d, acknowledged was %d", c.by, c.to, h.name, has, c.branch.acked)
		}
		j.clean = nil
	}
}

// known is how far a position is on the shard's line, as far as the key history tells.
func (j *judge) known(from position) int64 {
	if e, found := j.w.consul.keys[keyHistory]; found {
		for _, left := range e.value.(cluster.History) {
			if left.Timeline == from.branch.timeline {
				return min(from.lsn, left.LSN)
			}
		}
	}
	return from.lsn
}

// handedOver: a member has stopped its PostgreSQL for a successor that has all WAL.
func (j *judge) handedOver(h *host, to string) {
	if cluster.NoStream(j.w.hostNamed(to).tags) {
		j.fail("I3", "%s hands over to %s, which is tagged nostream and cannot get its last WAL", h.name, to)
	}
	j.clean = &cleanHandover{by: h.name, to: to, branch: h.pg.at.branch}
}

// committed sees every transaction that took effect.
func (j *judge) committed(h *host, ops []op) {
	for _, o := range ops {
		switch {
		case o.verb == lock && o.key == keyLeader:
			j.tally.Takeovers++
			j.wentBack = false
			j.takenOverByQuorum(h, ops)
			j.alone(h)
			j.replaced = j.status
			switch c := j.clean; {
			case c == nil:
			case c.taken != "" && c.taken != h.name:
				j.clean = nil // the one who took it was never promoted
			case c.taken == "":
				if h.name == c.by {
					j.clean = nil
				} else {
					alone := time.Duration(float64(j.status.Lictor.Lease()) / 2 * 0.98)
					c.taken, c.early = h.name, c.released > 0 && j.w.now-c.released < alone
				}
			}
		case o.verb == set && o.key == keys().Route():
			if r := o.value.(cluster.Route); r.State == cluster.RouteOpen {
				j.leadsTo(h)
			}
		case o.verb == set && o.key == keySync:
			j.wentBack, j.otherSync = false, false
			for _, other := range j.w.hosts {
				if cluster.NoStream(other.tags) && slices.Contains(o.value.(cluster.Sync).Standbys(), other.name) {
					j.fail("I2", "the key sync names %s, which is tagged nostream", other.name)
				}
			}
		case o.verb == set && o.key == keyStatus:
			j.status = o.value.(cluster.Status)
			j.wentBack = j.wentBack && h.unaware
			if h.pg.at.branch.timeline > j.unsaid {
				j.unsaid = 0 // it knows by its data, and says so
			}
			for _, other := range j.w.hosts {
				other.unaware = false
			}
			h.forgotten = false
			if b := j.status.Lictor; b.Released && b.Complete && b.Successor != "" {
				j.handedOver(h, b.Successor)
			}
			if b := j.status.Lictor; b.Released && j.clean != nil && j.clean.by == b.Owner {
				j.clean.released = j.w.now
			}
		case o.verb == deleteCAS && o.key == keySync:
			if _, still := j.w.consul.keys[keySync]; !still {
				j.forget()
				j.otherSync = false
			}
		}
	}
}

// forget: the key sync is gone, so it vouches for nothing any more.
func (j *judge) forget() {
	for _, b := range j.branches {
		b.promised = 0
	}
	j.branches = nil
}

// whole is I4: every fault is over, and the shard is whole again: one member accepts
// commits, the others follow it.
func (j *judge) whole() string {
	if j.w.isStandby() {
		return j.wholeStandby()
	}
	var primary *host
	for _, h := range j.w.hosts {
		if h.pg.writable && !h.pg.hung {
			primary = h
		}
	}
	if primary == nil {
		return "no member accepts commits: " + j.reasons()
	}
	for _, h := range j.w.hosts {
		if noStream := cluster.NoStream(h.tags); h != primary && noStream {
			if h.pg.streaming || h.pg.upstream != "" || !h.pg.ready || h.pg.at.branch != primary.pg.at.branch {
				return h.name + " does not follow " + primary.name + " by the archive: " + j.reasons()
			}
			continue
		}
		if h != primary && (!h.pg.streaming || !h.pg.ready) {
			return h.name + " does not follow " + primary.name + ": " + j.reasons()
		}
	}
	if j.w.schedule.runsPatroni(primary.id) {
		return "" // it writes no route, and what it acknowledges is nobody's promise
	}
	if why := j.route(primary); why != "" {
		return why
	}
	if primary.pg.at.branch.acked <= primary.pg.at.branch.fork {
		return primary.name + " acknowledges nothing"
	}
	return ""
}

// route is what poolers are told: it must lead to the primary in the end.
func (j *judge) route(primary *host) string {
	r, written := j.w.consul.keys[keys().Route()].value.(cluster.Route)
	switch {
	case !written:
		return "there is no route"
	case r.Leader.Name != primary.name, r.State != cluster.RouteOpen, r.Timeline != primary.pg.at.branch.timeline:
		return fmt.Sprintf("the route leads to %s (%s, timeline %d), the primary is %s (timeline %d)", r.Leader.Name, r.State, r.Timeline, primary.name, primary.pg.at.branch.timeline)
	}
	return ""
}

func (j *judge) reasons() string {
	var all []string
	for _, h := range j.w.hosts {
		why := "its agent does not run"
		if h.agent != nil {
			why = h.agent.Reason
		} else if h.patroni != nil {
			why = "it runs Patroni"
		}
		all = append(all, h.name+": "+why)
	}
	return strings.Join(all, "; ")
}
