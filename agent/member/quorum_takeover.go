package member

import (
	"net/netip" //nolint:depguard // addresses are compared, nobody is asked
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

const (
	// probesIn is how many probes of a leader a time of suspect_after has.
	probesIn = 4
	// silentProbes is how many in a row must have failed before the leader is missed: one may be due to this
	// host's own standing still.
	silentProbes = 2
	// witnessLimit bounds a question, attemptLimit all those for a witness, and all those for the others to detach.
	witnessLimit = 300 * time.Millisecond
	attemptLimit = time.Second
	// askAgain is when one that has refused is asked again: it may miss the leader a probe later.
	askAgain = 100 * time.Millisecond
)

// quorumTakeover finds out whether the leader is silent, and carries a takeover by quorum out (design 5.30).
type quorumTakeover struct {
	*Shard
	lead     *leadership
	local    *Local
	work     *worker
	peers    Peers
	bouncers Bouncers
	postgres Postgres
	watches  Watches

	// leader is who is probed; missed: that many probes in a row have failed, the first of them sent at since.
	// host is the leader's, as its key said last: that goes with its session.
	leader  string
	host    string
	missed  int
	since   cluster.Instant
	probing bool
	next    cluster.Instant // probe

	attempt *attempt // nil: none is under way
	// rests is how long the pause after the last attempt was, until rested; notBefore is when the next one may begin.
	rests             time.Duration
	rested, notBefore cluster.Instant

	// noted is the note that this member has kept, attempts all those for which it has detached under
	// that status. free is when it was over with the last of them.
	noted    pg.Detachment
	attempts []string
	free     cluster.Instant
	// round is the round of questions of a leader without Consul in which this member has promised since it
	// has detached; empty: it has not.
	round string
	// unread: the note could not be read.
	unread bool
	// poolers is what bouncers are asked, where no member can be a witness.
	poolers poolerWitness
	hosts   addressBook
}

// attempt is one of this member's own.
type attempt struct {
	id        string
	index     uint64
	began     cluster.Instant
	witness   string
	witnesses int  // that have not answered yet
	poolers   bool // one of them is a bouncer
	asked     bool
	failed    bool // its own part
	open      int  // of those asked to detach
	answers   []ha.Peer
	sent      bool
}

// on reports whether this member has to do with takeovers by quorum at all.
func (q *quorumTakeover) on() bool { return q.Dynamic.Takeover == cluster.TakeoverQuorum }

// mind keeps probing the leader, and forgets what is over.
func (q *quorumTakeover) mind() {
	if q.noted.Status != 0 && q.Detached != q.noted.Status {
		q.free = q.Now()
		q.dropNote(q.noted)
		q.noted, q.attempts, q.round = pg.Detachment{}, nil, ""
	}
	if !q.on() {
		q.leader, q.attempt = "", nil
		return
	}
	leader := ""
	if b := q.Snapshot.Status.Value.Lictor; q.Snapshot.Status.OK() && b != nil && !b.Released && b.Owner != q.Name {
		leader = b.Owner
	}
	if leader != q.leader {
		q.leader, q.host, q.missed, q.next, q.rests = leader, "", 0, 0, 0
	}
	if m, found := q.Snapshot.Member(leader); found && m.OK() {
		q.host = hostOf(m.Value)
	}
	if seen := q.local.PG.Observed; seen.MessageAge > 0 && q.local.Upstream == leader && q.local.PG.ObservedAt.Add(-seen.MessageAge) > q.since {
		q.missed = 0
	}
	q.probe()
	q.foresee()
	if q.lead.LeaseState.Held(q.Now()) {
		q.hosts.mind()
	}
}

// dropNote drops the note of a status that is over. While it is there, this replica has no archive: so that is tried again
// until it works, or there is another note.
func (q *quorumTakeover) dropNote(d pg.Detachment) {
	q.postgres.DropDetachment(q.Dynamic.RetryTimeout, d, func(err error) {
		q.Failure("detachment", "the note that this member has detached could not be removed, and keeps the archive from PostgreSQL", err)
		if err != nil {
			q.After(q.retryAfter(), func() {
				if q.noted.Status != d.Status && q.Detached != d.Status {
					q.dropNote(d)
				}
			})
		}
	})
}

// probe asks the leader whether it is there, again and again.
func (q *quorumTakeover) probe() {
	to, found := q.Snapshot.Member(q.leader)
	now := q.Now()
	if q.leader == "" || q.probing || now.Before(q.next) {
		return
	}
	every := q.Dynamic.SuspectAfter / probesIn
	q.probing, q.next = true, now.Add(every)
	leader := q.leader
	answered := func(answered bool) {
		q.probing = false
		switch {
		case leader != q.leader:
		case answered:
			q.missed = 0
		default:
			if q.missed == 0 {
				q.since = now
			}
			q.missed++
		}
		q.wakeAfter(max(q.next.Sub(q.Now()), time.Millisecond))
	}
	if !found || !to.OK() { // its key has gone with its session: nobody knows where it is
		q.After(every, func() { answered(false) })
		return
	}
	q.peers.Probe(every, to.Value, answered)
}

func (q *quorumTakeover) view() ha.TakeoverView {
	v := ha.TakeoverView{Heard: q.Now(), NotBefore: q.notBefore}
	if q.missed >= silentProbes {
		v.Heard = q.since
	}
	a := q.attempt
	if a == nil {
		return v
	}
	v.Attempt, v.Index, v.Witness, v.WitnessesDone, v.Asked, v.Answers, v.Sent = a.id, a.index, a.witness, a.witnesses == 0, a.asked, a.answers, a.sent
	v.Detached = a.asked && q.noted.Status == a.index && q.Detached == a.index && slices.Contains(q.attempts, a.id) && q.alone()
	late := !q.Now().Before(a.began.Add(attemptLimit))
	v.Done = a.asked && (late || a.open == 0 && (a.failed || v.Detached))
	return v
}

// alone reports whether this member follows nobody, and was looked at since.
func (q *quorumTakeover) alone() bool {
	return q.local.Upstream == "" && q.work.task == nil && !q.local.PG.Primary() && q.local.PG.SeenAlone()
}

// others are the members that are asked: all but this one and the leader.
func (q *quorumTakeover) others() []cluster.Member {
	var all []cluster.Member
	for _, m := range q.Snapshot.Members {
		if m.OK() && m.Value.Name != q.Name && m.Value.Name != q.leader {
			all = append(all, m.Value)
		}
	}
	return all
}

// begin begins an attempt: the others are asked whether they miss the leader, too, and bouncers where there are no others.
func (q *quorumTakeover) begin(index uint64) {
	a := &attempt{id: q.ID(), index: index, began: q.Now()}
	q.attempt = a
	q.After(attemptLimit, func() {})
	for _, other := range q.witnesses() {
		a.witnesses++
		q.askWhetherItMisses(a, other)
	}
	q.Log.Warn().Str("leader", q.leader).Uint64("status", index).Str("attempt", a.id).Msg("leader is silent; asking for a witness")
	if a.witnesses == 0 {
		q.askBouncersFor(a)
	}
}

// poolerWitness is what a bouncer has said of a leader, or is about to say.
type poolerWitness struct {
	leader string
	since  cluster.Instant // as of the silence that it was asked for
	asking bool
	misses string // the bouncer that misses it; empty: none does
	at     cluster.Instant
}

// about reports whether that is about this silence of the leader.
func (p *poolerWitness) about(q *quorumTakeover) bool {
	return p.leader == q.leader && p.since == q.since
}

// foresee asks bouncers before there is an attempt, as they need some time to miss a leader, where no member can be its witness.
func (q *quorumTakeover) foresee() {
	s := q.Snapshot.Status
	if q.host == "" || q.missed < silentProbes || q.poolers.asking || q.poolers.about(q) || q.Now().Before(q.notBefore.Add(-q.Dynamic.SuspectAfter)) {
		return
	}
	if b := s.Value.Lictor; !s.OK() || b == nil || !b.Consents() || !q.Snapshot.Sync.OK() || !q.Snapshot.Sync.Value.Has(q.Name) || len(q.witnesses()) > 0 {
		return
	}
	q.askBouncers()
}

// askBouncers asks whether they miss the leader, too.
func (q *quorumTakeover) askBouncers() {
	p := &q.poolers
	*p = poolerWitness{leader: q.leader, since: q.since, asking: true}
	silent := q.Dynamic.SuspectAfter
	q.bouncers.Misses(silent+attemptLimit, q.leader, []string{q.Host, q.host}, silent, func(bouncer string, err error) {
		p.asking = false
		if err == nil {
			p.misses, p.at = bouncer, q.Now()
		}
		if a := q.attempt; a != nil && a.poolers {
			a.poolers, a.witnesses, a.witness = false, a.witnesses-1, p.misses
		}
	})
}

// askBouncersFor has an attempt wait for the word of a bouncer, unless that is there.
func (q *quorumTakeover) askBouncersFor(a *attempt) {
	switch p := &q.poolers; {
	case p.about(q) && p.misses != "" && q.Now().Sub(p.at) < 2*q.Dynamic.SuspectAfter:
		a.witness = p.misses
		*p = poolerWitness{} // for one attempt
		q.After(0, func() {})
	case p.asking && p.about(q):
		a.poolers, a.witnesses = true, 1
	case p.asking, q.host == "": // one on the leader's host would be asked
		q.After(0, func() {})
	default:
		a.poolers, a.witnesses = true, 1
		q.askBouncers()
	}
}

// witnesses are the members that can be witnesses. One on the leader's host, or on this one, is none, nor is one that
// may be there.
func (q *quorumTakeover) witnesses() []cluster.Member {
	return slices.DeleteFunc(q.others(), func(m cluster.Member) bool {
		host := hostOf(m)
		return host == "" || q.host == "" || host == q.Host || host == q.host
	})
}

func (q *quorumTakeover) askWhetherItMisses(a *attempt, other cluster.Member) {
	q.peers.Misses(witnessLimit, other, a.index, func(misses bool, err error) {
		switch {
		case err == nil && misses && a.witness == "":
			a.witnesses--
			a.witness = other.Name
		case q.mayAskAgain(a) && a.witness == "":
			q.After(askAgain, func() { q.askWhetherItMisses(a, other) })
		default:
			a.witnesses--
		}
	})
}

// mayAskAgain reports whether one that has refused is asked again.
func (q *quorumTakeover) mayAskAgain(a *attempt) bool {
	return q.attempt == a && q.Now().Before(a.began.Add(attemptLimit-askAgain))
}

func hostOf(m cluster.Member) string {
	host, _, err := m.Address()
	if err != nil {
		return ""
	}
	return host
}

// detach has this member detach for its attempt, and asks the others to.
func (q *quorumTakeover) detach() {
	a := q.attempt
	if a == nil || a.asked {
		return
	}
	a.asked, a.began = true, q.Now()
	q.After(attemptLimit, func() {})
	q.Log.Warn().Str("leader", q.leader).Str("witness", a.witness).Str("attempt", a.id).Msg("detaching from the silent leader, to take over")
	q.detachFor(pg.Detachment{Status: a.index, Attempt: a.id, Candidate: q.Name}, func(err error) { a.failed = err != nil })
	for _, other := range q.others() {
		a.open++
		q.askToDetach(a, other)
	}
}

// askToDetach asks another member to detach for the attempt, and then where its PostgreSQL is.
func (q *quorumTakeover) askToDetach(a *attempt, other cluster.Member) {
	left := func() time.Duration { return max(a.began.Add(attemptLimit).Sub(q.Now()), time.Millisecond) }
	q.peers.DetachFor(left(), other, a.index, a.id, func(err error) {
		switch {
		case err != nil && q.mayAskAgain(a):
			q.After(askAgain, func() { q.askToDetach(a, other) })
			return
		case err != nil:
			a.open--
			q.Log.Info().Err(err).Str("member", other.Name).Msg("does not detach for a takeover by quorum")
			return
		}
		q.peers.Observe(left(), other, func(seen Seen, err error) {
			a.open--
			if err != nil {
				return
			}
			seen.Name = other.Name
			if !seen.Lictor {
				seen.Attempts = nil
			}
			a.answers = append(a.answers, seen.Peer)
		})
	})
}

// detachFor ends the WAL receiver, and notes durably why, before done hears of it.
func (q *quorumTakeover) detachFor(d pg.Detachment, done func(error)) {
	follows := q.local.Upstream != "" || q.local.PG.Observed.ReplicationState != ""
	q.DetachFor(d.Status, d.Attempt)
	d.Own = d.Candidate == q.Name || q.noted.Own && q.noted.Status == d.Status
	q.round = "" // a promise that was given before counts for nothing
	unfollow := func(w *Work, next func(error)) {
		if !follows {
			next(nil)
			return
		}
		q.postgres.Unfollow(w, startLimit, func(err error) {
			if err == nil {
				q.local.follows("")
				q.local.PG.Observed.ReplicationState = ""
			}
			next(err)
		})
	}
	q.work.startTask(ha.TaskStart, inOrder(unfollow, func(w *Work, next func(error)) { q.postgres.KeepDetachment(w, d, next) }), func(err error) {
		switch {
		case err == nil && q.Detached == d.Status:
			if q.noted.Status != d.Status {
				q.attempts = nil
			}
			q.noted, q.attempts = d, append(q.attempts, d.Attempt)
			q.watches.KickPostgres()
		case q.noted.Status != d.Status: // the shard has gone on meanwhile, or the note may be half there
			q.dropNote(d)
		}
		done(err)
	})
}

// recall takes in the note that this member has detached in an earlier run.
func (q *quorumTakeover) recall(d *pg.Detachment) {
	if d == nil {
		return
	}
	if d.Status == 0 {
		q.unread = true
		return
	}
	q.DetachFor(d.Status, d.Attempt)
	q.noted, q.attempts = *d, []string{d.Attempt}
	if d.Own { // its takeover may have been sent
		q.lead.LeaseState.MayLandLate(d.Status)
	}
	q.Log.Warn().Uint64("status", d.Status).Str("candidate", d.Candidate).Msg("has detached from a leader in an earlier run, and follows nobody until there is a newer status")
}

// firstRead takes in the first reading: under its status a note holds that could not be read.
func (q *quorumTakeover) firstRead() {
	if index := q.Snapshot.Status.ModifyIndex; q.unread && index > 0 {
		q.Detach(index)
		q.lead.LeaseState.MayLandLate(index)
		q.noted = pg.Detachment{Status: index, Own: true}
	}
}

// promised hears that this member has given a promise to a leader without Consul: it drops its attempt, and all answers
// to it. Where that leader shows that all have promised, this one since it detached, nobody counts on it.
func (q *quorumTakeover) promised(r ha.FailsafeRequest) {
	q.drop()
	switch {
	case q.Detached == 0:
		q.round = ""
	case r.Agreed != "" && r.Agreed == q.round:
		q.Log.Info().Str("leader", r.Leader).Msg("nobody may take over, as all have promised: following again")
		q.Reattach()
	default:
		q.round = r.Round
	}
}

// drop ends an attempt, and with it all answers to it. However it has ended, there is a pause before the next one, and
// each time a longer one, until there was none for some time.
func (q *quorumTakeover) drop() {
	if q.attempt == nil {
		return
	}
	q.attempt = nil
	first, longest, now := 2*q.Dynamic.BeatInterval(), 3*q.Dynamic.TTL, q.Now()
	if now >= q.rested.Add(longest) {
		q.rests = 0
	}
	q.rests = min(max(first, 2*q.rests), longest)
	q.rested = now.Add(q.Jitter(q.rests/2+first/2, q.rests+1))
	q.notBefore = q.rested
}

// failed notes that the takeover had no effect, or that this is not known.
func (q *quorumTakeover) failed() {
	if q.attempt != nil {
		q.attempt.sent = true
	}
}

// end ends an attempt, and leaves the takeover to another member if that is ahead.
func (q *quorumTakeover) end(e ha.EndAttempt) {
	a := q.attempt
	if a == nil {
		return
	}
	q.drop()
	q.Log.Warn().Str("leader", q.leader).Str("why", e.String()).Msg("no takeover by quorum")
	if to, found := q.Snapshot.Member(e.Instead); found && to.OK() {
		q.peers.Succeed(witnessLimit, to.Value, a.index, func(error) {})
	}
}

// succeed hears from a candidate that this member is ahead, and is to begin at once.
func (q *quorumTakeover) succeed(index uint64) {
	if q.on() && index == q.Snapshot.Status.ModifyIndex && q.Detached == index {
		q.notBefore = 0
	}
}

// startRace reports whether commits just after a start of this PostgreSQL may wait for nobody: mended in the minor releases of May 2025.
func startRace(version int) bool {
	mended := map[int]int{13: 21, 14: 18, 15: 13, 16: 9, 17: 5}
	minor, known := mended[version/10000]
	return version/10000 < 18 && (!known || version%10000 < minor)
}

// lookUpEvery is how often the names of members' hosts are looked up, lookUpLimit how long that may take.
const (
	lookUpEvery = 10 * time.Second
	lookUpLimit = 2 * time.Second
)

// addressBook has the addresses of members' hosts that have names.
type addressBook struct {
	*Shard
	peers Peers
	known map[string]*hostAddresses
}

// hostAddresses are those that were found last; next is when the name is looked up again.
type hostAddresses struct {
	all    []string
	asking bool
	next   cluster.Instant
}

// mind looks names up that were not for a while.
func (b *addressBook) mind() {
	now := b.Now()
	for _, m := range b.Snapshot.Members {
		host := hostOf(m.Value)
		if _, err := netip.ParseAddr(host); !m.OK() || host == "" || err == nil {
			continue
		}
		if b.known[host] == nil {
			b.known[host] = &hostAddresses{}
		}
		h := b.known[host]
		if h.asking || now.Before(h.next) {
			continue
		}
		h.asking, h.next = true, now.Add(lookUpEvery)
		b.peers.LookUp(lookUpLimit, host, func(all []string, err error) {
			h.asking = false
			if err == nil {
				h.all = all
			}
		})
	}
}

// has reports whether an address is one of a host's.
func (b *addressBook) has(host, addr string) bool {
	same := func(one string) bool {
		of, err1 := netip.ParseAddr(one)
		is, err2 := netip.ParseAddr(addr)
		return one == addr || err1 == nil && err2 == nil && of.Unmap() == is.Unmap()
	}
	h := b.known[host]
	return addr != "" && (same(host) || h != nil && slices.ContainsFunc(h.all, same))
}

// foreign reports whether a standby's connection comes from another address than the member's of that name.
func (b *addressBook) foreign(s pg.StandbyState) bool {
	for _, other := range b.Snapshot.Members {
		if other.OK() && strings.EqualFold(other.Value.Name, s.ApplicationName) {
			return !b.has(hostOf(other.Value), s.ClientAddr)
		}
	}
	return true
}
