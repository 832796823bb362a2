package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// Config is a bouncer's file (bouncer.yml) after all layers have been merged
// and the defaults filled in. Make one with Load.
type Config struct {
	// Version is Lictor's, for agents and operators to see.
	Version string `mapstructure:"-"`
	// Name tells bouncers apart in Consul. Default: the host's name.
	Name   string          `mapstructure:"name"`
	Consul settings.Consul `mapstructure:"consul"`
	// RoutesPrefix is the first part of Lictor's own Consul keys, as in the agents'
	// lictor.routes_prefix.
	RoutesPrefix string `mapstructure:"routes_prefix"`
	// Listen is where /health, /status, /poke, /drain, /pause and their like are served, host:port. Agents and
	// the load balancer must reach it.
	Listen string `mapstructure:"listen"`
	// ConnectAddress is how agents reach Listen, host:port. Default: listen, with the host's name in
	// place of a wildcard.
	ConnectAddress string `mapstructure:"connect_address"`
	// Authentication protects drain, undrain, pause, resume and release; without it, verify_client or allowlist they are taken
	// from root and the bouncer's own user on this host only.
	Authentication Credentials `mapstructure:"authentication"`
	// CertFile is the file of the listener's certificate; with it the listener speaks https only,
	// health checks too. A renewed file is picked up without a restart.
	CertFile string `mapstructure:"certfile"`
	// KeyFile is the file of the certificate's key, if certfile does not hold it as well.
	KeyFile string `mapstructure:"keyfile"`
	// KeyFilePassword is the pass phrase of the key file, where it has one.
	KeyFilePassword string `mapstructure:"keyfile_password"`
	// CAFile is the file of the authorities whose client certificates are taken, and that commands
	// check a bouncer's certificate by.
	CAFile string `mapstructure:"cafile"`
	// VerifyClient says who must show a client certificate: none; optional: requests to drain and
	// undrain; required: everybody, health checks and agents too. Default: none.
	VerifyClient string `mapstructure:"verify_client"`
	// VerifyNames has commands compare the names in a bouncer's certificate with the host that they
	// ask. Default: true.
	VerifyNames *bool `mapstructure:"verify_names"`
	// Allowlist are the addresses, networks and host names from which requests may drain and undrain;
	// empty: all, of those who have the password or, where it is asked for, the certificate.
	Allowlist []string `mapstructure:"allowlist"`
	// Web has listen serve the fleet page as well, as `lictor web` does: all shards, read only. To
	// read it takes what web_authentication, or else authentication, and verify_client (optional, too)
	// ask for, from where allowlist says; without them everybody who reaches listen reads it.
	Web bool `mapstructure:"web"`
	// WebAuthentication is what browsers have to show for the fleet page: it opens nothing else.
	// Default: authentication, with which drain and pause are allowed, too.
	WebAuthentication Credentials `mapstructure:"web_authentication"`
	// WebNamespace is the namespace in Consul of which the fleet page shows the shards. Default: that
	// of shards, or service.
	WebNamespace string `mapstructure:"web_namespace"`
	// Template is the path of a template that takes the place of the built-in
	// pgbouncer.ini.ctmpl.
	Template string `mapstructure:"template"`
	// StateFile keeps the last good routes, for a start without Consul, and what operators have paused
	// or drained. Default: pgbouncer.config, or that of the first process, with .routes.json; a newer
	// one of this bouncer beside it, or beside another process's file, is taken over at a start.
	StateFile string    `mapstructure:"state_file"`
	PgBouncer PgBouncer `mapstructure:"pgbouncer"`
	// Shards lists the shards to serve; none: all under the routes prefix, with
	// the scope as the database's name.
	Shards []Shard `mapstructure:"shards"`
	// Readers is the mode of all shards that have none of their own (shards[].readers). Default:
	// primary-fallback.
	Readers string `mapstructure:"readers"`
	// Files are further files to keep, userlist.txt and haproxy.cfg for instance.
	Files []File `mapstructure:"files"`
	// HoldTimeout is the longest time, in seconds, for which clients are held while their shard has no
	// primary: a dead man's timer. Keep it below query_wait_timeout, or held clients fail instead.
	HoldTimeout float64 `mapstructure:"hold_timeout"`
	// AllowEmpty lets the last shard leave PgBouncer when its route is deleted.
	AllowEmpty bool `mapstructure:"allow_empty"`
	// PassEnvironment names variables of the bouncer's environment that PgBouncer (pgbouncer.command)
	// and the commands of files get besides PATH, HOME and their like; a name may end with *
	// (AWS_*). Others, such as tokens, are not handed on. libpq's own (PGHOST, ...) never are.
	PassEnvironment []string `mapstructure:"pass_environment"`
	Log             Log      `mapstructure:"log"`

	// closesSockets: PgBouncer's connections can be closed from here (SOCK_DESTROY); nil:
	// that was not tried yet.
	closesSockets *bool
	// listed: this is the configuration for one of pgbouncer.processes.
	listed bool
	// refused and unfollowed are what LoadServable has taken out of Shards.
	refused    []Refused
	unfollowed []string
	// standsFor is why the file is not followed that this stands in for.
	standsFor error
	// path is the file or directory that this was read from.
	path string
	// text is what the file says, to be kept at lastGood.
	text     []byte
	lastGood string
}

