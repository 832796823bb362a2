package cluster

import "time"

// Dynamic is the configuration that all members of a shard share: the value of
// the Consul key `config`, decoded, with every default filled in. Patroni's
// names, units (whole seconds, bytes) and merge rules.
type Dynamic struct {
	Timing
	// MaximumLagOnFailover is how many bytes of WAL a member may be behind the leader's last word and
	// still lead. It bounds what asynchronous replication can lose.
	MaximumLagOnFailover int64 `mapstructure:"maximum_lag_on_failover"`
	// MaximumLagOnSyncNode is how many bytes a synchronous standby may be behind before a better one
	// takes its place; -1: any number.
	MaximumLagOnSyncNode int64 `mapstructure:"maximum_lag_on_syncnode"`
	// MaximumLagForReaders is how many bytes of WAL a replica may be behind in replaying and still be
	// in the route; one that was further behind comes back within half of it. Only replicas that stream
	// are in the route.
	MaximumLagForReaders int64 `mapstructure:"maximum_lag_for_readers"`
	// MaximumDelayForReaders is the same in seconds; 0: any time, and no readers for members tagged
	// nostream, of which bytes tell little.
	MaximumDelayForReaders time.Duration `mapstructure:"-"`
	// MaxTimelinesHistory is how many timelines the key history keeps (a number); 0: all.
	MaxTimelinesHistory int `mapstructure:"max_timelines_history"`
	// CheckTimeline keeps a member whose timeline is older than the shard's from leading.
	CheckTimeline bool `mapstructure:"check_timeline"`
	// PrimaryStartTimeout is how long a crashed primary may take to come back, or one that hangs
	// may serve nobody, in seconds, before another member leads; 0: at once, if another one can.
	// If none can, one that hangs is killed and started in place. A stop that takes as long
	// (or a ttl, if that is longer) becomes a kill. Alias: master_start_timeout.
	PrimaryStartTimeout time.Duration `mapstructure:"-"`
	// PrimaryStopTimeout is how long a primary may take to stop, in seconds; 0: no limit. Without
	// effect so far: primary_start_timeout and the lease bound it. Alias: master_stop_timeout.
	PrimaryStopTimeout time.Duration `mapstructure:"-"`
	// SynchronousMode makes commits wait for standbys, and lets only members that have every
	// acknowledged commit lead: false, true, or quorum (any of several standbys may acknowledge).
	SynchronousMode SyncMode `mapstructure:"-"`
	// SynchronousStrict makes writes wait rather than be accepted on the primary alone when no standby
	// is there: for anybody who receives, as with Patroni, a logical subscriber or a base backup included,
	// until a member can be named again. Safer, and less available.
	SynchronousStrict bool `mapstructure:"synchronous_mode_strict"`
	// SynchronousNodeCount is how many standbys must have each commit (a number).
	SynchronousNodeCount int `mapstructure:"synchronous_node_count"`
	// Takeover says what a leader that falls silent costs: lease (nobody takes its lock before its lease is over) or
	// quorum (in a synchronous mode its standbys may stand in for the lease: design 5.30). Default: lease. quorum is an
	// experiment (what it does not cover stands there), and needs synchronous_mode, PostgreSQL 14 or later, and three
	// members on hosts of their own, or two and a bouncer on a third host.
	Takeover TakeoverPolicy `mapstructure:"takeover"`
	// SuspectAfter is how long a leader must have answered nobody before a takeover by quorum begins, in
	// seconds. Without effect with takeover lease.
	SuspectAfter time.Duration `mapstructure:"-"`
	// FailsafeMode lets a leader go on without Consul as long as every member that could take its lock
	// promises not to. Patroni's default is false.
	FailsafeMode bool `mapstructure:"failsafe_mode"`
	// Pause says hands off: nothing is promoted, demoted or restarted by itself until it is over. Set
	// it with lictor pause.
	Pause bool `mapstructure:"pause"`
	// Slots are permanent replication slots, by name: they are made on the primary, and on every
	// replica that may lead, where they are moved on as the primary's are. A replica gets a copy of a
	// logical one, for which it is restarted once, and hot_standby_feedback is on then. Alias:
	// permanent_slots.
	Slots map[string]any `mapstructure:"slots"`
	// IgnoreSlots are matchers (name, type, database, plugin) of slots that Lictor leaves alone: those
	// that fit all that one matcher names. On a replica others that nobody uses are dropped, on a primary
	// others that are physical.
	IgnoreSlots []map[string]any `mapstructure:"ignore_slots"`
	// MemberSlotsTTL is how long the slot of a member that went away is kept, in seconds, by the leader
	// and by those that may lead next; 0: as long as the member's key is there. WAL is kept as long, or
	// as far as max_slot_wal_keep_size allows.
	MemberSlotsTTL time.Duration `mapstructure:"-"`
	// Rebuild says what becomes of a replica that cannot go on with its data, because the WAL that it
	// needs is gone or no rewind can mend it: ask (it says so, and waits for lictor reinit) or auto (its
	// data are made anew, one member of the shard and one of the host at a time). Default: ask.
	Rebuild RebuildPolicy `mapstructure:"rebuild"`
	// MaintenanceWindows are when switchovers, restarts and repacks are taken, as texts: days (default:
	// all), from-to, time zone (default: UTC), and "for" with what it is for (handover, restart, repack;
	// default: all). What no window is for is taken at any time; a failover always is.
	MaintenanceWindows Windows `mapstructure:"maintenance_windows"`
	// StandbyCluster makes the shard the standby of another one.
	StandbyCluster StandbyCluster `mapstructure:"standby_cluster"`
	// OtherSite is where the other one of two sites is that take turns as primary and standby.
	OtherSite OtherSite `mapstructure:"other_site"`
	// Postgres is the shared part of PostgreSQL's own configuration.
	Postgres DynamicPostgres `mapstructure:"postgresql"`
	// Raw is the whole object as it stands in Consul, with the keys that
	// Lictor does not know.
	Raw map[string]any `mapstructure:"-"`
}

