package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// Source is where a configuration comes from: a file or directory, environment
// variables over it, flags over both.
type Source = settings.Source

// Warning is something that is allowed but probably not meant, or costs more
// than its author may know.
type Warning = cluster.Warning

// Defaults of the agent's own settings. Those of the dynamic configuration are
// in package cluster.
const (
	DefaultPostgresPort         = "5432"
	DefaultSuperuser            = "postgres"
	DefaultDatabase             = "postgres"
	DefaultPgCtlTimeout         = 60 // seconds
	DefaultCompat               = "patroni-4"
	DefaultWatchdogMode         = "off"
	DefaultWatchdogDevice       = "/dev/watchdog"
	DefaultVerifyClient         = "none"
	DefaultLogLevel             = "info"
	DefaultLogFileSize          = 25000000 // bytes
	DefaultLogFileNum           = 4
	DefaultLogMode              = 0o640
	DefaultScriptTimeout        = 30 // seconds
	DefaultBackup               = "pgbackrest"
	DefaultBackupEvery          = 300 // seconds
	DefaultBackupMaxAge         = 26  // hours
	DefaultBackupMaxVerifiedAge = 360 // hours
	DefaultBackupMaxRestore     = 24  // hours
)

// Load reads, layers, decodes and checks an agent's configuration. All problems
// are reported at once, each with setting, value, rule and place. A
// configuration with an error must not be used.
func Load(source Source) (Config, []Warning, error) {
	var cfg Config
	warnings, err := settings.Load(source, schema(), &cfg, func() ([]Warning, error) {
		problems := []error{cfg.Consul.FillFromEnvironment(source.Get)}
		more, err := cfg.complete()
		warnings, invalid := cfg.Validate()
		return append(more, warnings...), errors.Join(append(problems, err, invalid)...)
	})
	if err != nil {
		return Config{}, warnings, err
	}
	return cfg, warnings, nil
}

// complete fills in what was not set and brings the forms that Patroni takes
// into the one that the agent uses.
func (c *Config) complete() ([]Warning, error) {
	setDefault(&c.Namespace, cluster.DefaultNamespace)
	setDefault(&c.Consul.Consistency, "default")
	setDefault(&c.RestAPI.VerifyClient, DefaultVerifyClient)
	setDefault(&c.Watchdog.Mode, DefaultWatchdogMode)
	setDefault(&c.Watchdog.Device, DefaultWatchdogDevice)
	setDefault(&c.Watchdog.Driver, "default")
	setDefault(&c.Lictor.RoutesPrefix, cluster.DefaultRoutesPrefix)
	setDefault(&c.Postgres.Authentication.Superuser.Username, DefaultSuperuser)
	setDefault(&c.Postgres.Database, DefaultDatabase)
	if c.Postgres.PgCtlTimeout == 0 {
		c.Postgres.PgCtlTimeout = DefaultPgCtlTimeout
	}
	c.Namespace = strings.Trim(c.Namespace, "/")
	c.RestAPI.VerifyClient = strings.ToLower(c.RestAPI.VerifyClient)
	c.Watchdog.Mode = watchdogMode(c.Watchdog.Mode)
	c.Bootstrap.DCS = cluster.MergePatch(nil, c.Bootstrap.DCS)
	c.addresses()
	warnings := append(c.Log.complete(), c.exposed()...)
	return warnings, errors.Join(c.readSecrets(), c.paths())
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

// addresses derives where others connect to from where is listened, unless that
// is every address: then only the operator knows.
func (c *Config) addresses() {
	if l := c.Postgres.Listen; l != "" && (!strings.Contains(l, ":") || strings.HasSuffix(l, "]")) {
		c.Postgres.Listen = l + ":" + DefaultPostgresPort
	}
	// Others take these apart as a URL has them, with brackets around an IPv6 address.
	for _, address := range []*string{&c.Postgres.ConnectAddress, &c.Postgres.ProxyAddress, &c.RestAPI.ConnectAddress} {
		if hosts, port, ok := SplitAddress(*address); ok && len(hosts) == 1 {
			*address = net.JoinHostPort(hosts[0], port)
		}
	}
	derive := func(connect *string, listen string) {
		hosts, port, ok := SplitAddress(listen)
		if *connect != "" || !ok {
			return
		}
		if i := slices.IndexFunc(hosts, func(h string) bool { return !isWildcard(h) }); i >= 0 {
			*connect = net.JoinHostPort(hosts[i], port)
		}
	}
	derive(&c.RestAPI.ConnectAddress, c.RestAPI.Listen)
	derive(&c.Postgres.ConnectAddress, c.Postgres.Listen)
}

// paths makes relative paths absolute: like Patroni's, they begin where the
// agent was started.
func (c *Config) paths() error {
	var errs []error
	for _, field := range []struct {
		name string
		path *string
	}{
		{"postgresql.data_dir", &c.Postgres.DataDir},
		{"postgresql.config_dir", &c.Postgres.ConfigDir},
		{"postgresql.bin_dir", &c.Postgres.BinDir},
		{"postgresql.pgpass", &c.Postgres.PgPass},
		{"lictor.state_dir", &c.Lictor.StateDir},
		{"lictor.upgrade_bin_dir", &c.Lictor.UpgradeBinDir},
	} {
		if *field.path == "" {
			continue
		}
		absolute, err := filepath.Abs(*field.path)
		if err != nil {
			errs = append(errs, problem(field.name, *field.path, fmt.Sprintf("cannot be made absolute: %v", err)))
			continue
		}
		*field.path = absolute
	}
	return errors.Join(errs...)
}

// watchdogMode takes Patroni's other words for the modes.
func watchdogMode(mode string) string {
	switch m := strings.ToLower(mode); m {
	case "require":
		return "required"
	case "auto", "on", "true", "yes":
		return "automatic"
	case "false", "no", "disable", "disabled":
		return "off"
	default:
		return m
	}
}

// complete brings Python's words for logging into the logger's.
func (l *Log) complete() []Warning {
	var warnings []Warning
	switch level := strings.ToLower(l.Level); level {
	case "":
		l.Level = DefaultLogLevel
	case "notset":
		l.Level = "debug"
	case "critical", "fatal":
		warnings = append(warnings, Warning{Path: "log.level", Text: level + ": Lictor has no level above error: error is in force"})
		l.Level = "error"
	case "warn":
		l.Level = "warning"
	default:
		l.Level = level
	}
	if strings.Contains(l.Format, "%(") {
		warnings = append(warnings, Warning{Path: "log.format", Text: "a format of Python's logging cannot be followed: lines are written as Patroni's default format has them (format: patroni)"})
		l.Format = "patroni"
	}
	if strings.EqualFold(l.Type, "json") && l.Format == "" {
		l.Format = "json"
	}
	for key, set := range map[string]bool{"log.dateformat": l.DateFormat != "", "log.loggers": len(l.Loggers) > 0} {
		if set {
			warnings = append(warnings, Warning{Path: key, Text: "has no effect: lines have the form that log.format says, and one level"})
		}
	}
	if l.FileSize == 0 {
		l.FileSize = DefaultLogFileSize
	}
	if l.FileNum == 0 {
		l.FileNum = DefaultLogFileNum
	}
	if l.Mode == 0 {
		l.Mode = DefaultLogMode
	}
	slices.SortFunc(warnings, func(a, b Warning) int { return strings.Compare(a.Path, b.Path) })
	return warnings
}