// PgBouncer is the PgBouncer beside the bouncer.
type PgBouncer struct {
	// Config is the path of the pgbouncer.ini that the bouncer writes; the last good one is kept
	// beside it, with .last-good at its end.
	Config string `mapstructure:"config"`
	// Admin is where the admin console listens: host:port or the directory of
	// the unix socket and the port (/run/postgresql:6432).
	Admin string `mapstructure:"admin"`
	// User logs in to the admin console. PgBouncer lets pgbouncer in without a password over a unix
	// socket, where both programs run as the same user of the system.
	User string `mapstructure:"user"`
	// Password is the password of User. Default: the plain password that auth_file has for it.
	Password string `mapstructure:"password"`
	// PasswordFile is a file with it.
	PasswordFile string `mapstructure:"password_file"`
	// SSLMode is libpq's, for the admin console. Default: disable on this host, prefer elsewhere.
	SSLMode string `mapstructure:"sslmode"`
	// SSLRootCert is the file of the authorities that the certificate of the admin console is checked
	// by; with it sslmode is verify-full unless it says require or verify-ca. It is read anew for each
	// connection.
	SSLRootCert string `mapstructure:"sslrootcert"`
	// ProbeUser is the role as which a primary that was lost is asked whether it is one again. Default:
	// user. It has no password of PgBouncer's: without probe_password it is in only where pg_hba.conf wants
	// none of it.
	ProbeUser string `mapstructure:"probe_user"`
	// ProbePassword is the password of ProbeUser, which is a role of its own then, that may do nothing
	// and is no user of PgBouncer: where a primary is says Consul, so another shard's host may log in
	// elsewhere by what it is told.
	ProbePassword string `mapstructure:"probe_password"`
	// Settings go into the section [pgbouncer], over the template's own. A name that PgBouncer does
	// not know is an error.
	Settings map[string]any `mapstructure:"settings"`
	// DatabaseOptions are options of PgBouncer's section [databases] for the databases of all shards:
	// {application_name: pooler, timezone: UTC}. An option that the running PgBouncer is too old for
	// is not written, and told under problems in /status.
	DatabaseOptions map[string]any `mapstructure:"database_options"`
	// Users is PgBouncer's section [users]: options by user, {report: {pool_mode: session}}. One that
	// the running PgBouncer is too old for is not written, and told.
	Users map[string]map[string]any `mapstructure:"users"`
	// Fallback is PgBouncer's database *: where clients go that ask for a database that no shard has.
	// shard (scope or namespace/scope) has them follow that shard's primary, else host is an address;
	// beside it options as in database_options: {shard: orders, pool_size: 5}. Once PgBouncer has one,
	// it keeps it until it is restarted.
	Fallback map[string]any `mapstructure:"fallback"`
	// Peers are the addresses (host:port) of all PgBouncers behind one load balancer, this one's own
	// included, in the same order on every host: a request to cancel a query may arrive at any of
	// them. PgBouncer 1.19 and later, all on the same side of 1.21; it takes effect when PgBouncer
	// starts.
	Peers []string `mapstructure:"peers"`
	// PeerID is the place of this PgBouncer in peers, from 1 (a number); of several processes that of
	// the first, the others have those that follow. Without peers the processes are each other's.
	PeerID int `mapstructure:"peer_id"`
	// Command runs PgBouncer in the foreground, for containers; empty: it is run
	// by somebody else. The bouncer starts it when its first file is there, starts
	// it again when it ends, and ends it when it ends itself.
	Command []string `mapstructure:"command"`
	// Processes are the processes of PgBouncer that share one port (so_reuseport), each with a console
	// and a file of its own; config, admin and command of pgbouncer are not set then.
	Processes []Process `mapstructure:"processes"`
	// StopTimeout is how long, in seconds, PgBouncer may take to let running transactions end when the
	// bouncer ends, before PgBouncer is ended by force; with command only.
	StopTimeout float64 `mapstructure:"stop_timeout"`
}

