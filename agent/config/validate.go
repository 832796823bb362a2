package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

func (c *Config) setDefaults() {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&c.Namespace, cluster.DefaultNamespace)
	set(&c.RestAPI.Listen, "127.0.0.1:8008")
	set(&c.RestAPI.ConnectAddress, c.RestAPI.Listen)
	set(&c.RestAPI.VerifyClient, "none")
	set(&c.Postgres.ConnectAddress, c.Postgres.Listen)
	set(&c.Watchdog.Mode, "off")
	set(&c.Watchdog.Device, "/dev/watchdog")
	set(&c.Watchdog.Driver, "default")
	set(&c.Lictor.Compat, "patroni-4")
	set(&c.Lictor.RoutesPrefix, cluster.DefaultRoutesPrefix)
	set(&c.Consul.Consistency, "default")
	if c.Postgres.PgCtlTimeout == 0 {
		c.Postgres.PgCtlTimeout = 60
	}
}

// placeholder is what the sample configuration has in the place of passwords.
const placeholder = "CHANGE-ME"

// Validate checks what decoding cannot: what must be there, forms, ranges, and
// how settings go together. All problems are reported at once.
func (c Config) Validate() ([]Warning, error) {
	var (
		errs     []error
		warnings []Warning
	)
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for field, value := range map[string]string{
		"scope": c.Scope, "name": c.Name, "postgresql.listen": c.Postgres.Listen, "postgresql.data_dir": c.Postgres.DataDir,
		"postgresql.authentication.superuser.username":   c.Postgres.Authentication.Superuser.Username,
		"postgresql.authentication.replication.username": c.Postgres.Authentication.Replication.Username,
	} {
		if value == "" {
			fail("%s: must be set", field)
		}
	}
	for field, value := range map[string]string{"scope": c.Scope, "name": c.Name} {
		if strings.ContainsAny(value, "/ \t\n,") {
			fail("%s: %q: must not contain blanks, slashes or commas", field, value)
		}
	}
	if d := c.Postgres.DataDir; d != "" {
		if d = filepath.Clean(d); d == "/" || d == "." || d == "/root" || d == "/home" || d == "/etc" || d == "/var" {
			fail("postgresql.data_dir: %q: must be a directory of its own", c.Postgres.DataDir)
		}
	}
	for field, value := range map[string]string{
		"restapi.listen": c.RestAPI.Listen, "restapi.connect_address": c.RestAPI.ConnectAddress,
		"postgresql.listen": c.Postgres.Listen, "postgresql.connect_address": c.Postgres.ConnectAddress,
		"postgresql.proxy_address": c.Postgres.ProxyAddress,
	} {
		if value == "" {
			continue
		}
		if err := checkAddress(value, strings.HasSuffix(field, "listen")); err != nil {
			fail("%s: %q: %w", field, value, err)
		}
	}
	for field, choice := range map[string]struct {
		value string
		of    []string
	}{
		"restapi.verify_client": {c.RestAPI.VerifyClient, []string{"none", "optional", "required"}},
		"watchdog.mode":         {c.Watchdog.Mode, []string{"off", "automatic", "required"}},
		"watchdog.driver":       {c.Watchdog.Driver, []string{"default", "testing"}},
		"lictor.compat":         {c.Lictor.Compat, []string{"patroni-3", "patroni-4"}},
		"consul.consistency":    {c.Consul.Consistency, []string{"default", "consistent", "stale"}},
		"log.format":            {c.Log.Format, []string{"", "auto", "console", "json", "patroni"}},
		"log.level":             {strings.ToLower(c.Log.Level), []string{"", "debug", "info", "warning", "warn", "error", "critical"}},
	} {
		if !slices.Contains(choice.of, choice.value) {
			fail("%s: %q: must be one of %s", field, choice.value, strings.Join(slices.DeleteFunc(choice.of, func(s string) bool { return s == "" }), ", "))
		}
	}
	if (c.RestAPI.CertFile == "") != (c.RestAPI.KeyFile == "") && c.RestAPI.KeyFile != "" {
		fail("restapi.certfile: must be set when restapi.keyfile is")
	}
	if c.RestAPI.VerifyClient == "required" && (c.RestAPI.CertFile == "" || c.RestAPI.CAFile == "") {
		fail("restapi.verify_client: required needs restapi.certfile and restapi.cafile")
	}
	for _, role := range []struct{ name, password string }{
		{"superuser", c.Postgres.Authentication.Superuser.Password},
		{"replication", c.Postgres.Authentication.Replication.Password},
		{"rewind", c.Postgres.Authentication.Rewind.Password},
	} {
		if strings.Contains(role.password, placeholder) {
			fail("postgresql.authentication.%s.password: still holds the placeholder of the sample configuration", role.name)
		}
	}
	if _, err := c.Consul.Addresses(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range sortedKeys(c.Bootstrap.Users) {
		if c.Bootstrap.Users[name].Password == "" {
			warnings = append(warnings, Warning(fmt.Sprintf("bootstrap.users.%s: has no password", name)))
		}
	}
	errs = append(errs, c.checkInitDB()...)
	errs = append(errs, c.checkMethods()...)
	dynamic, more, err := cluster.ParseDynamic(c.Bootstrap.DCS)
	if err != nil {
		fail("bootstrap.dcs: %w", err)
	} else {
		errs = append(errs, c.Lictor.Fence.check(dynamic.Timing)...)
	}
	for _, w := range more {
		warnings = append(warnings, Warning("bootstrap.dcs: "+w))
	}
	if c.Consul.RegisterService {
		warnings = append(warnings, "consul.register_service: not supported yet, no service is registered")
	}
	if c.Watchdog.Mode == "required" {
		fail("watchdog.mode: required is not supported yet: set it to off")
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return warnings, errors.Join(errs...)
}

func (f Fence) check(t cluster.Timing) []error {
	var errs []error
	ttl := t.TTL.Seconds()
	demote, kill := f.DemoteBefore, f.KillBefore
	if demote == 0 {
		demote = ttl / 4
	}
	if kill == 0 {
		kill = ttl / 10
	}
	if kill < 0 || demote <= kill {
		errs = append(errs, fmt.Errorf("lictor.fence: demote_before %.1f must be more than kill_before %.1f, which must be more than 0", demote, kill))
	}
	if room := (t.TTL - t.BeatInterval()).Seconds(); demote >= room {
		errs = append(errs, fmt.Errorf("lictor.fence.demote_before: %.1f: must be less than ttl less one beat (%.1f), or a leader demotes between two beats", demote, room))
	}
	return errs
}

// checkAddress checks host:port; a listen address may name several hosts.
func checkAddress(address string, listen bool) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("must be host:port: %w", err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return errors.New("the port must be from 1 to 65535")
	}
	if host == "" && !listen || !listen && strings.ContainsAny(host, ",*") {
		return errors.New("the host must be one name or address")
	}
	if !listen && (host == "0.0.0.0" || host == "::") {
		return errors.New("other hosts cannot connect to this address: set connect_address")
	}
	return nil
}

// forbiddenInitDB are options that the agent sets itself.
var forbiddenInitDB = [...]string{"pgdata", "nosync", "pwfile", "sync-only", "version"}

func (c Config) checkInitDB() []error {
	var errs []error
	for i, option := range c.Bootstrap.InitDB {
		name := ""
		switch o := option.(type) {
		case string:
			name = o
		case map[string]any:
			if len(o) == 1 {
				name = sortedKeys(o)[0]
			}
		}
		switch {
		case name == "":
			errs = append(errs, fmt.Errorf("bootstrap.initdb[%d]: %v: must be an option or a map of one option to its value", i, option))
		case slices.Contains(forbiddenInitDB[:], name):
			errs = append(errs, fmt.Errorf("bootstrap.initdb[%d]: %s: is set by Lictor", i, name))
		}
	}
	return errs
}

// checkMethods refuses keys of the open sections that name no method: they are
// most likely misspelt.
func (c Config) checkMethods() []error {
	var errs []error
	for _, name := range sortedKeys(c.Bootstrap.Methods) {
		if name != c.Bootstrap.Method {
			errs = append(errs, fmt.Errorf("bootstrap.%s: is not a known key, nor the method that bootstrap.method names%s", name, settings.Meant(Bootstrap{}, name)))
		}
	}
	if m := c.Bootstrap.Method; m != "" && m != "initdb" {
		errs = append(errs, fmt.Errorf("bootstrap.method: %s: custom methods are not supported yet", m))
	}
	known := []string{"on_primary_start_timeout", "pg_ctl_options", "create_replica_method"}
	for _, name := range sortedKeys(c.Postgres.Methods) {
		if !slices.Contains(c.Postgres.CreateReplica, name) && !slices.Contains(known, name) {
			errs = append(errs, fmt.Errorf("postgresql.%s: is not a known key, nor a method of postgresql.create_replica_methods%s", name, settings.Meant(Postgres{}, name)))
		}
	}
	for _, method := range c.Postgres.CreateReplica {
		if method != "basebackup" {
			errs = append(errs, fmt.Errorf("postgresql.create_replica_methods: %s: only basebackup is supported yet", method))
		}
	}
	return errs
}
