// Package config is the agent's own configuration file: Patroni's YAML schema
// (docs/design.md, section 3) plus Lictor's keys, decoded strictly into the
// types below and checked before anything starts.
//
// What all members of a shard share and can change at run time is the dynamic
// configuration, in package cluster.
package config

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// Config is one agent's file after all layers (files, environment, flags) have
// been merged.
type Config struct {
	Scope     string         `mapstructure:"scope"`
	Namespace string         `mapstructure:"namespace"`
	Name      string         `mapstructure:"name"`
	RestAPI   RestAPI        `mapstructure:"restapi"`
	Ctl       Ctl            `mapstructure:"ctl"`
	Consul    Consul         `mapstructure:"consul"`
	Bootstrap Bootstrap      `mapstructure:"bootstrap"`
	Postgres  Postgres       `mapstructure:"postgresql"`
	Watchdog  Watchdog       `mapstructure:"watchdog"`
	Tags      map[string]any `mapstructure:"tags"`
	Log       Log            `mapstructure:"log"`
	Lictor    Lictor         `mapstructure:"lictor"`
}

// RestAPI is where and how the agent's REST API listens.
type RestAPI struct {
	Listen                  string            `mapstructure:"listen"`
	ConnectAddress          string            `mapstructure:"connect_address"`
	Authentication          Credentials       `mapstructure:"authentication"`
	CertFile                string            `mapstructure:"certfile"`
	KeyFile                 string            `mapstructure:"keyfile"`
	KeyFilePassword         string            `mapstructure:"keyfile_password" json:"-"`
	CAFile                  string            `mapstructure:"cafile"`
	Ciphers                 string            `mapstructure:"ciphers"`
	VerifyClient            string            `mapstructure:"verify_client"` // none, optional, required
	Allowlist               []string          `mapstructure:"allowlist"`
	AllowlistIncludeMembers bool              `mapstructure:"allowlist_include_members"`
	HTTPExtraHeaders        map[string]string `mapstructure:"http_extra_headers"`
	HTTPSExtraHeaders       map[string]string `mapstructure:"https_extra_headers"`
	RequestQueueSize        int               `mapstructure:"request_queue_size"`
	ServerTokens            string            `mapstructure:"server_tokens"`
}

// Ctl is how commands reach the members' REST API.
type Ctl struct {
	Insecure        bool        `mapstructure:"insecure"`
	CertFile        string      `mapstructure:"certfile"`
	KeyFile         string      `mapstructure:"keyfile"`
	KeyFilePassword string      `mapstructure:"keyfile_password" json:"-"`
	CACert          string      `mapstructure:"cacert"`
	Authentication  Credentials `mapstructure:"authentication"`
}

// Credentials are a user name and its password.
type Credentials struct {
	Username string `mapstructure:"username"`
	Password string `mapstructure:"password" json:"-"`
}

// Consul is how the agent reaches Consul; the bouncer has the same section.
type Consul = settings.Consul

// Bootstrap says how the very first member of a shard is made.
type Bootstrap struct {
	// DCS becomes the dynamic configuration of a new shard.
	DCS map[string]any `mapstructure:"dcs"`
	// InitDB lists options of initdb: strings ("data-checksums") and
	// single-key maps ({encoding: UTF8}).
	InitDB []any `mapstructure:"initdb"`
	// Method names a custom bootstrap method; its map is in Methods.
	Method        string                   `mapstructure:"method"`
	PgHBA         []string                 `mapstructure:"pg_hba"`
	Users         map[string]BootstrapUser `mapstructure:"users"`
	PostBootstrap string                   `mapstructure:"post_bootstrap"` // alias post_init
	// Methods holds every other key of the section: bootstrap.<method>.
	Methods map[string]any `mapstructure:",remain"`
}

// BootstrapUser is a role that is created once, after initdb.
type BootstrapUser struct {
	Password string   `mapstructure:"password" json:"-"`
	Options  []string `mapstructure:"options"` // e.g. createrole, createdb
}