// File is a file that the bouncer keeps beside pgbouncer.ini.
type File struct {
	// Template is the name of one of Lictor's (userlist.txt.ctmpl,
	// haproxy.cfg.ctmpl) or the path of a file.
	Template string `mapstructure:"template"`
	// Path is the file to keep, absolute.
	Path string `mapstructure:"path"`
	// Validate is a command that looks at a new file before it takes the old one's place; %s in it is
	// the file's path: [haproxy, -c, -f, "%s"]. A file that it refuses is not installed.
	Validate []string `mapstructure:"validate"`
	// Command makes a change take effect. PgBouncer's auth_file needs none.
	Command []string `mapstructure:"command"`
}

// Credentials are a user name and its password.
type Credentials struct {
	// Username is the name to log in with.
	Username string `mapstructure:"username"`
	// Password is its password.
	Password string `mapstructure:"password"`
}

// Log says what is logged and how; the command that makes the logger reads it.
type Log struct {
	// Level is the least severity that is logged: debug, info, warning, error. Default: info.
	Level string `mapstructure:"level"`
	// Format is how lines look: console or json. Default: auto, which is console on a terminal and
	// JSON elsewhere.
	Format string `mapstructure:"format"`
}

// Defaults of the configuration.
const (
	DefaultListen      = "127.0.0.1:8009"
	DefaultUser        = "pgbouncer"
	DefaultHoldTimeout = 30 // seconds
	DefaultStopTimeout = 30 // seconds
)

// Load reads a bouncer's configuration: the file, LICTOR_* variables over it,
// flags over both, and HashiCorp's CONSUL_* variables for what all of them leave
// empty. Every problem is reported at once. Warnings are returned with and
// without an error.
func Load(source settings.Source) (Config, []cluster.Warning, error) {
	c, warnings, err := load(source)
	if err != nil {
		return Config{}, warnings, err
	}
	return c, warnings, nil
}

// load is Load that returns with an error what could be read.
func load(source settings.Source) (c Config, warnings []cluster.Warning, err error) {
	var text []byte
	source.Text = &text
	warnings, err = settings.Load(source, schema(), &c, func() ([]cluster.Warning, error) {
		filled := errors.Join(c.Consul.FillFromEnvironment(source.Get), c.Complete())
		warnings, invalid := c.Validate()
		return warnings, errors.Join(filled, invalid)
	})
	c.path, c.text, c.lastGood = source.Path, text, lastGoodPath(source)
	return c, warnings, err
}

// schema is what a file may say besides the fields of Config: a time may have a unit.
func schema() settings.Schema {
	return settings.Schema{Adjust: map[string]settings.Adjuster{
		"hold_timeout": settings.Seconds, "pgbouncer.stop_timeout": settings.Seconds,
	}}
}

// Complete fills in what was not set.
func (c *Config) Complete() error {
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return cluster.Problem{Path: "name", Rule: fmt.Sprintf("must be set, as the host's name is unknown: %v", err)}
		}
		c.Name = name
	}
	setDefault(&c.RoutesPrefix, cluster.DefaultRoutesPrefix)
	setDefault(&c.Listen, DefaultListen)
	setDefault(&c.PgBouncer.User, DefaultUser)
	if c.HoldTimeout == 0 {
		c.HoldTimeout = DefaultHoldTimeout
	}
	if c.PgBouncer.StopTimeout == 0 {
		c.PgBouncer.StopTimeout = DefaultStopTimeout
	}
	setDefault(&c.StateFile, c.DefaultStateFile())
	for i := range c.Shards {
		s := &c.Shards[i]
		s.place = i
		setDefault(&s.Namespace, cluster.DefaultNamespace)
		s.Namespace = strings.Trim(s.Namespace, "/")
		if len(s.Databases) == 0 && s.Scope != "" {
			s.Databases = []string{s.Scope}
		}
	}
	c.WebNamespace = strings.Trim(c.WebNamespace, "/")
	if all := c.namespaces(); c.Web && len(all) < 2 {
		c.WebNamespace = cmp.Or(c.WebNamespace, strings.Join(all, ""), cluster.DefaultNamespace)
	}
	return nil
}

// StateSuffix is at the end of a state file's default name.
const StateSuffix = ".routes.json"

// DefaultStateFile is where the state is kept unless state_file says otherwise.
func (c Config) DefaultStateFile() string {
	if first := c.Each()[0].PgBouncer.Config; first != "" {
		return first + StateSuffix
	}
	return ""
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

// isText reports whether s can stand on one line of a file.
func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }

