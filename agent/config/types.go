// Package config is the agent's own configuration file: Patroni's YAML schema
// (design 3.1) plus Lictor's keys, decoded strictly into the
// types below and checked before anything starts.
//
// What all members of a shard share and can change at run time is the dynamic
// configuration, in package cluster.
package config

import (
	"cmp"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// Config is one agent's file after all layers (files, environment, flags) have
// been merged.
type Config struct {
	// Scope is the shard's name, the same on all its members. It is part of the keys in Consul and
	// PostgreSQL's cluster_name.
	Scope string `mapstructure:"scope"`
	// Namespace is the first part of the shard's keys in Consul.
	Namespace string `mapstructure:"namespace"`
	// Name is this member's name, another one on each member. It is PostgreSQL's application_name on a
	// replica, by which synchronous standbys are told apart. Two names that differ in case, or in - . and _,
	// alone make one replication slot: the second such member does not start.
	Name      string    `mapstructure:"name"`
	RestAPI   RestAPI   `mapstructure:"restapi"`
	Ctl       Ctl       `mapstructure:"ctl"`
	Consul    Consul    `mapstructure:"consul"`
	Bootstrap Bootstrap `mapstructure:"bootstrap"`
	Postgres  Postgres  `mapstructure:"postgresql"`
	Watchdog  Watchdog  `mapstructure:"watchdog"`
	// Tags say what is special about this member: nofailover (never leads), failover_priority (of two
	// members with the same data the higher one leads; 0 is as nofailover), clonefrom (new replicas
	// are copied from here), noloadbalance (no reads are sent here), nosync (never a synchronous
	// standby), sync_priority, nostream (follows nobody: its WAL comes by restore_command, and it is never
	// a synchronous standby, nor the target of a switchover), replicatefrom (the member to stream from),
	// host (the host that it runs on, where its address does not say it), zone (where that host is).
	// Tags of any other name are published as they are.
	Tags   map[string]any `mapstructure:"tags"`
	Log    Log            `mapstructure:"log"`
	Lictor Lictor         `mapstructure:"lictor"`
}

// RestAPI is where and how the agent's REST API listens.
type RestAPI struct {
	// Listen is where the REST API listens, host:port. Load balancers, the other members and
	// operators' commands must reach it.
	Listen string `mapstructure:"listen"`
	// ConnectAddress is how others reach the API, host:port. It stands in the member's key in Consul.
	// Default: listen, if that is an address.
	ConnectAddress string      `mapstructure:"connect_address"`
	Authentication Credentials `mapstructure:"authentication"`
	// CertFile is the file of the server's certificate; with it the API speaks https only. A renewed
	// file is picked up without a restart.
	CertFile string `mapstructure:"certfile"`
	// KeyFile is the file of the certificate's key, if certfile does not hold it as well.
	KeyFile string `mapstructure:"keyfile"`
	// KeyFilePassword is the pass phrase of the key file, where it has one.
	KeyFilePassword string `mapstructure:"keyfile_password" json:"-"`
	// CAFile is the file of the authorities whose client certificates are taken, and that this agent
	// checks other members' certificates by.
	CAFile string `mapstructure:"cafile"`
	// Ciphers are the ciphers to offer for TLS 1.2, as a cipher string of OpenSSL (ECDHE+AESGCM:!SHA).
	// It narrows what Go's TLS offers; what it has not is warned of. Default: all with forward secrecy.
	Ciphers string `mapstructure:"ciphers"`
	// VerifyClient says who must show a client certificate: none; optional: requests that change
	// something; required: everybody, health checks too.
	VerifyClient string `mapstructure:"verify_client"`
	// Allowlist are the addresses, networks and host names from which requests may change something;
	// empty: all, of those who have the password or, where it is asked for, the certificate.
	Allowlist []string `mapstructure:"allowlist"`
	// AllowlistIncludeMembers adds the shard's members to the allowlist.
	AllowlistIncludeMembers bool `mapstructure:"allowlist_include_members"`
	// HTTPExtraHeaders are headers that every answer carries.
	HTTPExtraHeaders map[string]string `mapstructure:"http_extra_headers"`
	// HTTPSExtraHeaders are headers that answers over https carry; they go over those for http.
	HTTPSExtraHeaders map[string]string `mapstructure:"https_extra_headers"`
	// RequestQueueSize is how many connections may wait to be accepted (a number). Without effect: the
	// server queues nothing.
	RequestQueueSize int `mapstructure:"request_queue_size"`
	// ServerTokens says what the header Server tells. Without effect: it does not tell the version.
	ServerTokens string `mapstructure:"server_tokens"`
}

// Ctl is how commands reach the members' REST API.
type Ctl struct {
	// Insecure lets the commands take any certificate from a member's API.
	Insecure bool `mapstructure:"insecure"`
	// CertFile is the file of the client certificate that the commands show.
	CertFile string `mapstructure:"certfile"`
	// KeyFile is the file of its key, if certfile does not hold it as well.
	KeyFile string `mapstructure:"keyfile"`
	// KeyFilePassword is the pass phrase of the key file, where it has one.
	KeyFilePassword string `mapstructure:"keyfile_password" json:"-"`
	// CACert is the file of the authorities by which the commands check members' certificates.
	// Default: restapi.cafile.
	CACert string `mapstructure:"cacert"`
	// VerifyNames has agents and commands compare the names in the certificate of a member's or a
	// bouncer's API with the host that they ask. Default: true.
	VerifyNames    *bool       `mapstructure:"verify_names"`
	Authentication Credentials `mapstructure:"authentication"`
}

// Credentials are a user name and its password.
type Credentials struct {
	// Username is the name to log in with.
	Username string `mapstructure:"username"`
	// Password is its password. An API with neither a login nor verify_client nor allowlist takes changes
	// on its own host alone, from root and the agent's user.
	Password string `mapstructure:"password" json:"-"`
	// PasswordFile is a file with the password instead, read anew with every reload.
	PasswordFile string `mapstructure:"password_file"`
}

// Consul is how the agent reaches Consul; the bouncer has the same section.
type Consul = settings.Consul

// Bootstrap says how the very first member of a shard is made.
type Bootstrap struct {
	// DCS becomes the dynamic configuration of a new shard; afterwards the key in Consul counts and
	// this is not read.
	DCS map[string]any `mapstructure:"dcs"`
	// InitDB lists options of initdb: texts (data-checksums) and maps of one name to its value
	// ({encoding: UTF8}).
	InitDB []any `mapstructure:"initdb"`
	// Method names the way to make the first member: initdb, or a method of one's own with a section
	// bootstrap.<method>: its command gets --scope=, --datadir= and the section's other keys
	// (no_params: true leaves the first two out), and makes the data directory, of which it finds none
	// or, if it fails without, an empty one. With recovery_conf PostgreSQL then recovers from the
	// archive until it is promoted; with keep_existing_recovery_conf: true as the command has written
	// it (docs/backups.md). Default: initdb.
	Method string `mapstructure:"method"`
	// PgHBA are lines that go to the end of the new shard's pg_hba.conf, that of initdb or of a backup.
	// Where postgresql.pg_hba has lines, that is the whole file.
	PgHBA []string `mapstructure:"pg_hba"`
	// Users are roles to create once in a new shard: a name with password and options.
	Users map[string]BootstrapUser `mapstructure:"users"`
	// PostBootstrap is a command that runs once in a new shard, with a connection string as its last
	// argument; if it fails, the bootstrap is undone. Alias: post_init.
	PostBootstrap string `mapstructure:"post_bootstrap"`
	// Methods holds every other key of the section: bootstrap.<method>.
	Methods map[string]any `mapstructure:",remain"`
}

// BootstrapUser is a role that is created once, after initdb.
type BootstrapUser struct {
	// Password is the role's password.
	Password string `mapstructure:"password" json:"-"`
	// Options are attributes of CREATE ROLE, createdb for instance.
	Options []string `mapstructure:"options"`
	// PasswordFile is a file with the password instead.
	PasswordFile string `mapstructure:"password_file"`
}

// Postgres is the local part of PostgreSQL's configuration.
type Postgres struct {
	// Listen is where PostgreSQL listens: host:port, several hosts with commas, IPv6 addresses in
	// brackets ('127.0.0.1, [::1]:5432'). The port may be left out: 5432.
	Listen string `mapstructure:"listen"`
	// ConnectAddress is how poolers, clients and replicas reach PostgreSQL, host:port. It stands in
	// the member's key and in the route. Default: listen, if that is an address.
	ConnectAddress string `mapstructure:"connect_address"`
	// ProxyAddress is how clients reach a pooler beside this PostgreSQL, host:port. It is published in
	// the member's key (proxy_url), nothing else.
	ProxyAddress string `mapstructure:"proxy_address"`
	// DataDir is PostgreSQL's data directory, and its alone: a new replica replaces all that is in it.
	DataDir string `mapstructure:"data_dir"`
	// ConfigDir is the directory of postgresql.conf, pg_hba.conf and pg_ident.conf, where they do not
	// lie beside the data: /etc/postgresql/15/main on Debian. Copies of them (*.backup) are kept beside
	// the data, for a replica or a restored member that has none. Default: data_dir.
	ConfigDir string `mapstructure:"config_dir"`
	// BinDir is the directory of PostgreSQL's programs. Default: $PATH.
	BinDir string `mapstructure:"bin_dir"`
	// BinName renames programs of PostgreSQL: initdb, pg_ctl, postgres, pg_basebackup, pg_rewind,
	// pg_controldata, pg_isready.
	BinName map[string]string `mapstructure:"bin_name"`
	// PgPass is a file that the agent writes the passwords of replication to, for libpq. Default: in
	// lictor.state_dir.
	PgPass         string         `mapstructure:"pgpass"`
	Authentication Authentication `mapstructure:"authentication"`
	// Parameters are PostgreSQL's, for this member; they go over those of the dynamic configuration.
	// Parameters that must be the same on all members are taken from there only. Values keep their
	// YAML type until written.
	Parameters map[string]any `mapstructure:"parameters"`
	// PgHBA is the whole of pg_hba.conf, line by line; not set: the file is left alone. It must let
	// the members' replication in. A hba_file among the parameters goes over it.
	PgHBA []string `mapstructure:"pg_hba"`
	// PgIdent is the whole of pg_ident.conf, line by line; not set: the file is left alone. An
	// ident_file among the parameters goes over it.
	PgIdent []string `mapstructure:"pg_ident"`
	// UseUnixSocket makes the agent connect through the unix socket. With peer authentication there
	// the superuser needs no password.
	UseUnixSocket bool `mapstructure:"use_unix_socket"`
	// UseUnixSocketRepl makes local replication connect through the unix socket. Without effect so
	// far: it uses TCP.
	UseUnixSocketRepl bool      `mapstructure:"use_unix_socket_repl"`
	Callbacks         Callbacks `mapstructure:"callbacks"`
	// BaseBackup are options of pg_basebackup for new replicas: a list of texts and one-name maps, or
	// a map.
	BaseBackup any `mapstructure:"basebackup"`
	// CreateReplica lists ways to make a replica; the first that succeeds is taken. basebackup is
	// pg_basebackup; another name has a section postgresql.<name> with a command, which gets
	// --scope=, --role=replica, --datadir=, --connstring= and the section's other keys. no_leader:
	// true says that it works without a leader, keep_data: true that it starts from the data that is
	// there, no_params: true that it gets the section's own keys alone. As in a bootstrap it finds no
	// data directory or an empty one (docs/backups.md). Default: basebackup.
	CreateReplica []string `mapstructure:"create_replica_methods"`
	// RecoveryConf are PostgreSQL's recovery parameters for replicas, restore_command for instance.
	RecoveryConf map[string]any `mapstructure:"recovery_conf"`
	// CustomConf is the path of a file that postgresql.conf includes in place of postgresql.base.conf.
	// A hba_file or ident_file in it is used where postgresql.pg_hba or pg_ident have no lines; a
	// data_directory elsewhere keeps PostgreSQL from being started.
	CustomConf string `mapstructure:"custom_conf"`
	// UsePgRewind lets an old primary whose WAL has diverged be rewound instead of copied anew. It
	// needs data checksums or wal_log_hints. Default: false, or what the dynamic configuration says.
	UsePgRewind *bool `mapstructure:"use_pg_rewind"`
	// UseSlots makes the leader keep a replication slot for each member, so that a member that was
	// away for a while finds its WAL, and a replica one for each member that has its name in the tag
	// replicatefrom. It also means that WAL is kept as long as a member is away. Other slots
	// that nobody uses are dropped, unless slots or ignore_slots name them.
	// Default: true; a value in the dynamic configuration goes over this one.
	UseSlots *bool `mapstructure:"use_slots"`
	// RemoveOnRewindFail lets the data directory be removed and copied anew when pg_rewind fails. Off,
	// because a failed rewind may be the last copy of something.
	RemoveOnRewindFail bool `mapstructure:"remove_data_directory_on_rewind_failure"`
	// RemoveOnDiverged lets the data directory be removed and copied anew when it has diverged and may
	// not be rewound.
	RemoveOnDiverged bool `mapstructure:"remove_data_directory_on_diverged_timelines"`
	// PrePromote is a command that runs before a promotion; if it fails, the member does not promote,
	// gives the lock up, and does not want to lead for one ttl.
	PrePromote string `mapstructure:"pre_promote"`
	// BeforeStop is a command that runs before PostgreSQL is stopped in an orderly way; it cannot
	// forbid the stop.
	BeforeStop string `mapstructure:"before_stop"`
	// PgCtlTimeout is how long starts and stops may take, in seconds. Without effect so far: starts
	// are watched, and stops are bounded by the lease.
	PgCtlTimeout int `mapstructure:"pg_ctl_timeout"`
	// Database is the database that the agent itself connects to. A bootstrap makes it, if nothing
	// else has.
	Database string `mapstructure:"database"`
	// Methods holds every other key: the maps of replica creation methods.
	Methods map[string]any `mapstructure:",remain"`
}

// Authentication holds the three roles that the agent uses.
type Authentication struct {
	Superuser   PgUser `mapstructure:"superuser"`
	Replication PgUser `mapstructure:"replication"`
	Rewind      PgUser `mapstructure:"rewind"`
}

// PgUser is a PostgreSQL role and how to log in as it (libpq's words).
type PgUser struct {
	// Username is the role's name. Without one for rewind the superuser rewinds.
	Username string `mapstructure:"username"`
	// Password is the role's password.
	Password string `mapstructure:"password" json:"-"`
	// SSLMode is libpq's: how far TLS is asked for. Default: libpq's (prefer).
	SSLMode string `mapstructure:"sslmode"`
	// SSLCert is the file of the client certificate.
	SSLCert string `mapstructure:"sslcert"`
	// SSLKey is the file of its key.
	SSLKey string `mapstructure:"sslkey"`
	// SSLPassword is the password of that file.
	SSLPassword string `mapstructure:"sslpassword" json:"-"`
	// SSLRootCert is the file of the authorities that PostgreSQL's certificate is checked by; system:
	// those of the host.
	SSLRootCert string `mapstructure:"sslrootcert"`
	// SSLCRL is a file of revoked certificates.
	SSLCRL string `mapstructure:"sslcrl"`
	// SSLCRLDir is a directory of such files, from PostgreSQL 14 on.
	SSLCRLDir string `mapstructure:"sslcrldir"`
	// SSLNegotiation is libpq's, from PostgreSQL 17 on: postgres, or direct for TLS from the first
	// byte.
	SSLNegotiation string `mapstructure:"sslnegotiation"`
	// GSSEncMode is libpq's gssencmode.
	GSSEncMode string `mapstructure:"gssencmode"`
	// ChannelBinding is libpq's channel_binding.
	ChannelBinding string `mapstructure:"channel_binding"`
	// RequireAuth is libpq's require_auth: by which methods the server may ask, others are not
	// answered. The agent itself and PostgreSQL from 16 on know it. Default: without a certificate of
	// the server that is checked (sslmode verify-ca, verify-full) no password in clear text, and no
	// md5 either once a member was seen to have a SCRAM verifier for the role. SCRAM alone where data
	// are removed or a primary is stopped by the answer (security.md).
	RequireAuth string `mapstructure:"require_auth"`
	// PasswordFile is a file with the password instead, read anew with every reload.
	PasswordFile string `mapstructure:"password_file"`
}

// Callbacks are the commands that are run when something happened to the local
// PostgreSQL.
type Callbacks struct {
	// OnStart is run after PostgreSQL has started. All callbacks get the action, the role and the
	// scope as arguments; one runs at a time, at most lictor.script_timeout.
	OnStart string `mapstructure:"on_start"`
	// OnStop is run after PostgreSQL has stopped.
	OnStop string `mapstructure:"on_stop"`
	// OnRestart is run after PostgreSQL was restarted.
	OnRestart string `mapstructure:"on_restart"`
	// OnReload is run after PostgreSQL has read its configuration again.
	OnReload string `mapstructure:"on_reload"`
	// OnRoleChange is run after a promotion or demotion, instead of the others.
	OnRoleChange string `mapstructure:"on_role_change"`
}

// Watchdog is the device that resets a host which hangs.
type Watchdog struct {
	// Mode says what a missing device means: off (nothing is opened), automatic (a warning), required
	// (the member does not lead without it). See docs/watchdog.md.
	Mode string `mapstructure:"mode"`
	// Device is the watchdog's device file.
	Device string `mapstructure:"device"`
	// SafetyMargin is how long before the lease's end the device resets the host, in seconds; -1: half
	// of ttl. Default: 5 from ttl 20 on, else 1.
	SafetyMargin *int `mapstructure:"safety_margin"`
	// Driver is default for a real device; testing: a fifo that tests read.
	Driver string `mapstructure:"driver"`
}

// Log says what is logged and how.
type Log struct {
	// Level is the least severity that is logged.
	Level string `mapstructure:"level"`
	// Format is how lines look: console, json, patroni (as Patroni's default). Default: auto, which is
	// console on a terminal and JSON elsewhere.
	Format string `mapstructure:"format"`
	// DateFormat is Python's. Without effect: lines carry the time as their format says.
	DateFormat string `mapstructure:"dateformat"`
	// Dir is a directory, which must be there, for a log file: lictor.log. Default: none, the log goes to
	// stderr, for systemd's journal or the container's log. What the guard says, and what cannot be
	// written into the file, goes to stderr still.
	Dir string `mapstructure:"dir"`
	// FileSize is the size in bytes beyond which the log file is put aside. Default: 25000000.
	FileSize int `mapstructure:"file_size"`
	// FileNum is how many files that were put aside are kept, a number. Default: 4.
	FileNum int `mapstructure:"file_num"`
	// Mode is the permissions of a new log file, a number in octal. Default: 0640.
	Mode int `mapstructure:"mode"`
	// Type is plain or json; json is the same as format json.
	Type string `mapstructure:"type"`
	// Loggers are Python's levels by module. Without effect.
	Loggers map[string]string `mapstructure:"loggers"`
}

// Lictor holds what Patroni does not have.
type Lictor struct {
	// RoutesPrefix is the first part of Lictor's own keys in Consul (routes, bouncers, handovers).
	// Agents and bouncers must agree on it.
	RoutesPrefix string `mapstructure:"routes_prefix"`
	// StateDir is where the agent keeps its own small files (markers of unfinished work, the guard's
	// socket). Default: beside the data directory.
	StateDir string `mapstructure:"state_dir"`
	// OSUser is the user that PostgreSQL runs as when the agent was started as root. Default: the
	// owner of the data directory, else postgres.
	OSUser string `mapstructure:"os_user"`
	// UpgradeBinDir is the directory of the programs of the major version to which the shard is to be
	// upgraded: lictor upgrade --check runs them. Default: where this version's are, with the other one's
	// number in place of its own, /usr/lib/postgresql/17/bin for /usr/lib/postgresql/15/bin.
	UpgradeBinDir string `mapstructure:"upgrade_bin_dir"`
	// Compat is whose words REST API and member keys use: patroni-4 says primary, patroni-3 master.
	// For tools and Patroni members of that version. Where it is written, loop_wait and retry_timeout
	// that do not fit into ttl are taken, and lowered as Patroni 4.1 does (patroni-3 keeps them in the
	// dynamic configuration as they were given); where it is not, they are refused.
	// Default: patroni-4.
	Compat string `mapstructure:"compat"`
	Fence  Fence  `mapstructure:"fence"`
	// ScriptTimeout is how long callbacks, pre_promote and before_stop may run, in seconds. Default:
	// 30.
	ScriptTimeout int `mapstructure:"script_timeout"`
	// PassEnvironment names variables of the agent's environment that PostgreSQL, its programs and
	// scripts get besides PATH, HOME and their like; a name may end with * (PGBACKREST_*, AWS_*).
	// Others, such as tokens, are not handed on. libpq's own (PGHOST, ...) never are.
	PassEnvironment []string `mapstructure:"pass_environment"`
	Backup          Backup   `mapstructure:"backup"`
}

// Backup says where the leader asks what backups the shard has. It only tells of them.
type Backup struct {
	// Stanza is the shard's stanza in pgBackRest. The leader asks pgBackRest what is in the
	// repository, for metrics, lictor fleet and lictor doctor. Default: nothing is asked.
	Stanza string `mapstructure:"stanza"`
	// Command is how pgBackRest is called, with options of its own; it runs as PostgreSQL's user, without
	// a shell. Default: pgbackrest.
	Command string `mapstructure:"command"`
	// Every is how often it is asked, in seconds. Default: 300.
	Every int `mapstructure:"every"`
	// MaxAge is the age, a number of hours, from which on the last good backup is a problem. Default: 26.
	MaxAge int `mapstructure:"max_age"`
	// MaxVerifiedAge is the age, a number of hours, from which on the last verification of a backup is
	// told of by lictor fleet and lictor doctor; that there was none, when a backup is half as old.
	// Default: 360.
	MaxVerifiedAge int `mapstructure:"max_verified_age"`
	// MaxRestore is how long a restore in place (lictor restore) may take, a number of hours: one that takes longer,
	// or hangs, is undone, and the old data are put back. Default: 24.
	MaxRestore int `mapstructure:"max_restore"`
}

// RestoreLimit is MaxRestore as a duration, with its default.
func (b Backup) RestoreLimit() time.Duration {
	return time.Duration(cmp.Or(b.MaxRestore, DefaultBackupMaxRestore)) * time.Hour
}

// Speaks is the version of Patroni whose words are used.
func (l Lictor) Speaks() string {
	if l.Compat == "" {
		return DefaultCompat
	}
	return l.Compat
}

// Rules are those by which this agent reads the dynamic configuration: as Patroni
// does where the file says which Patroni is meant.
func (l Lictor) Rules() cluster.Rules { return cluster.Rules{LowerTiming: l.Compat != ""} }

// InForce is the section with its defaults.
func (b Backup) InForce() Backup {
	b.Command = cmp.Or(b.Command, DefaultBackup)
	b.Every = cmp.Or(b.Every, DefaultBackupEvery)
	b.MaxAge = cmp.Or(b.MaxAge, DefaultBackupMaxAge)
	b.MaxVerifiedAge = cmp.Or(b.MaxVerifiedAge, DefaultBackupMaxVerifiedAge)
	b.MaxRestore = cmp.Or(b.MaxRestore, DefaultBackupMaxRestore)
	return b
}

// ScriptLimit is ScriptTimeout as a duration, with its default.
func (l Lictor) ScriptLimit() time.Duration {
	if l.ScriptTimeout == 0 {
		return DefaultScriptTimeout * time.Second
	}
	return time.Duration(l.ScriptTimeout) * time.Second
}

// Fence moves the moments, before the end of the lease, at which a leader that
// could not renew it stops PostgreSQL. Seconds; zero: a share of ttl.
type Fence struct {
	// DemoteBefore is how long before the end of its lease, in seconds, a leader that could not renew
	// it begins to stop PostgreSQL. Default: ttl/4.
	DemoteBefore float64 `mapstructure:"demote_before"`
	// KillBefore is how long before the end of the lease, in seconds, the guard kills what is left of
	// PostgreSQL. It must come after the demotion and leave room for the kill itself: at least 0.2. Default: ttl/10.
	KillBefore float64 `mapstructure:"kill_before"`
}

// Margins are how long before the end of a lease of ttl PostgreSQL is stopped, and
// killed (design 5.4).
func (f Fence) Margins(ttl time.Duration) (demoteBefore, killBefore time.Duration) {
	demoteBefore, killBefore = ttl/4, ttl/10
	if f.DemoteBefore > 0 {
		demoteBefore = time.Duration(f.DemoteBefore * float64(time.Second))
	}
	if f.KillBefore > 0 {
		killBefore = time.Duration(f.KillBefore * float64(time.Second))
	}
	return demoteBefore, killBefore
}

// String shows the configuration as YAML, without its secrets.
func (c Config) String() string { return settings.Dump(c) }

// GoString does, too.
func (c Config) GoString() string { return c.String() }

// String shows the role without its passwords.
func (u PgUser) String() string { return settings.Dump(u) }

// GoString does, too.
func (u PgUser) GoString() string { return u.String() }

// String shows the user without the password.
func (c Credentials) String() string { return settings.Dump(c) }

// GoString does, too.
func (c Credentials) GoString() string { return c.String() }

// String shows the user without the password.
func (u BootstrapUser) String() string { return settings.Dump(u) }

// GoString does, too.
func (u BootstrapUser) GoString() string { return u.String() }

// Keys are the Consul keys of this shard.
func (c Config) Keys() cluster.Keys {
	return cluster.NewKeys(c.Namespace, c.Scope, c.Lictor.RoutesPrefix)
}
