package simulation

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Mutant switches rules off, at the border of the code that is tested: what a
// decision is shown, what a transaction checks, which moments a lease state is told. The
// zero value is Lictor as it is.
type Mutant struct {
	TakeOverUnchecked bool // the takeover does not check that the status is the one that was seen
	BeatUnchecked     bool // the beat does not
	ReleaseUnchecked  bool // the release does not
	LeaseFromReply    bool // the lease counts from the answer, not from the moment of sending
	ExpiredExtended   bool // a beat that succeeded late revives the lease
	GuardOff          bool // the guard kills nothing at the deadline
	WatcherOff        bool // the guard's watcher kills nothing
	GuardNotShortened bool // a shorter ttl shortens neither lease nor guard before the beat is sent
	ListIgnored       bool // members that are not in the failsafe list take the lock
	ListForgotten     bool // a failsafe list whose write is uncertain is not asked
	FlagObeyed        bool // the setting failsafe_mode counts, not the key
	PromiseIgnored    bool // a member takes the lock that it has promised not to take
	SessionIsLease    bool // a lock that vanished counts as a lease that is over
	NoDriftMargin     bool // observers count a lease without the margin for the drift of two clocks
	OwnTTL            bool // observers count their own ttl, not that of the status
	NoWait            bool // a status of unknown age counts as old
	SuccessorIgnored  bool // a released lease is anybody's
	SyncTooEarly      bool // the key sync names standbys before they have caught up
	SyncIndexKept     bool // a takeover leaves the index of a key sync that it does not change
	VoterStays        bool // a voter goes on receiving from the old leader during an election
	QuorumUnasked     bool // the positions of the other voters are not waited for
	RestoringCounted  bool // a member whose data were replaced counts and leads as before
	ReplayCounted     bool // the position of a voter that still replays counts
	PromoteUnbound    bool // a promotion does not replace the key sync
	PromiseKept       bool // what a promotion that failed has replaced is not given back
	StartUnfit        bool // a primary's start does not see to what the key sync says, and one as a replica forgets it first
	HangEndures       bool // a leader that serves nobody beats for ever
	StopWaits         bool // a stop waits for what it interrupts
	LateStart         bool // what was interrupted starts a primary all the same
	TimelineUntold    bool // the status does not tell which timelines may be in use
	// the takeover does not check that the key failsafe is the one that was seen; survives: it
	// counts for a list that is written in the two seconds for which a candidate believes its
	// reading. agent/ha TestTakeOverNeedsEachIndex and agent/consul's tests of the transaction
	// notice.
	FailsafeUnchecked bool
	// a member agrees to a failsafe round while a takeover of its own is under way. Only one by
	// quorum is hurt by that: another was sent after the leader's lease was over by a clock with a
	// margin, and to make that longer the leader needs this member's word before.
	InFlightAgreed   bool
	PromiseDriftless bool // a promise ends without the margin for the drift of two clocks
	LongestAsked     bool // a failsafe round asks for the ttl that is configured, not for the shortest lease in Consul
	DeletionIgnored  bool // a leader relies on a failsafe list whose deletion it has sent
	PauseIgnored     bool // a decision does not know of the pause
	PauseUntold      bool // a pause is in force when it is read, not with the beat that says so
	PausedTaken      bool // a lease whose last beat was paused is taken as any other
	NotDeposed       bool // nobody tells the old leader that it is deposed
	DetachForgotten  bool // an agent that begins anew does not ask whether it had detached
	Unpromoted       bool // a PostgreSQL whose promotion has failed is left alone
	// the guard starts a primary though its deadline has passed; survives: what it starts then it
	// kills at once, as the deadline is over, and an agent that lives on has broken the start off
	// (LateStart). agent/fence's tests of the guard notice.
	OverdueStart   bool
	DiscardedLeads bool // a member leads with WAL that a restore has discarded
	// an agent that has just begun takes its own lock again, for a PostgreSQL that is down, without
	// asking; survives: beside what Consul has forgotten nothing is promised of a primary (design
	// 5.2), and the judge asks nothing. The tables of agent/ha notice.
	OthersUnasked     bool
	BackBelieved      bool // Consul is believed at once when it has gone back
	RetakeUnwatched   bool // nothing wakes the agent of an adopted primary when its time without a lease is over
	SwitchoverUnasked bool // in pause a candidate does not know of the switchover that was asked for
	HandoverForgotten bool // in pause the old leader does not know that it has carried one out
	SlotsDropped      bool // the slot of a member that is away is dropped
	CopiedEarly       bool // a logical slot is copied beyond what was received
	SlotsOfBefore     bool // a takeover's status says where the old leader's readers were
	LostKept          bool // a slot that has lost its WAL stays
	KeptStarted       bool // what is left of a clone that was cut short is started
	PatroniIgnored    bool // a leader does not see that a member of Patroni's has taken its lock
	SiteUnasked       bool // nobody asks the other site
	PauseOfBefore     bool // what a member has said of an earlier pause counts for this one
	RebuildUnanswered bool // data are made anew though the leader does not answer
	NoteLost          bool // the note that a member has detached is lost when its agent begins anew
	QuorumShort       bool // one voter less than the key sync asks for is enough
	ConsentKept       bool // what L consents by changes before a beat without consent is confirmed
	DetachedForever   bool // a leader that goes on by all promises does not end the detachment
	DetachedShort     bool // a promise to a leader ends it, whoever else has promised
	LookedBefore      bool // a position counts that was looked at before its member has detached
	OpenedEarly       bool // nobody waits for the standbys to flush the end of a started primary's recovery
	AnnouncedUndone   bool // an upgrade is taken back that was announced
	OldClusterLeads   bool // a member leads with the data of before a major upgrade
	ConsentForgotten  bool // an agent that begins anew does not know that the one before may have consented
	// a member says that it misses a leader that it hears; survives: nothing is lost by it, it costs
	// needless takeovers (TestWrongWitnesses)
	WitnessLies bool
	DiskUnseen  bool // a leader does not hear of its disk
	SettingLate bool // a setting that was given up while the disk hung takes effect when it answers
}

