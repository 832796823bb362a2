package ha

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

const (
	// askAhead is how long before the lease expires the peers are first asked,
	// so that a silent one is known to be silent by then.
	askAhead = time.Second
	// answersAge is how long the peers' answers are good for.
	answersAge = 2 * time.Second
	// readAge is how old a reading of Consul may be to take the lock by it: one
	// whose Consul agent hangs must look through another one first.
	readAge = 2 * time.Second
	// enoughTime is what members that live need to answer: when a quorum has by then,
	// the silent ones are not waited for.
	enoughTime = 200 * time.Millisecond
	// askAgain is how soon a member that had to stand back looks again.
	askAgain = 500 * time.Millisecond
)

// electing: nobody leads, or the leader's lease is about to be over.
//
//	last beat                 this member                        decision
//	any                       has promised not to take it        wait until the promise ends
//	any, and Consul has gone
//	  back within a lease     any                                take no lock by it
//	our own, not released     primary, or down and was primary,  take the lock again at once; an agent
//	                          its data not replaced since        that has just begun asks the others
//	none, shard unknown       primary, or down and was primary   take the lock
//	our own, Consul silent
//	  for a whole lease       down and was primary               start as a replica of nobody
//	our own, by a takeover
//	  whose answer was lost   replica                            take the lock again
//	any                       PostgreSQL down                    start as a replica of nobody
//	any                       replay waits for a restart         restart as a replica of nobody
//	any                       must not lead (see unelectable)    wait
//	released for us           up to date by the leader's word    take the lock
//	released for another      within the first half of its ttl   wait
//	somebody's, unreleased    lease not expired by our clock     wait until then
//	expired, or released      a better member answers            wait for it
//	expired, or released      the best that answers              take the lock
func electing(v View) Decision {
	b, pg := v.beat(), v.Postgres
	if v.Lease.InFlight {
		return wait("taking the lock")
	}
	if v.Now.Before(v.Lease.NotBefore) {
		return wait("nobody leads; the lock could not be taken").by(v.Lease.NotBefore)
	}
	if p := v.promised(); p != nil {
		return wait("the lock is promised to " + p.Leader + " for now").by(p.Until)
	}
	believed := !v.Now.Before(v.GoneBack)
	if believed && pg.hasLed() && v.lastLeader() && !v.outOfTouch() && v.WatchdogOK || believed && v.lockIsOurs() && pg.Accepting && v.unelectable() == "" {
		if v.Session == "" {
			return wait("waiting for a Consul session to take our own lock again")
		}
		if d, first := v.othersFirst(); first {
			return d
		}
		return v.unlessFailing(do("nobody has led since us: taking our own lock again", v.takeOver()))
	}
	if !pg.Running {
		return v.unlessFailing(do("nobody leads: starting as a replica to see how far our WAL goes", StartReplica{Upstream: firstUpstream(v)}))
	}
	if !pg.Accepting {
		return wait("nobody leads; PostgreSQL is starting")
	}
	if pg.Undersized != "" && !pg.Primary { // a promotion would wait for the restart, too
		return v.unlessFailing(do("nobody leads, and replay stands still: "+pg.Undersized, RestartReplica{}))
	}
	if why := v.unelectable(); why != "" {
		return wait("nobody leads; " + why)
	}
	if v.Session == "" {
		return wait("nobody leads; waiting for a Consul session")
	}
	expires := v.leaseExpires()
	if b != nil && b.Released {
		expires = max(v.StatusSeen, v.GoneBack)
		if believed && b.Successor == v.Name {
			if d, first := v.quorumFirst(expires); first && !b.Complete {
				return d
			}
			return do("the lease was given to us by "+b.Owner, v.takeOver())
		}
		if b.Successor != "" {
			expires = max(v.StatusSeen.Add(b.Lease()/2), v.GoneBack)
		}
	}
	if ask := expires.Add(-askAhead); v.Now.Before(ask) {
		return wait("nobody leads; the lease is not over").by(ask)
	}
	if !v.peersFresh() {
		return do("nobody leads; asking the others", AskPeers{}).by(expires)
	}
	if v.Now.Before(expires) {
		return wait("nobody leads; the lease is not over").by(expires)
	}
	if v.Now.Sub(v.Read) > readAge {
		return do("nobody leads by what was read last", Reread{})
	}
	if !v.PeersDone {
		waiting := wait("nobody leads; waiting for the others' answers")
		switch enough := v.PeersAsked.Add(enoughTime); {
		case !v.quorumSeen(expires):
			return waiting
		case v.Now.Before(enough):
			return waiting.by(enough)
		}
	}
	if why := v.standBack(); why != "" {
		return wait("nobody leads; " + why).by(v.Now.Add(askAgain))
	}
	if d, first := v.quorumFirst(expires); first {
		return d
	}
	return do("nobody leads; this member is the best that answers", takesLock(v))
}

