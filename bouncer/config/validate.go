package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/certfiles"
	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// problems collects what is wrong with a configuration.
type problems []error

// add notes one problem; value is nil where it says nothing or is secret.
func (p *problems) add(path string, value any, rule string, args ...any) {
	problem := cluster.Problem{Path: path, Rule: fmt.Sprintf(rule, args...)}
	switch v := value.(type) {
	case nil:
	case string:
		problem.Value = strconv.Quote(v)
	default:
		problem.Value = fmt.Sprint(v)
	}
	*p = append(*p, problem)
}

// Validate checks every field and the relations between them. Each problem is a
// cluster.Problem.
func (c Config) Validate() ([]cluster.Warning, error) {
	var bad problems
	if plainName := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`); !plainName.MatchString(c.Name) {
		bad.add("name", c.Name, "must consist of letters, digits, . _ and -")
	}
	if err := cluster.CheckNamespace(c.RoutesPrefix); err != nil {
		bad.add("routes_prefix", c.RoutesPrefix, "%v", err)
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || !isPort(port, 0) {
		bad.add("listen", c.Listen, "must be host:port")
	}
	if c.ConnectAddress != "" {
		if host, port, err := net.SplitHostPort(c.ConnectAddress); err != nil || host == "" || !isPort(port, 1) {
			bad.add("connect_address", c.ConnectAddress, "must be host:port")
		}
	}
	if err := cluster.CheckCredentials(c.Authentication.Username, c.Authentication.Password); err != nil {
		bad.add("authentication", nil, "%v", err)
	}
	c.validateListener(&bad)
	c.validateWeb(&bad)
	if c.HoldTimeout < 1 || c.HoldTimeout > 3600 {
		bad.add("hold_timeout", c.HoldTimeout, "must be from 1 to 3600 seconds")
	}
	switch c.Log.Format {
	case "", "auto", "console", "json":
	default:
		bad.add("log.format", c.Log.Format, "must be one of auto, console, json")
	}
	for i, name := range c.PassEnvironment {
		if err := environ.CheckName(name); err != nil {
			bad.add(fmt.Sprintf("pass_environment[%d]", i), name, "%v", err)
		}
	}
	c.PgBouncer.validate(&bad)
	c.validateFiles(&bad)
	c.validateShards(&bad)
	c.validateStrictReaders(&bad)
	warnings, err := c.Consul.Validate()
	warnings = append(append(warnings, c.fileWarnings()...), c.webWarnings()...)
	if public, err := c.URL(c.Listen); err == nil && c.CertFile != "" {
		if err := certfiles.CheckName(c.CertFile, strings.TrimPrefix(public, "https://")); err != nil {
			warnings = append(warnings, cluster.Warning{Path: "certfile", Text: fmt.Sprintf(
				"agents and commands refuse it: it is not for the host of connect_address (%v); add that to its subjectAltName", err)})
		}
	}
	if wait, err := strconv.ParseFloat(c.Setting("query_wait_timeout"), 64); err == nil && wait > 0 && wait <= c.HoldTimeout {
		warnings = append(warnings, cluster.Warning{Path: "hold_timeout", Text: fmt.Sprintf(
			"%v s is not shorter than pgbouncer.settings.query_wait_timeout (%v s): held clients are failed before they are released", c.HoldTimeout, wait)})
	}
	return warnings, errors.Join(append(bad, err)...)
}

func (p PgBouncer) validate(bad *problems) {
	if len(p.Processes) > 0 {
		p.validateProcesses(bad)
	} else {
		p.validateAlone(bad)
	}
	if p.Password != "" && p.PasswordFile != "" {
		bad.add("pgbouncer.password_file", p.PasswordFile, "must not be set together with pgbouncer.password")
	}
	p.validateProbe(bad)
	switch p.SSLMode {
	case "", "disable", "allow", "prefer", "require", "verify-ca", "verify-full":
	default:
		bad.add("pgbouncer.sslmode", p.SSLMode, "must be one of disable, allow, prefer, require, verify-ca, verify-full")
	}
	p.validateRoots(bad)
	for i, peer := range p.Peers {
		if a, err := pgbouncer.ParseAddress(peer); err != nil || !isText(a.Host) {
			bad.add(fmt.Sprintf("pgbouncer.peers[%d]", i), peer, "must be host:port or the directory of a unix socket and the port")
		}
	}
	if last := len(p.Peers) - max(len(p.Processes)-1, 0); len(p.Peers) > 0 && (p.PeerID < 1 || p.PeerID > last) {
		bad.add("pgbouncer.peer_id", p.PeerID, "must be the place of this PgBouncer, or of its first process, in pgbouncer.peers, from 1 to %d", last)
	}
	if len(p.Peers) == 0 && p.PeerID != 0 {
		bad.add("pgbouncer.peer_id", p.PeerID, "needs pgbouncer.peers")
	}
	if len(p.Command) > 0 && p.Command[0] == "" {
		bad.add("pgbouncer.command", nil, "must begin with a program")
	}
	if p.StopTimeout < 0 || p.StopTimeout > 3600 {
		bad.add("pgbouncer.stop_timeout", p.StopTimeout, "must be from 0 to 3600 seconds")
	}
	checkSettings("pgbouncer.settings.", p.Settings, bad)
	p.validateOptions(bad)
}

// validateProbe checks that a probe tells nobody the password of somebody who may do something.
func (p PgBouncer) validateProbe(bad *problems) {
	if p.ProbeUser != "" {
		if err := pgbouncer.CheckUser(p.ProbeUser, ""); err != nil {
			bad.add("pgbouncer.probe_user", p.ProbeUser, "%v", err)
		}
	}
	if p.ProbePassword == "" {
		return
	}
	names := []string{"", p.User, DefaultUser}
	for _, setting := range []string{"admin_users", "stats_users", "auth_user"} {
		for name := range strings.SplitSeq(settingValue(p.Settings[setting]), ",") {
			names = append(names, strings.TrimSpace(name))
		}
	}
	if slices.Contains(names, p.ProbeUser) {
		bad.add("pgbouncer.probe_user", p.ProbeUser, "must be a role of its own where pgbouncer.probe_password is set, none of PgBouncer's console: a shard's host may log in there by what a probe tells it")
	}
}

func checkSettings(path string, settings map[string]any, bad *problems) {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if err := checkSetting(name, settings[name]); err != nil {
			bad.add(path+name, nil, "%v", err)
		}
	}
}

// validateAlone checks what is said of a PgBouncer that is the only one on its port.
func (p PgBouncer) validateAlone(bad *problems) {
	if p.Config == "" {
		bad.add("pgbouncer.config", nil, "must be set: the path of the pgbouncer.ini to write")
	} else if !filepath.IsAbs(p.Config) {
		bad.add("pgbouncer.config", p.Config, "must be an absolute path")
	}
	if p.Admin == "" {
		bad.add("pgbouncer.admin", nil, "must be set: host:port or the directory of the unix socket and the port, /run/postgresql:6432")
	} else if _, err := pgbouncer.ParseAddress(p.Admin); err != nil {
		bad.add("pgbouncer.admin", nil, "%v", err)
	}
	if isOn(p.Settings["so_reuseport"], false) {
		bad.add("pgbouncer.settings.so_reuseport", nil, "lets several processes have the port, and nobody can tell which of them has answered: list all of them in pgbouncer.processes, be it one, or leave it out")
	}
}

// validateRoots checks the authorities of the console's certificate.
func (p PgBouncer) validateRoots(bad *problems) {
	if p.SSLRootCert == "" {
		return
	}
	switch p.SSLMode {
	case "disable", "allow", "prefer":
		bad.add("pgbouncer.sslmode", p.SSLMode, "must be one of require, verify-ca, verify-full where pgbouncer.sslrootcert is set: others check no certificate")
	}
	if address, err := pgbouncer.ParseAddress(p.Admin); err == nil && address.IsUnix() {
		bad.add("pgbouncer.sslrootcert", p.SSLRootCert, "has no effect on a unix socket (pgbouncer.admin), which has no TLS")
	}
	if text, err := os.ReadFile(p.SSLRootCert); err != nil {
		bad.add("pgbouncer.sslrootcert", nil, "cannot be read: %v", err)
	} else if !x509.NewCertPool().AppendCertsFromPEM(text) {
		bad.add("pgbouncer.sslrootcert", p.SSLRootCert, "must be a file with a certificate in PEM form")
	}
}

func (c Config) validateFiles(bad *problems) {
	paths := map[string]int{}
	for i, f := range c.Files {
		at := fmt.Sprintf("files[%d].", i)
		if f.Template == "" {
			bad.add(at+"template", nil, "must be set: the name of one of Lictor's templates or a path")
		} else if _, err := f.ReadTemplate(); err != nil && !strings.Contains(f.Template, "/") {
			bad.add(at+"template", f.Template, "is none of Lictor's; a file is given as a path with a slash")
		}
		if first, twice := paths[f.Path]; twice {
			bad.add(at+"path", f.Path, "is already that of files[%d]", first)
		}
		paths[f.Path] = i
		if !filepath.IsAbs(f.Path) || slices.ContainsFunc(c.Each(), func(one Config) bool { return f.Path == one.PgBouncer.Config }) {
			bad.add(at+"path", f.Path, "must be an absolute path, and not pgbouncer.config")
		}
		if len(f.Command) > 0 && f.Command[0] == "" {
			bad.add(at+"command", nil, "must begin with a program")
		}
		if len(f.Validate) > 0 && (f.Validate[0] == "" || !slices.ContainsFunc(f.Validate[1:], func(arg string) bool { return strings.Contains(arg, "%s") })) {
			bad.add(at+"validate", nil, "must begin with a program, and have %%s where the path of the file goes")
		}
	}
}

// fileWarnings says what is missing where a file is kept.
func (c Config) fileWarnings() (warnings []cluster.Warning) {
	for i, f := range c.Files {
		if f.Template == templates.HAProxy && len(c.Shards)+len(c.Refused()) == 0 {
			warnings = append(warnings, cluster.Warning{
				Path: fmt.Sprintf("files[%d]", i), Text: "shards lists none: a shard that comes or goes moves HAProxy's ports of those after it, and their clients reach another one; list all",
			})
		}
		if f.Template == templates.HAProxy && len(f.Validate) == 0 {
			warnings = append(warnings, cluster.Warning{
				Path: fmt.Sprintf("files[%d].validate", i), Text: `is not set: HAProxy gets files that nobody has looked at; [haproxy, -c, -f, "%s"] does`,
			})
		}
	}
	return warnings
}

func (c Config) validateShards(bad *problems) {
	if err := checkReaders(c.Readers); err != nil {
		bad.add("readers", c.Readers, "%v", err)
	}
	scopes, databases := map[ShardID]int{}, map[string]int{}
	for i, s := range c.Shards {
		path := fmt.Sprintf("shards[%d].", i)
		if err := cluster.CheckName(s.Scope); err != nil {
			bad.add(path+"scope", s.Scope, "%v", err)
		}
		if err := cluster.CheckNamespace(s.Namespace); err != nil {
			bad.add(path+"namespace", s.Namespace, "%v", err)
		}
		if first, twice := scopes[s.ID()]; twice {
			bad.add(path+"scope", s.Scope, "is already shards[%d]", first)
		}
		scopes[s.ID()] = i
		for j, entry := range s.Databases {
			d, err := parseDatabase(entry)
			if err != nil {
				bad.add(fmt.Sprintf("%sdatabases[%d]", path, j), nil, "%v", err)
				continue
			}
			for _, name := range d.Names(c.ReadersOf(s)) {
				if first, twice := databases[name]; twice {
					bad.add(fmt.Sprintf("%sdatabases[%d]", path, j), entry, "PgBouncer's database %q already belongs to shards[%d]", name, first)
				}
				databases[name] = i
			}
		}
		if s.PoolSize < 0 {
			bad.add(path+"pool_size", s.PoolSize, "must be 1 or more; 0 is PgBouncer's default_pool_size")
		}
		if s.MaxReplicaLag < 0 {
			bad.add(path+"max_replica_lag", s.MaxReplicaLag, "must be 1 or more bytes; 0 is the default of %d", int64(DefaultReplicaLag))
		}
		switch s.PoolMode {
		case "", "session", "transaction", "statement":
		default:
			bad.add(path+"pool_mode", s.PoolMode, "must be one of session, transaction, statement")
		}
		if err := checkReaders(s.Readers); err != nil {
			bad.add(path+"readers", s.Readers, "%v", err)
		}
		s.validateOptions(path, c.ReadersOf(s), bad)
	}
}

// validateStrictReaders refuses readers that lose their database, while no replica takes them,
// where PgBouncer makes it again by its database *: at a primary, where they may write.
func (c Config) validateStrictReaders(bad *problems) {
	if len(c.PgBouncer.Fallback) == 0 {
		return
	}
	const rule = "must be primary-fallback or off beside pgbouncer.fallback, which would take the clients while no replica takes readers"
	inherited := len(c.Shards) == 0
	for i, s := range c.Shards {
		if s.Readers == ReadersStrict {
			bad.add(fmt.Sprintf("shards[%d].readers", i), s.Readers, rule)
		}
		inherited = inherited || s.Readers == ""
	}
	if inherited && c.Readers == ReadersStrict {
		bad.add("readers", c.Readers, rule)
	}
}

func isPort(s string, lowest int) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= lowest && n <= 65535
}