// Timing are the settings from which every deadline is derived (design 5.12).
type Timing struct {
	// TTL is the lease: how long a leader may accept writes after its last beat was sent, and so about
	// how long a shard takes no writes when its primary's host is lost. From 3 up; less is quicker,
	// more forgives slower networks and busier machines.
	TTL time.Duration
	// LoopWait is the pause between two rounds of the agent's loop, and between two beats where ttl/4
	// is not shorter. Default: 2; 1 below ttl 8.
	LoopWait time.Duration
	// RetryTimeout is how long Consul or PostgreSQL may fail to answer before the agent acts on it;
	// loop_wait + 2 x retry_timeout must fit into ttl. Default: what is left of ttl, at most 10.
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

// On reports whether commits wait for standbys at all; the mode of a configuration that
// was not read is off.
func (m SyncMode) On() bool { return m == SyncOn || m == SyncQuorum }

// TakeoverPolicy is the dynamic setting takeover.
type TakeoverPolicy string

// The values of takeover.
const (
	TakeoverLease  TakeoverPolicy = "lease"
	TakeoverQuorum TakeoverPolicy = "quorum"
)

// RebuildPolicy is the dynamic setting rebuild.
type RebuildPolicy string

// The values of rebuild.
const (
	RebuildAsk  RebuildPolicy = "ask"
	RebuildAuto RebuildPolicy = "auto"
)

// DynamicPostgres is the section `postgresql` of the dynamic configuration.
type DynamicPostgres struct {
	// Parameters are PostgreSQL's, for all members. Those that must be the same everywhere
	// (max_connections, max_worker_processes, max_wal_senders, max_replication_slots, max_locks_per_transaction,
	// max_prepared_transactions, wal_level, track_commit_timestamp) are taken from here only; hot_standby,
	// wal_log_hints, track_activities and update_process_title are always on.
	Parameters map[string]any `mapstructure:"parameters"`
	// PgHBA are the lines of pg_hba.conf for members that have none of their own.
	PgHBA []string `mapstructure:"pg_hba"`
	// PgIdent are the lines of pg_ident.conf for members that have none of their own.
	PgIdent []string `mapstructure:"pg_ident"`
	// UsePgRewind lets an old primary be rewound, where the member's own file does not say. Default:
	// false.
	UsePgRewind *bool `mapstructure:"use_pg_rewind"`
	// UseSlots makes the leader keep a replication slot for each member; it goes over the member's own
	// file. Default: true.
	UseSlots *bool `mapstructure:"use_slots"`
	// RecoveryConf are recovery parameters of replicas.
	RecoveryConf map[string]any `mapstructure:"recovery_conf"`
	// RemoveOnRewindFail lets a data directory be copied anew when pg_rewind fails. Default: false.
	RemoveOnRewindFail *bool `mapstructure:"remove_data_directory_on_rewind_failure"`
	// RemoveOnDiverged lets a data directory be copied anew when it has diverged and may not be
	// rewound. Default: false.
	RemoveOnDiverged *bool `mapstructure:"remove_data_directory_on_diverged_timelines"`
}