// takesLock is the takeover by which a replica leads. The first one of a standby shard is
// the end of its bootstrap.
func takesLock(v View) Action {
	init, t := v.Cluster.Initialize, v.takeOver()
	if init.Exists() && init.Value == "" && init.Session == v.Session && v.Config.StandbyCluster.On() {
		return Register{TakeOver: t}
	}
	return t
}

// othersFirst: an agent that has not led since it began knows of the lock, for a PostgreSQL
// that is down, what Consul says alone, and that may have gone back to an earlier state
// meanwhile (a snapshot was restored). A member that runs as a primary shows it.
func (v View) othersFirst() (Decision, bool) {
	if v.Postgres.Running || !v.Lease.Renewed.IsZero() {
		return Decision{}, false
	}
	const why = "our own lock is free, and PostgreSQL is down"
	if !v.peersFresh() {
		return do(why+"; asking the others", AskPeers{}), true
	}
	if enough := v.PeersAsked.Add(enoughTime); !v.PeersDone && v.Now.Before(enough) {
		return wait(why + "; waiting for the others' answers").by(enough), true
	}
	for _, p := range v.Peers {
		if p.mayRunAsPrimary() && v.Now.Before(v.leaseExpires().Add(v.Config.TTL)) {
			return wait(why + "; " + p.Name + " runs as a primary").by(v.Now.Add(askAgain)), true
		}
	}
	return Decision{}, false
}

// hasLed reports whether PostgreSQL is a primary, or is down and was one. Data that are down and were replaced
// since are a copy's, which lacks what they had acknowledged, whatever the files in the data directory say.
func (p Postgres) hasLed() bool {
	return p.Primary && (p.Running || !p.Restoring)
}

// lastLeader tells whether a primary, or one that is down, is the shard's latest:
// the last beat is its own and was not released; or it runs and no beat says
// otherwise; or the shard is new to Consul, and primary data that is brought to
// it leads (standby data waits, see unelectable).
func (v View) lastLeader() bool {
	if b := v.beat(); b != nil {
		return b.Owner == v.Name && !b.Released
	}
	return v.Postgres.Running || !v.Cluster.Initialize.Exists()
}

// outOfTouch tells whether PostgreSQL is down and Consul has not been heard of
// for a whole lease: then it is rather started as a replica, to serve reads,
// than kept down for a lock that cannot be taken.
func (v View) outOfTouch() bool { return !v.Postgres.Running && v.silent() }

// silent reports whether Consul has not been heard of for a whole lease.
func (v Shard) silent() bool { return v.Now.Sub(v.Read) > v.Config.TTL }

// lockIsOurs tells whether our own live session holds the lock, though this
// agent holds no lease: the answer to its takeover was lost.
func (v Shard) lockIsOurs() bool {
	b := v.beat()
	return v.Session != "" && v.Cluster.Leader.Session == v.Session && b != nil && b.Owner == v.Name && !b.Released
}

// takeOver is the transaction that takes the lock if the shard still is as this
// view shows it. What the key sync promises goes on while the new leader is a
// replica: it acknowledges nothing, and if it never is promoted, whoever could lead
// before still can.
func (v View) takeOver() TakeOver {
	t := TakeOver{
		Status:    v.Cluster.Status.ModifyIndex,
		Failsafe:  v.Cluster.Failsafe.ModifyIndex,
		Leader:    v.Cluster.Leader.ModifyIndex,
		SyncIndex: v.Cluster.Sync.ModifyIndex,
	}
	ours := v.Cluster.Sync.OK() && v.Cluster.Sync.Value.Leader == v.Name
	if (v.Cluster.Sync.Exists() || v.Config.SynchronousMode != cluster.SyncOff) && v.Postgres.Primary && !ours {
		value := cluster.NewSync(v.Name, nil)
		t.Sync = &value
	}
	return t
}

