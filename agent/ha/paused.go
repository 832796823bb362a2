package ha

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// paused: the operator said hands off (I5): nothing is started, stopped,
// promoted or demoted on its own. The leader goes on beating (leading.go), a
// primary without a lock takes the lock if nobody else holds it or may still lead: by a
// lease that has lost its lock with a session, or by the others' word while it cannot reach
// Consul. A switchover that the operator asks for is
// carried out to its end: its candidate leads, and the old leader follows, as do replicas
// that run.
func paused(v View) (Decision, bool) {
	if !v.Config.Pause {
		return Decision{}, false
	}
	switch {
	case !v.Lease.Until.IsZero() && v.Now.Before(v.Lease.Until):
		return Decision{}, false
	case v.Task != TaskNone:
		return wait("paused, busy: " + string(v.Task)), true
	case v.Now.Before(v.Lease.NotBefore):
		return wait("paused; the lock could not be taken").by(v.Lease.NotBefore), true
	case v.succeedsInPause(), v.followsInPause():
		return Decision{}, false
	case v.Postgres.Running && v.Postgres.Primary && v.othersLease() != "":
		return wait("paused; running as a primary beside the lease of " + v.othersLease()).by(v.leaseExpires()), true
	case v.Postgres.Running && v.Postgres.Primary && v.shardWentOn() != "":
		return wait("paused; running as a primary, and " + v.shardWentOn()), true
	case v.Postgres.Running && v.Postgres.Primary && v.promised() != nil:
		return wait("paused; the lock is promised to " + v.promised().Leader + " for now").by(v.promised().Until), true
	case v.Postgres.Running && v.Postgres.Primary && v.mayGoOnWithout() != "":
		return wait("paused; " + v.mayGoOnWithout()), true
	case v.Postgres.Running && v.Postgres.Primary && v.Session != "" && !v.Lease.InFlight:
		return do("paused; a primary without a lock takes it", v.takeOver()), true
	default:
		return wait("paused"), true
	}
}

// succeedsInPause reports whether the lease was given to this member, a replica, by the
// switchover that the operator has asked for.
func (v View) succeedsInPause() bool {
	b, pg := v.beat(), v.Postgres
	return b != nil && b.Released && b.Successor == v.Name && v.askedToLead() &&
		pg.Accepting && !pg.Primary && pg.Undersized == ""
}

// followsInPause reports whether this member has to follow another leader than before: as a
// replica that runs, which needs no more than a reload, or as the leader before the
// switchover, whose PostgreSQL that has stopped.
func (v View) followsInPause() bool {
	pg, leader := v.Postgres, v.leader()
	m, found := v.Cluster.Member(leader)
	if !found || leader == v.Name || pg.Data != DataValid {
		return false
	}
	if !pg.Running {
		return v.HandedOver > v.Cluster.Config.ModifyIndex && pg.DownSince.IsZero() // asked for in this pause
	}
	return pg.Accepting && !pg.Primary && isPrimary(m.Value.Role) && pg.Upstream != v.upstream(leader) &&
		!cluster.NoStream(v.Tags) && !v.leftBehind(leader, m.Value.Timeline)
}

// shardWentOn says why a primary that runs is not the shard's any more: another member has led since, on a timeline that is
// no earlier, and in pause may do so whatever its lease says. One that an operator has promoted by hand is on a
// later one. Empty: it may be the shard's.
func (v View) shardWentOn() string {
	b := v.beat()
	if b == nil || b.Owner == v.Name || v.Postgres.Timeline == 0 || v.Postgres.Timeline > b.Timeline {
		return ""
	}
	return fmt.Sprintf("%s has led since, on timeline %d: here it is %d", b.Owner, b.Timeline, v.Postgres.Timeline)
}

// othersLease is whose lease, another member's, may still run, whether its lock is there
// or not; empty: nobody's.
func (v Shard) othersLease() string {
	if b := v.beat(); b != nil && b.Owner != v.Name && !b.Released && v.Now.Before(v.leaseExpires()) {
		return b.Owner
	}
	return ""
}

// mayGoOnWithout says why the last leader, another member, may go on without Consul and without
// this member's word; empty: it does not.
func (v View) mayGoOnWithout() string {
	if b := v.beat(); b != nil && (b.Owner == v.Name || b.Released) {
		return ""
	}
	return v.failsafeForbids(v.Name)
}
