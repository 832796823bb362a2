package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

const (
	// archiveGets is how long a replica that recovers from an archive may stand still before its
	// leader's word that the WAL is gone counts: the archive may have it, and be away.
	archiveGets = 10 * time.Minute
	// turnAgain is how long an agent waits for its turn before it asks for it again.
	turnAgain = 10 * time.Second
	// turnRests is how long the shard's turn must have been seen free before it is taken: whoever
	// has lost its session in the middle of a copy takes it again within that.
	turnRests = 30 * time.Second
	// Data that were made anew by policy twice are not so again before rebuiltAgain has passed,
	// which doubles each time up to rebuiltAgainMost.
	rebuiltAgain     = time.Hour
	rebuiltAgainMost = 24 * time.Hour
)

// rebuilder finds out that this replica cannot go on with the data that it has, and gets it its
// turn where they are made anew by policy (design 5.29).
type rebuilder struct {
	*Shard
	local    *Local
	lead     *leadership
	consul   Consul
	postgres Postgres

	// at is where the replica stands still, and since when.
	at    standstill
	since cluster.Instant
	// asking: the leader is asked whether it has the WAL from there on; next: not before then.
	asking bool
	next   cluster.Instant
	// by is the leader, on its timeline, by whose word this replica cannot go on.
	by ha.Line

	// asked: the turn is being asked for, or given up, ending: given up; turnAt: not before then.
	// What was read of it before ended, when it was given up, is over.
	asked, ending bool
	turnAt, ended cluster.Instant
	// waits says what it waits for, refused why the turn was not got when it was asked for last.
	waits, refused string
	// free is since when the shard's turn was seen free; zero: it is not.
	free cluster.Instant
	// begun: the data were removed by policy, and it does not stream again. They were so times
	// times, each within a while of the one before, and last at last.
	begun bool
	times int
	last  cluster.Instant
}

// standstill is where a replica stands that receives nothing.
type standstill struct {
	upstream      string
	leader        ha.Line
	timeline      int
	lsn, replayed int64
}

// stands is where this replica stands, and whether it waits for WAL there. Replay that is paused or
// delayed is an operator's will, and there is WAL to replay.
func (r *rebuilder) stands() (at standstill, waits bool) {
	o, leader, up := r.local.PG.Observed, r.leadingLine(), r.local.Upstream
	waits = r.local.PG.Running && o.Accepting && o.InRecovery && o.ReplicationState != pg.Streaming && !o.Replaying && o.Standstill == "" &&
		leader != ha.Line{} && up != "" && !cluster.IsRemote(up)
	return standstill{upstream: up, leader: leader, timeline: o.Timeline, lsn: o.LSN(), replayed: o.ReplayedLSN}, waits
}

// stillThere reports whether it waits where it did when the leader was asked.
func (r *rebuilder) stillThere() bool {
	at, waits := r.stands()
	return waits && at == r.at
}

// up reports whether this replica gets WAL, or is one that gets it from an archive alone.
func (r *rebuilder) up() bool {
	o := r.local.PG.Observed
	return r.local.PG.Running && o.Accepting && o.InRecovery && (o.ReplicationState == pg.Streaming || r.local.Upstream == "")
}

// mind looks after a replica that receives nothing, and its turn. It is to be called when no task
// is under way.
func (r *rebuilder) mind() {
	r.judge()
	r.Problem("rebuild", "this replica cannot go on and must be made anew", r.local.Stranded)
	r.take()
}

// strand notes that this replica cannot go on, by the word of whoever leads.
func (r *rebuilder) strand(why string) { r.local.Stranded, r.by = why, r.leadingLine() }

