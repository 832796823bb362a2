package member

import (
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
	// witnessLimit and attemptLimit bound the questions of an attempt.
	witnessLimit = 300 * time.Millisecond
	attemptLimit = time.Second
)

// overtaker finds out whether the leader is silent, and carries a takeover by quorum out (design 5.30).
type overtaker struct {
	*Shard
	lead     *leadership
	local    *Local
	work     *worker
	peers    Peers
	postgres Postgres
	watches  Watches

	// leader is who is probed; missed: that many probes in a row have failed, the first of them sent at since.
	leader  string
	missed  int
	since   cluster.Instant
	probing bool
	next    cluster.Instant // probe

	attempt   *attempt // nil: none is under way
	rests     time.Duration
	notBefore cluster.Instant

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
}

// attempt is one of this member's own.
type attempt struct {
	id        string
	index     uint64
	began     cluster.Instant
	witness   string
	witnesses int // that have not answered yet
	asked     bool
	failed    bool // its own part
	open      int  // of those asked to detach
	answers   []ha.Peer
	sent      bool
}

// on reports whether this member has to do with takeovers by quorum at all.
func (o *overtaker) on() bool { return o.Dynamic.Takeover == cluster.TakeoverQuorum }

// mind keeps probing the leader, and forgets what is over.
func (o *overtaker) mind() {
	if o.noted.Status != 0 && o.Detached != o.noted.Status {
		o.free = o.Now()
		o.postgres.DropDetachment(o.Dynamic.RetryTimeout, o.noted, func(err error) {
			if err != nil {
				o.Log.Warn().Err(err).Msg("the note that this member has detached could not be removed; it is void by now")
			}
		})
		o.noted, o.attempts, o.round = pg.Detachment{}, nil, ""
	}
	if !o.on() {
		o.leader, o.attempt = "", nil
		return
	}
	leader := ""
	if b := o.Snapshot.Status.Value.Lictor; o.Snapshot.Status.OK() && b != nil && !b.Released && b.Owner != o.Name {
		leader = b.Owner
	}
	if leader != o.leader {
		o.leader, o.missed, o.next, o.rests = leader, 0, 0, 0
	}
	if seen := o.local.PG.Observed; seen.MessageAge > 0 && o.local.Upstream == leader && o.local.PG.ObservedAt.Add(-seen.MessageAge) > o.since {
		o.missed = 0
	}
	o.probe()
}

// probe asks the leader whether it is there, again and again.
func (o *overtaker) probe() {
	to, found := o.Snapshot.Member(o.leader)
	now := o.Now()
	if o.leader == "" || o.probing || now.Before(o.next) {
		return
	}
	every := o.Dynamic.SuspectAfter / probesIn
	o.probing, o.next = true, now.Add(every)
	leader := o.leader
	answered := func(answered bool) {
		o.probing = false
		switch {
		case leader != o.leader:
		case answered:
			o.missed = 0
		default:
			if o.missed == 0 {
				o.since = now
			}
			o.missed++
		}
		o.wakeAfter(max(o.next.Sub(o.Now()), time.Millisecond))
	}
	if !found || !to.OK() { // its key has gone with its session: nobody knows where it is
		o.After(every, func() { answered(false) })
		return
	}
	o.peers.Probe(every, to.Value, answered)
}

func (o *overtaker) view() ha.TakeoverView {
	v := ha.TakeoverView{Heard: o.Now(), NotBefore: o.notBefore}
	if o.missed >= silentProbes {
		v.Heard = o.since
	}
	a := o.attempt
	if a == nil {
		return v
	}
	v.Attempt, v.Index, v.Witness, v.WitnessesDone, v.Asked, v.Answers, v.Sent = a.id, a.index, a.witness, a.witnesses == 0, a.asked, a.answers, a.sent
	v.Detached = a.asked && o.noted.Status == a.index && o.Detached == a.index && slices.Contains(o.attempts, a.id) && o.alone()
	late := !o.Now().Before(a.began.Add(attemptLimit))
	v.Done = a.asked && (late || a.open == 0 && (a.failed || v.Detached))
	return v
}

// alone reports whether this member follows nobody, and was looked at since.
func (o *overtaker) alone() bool {
	return o.local.Upstream == "" && o.work.task == nil && !o.local.PG.Primary() && o.local.PG.SeenAlone()
}

// others are the members that are asked: all but this one and the leader.
func (o *overtaker) others() []cluster.Member {
	var all []cluster.Member
	for _, m := range o.Snapshot.Members {
		if m.OK() && m.Value.Name != o.Name && m.Value.Name != o.leader {
			all = append(all, m.Value)
		}
	}
	return all
}

// begin begins an attempt: the others are asked whether they miss the leader, too. One on the leader's host, or on
// this one, is no witness.
func (o *overtaker) begin(index uint64) {
	a := &attempt{id: o.ID(), index: index, began: o.Now()}
	o.attempt = a
	o.After(attemptLimit, func() {})
	leads, _ := o.Snapshot.Member(o.leader)
	for _, other := range o.others() {
		if host := hostOf(other); host == o.Host || host == hostOf(leads.Value) {
			continue
		}
		a.witnesses++
		o.peers.Misses(witnessLimit, other, index, func(misses bool, err error) {
			a.witnesses--
			if err == nil && misses && a.witness == "" {
				a.witness = other.Name
			}
		})
	}
	o.Log.Warn().Str("leader", o.leader).Uint64("status", index).Str("attempt", a.id).Msg("leader is silent; asking for a witness")
	if a.witnesses == 0 {
		o.After(0, func() {})
	}
}

func hostOf(m cluster.Member) string {
	host, _, err := m.Address()
	if err != nil {
		return ""
	}
	return host
}

