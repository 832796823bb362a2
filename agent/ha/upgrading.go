package ha

// This file is about a major upgrade that has not ended, and no task works on it: its agent was killed or has begun
// anew, or it has failed (design 5.31). The member has a note beside its data, and until Consul is told of the new
// cluster nobody else knows of it: the old data are the shard's.
//
//	the note says              key initialize   status                  decision
//	nothing was announced      any              any                     take it back; a primary that was not
//	                                                                    stopped leads on
//	it was, or is about to be  the new one      any                     the new data are the shard's: begin with
//	                                                                    them, by an agent with their programs
//	it was, or is about to be  the old one      as it was then          it may still come: a beat first, or the
//	                                                                    lock (electing)
//	it was, or is about to be  the old one      another one             take it back: it cannot come any more
//
// Whoever leads by then: data that are taken back are a primary's that was shut down, or has crashed, and rejoin as any.

// Upgrade is what a member has noted of a major upgrade of its data.
type Upgrade struct {
	// From and To are the system identifiers of the old cluster and of the new one.
	From, To string
	// Index is that of the status which the announcement replaces; zero: none was sent.
	Index uint64
	// Fits: this agent runs the programs of the new version.
	Fits bool
}

// Announced reports whether a key initialize names the cluster of an upgrade that has not ended.
func (u *Upgrade) Announced(initialize string) bool {
	return u != nil && u.Index != 0 && u.To != "" && u.To == initialize
}

// upgrading reports whether a major upgrade of this member's has not ended.
func (p Postgres) upgrading() bool { return p.Upgrade != nil || p.Data == DataUpgrading }

// upgradeEnds is the way of a major upgrade that nobody works on.
func upgradeEnds(v View) (Decision, bool) {
	u := v.Postgres.Upgrade
	back := v.unlessFailing(do("a major upgrade has not ended: it is taken back", UndoUpgrade{}))
	switch {
	case u == nil || u.Index == 0:
		return back, true
	case v.Read.IsZero() || v.Lease.InFlight || v.Lease.Uncertain:
		return wait("a major upgrade was announced, and its outcome is not known"), true
	case u.Announced(v.Cluster.Initialize.Value) && !u.Fits:
		return wait("a major upgrade was announced: the agent begins anew, with the programs of that version"), true
	case u.Announced(v.Cluster.Initialize.Value):
		return v.unlessFailing(do("a major upgrade was announced: the new data are the shard's", EndUpgrade{})), true
	case v.Cluster.Status.ModifyIndex != u.Index:
		return back, true
	case v.Lease.Until.IsZero():
		return Decision{}, false // the lock first
	}
	return wait("a major upgrade is taken back after the next beat, when its announcement cannot come any more"), true
}
