package ha

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// following: somebody else leads.
//
//	PostgreSQL                            decision
//	down                                  rejoin (rewinding where needed)
//	replica that does not answer yet, and
//	  was started under another leader    rejoin
//	replica on a branch that the leader
//	  left behind                         rejoin
//	replica of somebody else, starting or
//	  not: it may wait for WAL that it is
//	  to get from nobody, or from an
//	  earlier leader                      follow the leader
//	replica that cannot go on, where the
//	  policy is to rebuild it, and it is
//	  its turn                            have the data made anew, also where it is down
//	replica whose replay stands still
//	  until a restart                     restart
//	replica without a logical slot that
//	  the leader has                      restart with a copy
//	replica of the leader                 nothing
//
// A member tagged nostream gets the leader's WAL from the archive alone: what is said of
// the leader as its upstream holds with nobody instead, but for what it is rewound from.
// It leaves its upstream when the key sync does not name it any more: the leader takes it
// out, and until then commits wait for it.
func following(v View) (Decision, bool) {
	leader := v.leader()
	if leader == "" || leader == v.Name {
		return Decision{}, false
	}
	return v.mindTheLease(follow(v, leader)), true
}

// mindTheLease makes sure that this member looks again when the leader's lease
// ends, and knows by then how the others fare.
func (v View) mindTheLease(d Decision) Decision {
	if v.beat() == nil {
		return d
	}
	expires := v.leaseExpires()
	if p := v.promised(); p != nil {
		expires = max(expires, p.Until)
	}
	if ask := expires.Add(-askAhead); v.Now.Before(ask) {
		return d.by(ask)
	}
	if !v.peersFresh() {
		d.Actions = append(d.Actions[:len(d.Actions):len(d.Actions)], AskPeers{})
	}
	return d.by(expires)
}

func follow(v View, leader string) Decision {
	m, found := v.Cluster.Member(leader)
	if !found || !m.OK() {
		if v.Postgres.Running {
			return wait("following nobody: the key of the leader " + leader + " is missing or not understood")
		}
		return v.unlessFailing(do("the key of the leader "+leader+" is missing: starting as a replica of nobody", StartReplica{}))
	}
	up, noStream := v.upstream(leader), cluster.NoStream(v.Tags)
	from := up // whom it is to receive WAL from
	if noStream {
		from = ""
	}
	switch pg := v.Postgres; {
	case !pg.Running && v.rebuilds() && isPrimary(m.Value.Role):
		return v.unlessFailing(do("rebuild is auto: "+pg.Stranded, Rebuild{}))
	case !pg.Running:
		if !isPrimary(m.Value.Role) {
			return wait("waiting until " + leader + " is a primary")
		}
		return v.unlessFailing(do(leader+" leads", Rejoin{Upstream: up, NoStream: noStream}))
	case !pg.startsFor(Line{Leader: leader, Timeline: m.Value.Timeline}) && isPrimary(m.Value.Role):
		return v.unlessFailing(do(fmt.Sprintf("it was started while %s led on timeline %d, and the WAL that it starts with may be nobody's; %s leads on timeline %d",
			pg.Outset.Leader, pg.Outset.Timeline, leader, m.Value.Timeline), Rejoin{Upstream: up, NoStream: noStream}))
	case !pg.Accepting && !pg.Primary && from != "" && pg.Upstream != from:
		return v.unlessFailing(do(leader+" leads, and may have the WAL for which a start waits", Follow{Upstream: from}))
	case !pg.Accepting:
		return wait("following " + leader + "; PostgreSQL is starting")
	case v.leftBehind(leader, m.Value.Timeline) && isPrimary(m.Value.Role):
		return v.unlessFailing(do(fmt.Sprintf("timeline %d ended before our position, or is another's; %s is on timeline %d",
			pg.Timeline, leader, m.Value.Timeline), Rejoin{Upstream: up, NoStream: noStream}))
	case noStream && pg.Upstream != "" && v.Cluster.Sync.Value.Has(v.Name):
		return wait("tagged nostream; following " + leader + " until it does without this synchronous standby")
	case noStream && pg.Upstream != "":
		return v.unlessFailing(do("tagged nostream: WAL comes from the archive", Follow{}))
	case pg.Upstream != from:
		return v.unlessFailing(do(leader+" leads", Follow{Upstream: from}))
	case v.rebuilds() && isPrimary(m.Value.Role):
		return v.unlessFailing(do("rebuild is auto: "+pg.Stranded, Rebuild{}))
	case pg.Undersized != "":
		return v.unlessFailing(do("replay stands still: "+pg.Undersized, RestartReplica{Upstream: from}))
	case len(pg.LacksSlots) > 0 && pg.Streaming:
		return v.unlessFailing(do("lacks logical slots that "+leader+" has", CopySlots{Upstream: from, From: leader, Slots: pg.LacksSlots}))
	case noStream:
		return wait("a replica, following " + leader + " by the archive")
	}
	return wait("a replica, following " + leader)
}

// startsFor reports whether a replica that does not answer yet was started while this line led, or nobody knows.
// What was rewound or cloned answers only with the WAL up to where its source was by then: if the
// shard went on without that, nobody has it, and it would wait for ever.
func (p Postgres) startsFor(leads Line) bool {
	return p.Accepting || p.Primary || p.Outset == Line{} || p.Outset == leads
}

// rebuilds reports whether this replica cannot go on, and its data are to be made anew now. While
// it waits for its turn it rejoins as any other.
func (v View) rebuilds() bool {
	return v.Postgres.Stranded != "" && v.Postgres.Turn && v.Config.Rebuild == cluster.RebuildAuto && !v.Config.Pause
}

// leftBehind reports whether this replica's WAL goes beyond the point at which
// the leader's history left the replica's timeline, or is none of its history. (The
// leader's timeline is the one that its key tells: a moment late at the most.)
func (v View) leftBehind(leader string, timeline int) bool {
	pg := v.Postgres
	if timeline > 0 && pg.Timeline > timeline && !pg.Streaming {
		return true // a promotion of its own that came to nothing
	}
	if pg.Timeline == 0 || timeline <= pg.Timeline || pg.Streaming || !v.Cluster.History.OK() {
		return false
	}
	history := v.Cluster.History.Value
	for _, h := range history {
		if h.Timeline == pg.Timeline {
			return pg.LSN > h.LSN
		}
	}
	// A Lictor leader writes the history anew for each lock that it takes, a moment after
	// its member key: until then it ends before the timeline that this leader has left.
	if v.beat() != nil && v.Cluster.History.ModifyIndex < v.Cluster.Leader.ModifyIndex {
		return false
	}
	// A Patroni leader writes it a loop after its promotion, and not when it takes its own
	// lock again: its silence is asked about once, by a rejoin, which reads the history
	// that the primary itself has.
	if pg.Rejoined == (Line{Leader: leader, Timeline: timeline}) {
		return false
	}
	// A timeline that is none of the leader's ancestors, unless it is so old that
	// the history does not tell (max_timelines_history).
	return len(history) > 0 && pg.Timeline > history[0].Timeline
}