// MaxHold is HoldTimeout as a duration.
func (c Config) MaxHold() time.Duration { return time.Duration(c.HoldTimeout * float64(time.Second)) }

// Keys names Lictor's own keys; those of a shard are not used.
func (c Config) Keys() cluster.Keys { return cluster.NewKeys("", "", c.RoutesPrefix) }

// URL is how agents reach the listener that was bound to address.
func (c Config) URL(address string) (string, error) {
	if c.ConnectAddress != "" {
		return c.Scheme() + "://" + c.ConnectAddress, nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("address of the listener: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("connect_address is not set, and the host's name is unknown: %w", err)
		}
	}
	return c.Scheme() + "://" + net.JoinHostPort(host, port), nil
}

// Admin says how to log in to the admin console. It is asked for each time, so
// that a changed password is picked up.
func (c Config) Admin() (pgbouncer.Options, error) {
	address, err := pgbouncer.ParseAddress(c.PgBouncer.Admin)
	if err != nil {
		return pgbouncer.Options{}, fmt.Errorf("pgbouncer.admin: %w", err)
	}
	o := pgbouncer.Options{Address: address, User: c.PgBouncer.User, Password: c.PgBouncer.Password, SSLMode: c.PgBouncer.SSLMode, SSLRootCert: c.PgBouncer.SSLRootCert, RequireAuth: c.requireAuth()}
	switch {
	case o.Password != "":
	case c.PgBouncer.PasswordFile != "":
		text, err := osuser.Keeper(c.PgBouncer.PasswordFile).ReadFile(c.PgBouncer.PasswordFile)
		if err != nil {
			return pgbouncer.Options{}, fmt.Errorf("pgbouncer.password_file: %w", err)
		}
		o.Password = strings.TrimRight(string(text), "\r\n")
	default:
		// Absent or unreadable: the console may trust a unix socket's peer. If
		// it does not, its refusal says more than a missing file would.
		path := c.Setting("auth_file")
		if text, err := osuser.Keeper(path).ReadFile(path); err == nil {
			users, _ := pgbouncer.ParseUserlist(text) // what is wrong after this user is the file's writer's to say
			if secret := users[o.User]; isPlainPassword(secret) {
				o.Password = secret
			}
		}
	}
	return o, nil
}

// requireAuth is how the console may ask for the password: any user of the host may listen at its
// port while PgBouncer is down, and would be told it in clear text.
func (c Config) requireAuth() string {
	switch method := strings.ToLower(c.Setting("auth_type")); {
	case slices.Contains([]string{"plain", "pam", "ldap", "hba"}, method):
		return "" // PgBouncer itself asks for clear text
	case method == "scram-sha-256" && c.Template == "":
		return "!password,!md5"
	}
	return "!password" // a template of the operator's may say another method
}

func isPlainPassword(secret string) bool {
	hash, isMD5 := strings.CutPrefix(secret, "md5")
	isMD5 = isMD5 && len(hash) == 32 && strings.Trim(hash, "0123456789abcdef") == ""
	return !isMD5 && !strings.HasPrefix(secret, "SCRAM-SHA-256$")
}

// DefaultReplicaLag is how many bytes of WAL a replica of a shard that Patroni
// runs may be behind and still take readers.
const DefaultReplicaLag = 16 << 20

// ReadTemplate reads the template: one of Lictor's by its name, or a file.
func (f File) ReadTemplate() ([]byte, error) {
	if !strings.Contains(f.Template, "/") {
		return templates.Read(f.Template)
	}
	text, err := os.ReadFile(f.Template)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	return text, nil
}

// IsBeside reports whether PgBouncer runs on this host: its console is a unix socket, or has an
// address that is this host's own. A name that is not localhost counts as another host's.
func (c Config) IsBeside() bool {
	if len(c.PgBouncer.Processes) > 0 {
		return true
	}
	address, err := pgbouncer.ParseAddress(c.PgBouncer.Admin)
	ip := net.ParseIP(address.Host)
	return err == nil && (address.IsUnix() || address.Host == "localhost" || ip != nil && (ip.IsLoopback() || isOwn(ip)))
}

// isOwn reports whether an interface of this host has the address, as far as that can be seen.
func isOwn(ip net.IP) bool {
	addresses, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addresses, func(a net.Addr) bool {
		own, ok := a.(*net.IPNet)
		return ok && own.IP.Equal(ip)
	})
}

// RunsPrograms reports whether programs are run that the operator has named.
func (c Config) RunsPrograms() bool {
	return len(c.PgBouncer.Command) > 0 || slices.ContainsFunc(c.Files, func(f File) bool { return len(f.Validate)+len(f.Command) > 0 })
}