// detach has this member detach for its attempt, and asks the others to.
func (o *overtaker) detach() {
	a := o.attempt
	if a == nil || a.asked {
		return
	}
	a.asked, a.began = true, o.Now()
	o.After(attemptLimit, func() {})
	o.Log.Warn().Str("leader", o.leader).Str("witness", a.witness).Str("attempt", a.id).Msg("detaching from the silent leader, to take over")
	o.detachFor(pg.Detachment{Status: a.index, Attempt: a.id, Candidate: o.Name}, func(err error) { a.failed = err != nil })
	until := o.Now().Add(attemptLimit)
	left := func() time.Duration { return max(until.Sub(o.Now()), time.Millisecond) }
	for _, other := range o.others() {
		a.open++
		o.peers.DetachFor(left(), other, a.index, a.id, func(err error) {
			if err != nil {
				a.open--
				o.Log.Info().Err(err).Str("member", other.Name).Msg("does not detach for a takeover by quorum")
				return
			}
			o.peers.Observe(left(), other, func(seen Seen, err error) {
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
}

// detachFor ends the WAL receiver, and notes durably why, before done hears of it.
func (o *overtaker) detachFor(d pg.Detachment, done func(error)) {
	follows := o.local.Upstream != "" || o.local.PG.Observed.ReplicationState != ""
	o.DetachFor(d.Status, d.Attempt)
	d.Own = d.Candidate == o.Name || o.noted.Own && o.noted.Status == d.Status
	o.round = "" // a promise that was given before counts for nothing
	unfollow := func(w *Work, next func(error)) {
		if !follows {
			next(nil)
			return
		}
		o.postgres.Unfollow(w, startLimit, func(err error) {
			if err == nil {
				o.local.follows("")
				o.local.PG.Observed.ReplicationState = ""
			}
			next(err)
		})
	}
	o.work.startTask(ha.TaskStart, inOrder(unfollow, func(w *Work, next func(error)) { o.postgres.KeepDetachment(w, d, next) }), func(err error) {
		if err == nil && o.Detached == d.Status {
			if o.noted.Status != d.Status {
				o.attempts = nil
			}
			o.noted, o.attempts = d, append(o.attempts, d.Attempt)
			o.watches.KickPostgres()
		}
		done(err)
	})
}

// recall takes in the note that this member has detached in an earlier run.
func (o *overtaker) recall(d *pg.Detachment) {
	if d == nil {
		return
	}
	if d.Status == 0 {
		o.unread = true
		return
	}
	o.DetachFor(d.Status, d.Attempt)
	o.noted, o.attempts = *d, []string{d.Attempt}
	if d.Own { // its takeover may have been sent
		o.lead.LeaseState.MayLandLate(d.Status)
	}
	o.Log.Warn().Uint64("status", d.Status).Str("candidate", d.Candidate).Msg("has detached from a leader in an earlier run, and follows nobody until there is a newer status")
}

// firstRead takes in the first reading: under its status a note holds that could not be read.
func (o *overtaker) firstRead() {
	if index := o.Snapshot.Status.ModifyIndex; o.unread && index > 0 {
		o.Detach(index)
		o.lead.LeaseState.MayLandLate(index)
		o.noted = pg.Detachment{Status: index, Own: true}
	}
}

// promised hears that this member has given a promise to a leader without Consul: it drops its attempt, and all answers
// to it. Where that leader shows that all have promised, this one since it detached, nobody counts on it.
func (o *overtaker) promised(r ha.FailsafeRequest) {
	o.drop()
	switch {
	case o.Detached == 0:
		o.round = ""
	case r.Agreed != "" && r.Agreed == o.round:
		o.Log.Info().Str("leader", r.Leader).Msg("nobody may take over, as all have promised: following again")
		o.Reattach()
	default:
		o.round = r.Round
	}
}

// drop ends an attempt, and with it all answers to it.
func (o *overtaker) drop() { o.attempt = nil }

// failed notes that the takeover had no effect, or that this is not known.
func (o *overtaker) failed() {
	if o.attempt != nil {
		o.attempt.sent = true
	}
}

// end ends an attempt. Each one that failed makes the pause before the next one longer.
func (o *overtaker) end(e ha.EndAttempt) {
	a := o.attempt
	if a == nil {
		return
	}
	o.drop()
	if e.Failed {
		first := 2 * o.Dynamic.BeatInterval()
		o.rests = min(max(first, 2*o.rests), 3*o.Dynamic.TTL)
		o.notBefore = o.Now().Add(o.Jitter(o.rests/2+first/2, o.rests+1))
		o.Log.Warn().Str("leader", o.leader).Str("why", e.String()).Msg("no takeover by quorum")
	}
	if to, found := o.Snapshot.Member(e.Instead); found && to.OK() {
		o.peers.Succeed(witnessLimit, to.Value, a.index, func(error) {})
	}
}

// succeed hears from a candidate that this member is ahead, and is to begin at once.
func (o *overtaker) succeed(index uint64) {
	if o.on() && index == o.Snapshot.Status.ModifyIndex && o.Detached == index {
		o.notBefore = 0
	}
}

// startRace reports whether commits just after a start of this PostgreSQL may wait for nobody: mended in the minor releases of May 2025.
func startRace(version int) bool {
	mended := map[int]int{13: 21, 14: 18, 15: 13, 16: 9, 17: 5}
	minor, known := mended[version/10000]
	return version/10000 < 18 && (!known || version%10000 < minor)
}

// foreign reports whether a standby's connection comes from another address than the member's of that name.
func foreign(m *Member, s pg.StandbyState) bool {
	for _, other := range m.Snapshot.Members {
		if other.OK() && strings.EqualFold(other.Value.Name, s.ApplicationName) {
			return s.ClientAddr == "" || s.ClientAddr != hostOf(other.Value)
		}
	}
	return true
}
