package ha

import "github.com/lictor-ha/lictor/agent/cluster"

// fencing decides whether PostgreSQL may go on accepting commits. It comes
// before everything else and needs nothing but the member's own clock.
//
//	lease    lock in Consul        PostgreSQL            decision
//	held     somebody else's       any                   fence at once
//	held     gone, and the last
//	         beat is another's     any                   fence at once
//	held     taken, says the taker any                   fence at once
//	held     ours                  any, kill moment      fence at once
//	held     ours                  any, demote moment    demote
//	none     any                   primary, can retake   (electing takes the lock anew)
//	none     any                   primary, otherwise    fence at once
//
// In pause mode (I5), once a beat has told the others so, the lock alone counts: a
// primary is fenced only when somebody else holds it.
func fencing(v View) (Decision, bool) {
	if other := v.lockHolder(); other != "" && other != v.Name {
		if !v.Lease.Until.IsZero() {
			return do("the leader lock is held by "+other, Fence{}), true
		}
		if v.Postgres.Running && v.Postgres.Primary {
			return do("running as a primary while "+other+" leads", Fence{}), true
		}
	}
	if !v.Lease.Until.IsZero() && v.Lease.Deposed > v.Cluster.Status.ModifyIndex {
		return do("another member says that it has taken the lock", Fence{}), true
	}
	// Its clock has stood still, with the whole virtual machine perhaps: the one who has led
	// since has lost its lock again.
	if b := v.beat(); !v.Lease.Until.IsZero() && b != nil && b.Owner != v.Name {
		return do(b.Owner+" has led since, whatever our own clock says", Fence{}), true
	}
	if v.PauseInForce() {
		return Decision{}, false
	}
	if !v.Lease.Until.IsZero() {
		switch {
		case !v.Now.Before(v.Lease.Until.Add(-v.Fence.KillBefore)):
			return do("the lease could not be renewed and is over", Fence{}), true
		case !v.Now.Before(v.Lease.Until.Add(-v.Fence.DemoteBefore)):
			if v.Task == TaskDemote {
				return wait("demoting: the lease is about to end").by(v.fenceNext()), true
			}
			return do("the lease could not be renewed and is about to end", Demote{}).by(v.fenceNext()), true
		}
		return Decision{}, false
	}
	if v.Postgres.Running && v.Postgres.Primary && (v.Task == TaskNone || v.Task == TaskInterrupted) && !v.mayRetake() && (!v.Lease.InFlight || v.Giving != nil) {
		return do("running as a primary without a lease", Fence{}), true
	}
	return Decision{}, false
}

// PauseInForce tells whether a leader may rest on the pause: its lease's end fences
// it no more. That begins with a beat which says so, for the others take a lease
// whose last beat does not. A restarted agent goes on with what its guard remembers
// of that, until Consul says how it stands.
func (v View) PauseInForce() bool {
	if v.Read.IsZero() {
		return v.AdoptedPaused
	}
	b := v.beat()
	return v.Config.Pause && (b == nil || b.Owner != v.Name || b.Paused)
}

// lockHolder is who Consul shows to hold the lock.
func (v Shard) lockHolder() string { return v.Cluster.LeaderName() }

// mayRetake tells whether a primary that runs without a lease may try to take
// its own lock anew: its agent was restarted, nobody has led since, and it is
// not known that the lease is over. Consul's transaction has the last word.
func (v View) mayRetake() bool {
	if len(v.OtherPrimaries()) > 0 {
		return false
	}
	if v.Read.IsZero() {
		// Where this agent never led there is no lease of its own that could be over:
		// an existing primary is not its to kill while it knows nothing of the shard.
		return v.AdoptedUnled || v.Now.Before(v.adoptionEnds())
	}
	holder := v.lockHolder()
	b := v.beat()
	switch {
	case holder != "" && holder != v.Name:
		return false
	case b == nil:
		// A shard that no Lictor agent ever led: an existing primary that is
		// being adopted (the data directory of record, if any, is ours).
		return v.Now.Before(v.adoptionEnds())
	case b.Owner != v.Name || b.Released:
		return false
	default:
		return v.Now.Before(v.adoptionEnds())
	}
}

// retakeEnds is when a primary that runs without a lease is fenced, whatever else is waited
// for by then; zero: nothing is to be watched for.
func (v View) retakeEnds() cluster.Instant {
	ends := v.adoptionEnds()
	if !v.Lease.Until.IsZero() || !v.Postgres.Running || !v.Postgres.Primary || !v.Now.Before(ends) {
		return 0
	}
	return ends
}

// adoptionEnds bounds how long a primary found running may wait for its lock: by
// the deadline that its guard has, which tells how much of the lease is left.
// Without a deadline there must not have been a lease either: the shard was never
// led by Lictor, or the last beat was paused. Such a primary has waited for Consul, and
// has its time from Consul's first answer on.
func (v View) adoptionEnds() cluster.Instant {
	b := v.beat()
	switch {
	case v.Adopted.IsZero():
		return 0
	case !v.AdoptedUntil.IsZero():
		return v.AdoptedUntil
	case b != nil && b.Owner == v.Name && !b.Paused:
		return 0
	}
	if v.AdoptedUnled || v.AdoptedPaused {
		return max(v.Adopted, v.FirstRead).Add(v.Config.TTL)
	}
	return v.Adopted.Add(v.Config.TTL)
}

// OtherPrimaries are the other members that said lately that they run as a
// primary. While this member is one, too, or holds the lease, that must not be.
func (v View) OtherPrimaries() []string {
	var names []string
	primary := v.Postgres.Running && v.Postgres.Primary
	if v.Lease.Until.IsZero() && !primary || !v.peersFresh() {
		return nil
	}
	for _, p := range v.Peers {
		if p.runsAsPrimary() {
			names = append(names, p.Name)
		}
	}
	return names
}

// fenceNext is the next moment at which fencing would decide differently.
func (v View) fenceNext() cluster.Instant {
	if v.Lease.Until.IsZero() {
		return 0
	}
	if demote := v.Lease.Until.Add(-v.Fence.DemoteBefore); v.Now.Before(demote) {
		return demote
	}
	return v.Lease.Until.Add(-v.Fence.KillBefore)
}
