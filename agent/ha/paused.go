package ha

// paused: the operator said hands off (I5): nothing is started, stopped,
// promoted or demoted on its own. The leader goes on beating (leading.go), a
// primary without a lock takes the lock if nobody else holds it or may still lead by a
// lease that has lost its lock with a session, a named handover works.
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
	case v.Postgres.Running && v.Postgres.Primary && v.othersLease() != "":
		return wait("paused; running as a primary beside the lease of " + v.othersLease()).by(v.leaseExpires()), true
	case v.Postgres.Running && v.Postgres.Primary && v.Session != "" && !v.Lease.InFlight:
		return do("paused; a primary without a lock takes it", v.takeOver()), true
	default:
		return wait("paused"), true
	}
}

// othersLease is whose lease, another member's, may still run, whether its lock is there
// or not; empty: nobody's.
func (v View) othersLease() string {
	if b := v.beat(); b != nil && b.Owner != v.Name && !b.Released && v.Now.Before(v.leaseExpires()) {
		return b.Owner
	}
	return ""
}
