package ha

// paused: the operator said hands off (I5): nothing is started, stopped,
// promoted or demoted on its own. The leader goes on beating (leading.go), a
// primary without a lock takes the lock if nobody else holds it, a named handover works.
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
	case v.Postgres.Running && v.Postgres.Primary && v.Session != "" && !v.Lease.InFlight:
		return do("paused; a primary without a lock takes it", v.takeOver()), true
	default:
		return wait("paused"), true
	}
}
