package member

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Data is what is in the data directory, as last looked at.
type Data struct {
	State            ha.DataState
	Problem          string
	SystemIdentifier string
	Timeline         int
	// CheckpointLSN is that of the last checkpoint in the control file; ShutDown: it was made
	// when PostgreSQL was shut down, and nothing was written since.
	CheckpointLSN int64
	ShutDown      bool
	WasPrimary    bool // by its signal files
	Clone         bool // what is incomplete is a clone
	// Restores are those of which the history of its timeline tells.
	Restores Restores
}

// Found is what a look at the data directory, and beside it, has found.
type Found struct {
	Data Data
	Loss *pg.Loss
	// Restore is the note of a restore that has not ended; nil: there is none.
	Restore *ha.Discard
	// Upgrade is the note of a major upgrade that has not ended; nil: there is none.
	Upgrade *ha.Upgrade
	// Detachment is the note of an attempt at a takeover by quorum; nil: there is none.
	Detachment *pg.Detachment
	// Stray: PostgreSQL runs in it that nobody has taken charge of.
	Stray bool
}

// PG is PostgreSQL as last looked at.
type PG struct {
	Running  bool
	Observed pg.State
	// ObservedAt is when the look at it began, and leaderLSN the leader's position that
	// was known then: what is behind that lags. Zero: not known.
	ObservedAt cluster.Instant
	leaderLSN  int64
	// shutDown is since when it has been seen shut down without an end.
	shutDown cluster.Instant
	// silent is the postmaster that gives nobody an answer, and silentSince since when.
	silent      int
	silentSince cluster.Instant
	// wasPrimary is the role of a postmaster that does not answer SQL (yet).
	wasPrimary bool
	// alone is when it was last found to have ended its WAL receiver, to follow nobody.
	alone cluster.Instant
}

// SeenAlone reports whether PostgreSQL was looked at since it follows nobody: what it
// received before that, and acknowledged, its position then includes.
func (p PG) SeenAlone() bool { return p.ObservedAt > p.alone }

// Primary reports whether PostgreSQL is outside recovery, or was when it was last
// seen.
func (p PG) Primary() bool {
	if p.Observed.Accepting {
		return !p.Observed.InRecovery
	}
	return p.wasPrimary
}

// adoption is how a primary was found that ran already when the agent began (ha.View).
type adoption struct {
	at            cluster.Instant
	until         cluster.Instant // the deadline of the guard that was found with it
	paused, unled bool
}

// Local is this member's own PostgreSQL and its data directory, as they were last seen.
// Looks at them tell it, and the tasks that change them.
type Local struct {
	*Shard
	postgres Postgres

	Data Data
	PG   PG
	// Loss says what the data that were replaced may have acknowledged; nil: they were
	// not, or have got everything again.
	Loss *pg.Loss
	// Restore is the note of a restore that has not ended; nil: there is none.
	Restore *ha.Discard
	// Upgrade is the note of a major upgrade that has not ended; nil: there is none.
	Upgrade *ha.Upgrade
	// held: clients are to be held, as PostgreSQL is about to be stopped for a major upgrade.
	held bool
	// Stranded says why this replica cannot go on with its data; empty: it can.
	Stranded string
	adopted  adoption
	// opening: a primary that was started is not to be led to yet; nil: it is (opening.go).
	opening *opening
	// unopened: such a primary was started, or is about to be, and was not opened since.
	unopened  bool
	edge      cluster.Instant // when a task has begun or ended last
	crashes   []cluster.Instant
	PGDown    cluster.Instant // since when it is down on its own
	onPurpose bool            // it is down because it was told to stop; that its postmaster has ended may be heard later
	// unservedSince is since when, as the leader, it was not seen to serve.
	unservedSince cluster.Instant
	Upstream      string  // whom the replica follows
	rejoined      ha.Line // as in ha.Postgres
	outset        ha.Line // as in ha.Postgres; of a PostgreSQL that is down, who leads now
	// Disk says what is wrong with the disk under the data directory; empty: nothing.
	Disk      string
	diskSince cluster.Instant
}

// noteOutset notes who leads while PostgreSQL is down and nothing is done about it: by that leader's
// data and WAL a replica is started. Of one that was found starting nobody knows.
func (l *Local) noteOutset(leads ha.Line, idle bool) {
	switch {
	case l.PG.Observed.Accepting && l.PG.Running:
		l.outset = ha.Line{}
	case idle && (!l.PG.Running || l.outset == ha.Line{}):
		l.outset = leads
	}
}

// staleAfter is when a look at PostgreSQL is too old to say that it serves: the next
// ones are stuck, or fail.
const staleAfter = 10 * time.Second

// noteService notes since when a leader's PostgreSQL was not seen to serve.
func (l *Local) noteService(leads bool) {
	now := l.Now()
	stale := now.Sub(l.PG.ObservedAt) > staleAfter+l.Dynamic.RetryTimeout
	switch {
	case !leads, l.serves() && !stale:
		l.unservedSince = 0
	case l.unservedSince.IsZero():
		l.unservedSince = now
	}
}

// serves reports whether PostgreSQL was seen to do what a leader's is to do: not every leader's is
// a primary.
func (l *Local) serves() bool {
	return l.PG.Running && l.PG.Observed.Accepting && (l.PG.Primary() || l.standsBy())
}

