package postgres

import "github.com/lictor-ha/lictor/agent/pg"

// The words that this package shares with those who only talk about PostgreSQL.
type (
	// State is how PostgreSQL fares.
	State = pg.State
	// StandbyState is one line of pg_stat_replication.
	StandbyState = pg.StandbyState
	// Slot is one replication slot.
	Slot = pg.Slot
	// Upstream is a member to replicate from.
	Upstream = pg.Upstream
	// SyncInForce says since when commits wait as they were told to.
	SyncInForce = pg.SyncInForce
	// Detachment says that it has detached for a takeover by quorum.
	Detachment = pg.Detachment
	// Loss says that the data of this member were replaced.
	Loss = pg.Loss
	// Permission is what must hold before a data directory is removed (I7).
	Permission = pg.Permission
)

// The states of replication that are told apart.
const (
	Streaming         = pg.Streaming
	InArchiveRecovery = pg.InArchiveRecovery
)