// Postgres is the local part of PostgreSQL's configuration.
type Postgres struct {
	Listen         string            `mapstructure:"listen"` // host[,host]:port
	ConnectAddress string            `mapstructure:"connect_address"`
	ProxyAddress   string            `mapstructure:"proxy_address"`
	DataDir        string            `mapstructure:"data_dir"`
	ConfigDir      string            `mapstructure:"config_dir"`
	BinDir         string            `mapstructure:"bin_dir"` // empty: $PATH
	BinName        map[string]string `mapstructure:"bin_name"`
	PgPass         string            `mapstructure:"pgpass"`
	Authentication Authentication    `mapstructure:"authentication"`
	// Parameters are PostgreSQL's; values keep their YAML type until written.
	Parameters         map[string]any `mapstructure:"parameters"`
	PgHBA              []string       `mapstructure:"pg_hba"`
	PgIdent            []string       `mapstructure:"pg_ident"`
	UseUnixSocket      bool           `mapstructure:"use_unix_socket"`
	UseUnixSocketRepl  bool           `mapstructure:"use_unix_socket_repl"`
	Callbacks          Callbacks      `mapstructure:"callbacks"`
	BaseBackup         any            `mapstructure:"basebackup"` // list or map of pg_basebackup options
	CreateReplica      []string       `mapstructure:"create_replica_methods"`
	RecoveryConf       map[string]any `mapstructure:"recovery_conf"`
	CustomConf         string         `mapstructure:"custom_conf"`
	UsePgRewind        *bool          `mapstructure:"use_pg_rewind"`
	UseSlots           *bool          `mapstructure:"use_slots"`
	RemoveOnRewindFail bool           `mapstructure:"remove_data_directory_on_rewind_failure"`
	RemoveOnDiverged   bool           `mapstructure:"remove_data_directory_on_diverged_timelines"`
	PrePromote         string         `mapstructure:"pre_promote"`
	BeforeStop         string         `mapstructure:"before_stop"`
	PgCtlTimeout       int            `mapstructure:"pg_ctl_timeout"` // seconds
	Database           string         `mapstructure:"database"`
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
	Username       string `mapstructure:"username"`
	Password       string `mapstructure:"password" json:"-"`
	SSLMode        string `mapstructure:"sslmode"`
	SSLCert        string `mapstructure:"sslcert"`
	SSLKey         string `mapstructure:"sslkey"`
	SSLPassword    string `mapstructure:"sslpassword" json:"-"`
	SSLRootCert    string `mapstructure:"sslrootcert"`
	SSLCRL         string `mapstructure:"sslcrl"`
	SSLCRLDir      string `mapstructure:"sslcrldir"`
	GSSEncMode     string `mapstructure:"gssencmode"`
	ChannelBinding string `mapstructure:"channel_binding"`
}

// Callbacks are the commands that are run when something happened to the local
// PostgreSQL.
type Callbacks struct {
	OnStart      string `mapstructure:"on_start"`
	OnStop       string `mapstructure:"on_stop"`
	OnRestart    string `mapstructure:"on_restart"`
	OnReload     string `mapstructure:"on_reload"`
	OnRoleChange string `mapstructure:"on_role_change"`
}

// Watchdog is the device that resets a host which hangs.
type Watchdog struct {
	Mode         string `mapstructure:"mode"` // off, automatic, required
	Device       string `mapstructure:"device"`
	SafetyMargin *int   `mapstructure:"safety_margin"` // seconds; -1: half of ttl
	Driver       string `mapstructure:"driver"`        // default, testing
}

// Log says what is logged and how.
type Log struct {
	Level      string            `mapstructure:"level"`
	Format     string            `mapstructure:"format"` // auto, console, json, patroni
	DateFormat string            `mapstructure:"dateformat"`
	Dir        string            `mapstructure:"dir"`
	Type       string            `mapstructure:"type"`
	Loggers    map[string]string `mapstructure:"loggers"`
}

// Lictor holds what Patroni does not have.
type Lictor struct {
	// RoutesPrefix is the first part of Lictor's own Consul keys.
	RoutesPrefix string `mapstructure:"routes_prefix"`
	// StateDir is where the agent keeps its own small files (markers of
	// unfinished work, the guard's socket); empty: beside the data directory.
	StateDir string `mapstructure:"state_dir"`
	// OSUser is the user that PostgreSQL runs as when the agent was started as
	// root; empty: the owner of the data directory, else "postgres".
	OSUser string `mapstructure:"os_user"`
	Compat string `mapstructure:"compat"` // patroni-3, patroni-4
	Fence  Fence  `mapstructure:"fence"`
}

// Fence moves the moments, before the end of the lease, at which a leader that
// could not renew it stops PostgreSQL. Seconds; zero: a share of ttl.
type Fence struct {
	DemoteBefore float64 `mapstructure:"demote_before"` // default ttl/4
	KillBefore   float64 `mapstructure:"kill_before"`   // default ttl/10
}

// Margins are how long before the end of a lease of ttl PostgreSQL is stopped, and
// killed (docs/design.md, section 10, ruling 4).
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