// hangs reports whether the postmaster, that one, has given nobody an answer for as long as a
// leader may serve nobody. One that starts or recovers says so to each client.
func (l *Local) hangs() bool {
	return l.PG.Running && l.PG.Observed.Silent && l.postgres.PID() == l.PG.silent &&
		!l.Now().Before(l.PG.silentSince.Add(ha.UnservedLimit(l.Dynamic)))
}

// crashWindow is how long an unexpected end of PostgreSQL is remembered.
const crashWindow = 3 * time.Minute

func (l *Local) recentCrashes(now cluster.Instant) int {
	n := 0
	for _, at := range l.crashes {
		if now.Sub(at) < crashWindow {
			n++
		}
	}
	return n
}

// Look is a look at PostgreSQL that began at a moment.
type Look struct {
	Began cluster.Instant
	State pg.State
	Err   error
	// Found is nil when the data directory was not looked at, as it runs.
	Found *Found
}

// saw takes in a look at PostgreSQL, and reports whether it did: one that spans the beginning
// or the end of a task may show what is no longer so.
func (l *Local) saw(look Look) bool {
	if !look.Began.IsZero() && (look.Began <= l.edge || look.Began < l.PG.ObservedAt) {
		return false
	}
	if look.Err == nil || l.Now().Sub(l.PG.ObservedAt) > staleAfter { // at each start and stop there is a moment
		l.Failure("postgres", "PostgreSQL runs but cannot be observed", look.Err)
	}
	if look.Found != nil {
		l.Data, l.Restore, l.Upgrade = look.Found.Data, look.Found.Restore, look.Found.Upgrade
	}
	l.sawState(look.State)
	if look.Err == nil && !look.Began.IsZero() {
		l.sawAt(look.Began)
	}
	return true
}

func (l *Local) sawState(state pg.State) {
	if l.PG.Observed.Accepting {
		l.PG.wasPrimary = !l.PG.Observed.InRecovery
	}
	l.PG.Running, l.PG.Observed = state.Running, state
	l.onPurpose = l.onPurpose && !state.Running
	if !state.ShutDown {
		l.PG.shutDown = 0
	} else if l.PG.shutDown.IsZero() {
		l.PG.shutDown = l.Now()
	}
	if pid := l.postgres.PID(); !state.Silent {
		l.PG.silentSince = 0
	} else if l.PG.silentSince.IsZero() || pid != l.PG.silent {
		l.PG.silent, l.PG.silentSince = pid, l.Now()
	}
	primary, started := l.postgres.StartedAs()
	switch {
	case state.Accepting:
		l.PG.wasPrimary = !state.InRecovery
		l.PGDown = 0
	case state.Running && started:
		l.PG.wasPrimary = primary
	case l.Data.State == ha.DataValid:
		l.PG.wasPrimary = l.Data.WasPrimary
	}
}

// sawAt takes in when a look began. The leader's position is only
// compared with it if it was known by then: else one that was written meanwhile, perhaps
// a whole segment further, would pass for a lag.
func (l *Local) sawAt(began cluster.Instant) {
	l.PG.ObservedAt = began
	if s := l.Snapshot.Status; s.OK() && !l.StatusSeen.IsZero() && !began.Before(l.StatusSeen) {
		l.PG.leaderLSN = s.Value.OpTime
	}
}

// LeaderLSN is the leader's position that PostgreSQL's are to be compared with. After a
// failover the shard may be behind what the old leader had.
func (l *Local) LeaderLSN() int64 {
	if !l.Snapshot.Status.OK() {
		return 0
	}
	return min(l.PG.leaderLSN, l.Snapshot.Status.Value.OpTime)
}

// SawDisk hears what is wrong with the disk under the data directory, and since when; empty:
// nothing is.
func (l *Local) SawDisk(trouble string, since cluster.Instant) {
	if trouble == "" || l.Disk == "" {
		l.diskSince = since
	}
	l.Disk = trouble
}

// Adopt takes in, before anything else happens, what is in the data directory, and whether
// PostgreSQL runs in it.
func (l *Local) Adopt(found Found, running bool) {
	l.found(found)
	l.PG.Running = running
}

// found takes in the data directory. What it was before says nothing of what it is now.
func (l *Local) found(found Found) {
	l.Data, l.Loss, l.Restore, l.Upgrade, l.PG.wasPrimary = found.Data, found.Loss, found.Restore, found.Upgrade, found.Data.WasPrimary
}

// gone notes that no postmaster runs any more.
func (l *Local) gone() {
	l.PG.wasPrimary = l.PG.Primary()
	l.PG.Running, l.PG.Observed.Running, l.PG.Observed.Accepting = false, false, false
}

// crashed notes that the postmaster has ended without being told to.
func (l *Local) crashed() {
	if !l.PGDown.IsZero() {
		return
	}
	l.PGDown = l.Now()
	l.crashes = append(l.crashes, l.PGDown)
	l.Log.Error().Msg("PostgreSQL ended without being told to; its log says why")
}

// stoppedOnPurpose notes that PostgreSQL is down because it was told to stop.
func (l *Local) stoppedOnPurpose() {
	l.gone()
	l.onPurpose, l.PGDown, l.Upstream, l.adopted = true, 0, "", adoption{}
}

// follows notes whom the replica follows by now.
func (l *Local) follows(upstream string) {
	l.Upstream = upstream
	if upstream == "" {
		l.PG.alone = l.Now()
	}
}
