package ha

import (
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// crashLoop is how many unexpected ends of PostgreSQL within minutes make a
// leader give up if another member can lead.
const crashLoop = 3

// patrolEvery is how often, at the most, a leader looks for another primary.
const patrolEvery = 5 * time.Second

// leading: this member holds the lease. It beats, whatever else happens, and
// makes PostgreSQL be the primary.
//
//	PostgreSQL                              decision
//	the required watchdog does not work     give the lease up, or demote
//	its disk full, read-only or hung for
//	  a lease, whatever it does, and
//	  another member can lead               give the lease up
//	the same, or serving nobody, while a
//	  restore replaces the data             wait for it: nobody else may lead
//	serving nobody, while a major upgrade
//	  has PostgreSQL stopped                wait for it: it has limits of its own
//	not as it was, by a restore of its own
//	  that has not ended                    put it back (see undoing)
//	serving nobody for primary_start_timeout,
//	  whatever it does, and another member
//	  can lead                              give the lease up
//	the same, its postmaster hangs, and
//	  nobody else can lead                  kill it; then it is down
//	the same, and that does not work        beat no more
//	any, and the shard is the standby of
//	  another one                           see standbyLeader
//	any, and there is another site          see otherSite
//	primary, accepting                      handover if asked for; synchronous replication
//	replica, accepting                      promote
//	shut down from outside the agent        end what is left of it (see shutDown)
//	running, not accepting                  wait for it, up to primary_start_timeout;
//	                                        in pause as long as it takes
//	down, its bootstrap just registered     make the data directory the shard's
//	down                                    restart it in place
//	down, primary_start_timeout over or 0,
//	  or in a crash loop, and another
//	  member can lead                       give the lease up
func leading(v View) (Decision, bool) {
	if v.Lease.Until.IsZero() {
		return Decision{}, false
	}
	d := duty(v)
	beat := v.unlessOverdue(d, renew(v))
	d.Actions = append(beat.Actions, d.Actions...)
	if patrol := v.PeersAsked.Add(max(v.Config.LoopWait, patrolEvery)); v.Now.Before(patrol) {
		d = d.by(patrol)
	} else if !slices.Contains(d.Actions, Action(AskPeers{})) {
		d.Actions = append(d.Actions, AskPeers{}) // is there another primary?
	}
	d = d.by(beat.Wake).by(v.fenceNext())
	if d.Reason == "" {
		d.Reason = beat.Reason
	}
	return d, true
}

// renew keeps lease and lock. A lock that vanished with its session, while the
// lease runs, is taken again; nobody else may take it (design 5.3).
func renew(v View) Decision {
	holds := "the leader, with the lock"
	if v.onFailsafe() {
		holds = "the leader, by the other members' word: Consul does not answer"
	}
	due := v.Lease.BeatSent.Add(v.beatInterval())
	mine := v.Cluster.Leader.Exists() && v.Session != "" && v.Cluster.Leader.Session == v.Session
	switch {
	case v.Lease.InFlight:
		return wait(holds)
	case v.Lease.Uncertain:
		return do("the leader; the outcome of its last write to Consul is unknown", Reread{})
	case v.Read.IsZero():
		return wait("the leader by the lease of its earlier run; Consul has not answered yet")
	case v.Now.Before(v.Lease.NotBefore):
		return wait(holds).by(v.Lease.NotBefore)
	case v.Session == "":
		return wait("the leader; waiting for a Consul session")
	case !mine:
		return do("the leader; its lock went with its session and is taken again", v.takeOver())
	case !v.Now.Before(due), bid{v}.mustWithdraw():
		return do(holds, Beat{Consent: bid{v}.consents()})
	default:
		return wait(holds).by(due)
	}
}

func duty(v View) Decision {
	pg := v.Postgres
	switch {
	case v.servesNobody():
		rest := v
		rest.Postgres.UnservedSince = 0
		if pg.Hung && pg.DiskTrouble == "" && v.Task != TaskInterrupted && v.nobodyCanLead() {
			return v.unlessFailing(do("PostgreSQL hangs and nobody else can lead: it is started again", EndHung{}))
		}
		return giveUpOr(v, "PostgreSQL has served nobody for primary_start_timeout", duty(rest))
	case v.Task != TaskNone:
		busy := wait("the leader, busy: " + string(v.Task))
		if diskFails(v) && !v.Task.ending() && !nobodyElseMayLead(v) {
			return giveUpOr(v, diskFailed+pg.DiskTrouble, busy) // which it may wait for
		}
		return busy
	case v.Postgres.Restore != nil || pg.Data == DataSetAside || pg.upgrading():
		if d, applies := undoing(v); applies {
			return d
		}
		return wait("the leader; a restore is undone")
	case v.mustGiveBack() && !v.Config.Pause:
		return v.giveBack()
	case diskFails(v):
		sound := v
		sound.Postgres.DiskTrouble = ""
		return giveUpOr(v, diskFailed+pg.DiskTrouble, duty(sound))
	case !v.WatchdogOK && !v.Config.Pause && !v.Config.StandbyCluster.On() && (pg.Running && pg.Primary || v.Attempt.Failures > 0):
		return unwatched(v)
	case pg.Data == DataBootstrapped:
		return finishBootstrap(v)
	case v.Config.StandbyCluster.On():
		return standbyLeader(v)
	}
	if d, applies := otherSite(v); applies {
		return d
	}
	switch {
	case !pg.Running:
		return restartInPlace(v)
	case !pg.ShutDown.IsZero():
		d, _ := shutDown(v)
		return d
	case !pg.Accepting:
		if v.Config.Pause {
			return wait("the leader; PostgreSQL is starting and the shard is paused")
		}
		if v.startTimedOut() {
			return giveUpOr(v, "PostgreSQL did not come up within primary_start_timeout", Decision{})
		}
		return wait("the leader; PostgreSQL is starting")
	case v.Read.IsZero():
		return Decision{} // what is to be done besides is in Consul
	case v.Config.Pause && !pg.Primary && !v.askedToLead():
		return handover(v)
	case !pg.Primary && v.nextTimelineUntold(pg.Timeline):
		return wait("the leader; the timeline that it is to take must be told by a beat first")
	case !pg.Primary:
		if d, first := v.syncBeforePromotion(); first {
			return d
		}
		promote := v.unlessFailing(do("the leader", v.promote()))
		if v.Attempt.Kind == TaskPromote && v.Attempt.Failures >= crashLoop && !v.Config.Pause {
			return giveUpOr(v, "the promotion fails again and again", promote)
		}
		return promote
	}
	var wake cluster.Instant
	for _, chore := range []func(View) Decision{handover, failsafeList, synchronous} {
		d := chore(v)
		if d.Reason != "" || len(d.Actions) > 0 {
			return d.by(wake)
		}
		wake = earlier(wake, d.Wake)
	}
	return Decision{Wake: wake}
}

const diskFailed = "the data directory cannot be written: "

// diskFails reports whether the data directory could not be written for a lease.
func diskFails(v View) bool {
	return v.Postgres.DiskTrouble != "" && !v.Config.Pause && !v.Now.Before(v.Postgres.DiskSince.Add(v.Config.TTL))
}

// ending reports whether what is under way ends this leadership by itself.
func (k TaskKind) ending() bool {
	switch k {
	case TaskDemote, TaskHandover, TaskInterrupted:
		return true
	}
	return false
}

// nobodyElseMayLead reports whether a restore replaces the data, or puts the old ones back: nobody else may lead then,
// whatever it waits for. Before that, and after it, a restore has the limits of any other task.
func nobodyElseMayLead(v View) bool {
	return v.Task == TaskRestore && (v.Postgres.Replacing || v.Postgres.Data == DataSetAside)
}

// stoppedForUpgrade reports whether a major upgrade has PostgreSQL stopped, or takes that back: it takes its time, and has limits of
// its own. Until it is announced others may lead as ever, so a disk that fails is no reason to wait.
func stoppedForUpgrade(v View) bool {
	return v.Task == TaskUpgrade && (v.Postgres.Replacing || v.Postgres.Data == DataUpgrading)
}

// nextTimelineUntold reports whether the status does not say yet which timeline a promotion would begin,
// as that of a standby leader has just changed: another member might take the same number.
func (v Shard) nextTimelineUntold(timeline int) bool {
	b := v.beat()
	return b != nil && b.Owner == v.Name && b.Timeline > 0 && b.Timeline <= timeline
}

// startTimedOut reports whether PostgreSQL has been down of its own for longer than
// primary_start_timeout.
func (v View) startTimedOut() bool {
	since := v.Postgres.DownSince
	return !since.IsZero() && !v.Now.Before(since.Add(v.Config.PrimaryStartTimeout))
}

// stopGrace is what a handover, or what ends a leadership, may take beyond the time that
// a leader may serve nobody.
const stopGrace = 15 * time.Second

// UnservedLimit is how long a leader may serve nobody. A lease is left for what only
// looks like that.
func UnservedLimit(c cluster.Dynamic) time.Duration { return max(c.PrimaryStartTimeout, c.TTL) }

// servesNobody reports whether this leader has served nobody for longer than it may,
// whatever keeps it from that: a postmaster that hangs, a start, restart or promotion
// that does not end, a look at PostgreSQL or its data that does not come back. A demotion
// has the same limit itself, and a handover and a major upgrade have ones of their own; a restore has none while nobody else
// may lead.
func (v View) servesNobody() bool {
	limit := UnservedLimit(v.Config)
	if v.Task == TaskHandover {
		limit += stopGrace
	}
	return v.Task != TaskDemote && !nobodyElseMayLead(v) && !stoppedForUpgrade(v) && v.unserved(limit)
}

func (v View) unserved(limit time.Duration) bool {
	since := v.Postgres.UnservedSince
	return !since.IsZero() && !v.Config.Pause && !v.Now.Before(since.Add(limit))
}

// overdue reports whether this leader should have come to an end, by now, of a leadership
// that serves nobody, and has not. Nothing is left but to let the lease run out.
func (v View) overdue(d Decision) bool {
	givesUp := slices.ContainsFunc(d.Actions, func(a Action) bool { _, is := a.(GiveUp); return is })
	return (givesUp || v.Task.ending()) && v.unserved(UnservedLimit(v.Config)+stopGrace)
}

func (v View) unlessOverdue(d, beat Decision) Decision {
	if v.overdue(d) {
		return wait("PostgreSQL has served nobody for too long and cannot be stopped: the lease runs out")
	}
	return beat
}

// inTouch tells whether Consul has renewed the lease lately. Without it nothing
// is begun that needs Consul to be finished.
func (v View) inTouch() bool { return v.Now.Sub(v.Lease.Renewed) <= v.ttl()/2 }

// onFailsafe tells whether the lease has outlived what Consul gave.
func (v View) onFailsafe() bool {
	return v.Lease.Failsafe && v.Lease.Until > v.Lease.Renewed.Add(v.ttl())
}

// unwatched: the required watchdog does not work, so this member must not lead,
// whether another one can or not.
func unwatched(v View) Decision {
	why := "the watchdog is required and does not work: " + v.WatchdogProblem
	d := giveUpOr(v, why, wait(why))
	if len(d.Actions) == 0 {
		return do(why+"; no other member can lead", Demote{})
	}
	return d
}

// restartInPlace: the leader's PostgreSQL is down. Starting it here is the
// safest way back, as nothing acknowledged can be missing, but not for ever.
func restartInPlace(v View) Decision {
	pg := v.Postgres
	if v.Config.Pause {
		return wait("the leader; PostgreSQL is down and the shard is paused")
	}
	start := v.startPrimary()
	if !pg.Primary {
		start = do("the leader; PostgreSQL is down and is started again before its promotion", StartReplica{})
	}
	start = v.unlessFailing(start)
	switch {
	case v.Config.PrimaryStartTimeout == 0:
		return giveUpOr(v, "PostgreSQL is down and primary_start_timeout is 0", start)
	case v.startTimedOut():
		return giveUpOr(v, "PostgreSQL did not come up within primary_start_timeout", start)
	case pg.Crashes >= crashLoop || v.Attempt.Kind == TaskStart && v.Attempt.Failures >= crashLoop:
		return giveUpOr(v, "PostgreSQL fails again and again", start)
	}
	return start
}

// giveUpOr gives the lease up if another member says that it can lead, and
// does the other thing if there is none.
func giveUpOr(v View, reason string, otherwise Decision) Decision {
	if !v.inTouch() {
		return otherwise
	}
	if !v.peersFresh() {
		otherwise.Actions = append(otherwise.Actions[:len(otherwise.Actions):len(otherwise.Actions)], AskPeers{})
		return otherwise
	}
	if !v.PeersDone {
		return otherwise
	}
	best := v.successor()
	if best.Name == "" {
		return otherwise
	}
	// Between two attempts PostgreSQL is looked at: it may serve by then.
	if a := v.Attempt; a.Kind == TaskDemote && v.Now.Before(a.NotUntil) {
		return otherwise.by(a.NotUntil)
	}
	// Named, so that this member, whose WAL may well be ahead, does not take the
	// lease back at once.
	return do(reason+"; "+best.Name+" can lead", GiveUp{Successor: best.Name})
}

// successor is the member that can lead best, as the members' last answers have it; its
// name is empty when there is none.
func (v View) successor() Peer {
	best := Peer{}
	for _, p := range v.Peers {
		if v.electable(p) == "" && (best.Name == "" || v.better(p, best)) {
			best = p
		}
	}
	return best
}

// nobodyCanLead reports whether it is known that no other member can lead, or cannot be
// told to, as Consul is away.
func (v View) nobodyCanLead() bool {
	return !v.inTouch() || v.peersFresh() && v.PeersDone && v.successor().Name == ""
}