// change leaves the check of the status out.
func (m *Mutant) change(ops []op, unchecked bool) []op {
	if !unchecked {
		return ops
	}
	var kept []op
	for _, o := range ops {
		if o.key != keyStatus || o.verb != checkIndex && o.verb != checkNotExists {
			kept = append(kept, o)
		}
	}
	return kept
}

// beaten changes what a beat has given.
func (m *Mutant) beaten(a *agent, ttl time.Duration) {
	now := a.host.clock()
	switch {
	case m.LeaseFromReply:
		if a.LeaseState.BeatSucceeded(now, now, ttl) == nil {
			a.ArmGuard()
		}
	case m.ExpiredExtended && !a.LeaseState.Held(now):
		a.LeaseState.TookOver(now, ttl)
		guarded{a}.Arm(a.PersistedState(), true, func(error) {})
	}
}

// tookOver changes what a takeover has given.
func (m *Mutant) tookOver(a *agent, ttl time.Duration) {
	if m.LeaseFromReply {
		a.LeaseState.TookOver(a.host.clock(), ttl)
		guarded{a}.Arm(a.PersistedState(), true, func(error) {})
	}
}

// see changes what a decision is shown.
func (m *Mutant) see(v ha.View) ha.View {
	beat := v.Cluster.Status.Value.Lictor
	changed := func(change func(b *cluster.Beat)) {
		if beat != nil {
			b := *beat
			change(&b)
			v.Cluster.Status.Value.Lictor, beat = &b, &b
		}
	}
	if key := v.Cluster.Failsafe; key.Exists() && (m.ListIgnored || m.FlagObeyed && !v.Config.FailsafeMode) && v.Lease.Until.IsZero() {
		list := maps.Clone(key.Value)
		list[v.Name] = "http://" + v.Name
		v.Cluster.Failsafe.Value = list
	}
	if m.PromiseIgnored {
		v.Promise = nil
	}
	if p := v.Promise; p != nil && m.PromiseDriftless {
		short := *p
		short.Until = p.Until.Add(-time.Duration(float64(v.Config.TTL) * ha.DriftMargin))
		v.Promise = &short
	}
	if u := v.Postgres.Upgrade; u != nil && m.AnnouncedUndone {
		v.Postgres.Upgrade = &ha.Upgrade{From: u.From, To: u.To, Fits: u.Fits}
	}
	if m.OldClusterLeads && v.Postgres.SystemIdentifier != "" {
		v.Cluster.Initialize.Value, v.Cluster.Route.Value.Succeeds = v.Postgres.SystemIdentifier, nil
		changed(func(b *cluster.Beat) { b.Discarded = 0 })
	}
	v.Config.Pause = v.Config.Pause && !m.PauseIgnored
	if m.PauseUntold && v.Config.Pause {
		changed(func(b *cluster.Beat) { b.Paused = b.Paused || b.Owner == v.Name })
	}
	if m.PausedTaken {
		changed(func(b *cluster.Beat) { b.Paused = b.Paused && b.Owner == v.Name })
	}
	if m.BackBelieved {
		v.GoneBack = 0
	}
	if m.OthersUnasked && v.Lease.Renewed.IsZero() {
		v.Lease.Renewed = 1
	}
	if m.SwitchoverUnasked && v.Config.Pause && v.Lease.Until.IsZero() {
		v.Cluster.Failover = cluster.Entry[cluster.Failover]{}
	}
	if holder, found := v.Cluster.Member(v.Cluster.LeaderName()); m.PatroniIgnored && found && holder.Value.Lictor == nil && !v.Lease.Until.IsZero() {
		v.Cluster.Leader = cluster.Entry[string]{}
	}
	if m.KeptStarted && v.Postgres.Resumable {
		v.Postgres.Data = ha.DataValid
	}
	if m.HandoverForgotten && v.Config.Pause {
		v.HandedOver = 0
	}
	if m.SessionIsLease && v.Cluster.LeaderName() == "" && beat != nil && beat.Owner != v.Name && !v.Read.IsZero() {
		v.StatusSeen = 1
	}
	if m.NoDriftMargin && beat != nil && beat.Owner != v.Name {
		v.StatusSeen = v.StatusSeen.Add(-time.Duration(float64(beat.Lease()) * ha.DriftMargin))
	}
	if m.OwnTTL {
		changed(func(b *cluster.Beat) { b.LeaseMS = v.Config.TTL.Milliseconds() })
	}
	if m.NoWait && !v.Read.IsZero() && v.StatusSeen == v.FirstRead && beat != nil && beat.Owner != v.Name {
		v.StatusSeen = 1
	}
	if m.SuccessorIgnored {
		changed(func(b *cluster.Beat) {
			if b.Released {
				b.Successor = ""
			}
		})
	}
	if m.DiscardedLeads {
		changed(func(b *cluster.Beat) { b.Discarded = 0 })
	}
	if m.SiteUnasked {
		v = unsited(v)
	}
	if m.PromiseKept {
		v.SyncBefore = nil
	}
	if m.HangEndures {
		v.Postgres.UnservedSince = 0
	}
	if m.SyncTooEarly {
		v.Postgres.SyncSince = 1
		for i := range v.Postgres.Standbys {
			v.Postgres.Standbys[i].Sync = true
		}
	}
	if m.RestoringCounted {
		v.Peers = slices.Clone(v.Peers)
		for i := range v.Peers {
			v.Peers[i].Restoring = false
		}
		v.Postgres.Restoring = false
	}
	if m.ReplayCounted {
		v.Peers = slices.Clone(v.Peers)
		for i := range v.Peers {
			v.Peers[i].Replaying = false
		}
	}
	if m.QuorumShort && v.Takeover.Attempt != "" {
		v.Cluster.Sync.Value.Quorum--
	}
	if m.ReplayCounted || m.RestoringCounted {
		v.Takeover.Answers = slices.Clone(v.Takeover.Answers)
		for i := range v.Takeover.Answers {
			v.Takeover.Answers[i].Replaying = v.Takeover.Answers[i].Replaying && !m.ReplayCounted
			v.Takeover.Answers[i].Restoring = v.Takeover.Answers[i].Restoring && !m.RestoringCounted
		}
	}
	if m.QuorumUnasked && v.Lease.Until.IsZero() && v.Cluster.Sync.Exists() {
		v.Cluster.Sync.Value.Quorum = 0
	}
	return v
}