// unelectable says why this member must not lead now.
func (v View) unelectable() string {
	pg := v.Postgres
	forced := v.forcedByOperator(v.Name)
	switch {
	case pg.Primary:
		return "PostgreSQL runs as a primary that must be stopped first"
	case cluster.NoFailover(v.Tags):
		return "this member is tagged nofailover"
	case cluster.NoStream(v.Tags) && v.Config.StandbyCluster.On():
		return "this member is tagged nostream and could not follow the remote primary"
	case v.ledInPause(v.Name) && !forced:
		return v.beat().Owner + " led in pause when it was last heard of, and may still run as a primary: make sure that it does not, " +
			"then fail over to a named candidate"
	case pg.DiskTrouble != "":
		return "its data directory cannot be written: " + pg.DiskTrouble
	case !v.WatchdogOK && !v.Config.StandbyCluster.On(): // a standby leader needs none
		return "the watchdog is required and does not work: " + v.WatchdogProblem
	case !v.Cluster.Initialize.Exists() && !v.Config.StandbyCluster.On():
		return "the shard is new to Consul and this member's data is a standby's: waiting for its primary"
	case v.Config.StandbyCluster.On() && v.Cluster.Initialize.Exists() && v.Cluster.Initialize.Value == "" && v.Cluster.Initialize.Session != v.Session:
		return "another member makes the shard"
	case v.failsafeForbids(v.Name) != "":
		return v.failsafeForbids(v.Name)
	case v.otherCluster(pg.SystemIdentifier) != "":
		return "this member " + v.otherCluster(pg.SystemIdentifier)
	case v.discarded(pg.Timeline) != "" && !v.undoes(): // its takeover takes that back
		return "this member " + v.discarded(pg.Timeline)
	case forced:
		return ""
	case v.syncForbids(v.Name) != "":
		return v.syncForbids(v.Name)
	case v.restoringForbids(pg.Restoring) != "":
		return v.restoringForbids(pg.Restoring)
	}
	if lag := v.lag(pg.Timeline, pg.LSN); lag > v.Config.MaximumLagOnFailover {
		why := fmt.Sprintf("this member lags %d bytes behind the last known position, more than maximum_lag_on_failover", lag)
		if pg.Replaying {
			why += "; it is still replaying the WAL that it has"
		}
		return why
	}
	if r := v.Cluster.Route; v.Config.CheckTimeline && r.OK() && r.Value.Timeline > pg.Timeline && pg.Timeline > 0 {
		return fmt.Sprintf("this member is on timeline %d, the shard was on %d", pg.Timeline, r.Value.Timeline)
	}
	return ""
}

// ledInPause reports whether the last leader, another one than this member, may have
// outlived its lease and acknowledge commits that the member lacks.
func (v Shard) ledInPause(name string) bool {
	b := v.beat()
	return b != nil && b.Paused && !b.Released && b.Owner != name && !v.waitsFor(b.Owner, name)
}

// waitsFor reports whether whatever owner acknowledges, the key sync says, this standby has:
// it is one of those that commits wait for, or a quorum of them is asked before it leads.
func (v Shard) waitsFor(owner, name string) bool {
	key := v.Cluster.Sync
	return key.OK() && strings.EqualFold(key.Value.Leader, owner) && key.Value.Has(name)
}

// electable says why a peer could not lead, empty when it could.
func (v View) electable(p Peer) string {
	switch {
	case !p.Answered:
		return "does not answer"
	case p.State != cluster.StateRunning:
		return "is not running (" + p.State + ")"
	case p.Primary:
		return "runs as a primary"
	case cluster.NoFailover(p.Tags):
		return "is tagged nofailover"
	case cluster.NoStream(p.Tags) && v.Config.StandbyCluster.On():
		return "is tagged nostream and could not follow the remote primary"
	case v.syncForbids(p.Name) != "":
		return v.syncForbids(p.Name)
	case v.failsafeForbids(p.Name) != "":
		return v.failsafeForbids(p.Name)
	case v.restoringForbids(p.Restoring) != "":
		return v.restoringForbids(p.Restoring)
	case v.otherCluster(p.SystemIdentifier) != "":
		return v.otherCluster(p.SystemIdentifier)
	case v.discarded(p.Timeline) != "":
		return v.discarded(p.Timeline)
	case p.Replaying:
		return stillReplays
	case v.lag(p.Timeline, p.LSN) > v.Config.MaximumLagOnFailover && !v.forcedByOperator(p.Name):
		return "lags more than maximum_lag_on_failover"
	}
	return ""
}

// stillReplays: what the member says of its position is not all that it has.
const stillReplays = "still replays the WAL that it has"

// mayBeAhead reports whether a peer that still replays is worth waiting for: it could
// lead, and nothing but positions says who may. Where the key sync says it, the others
// hold what counts. The wait ends a ttl after the lease.
func (v View) mayBeAhead(p Peer) bool {
	if !p.Answered || !p.Replaying || v.Cluster.Sync.Exists() && v.Cluster.Sync.Value.Leader != "" || !v.Now.Before(v.leaseExpires().Add(v.Config.TTL)) {
		return false
	}
	p.Replaying, p.Timeline, p.LSN = false, math.MaxInt32, math.MaxInt64
	return v.electable(p) == ""
}