// judge finds out whether the WAL that a replica needs is gone.
func (r *rebuilder) judge() {
	leader := r.leadingLine()
	at, waits := r.stands()
	if !waits {
		r.Failure("leader unproved", "", nil)
	}
	if !waits || at != r.at {
		if r.local.PG.Running || leader != r.by { // what is down and has diverged stays so
			r.local.Stranded = ""
		}
		r.at, r.since, r.next = at, r.Now(), 0
	}
	patience := r.Dynamic.LoopWait
	if r.local.PG.Observed.ReplicationState == pg.InArchiveRecovery {
		patience = archiveGets
	}
	shard := r.Snapshot.Initialize.Value
	if !waits || r.asking || shard == "" || r.Now().Before(r.next) || r.Now().Before(r.since.Add(patience)) {
		return
	}
	up, err := r.upstreamOf(leader.Leader)
	if err != nil {
		return
	}
	r.asking = true
	r.postgres.WALGone(r.Dynamic.RetryTimeout, up, shard, at.timeline, at.lsn, func(gone bool, err error) {
		r.asking, r.next = false, r.Now().Add(max(turnAgain, r.Dynamic.LoopWait))
		if err != nil {
			r.Log.Debug().Err(err).Msg("leader did not say whether it has this replica's WAL")
		}
		if err == nil || errors.Is(err, ErrUnproved) {
			r.Failure("leader unproved", "it cannot be told whether this replica can go on, as the leader's PostgreSQL does not prove whose it is (docs/security.md, require_auth)", err)
		}
		if gone && at == r.at && r.stillThere() {
			r.strand(fmt.Sprintf("the WAL that it needs, from %s on, is gone from %s", pg.FormatLSN(at.lsn), up.Name))
		}
	})
}

// wanted reports whether the data are to be made anew by policy, when it is this member's turn.
func (r *rebuilder) wanted() bool {
	return r.local.Stranded != "" && r.mayBe() == nil
}

// mayBe says why the data must not be made anew by policy, whosever turn it is.
func (r *rebuilder) mayBe() error {
	switch {
	case r.Dynamic.Rebuild != cluster.RebuildAuto:
		return errors.New("rebuild is not auto")
	case r.Dynamic.Pause:
		return errors.New("the shard is paused")
	case r.leadingLine() == ha.Line{}:
		return errors.New("no other member leads")
	case r.lead.LeaseState.Held(r.Now()):
		return errors.New("this member has a lease")
	case r.Detached > 0:
		return errors.New("a candidate for the leadership counts on what this member has")
	case r.Now().Before(r.notBefore()):
		return fmt.Errorf("it was made anew %s ago, and is not again before %s have passed",
			r.Now().Sub(r.last).Round(time.Minute), r.notBefore().Sub(r.last))
	}
	for i := range r.Snapshot.Members {
		if m := &r.Snapshot.Members[i].Value; m.Name != r.Name && m.State == cluster.StateCreating {
			return fmt.Errorf("%s is just being made", m.Name)
		}
	}
	return nil
}

// notBefore is when the data may be made anew again.
func (r *rebuilder) notBefore() cluster.Instant {
	if r.times < 2 { // the second time it is made from the leader
		return 0
	}
	return r.last.Add(min(rebuiltAgain<<min(r.times-2, 8), rebuiltAgainMost))
}

// hasTurn reports whether Consul shows it as this member's turn, by the session that it has now: by
// whichever run of its agent it was asked for, and whether or not the answer came.
func (r *rebuilder) hasTurn() bool {
	key := r.Snapshot.Rebuild
	return key.Exists() && !r.ending && r.Session != "" && key.Session == r.Session && key.Value == r.Name && r.Read > r.ended
}

// keep sees to a turn that is in use, whatever task is under way: with the session it may have
// gone, and another member must not take it meanwhile. The data are gone already, so the turn of
// the host, which another member may have by now, is not waited for.
func (r *rebuilder) keep() {
	switch {
	case r.Snapshot.Rebuild.Exists():
		r.free = 0
	case r.free.IsZero():
		r.free = r.Now()
	}
	r.begun = r.begun || r.hasTurn() && r.local.Data.State != ha.DataValid
	if r.begun && !r.hasTurn() {
		r.askFor("")
	}
}