// slots changes which slots are kept.
func (m *Mutant) slots(p *postgres, wanted []pg.WantedSlot) []pg.WantedSlot {
	if !m.SlotsDropped {
		return wanted
	}
	return slices.DeleteFunc(slices.Clone(wanted), func(s pg.WantedSlot) bool { return p.slotOf(s.Name) != nil && !p.feeds(s.Name) })
}

// said changes what a status says.
func (m *Mutant) said(j *judge, s cluster.Status) cluster.Status {
	if name := feedSlot().Name; m.SlotsOfBefore && j.status.Slots[name] > s.Slots[name] {
		s.Slots = maps.Clone(j.status.Slots)
	}
	return s
}

// wakes changes when a decision wants to be made anew.
func (m *Mutant) wakes(v ha.View, wake cluster.Instant) cluster.Instant {
	if m.RetakeUnwatched && v.Lease.Until.IsZero() && v.Postgres.Running && v.Postgres.Primary {
		return 0
	}
	return wake
}

// failsafe changes what a leader asks of a member, and makes of its answer.
func (m *Mutant) failsafe(a *agent, r *ha.FailsafeRequest, done func(error)) func(error) {
	if !m.LongestAsked {
		return done
	}
	t0 := a.host.clock()
	r.Lease = a.Dynamic.TTL
	return func(err error) {
		done(err)
		if err == nil && a.LeaseState.OnFailsafe() && a.LeaseState.FailsafeAnswered(a.host.clock(), t0, a.Dynamic.TTL, true) == nil {
			guarded{a}.Arm(a.PersistedState(), false, func(error) {})
		}
	}
}

// hears changes what a member makes of that.
func (m *Mutant) hears(to *agent, request ha.FailsafeRequest) error {
	if m.DetachedForever {
		request.Agreed = ""
	}
	err := m.agreed(to.HearFailsafe(request))
	if err == nil && m.DetachedShort {
		to.Reattach()
	}
	return err
}

// agreed changes what a member answers to that.
func (m *Mutant) agreed(err error) error {
	if m.InFlightAgreed && err != nil && strings.Contains(err.Error(), "a takeover of unknown outcome") {
		return nil
	}
	return err
}

// looked changes what an agent sees of its PostgreSQL.
func (m *Mutant) looked(a *agent, s *pg.State) {
	if !m.OpenedEarly || !a.Opening() {
		return
	}
	for i := range s.Standbys {
		s.Standbys[i].FlushLSN = math.MaxInt64
	}
}

// note changes which note is found.
func (m *Mutant) note(d *pg.Detachment) *pg.Detachment {
	if m.NoteLost {
		return nil
	}
	return d
}

// accepted changes what an agent knows after its first reading.
func (m *Mutant) accepted(a *agent, first bool) {
	if m.DetachForgotten && first {
		a.Detached = 0
	}
}
