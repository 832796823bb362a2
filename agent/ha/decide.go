package ha

// Decide looks at a member and its shard and says what the member does now.
//
// The situations are tried in order of urgency; the first one that applies
// decides. Whatever must stop a primary comes before whatever might start one.
func Decide(v View) Decision {
	for _, situation := range []func(View) (Decision, bool){
		fencing,          // the right to accept commits is gone or about to go
		uncertain,        // a write to Consul has an unknown outcome
		blind,            // Consul was never read
		stopping,         // the agent was told to exit
		giving,           // the lease was dropped for somebody else
		paused,           // the operator said: hands off
		leading,          // this member holds the lease
		busy,             // a task runs: let it
		shutDown,         // PostgreSQL was stopped from outside the agent, and does not end
		undoing,          // a restore or a major upgrade of its own has not ended
		starting,         // there is no usable data directory
		takeoverByQuorum, // the leader is silent, and its standbys may stand in for its lease
		detached,         // a candidate counts on this member's receiving nothing
		following,        // somebody else leads
	} {
		if d, applies := situation(v); applies {
			return failsafe(v, d).by(v.retakeEnds())
		}
	}
	return electing(v).by(v.retakeEnds()) // nobody leads
}

// blind: an agent that has never heard of its shard starts nothing, and stops nothing
// unless it is told to end. Whether a data directory may run as a primary is known to
// Consul alone.
func blind(v View) (Decision, bool) {
	if !v.Read.IsZero() || !v.Lease.Until.IsZero() || v.Stopping {
		return Decision{}, false
	}
	return wait("Consul has not answered yet: nothing is started"), true
}

// uncertain: a beat, takeover or release whose answer was lost may still have
// taken effect, so nothing new is decided before Consul was read again. A leader
// goes on with its duty meanwhile (leading.go), and an agent that was told to end does not
// wait for a Consul that is away.
func uncertain(v View) (Decision, bool) {
	if !v.Lease.Uncertain || !v.Lease.Until.IsZero() || v.Stopping && v.silent() {
		return Decision{}, false
	}
	if v.outOfTouch() && v.Task == TaskNone && v.Postgres.Data == DataValid && !v.Config.Pause && !v.Now.Before(v.Attempt.NotUntil) {
		// Whatever became of the write: a replica of nobody harms nothing.
		return do("Consul does not answer: starting as a replica, to serve reads", StartReplica{}, Reread{}), true
	}
	return do("the outcome of the last write to Consul is unknown", Reread{}), true
}

// busy: one task at a time.
func busy(v View) (Decision, bool) {
	if v.Task == TaskNone {
		return Decision{}, false
	}
	return wait("busy: " + string(v.Task)), true
}
