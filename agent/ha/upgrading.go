package ha

// This file is about a major upgrade that has not ended, and no task works on it: its agent was killed, or it has
// failed (design 5.31). The member has a note beside its data, and nobody else knows of it: until Consul
// is told of the new cluster, the old data are the shard's.
//
//	note  PostgreSQL                      decision
//	none  any                             nothing to be done
//	any   serves, and was never stopped   take it back, and lead on
//	any   was stopped                     take it back: nothing is started before
//
// Whoever leads by then: the data that are taken back are a primary's that was shut down, or has crashed, and rejoin as
// any.

// upgrading reports whether a major upgrade of this member's has not ended.
func (v View) upgrading() bool { return v.Postgres.Upgrade || v.Postgres.Data == DataUpgrading }

// upgradeUndone takes back what a major upgrade has done.
func (v View) upgradeUndone() Decision {
	return v.unlessFailing(do("a major upgrade has not ended: it is taken back", UndoUpgrade{}))
}