// lag is how far a position is behind the last one that the leader has told. What a
// member has of a timeline beyond the point at which the shard left it is none of the
// shard's.
func (v Shard) lag(timeline int, lsn int64) int64 {
	if !v.Cluster.Status.OK() {
		return 0
	}
	if b := v.beat(); b != nil && !b.Standby && v.Config.StandbyCluster.On() {
		return 0 // that was a primary's, and is not what this shard follows
	}
	for _, left := range v.Cluster.History.Value {
		if left.Timeline == timeline {
			lsn = min(lsn, left.LSN)
		}
	}
	return v.Cluster.Status.Value.OpTime - lsn
}

// failsafeForbids: while the key failsafe exists, only the members in it may
// take an expired lease (design 5.5). The key counts, not the setting.
func (v Shard) failsafeForbids(name string) string {
	key := v.Cluster.Failsafe
	if key.Err != nil {
		return "the failsafe key is not understood: correct or delete it"
	}
	if _, listed := key.Value[name]; key.Exists() && !listed {
		return "is not in the failsafe list"
	}
	return ""
}

// standBack says which peer should rather lead. A primary that still answers is
// given time to be fenced by its own agent; one that is not within a lease is
// ignored, for the transaction and its guard decide, not its word.
func (v View) standBack() string {
	me := v.self()
	f := v.Cluster.Failover
	for _, p := range v.Peers {
		switch {
		case (p.runsAsPrimary() || v.hasSeenNoBeat() && p.mayRunAsPrimary()) && v.Now.Before(v.leaseExpires().Add(v.Config.TTL)):
			return p.Name + " still runs as a primary"
		case v.mayBeAhead(p) && (!f.OK() || f.Value.Candidate != v.Name):
			return p.Name + " " + stillReplays + ", and may be ahead"
		case v.electable(p) != "", v.ledInPause(p.Name) && !v.forcedByOperator(p.Name), v.needsQuorum(p.Name) && ahead(me, p):
			continue
		case f.OK() && f.Value.Candidate == p.Name:
			return p.Name + " was chosen by the operator"
		case f.OK() && f.Value.Candidate == v.Name:
			continue
		case v.better(p, me):
			if !ahead(p, me) && !ahead(me, p) && cluster.FailoverPriority(p.Tags) == cluster.FailoverPriority(me.Tags) {
				return p.Name + " keeps more of the failover slots"
			}
			return fmt.Sprintf("%s is ahead (timeline %d at %d, here timeline %d at %d)",
				p.Name, p.Timeline, p.LSN, me.Timeline, me.LSN)
		}
	}
	return ""
}

// hasSeenNoBeat reports whether the status is what this agent has found when it began. It cannot know
// that Consul went back to it (a snapshot was restored), and that another member's lease runs longer:
// one whose agent has heard of that, and cannot end its PostgreSQL, says so all the same.
func (v Shard) hasSeenNoBeat() bool { return v.StatusSeen == v.FirstRead }

// self is this member as the others see it.
func (v View) self() Peer {
	return Peer{Name: v.Name, Timeline: v.Postgres.Timeline, LSN: v.Postgres.LSN, Tags: v.Tags}
}

// ahead tells whether a has WAL that b lacks.
func ahead(a, b Peer) bool {
	return a.Timeline > b.Timeline || a.Timeline == b.Timeline && a.LSN > b.LSN
}

// better orders candidates: timeline, position, failover_priority, failover slots that are kept there.
// Equals may race: the transaction lets one win.
func (v View) better(a, b Peer) bool {
	switch {
	case a.Timeline != b.Timeline && a.Timeline > 0 && b.Timeline > 0:
		return a.Timeline > b.Timeline
	case a.LSN != b.LSN:
		return a.LSN > b.LSN
	case cluster.FailoverPriority(a.Tags) != cluster.FailoverPriority(b.Tags):
		return cluster.FailoverPriority(a.Tags) > cluster.FailoverPriority(b.Tags)
	default:
		return v.slotsKept(a.Name) > v.slotsKept(b.Name)
	}
}

// slotsKept is how many of the leader's failover slots a member says that PostgreSQL keeps there: their
// readers could go on with it.
func (v Shard) slotsKept(name string) (n int) {
	b := v.beat()
	m, found := v.Cluster.Member(name)
	if b == nil || !found || !m.OK() {
		return 0
	}
	for _, slot := range b.FailoverSlots {
		if m.Value.KeepsSynced(slot) {
			n++
		}
	}
	return n
}

// peersFresh tells whether the peers' answers, or the silence of those that
// gave none, are recent.
func (v View) peersFresh() bool {
	return !v.PeersAsked.IsZero() && v.Now.Sub(v.PeersAsked) < answersAge
}
