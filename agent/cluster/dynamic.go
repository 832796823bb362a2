package cluster

import "time"

// Dynamic is the configuration that all members of a shard share: the value of
// the Consul key `config`, decoded, with every default filled in. Patroni's
// names, units (whole seconds, bytes) and merge rules.
type Dynamic struct {
	Timing
	MaximumLagOnFailover int64         `mapstructure:"maximum_lag_on_failover"` // bytes
	MaximumLagOnSyncNode int64         `mapstructure:"maximum_lag_on_syncnode"` // bytes; -1: off
	MaxTimelinesHistory  int           `mapstructure:"max_timelines_history"`   // 0: all
	CheckTimeline        bool          `mapstructure:"check_timeline"`
	PrimaryStartTimeout  time.Duration `mapstructure:"-"` // primary_start_timeout, alias master_start_timeout
	PrimaryStopTimeout   time.Duration `mapstructure:"-"` // primary_stop_timeout, alias master_stop_timeout; 0: no limit
	SynchronousMode      SyncMode      `mapstructure:"-"` // off, on, quorum
	SynchronousStrict    bool          `mapstructure:"synchronous_mode_strict"`
	SynchronousNodeCount int           `mapstructure:"synchronous_node_count"`
	FailsafeMode         bool          `mapstructure:"failsafe_mode"`
	Pause                bool          `mapstructure:"pause"`
	// Slots are permanent replication slots, IgnoreSlots are matchers of slots
	// that Lictor leaves alone.
	Slots       map[string]any   `mapstructure:"slots"`
	IgnoreSlots []map[string]any `mapstructure:"ignore_slots"`
	// MemberSlotsTTL is how long the slot of a member that went away is kept.
	MemberSlotsTTL time.Duration `mapstructure:"-"`
	// StandbyCluster says which primary outside this shard its leader follows;
	// empty: none. It is not supported yet: who finds it set must not promote.
	StandbyCluster map[string]any `mapstructure:"standby_cluster"`
	// Postgres is the shared part of PostgreSQL's own configuration.
	Postgres DynamicPostgres `mapstructure:"postgresql"`
	// Raw is the whole object as it stands in Consul, with the keys that
	// Lictor does not know.
	Raw map[string]any `mapstructure:"-"`
}

// Timing are the settings from which every deadline is derived (docs/design.md,
// section 5 and ruling 1).
type Timing struct {
	TTL          time.Duration
	LoopWait     time.Duration
	RetryTimeout time.Duration
}

// BeatInterval is how often the leader renews its lease.
func (t Timing) BeatInterval() time.Duration { return min(t.LoopWait, t.TTL/4) }

// SyncMode is the dynamic setting synchronous_mode.
type SyncMode string

// The values of synchronous_mode; in JSON false, true and "quorum".
const (
	SyncOff    SyncMode = "off"
	SyncOn     SyncMode = "on"
	SyncQuorum SyncMode = "quorum"
)

// DynamicPostgres is the section `postgresql` of the dynamic configuration.
type DynamicPostgres struct {
	Parameters         map[string]any `mapstructure:"parameters"`
	PgHBA              []string       `mapstructure:"pg_hba"`
	PgIdent            []string       `mapstructure:"pg_ident"`
	UsePgRewind        *bool          `mapstructure:"use_pg_rewind"`
	UseSlots           *bool          `mapstructure:"use_slots"`
	RecoveryConf       map[string]any `mapstructure:"recovery_conf"`
	RemoveOnRewindFail *bool          `mapstructure:"remove_data_directory_on_rewind_failure"`
	RemoveOnDiverged   *bool          `mapstructure:"remove_data_directory_on_diverged_timelines"`
}
