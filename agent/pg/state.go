// Package pg is PostgreSQL in the words that its caretakers share: what was seen of it,
// and what is to be done with it. It does nothing itself (package postgres does).
//
//	state.go    what was seen
//	archiver.go of its archiver
//	walroom.go  of the room that its WAL has
//	copying.go  how far a replica's data directory is
//	orders.go   what is to be done
//	timeline.go positions in the WAL, and the history of timelines
//	restore.go  to what moment a shard is put back
//	upgrade.go  whether the data could become those of a later major version
package pg

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

const (
	// Streaming is the state of a walsender or WAL receiver that streams.
	Streaming = "streaming"
	// InArchiveRecovery is that of a replica that does not stream and has a
	// restore_command.
	InArchiveRecovery = "in archive recovery"
)

// State is how PostgreSQL fares.
type State struct {
	// Running: a postmaster lives. Accepting: it answers SQL; without it what
	// follows is unknown.
	Running   bool
	Accepting bool
	// Silent: it neither lets a new client in nor says why not.
	Silent bool
	// Stopping: it was told to stop, by whomever. ShutDown: its shutdown checkpoint is
	// made, and only processes are left that pass WAL on.
	Stopping, ShutDown bool

	InRecovery   bool
	Timeline     int
	WriteLSN     int64 // primary
	ReceivedLSN  int64 // replica
	ReplayedLSN  int64 // replica
	ReplayedAt   time.Time
	ReplayPaused bool
	// Standstill says why a replica's replay stands still, or is behind on purpose, in
	// words; empty: it does neither. Undersized: a restart is the cure, as it runs with
	// less of something than its primary.
	Standstill string
	Undersized bool
	// Replaying: a replica may have WAL from before its start that it has not replayed
	// yet. Timeline and positions are then no more than what it has at least.
	Replaying        bool
	ReplicationState string // Streaming, InArchiveRecovery or empty
	// NoReceiver: a replica is set up to follow somebody, and no WAL receiver runs.
	NoReceiver       bool
	StartTime        time.Time
	ServerVersion    int
	SystemIdentifier string
	SyncNames        string // synchronous_standby_names
	// SynchronousCommit and Fsync are these parameters as a client's session begins with them, unless its own role or database has
	// others; empty, and false: not known, or a statement that is at work may have a weaker one.
	SynchronousCommit string
	Fsync             bool
	// MessageAge is how old the last message at the WAL receiver was; zero: there was none, or it
	// is not known.
	MessageAge     time.Duration
	Standbys       []StandbyState
	Slots          []Slot
	PendingRestart map[string]cluster.PendingChange
}

// LSN is how far the WAL goes: what a primary has written, or the greater of
// what a replica has received and replayed.
func (s State) LSN() int64 {
	if !s.InRecovery {
		return s.WriteLSN
	}
	return max(s.ReceivedLSN, s.ReplayedLSN)
}

// StandbyState is one line of pg_stat_replication.
type StandbyState struct {
	User            string `json:"usename"`
	ApplicationName string `json:"application_name"`
	ClientAddr      string `json:"client_addr"`
	State           string `json:"state"`
	SyncState       string `json:"sync_state"`
	SyncPriority    int    `json:"sync_priority"`
	WriteLSN        int64  `json:"write"`
	FlushLSN        int64  `json:"flush"`
	ReplayLSN       int64  `json:"replay"`
}

// Slot is one replication slot.
type Slot struct {
	cluster.Slot
	Active bool `json:"active"`
	// RestartLSN is from where on it keeps WAL; 0: none. ConfirmedLSN is up to where the
	// reader of a logical one has everything.
	RestartLSN   int64 `json:"restart_lsn"`
	ConfirmedLSN int64 `json:"confirmed_flush_lsn"`
	// Failover: it is marked as one that PostgreSQL itself keeps on replicas; Synced: it was kept so here.
	Failover bool `json:"failover"`
	Synced   bool `json:"synced"`
	// Lost: it has lost its WAL (max_slot_wal_keep_size), and nobody streams by it again. PostgreSQL 12 does not tell.
	Lost bool `json:"lost"`
}

// Position is up to where its reader needs nothing any more.
func (s Slot) Position() int64 {
	if s.Type == cluster.SlotLogical {
		return s.ConfirmedLSN
	}
	return s.RestartLSN
}

// SyncInForce says since when commits wait as they were told to.
type SyncInForce struct {
	// Value is what synchronous_standby_names shows from now on, unless somebody
	// else changes it. While commits wait for nobody and synchronous_mode is off,
	// it is what the user's own parameters say, or ALTER SYSTEM.
	Value string
	// Since is a flush position in bytes: commits beyond it were released under
	// this setting only, and whoever has flushed it holds all others. 0 on a
	// replica, and while commits wait for nobody.
	Since int64
}
