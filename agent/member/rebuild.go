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
	// archiveGets is how long a replica with a restore_command may stand still before its
	// upstream's word that the WAL is gone counts: the archive may have it, and be away.
	archiveGets = 10 * time.Minute
	// turnAgain is how long an agent waits for its turn before it asks for it again.
	turnAgain = 10 * time.Second
)

// rebuilder finds out that this replica cannot go on with the data that it has, and gets it its
// turn where they are made anew by policy (design 5.29).
type rebuilder struct {
	*Shard
	local    *Local
	consul   Consul
	postgres Postgres
	host     Host

	// at is where the replica stands still, and since when; zero: it does not.
	at    ha.Line
	lsn   int64
	since cluster.Instant
	// asking: its upstream is asked whether it has the WAL from there on; next: not before then.
	asking bool
	next   cluster.Instant
	// turn is the session that holds the key rebuild for this member; empty: it has no turn.
	// waiting: it is being asked for; turnAt: not before then.
	turn    string
	waiting bool
	turnAt  cluster.Instant
}

// mind looks after a replica that receives nothing. It is to be called when no task is under
// way.
func (r *rebuilder) mind(seen ha.Postgres) {
	streams := seen.Running && seen.Accepting && !seen.Primary && seen.Streaming
	if streams || seen.Primary || r.LockIsOurs() {
		r.local.Stranded = ""
		r.endTurn()
	}
	at := ha.Line{Leader: seen.Upstream, Timeline: seen.Timeline}
	waits := seen.Running && seen.Accepting && !seen.Primary && !streams && !seen.Replaying &&
		seen.Upstream != "" && !cluster.IsRemote(seen.Upstream)
	if !waits || at != r.at || seen.LSN != r.lsn {
		if seen.Running { // what is down and has diverged stays so
			r.local.Stranded = ""
		}
		r.at, r.lsn, r.since, r.next = at, seen.LSN, r.Now(), 0
	}
	r.Problem("rebuild", "this replica cannot go on and must be made anew", r.local.Stranded)
	patience := r.Dynamic.LoopWait
	if r.postgres.HasRestoreCommand() {
		patience = archiveGets
	}
	if !waits || r.asking || r.Now().Before(r.next) || r.Now().Before(r.since.Add(patience)) {
		return
	}
	up, err := r.upstreamOf(seen.Upstream)
	if err != nil {
		return
	}
	r.asking = true
	lsn := seen.LSN
	r.postgres.WALGone(r.Dynamic.RetryTimeout, up, seen.Timeline, lsn, func(gone bool, err error) {
		r.asking, r.next = false, r.Now().Add(max(turnAgain, r.Dynamic.LoopWait))
		if err != nil {
			r.Log.Debug().Err(err).Msg("upstream did not say whether it has this replica's WAL")
		}
		if gone && at == r.at && lsn == r.lsn {
			r.local.Stranded = fmt.Sprintf("the WAL that it needs, from %s on, is gone from %s", pg.FormatLSN(lsn), up.Name)
		}
	})
}

// hasTurn reports whether it is this member's turn, and asks for it if not: one of the host, and
// one of the shard, is made anew at a time. The next look asks again.
func (r *rebuilder) hasTurn() bool {
	session := r.Session
	if r.turn != "" && r.turn == session {
		return true
	}
	if session == "" || r.waiting || r.Now().Before(r.turnAt) || !r.host.TakeTurn() {
		return false
	}
	r.waiting = true
	r.consul.BeginRebuild(nil, r.Dynamic.RetryTimeout, session, r.Name, func(err error) {
		r.waiting, r.turnAt = false, r.Now().Add(turnAgain)
		if err != nil {
			r.host.GiveTurn()
			if !errors.Is(err, cluster.ErrConflict) {
				r.Log.Warn().Err(err).Msg("the key rebuild could not be taken")
			}
			return
		}
		r.turn = session
	})
	return false
}

// endTurn lets the next member be made anew.
func (r *rebuilder) endTurn() {
	if r.turn == "" {
		return
	}
	session := r.turn
	r.turn = ""
	r.host.GiveTurn()
	r.consul.EndRebuild(r.Dynamic.RetryTimeout, session, func(err error) {
		if err != nil && !errors.Is(err, cluster.ErrConflict) && session == r.Session {
			r.turn = session // again at the next look
			r.Log.Warn().Err(err).Msg("the key rebuild could not be given up")
		}
	})
}

// rebuild makes this replica's data anew because the policy says so, when it is its turn.
func (m *Member) rebuild() {
	leader := m.Snapshot.LeaderName()
	if m.Detached > 0 || leader == "" || leader == m.Name {
		return
	}
	up, err := m.upstreamOf(leader)
	source := up
	if name := m.Snapshot.CloneSource(m.Name, leader); err == nil && name != leader {
		source, err = m.upstreamOf(name)
	}
	if err != nil {
		m.noteAttempt(ha.TaskReinit, err)
		return
	}
	if !m.rebuilder.hasTurn() {
		return
	}
	m.startTask(ha.TaskReinit, m.makeAnew(up, source, "rebuild: auto"), func(err error) {
		if err == nil {
			m.Stranded = ""
			m.follows(unless(cluster.NoStream(m.TagsNow()), leader))
		}
	})
}