// take asks for the turn where it is needed, and gives it up where it is not any more.
func (r *rebuilder) take() {
	if r.up() || r.local.Stranded != "" || r.LockIsOurs() {
		r.begun = false
	}
	if r.up() && r.times > 0 && !r.Now().Before(r.last.Add(rebuiltAgain)) {
		r.times = 0
	}
	wanted := r.wanted()
	r.waits = ""
	switch {
	case r.begun, wanted && r.hasTurn():
		r.waits = "it is its turn"
	case r.hasTurn():
		r.end(false)
	case r.local.Stranded == "", r.Dynamic.Rebuild != cluster.RebuildAuto:
	case r.Snapshot.Rebuild.Exists():
		r.waits = "it is the turn of " + r.Snapshot.Rebuild.Value
	case !wanted:
		r.waits = r.mayBe().Error()
	case !r.free.IsZero() && !r.Now().Before(r.free.Add(turnRests)):
		r.waits = r.refused
		r.askFor(r.Host)
	}
}

// askFor asks for the turn of the shard, and for that of host unless that is empty.
func (r *rebuilder) askFor(host string) {
	session := r.Session
	if session == "" || r.asked || r.Now().Before(r.turnAt) {
		return
	}
	r.asked = true
	r.consul.BeginRebuild(r.Dynamic.RetryTimeout, session, r.Name, host, func(err error) {
		r.asked, r.turnAt = false, r.Now().Add(turnAgain)
		r.refused = "" // Consul will show it
		if err != nil {
			r.refused = err.Error()
		}
		if errors.Is(err, cluster.ErrConflict) {
			err = nil
		}
		r.Failure("turn", "cannot take the turn to be made anew", err)
	})
}

// end lets the next member be made anew; hostOnly: of the host, not of the shard.
func (r *rebuilder) end(hostOnly bool) {
	if r.Session == "" || r.asked {
		return
	}
	r.asked, r.ending = true, !hostOnly
	r.consul.EndRebuild(r.Dynamic.RetryTimeout, r.Session, r.Host, hostOnly, func(err error) {
		r.asked, r.ending = false, false
		switch {
		case err != nil:
			r.Log.Warn().Err(err).Msg("cannot give up the turn to be made anew") // Consul shows it still: again at the next look
		case !hostOnly:
			r.ended = r.Now()
		}
	})
}

// source is whom a copy by policy is made from: the second time it is the leader alone.
func (r *rebuilder) source(leader string) string {
	if r.times > 0 {
		return leader
	}
	return r.Snapshot.CloneSource(r.Name, leader)
}

// rebuild makes this replica's data anew because the policy says so. It is its turn.
func (m *Member) rebuild() {
	leader := m.Snapshot.LeaderName()
	up, err := m.upstreamOf(leader)
	var source pg.Upstream
	if err == nil {
		source, err = m.upstreamOf(m.rebuilder.source(leader))
	}
	if err != nil {
		m.noteAttempt(ha.TaskReinit, err)
		return
	}
	r := &m.rebuilder
	may := func() error {
		switch {
		case m.Stopping:
			return ErrStopping
		case !r.hasTurn():
			return errors.New("it is not its turn any more")
		case m.PG.Running && m.PG.Observed.Accepting && !r.stillThere(): // one that is being stopped says nothing
			return errors.New("it goes on")
		case r.local.Stranded == "", r.by != r.leadingLine(), r.by.Leader != leader:
			return errors.New("another member leads than the one by whose word this replica cannot go on")
		}
		return r.mayBe()
	}
	mayNow := func() error {
		if m.Snapshot.Sync.Value.Has(m.Name) { // it has asked to be left out
			return errors.New("the key sync names it, so that what was acknowledged may be here and on the leader alone")
		}
		return may()
	}
	removed := func() {
		r.begun, r.times, r.last = true, r.times+1, m.Now()
	}
	if err := may(); err != nil {
		r.waits = err.Error()
		return
	}
	r.waits = "it is its turn"
	m.startTask(ha.TaskReinit, m.makeAnew(copyAnew{up: up, source: source, allowedBy: "rebuild: auto", may: mayNow, removed: removed}), func(err error) {
		m.nowFollows(unless(cluster.NoStream(m.TagsNow()), leader))(err)
		if err != nil {
			r.end(r.begun)
		}
	})
}
