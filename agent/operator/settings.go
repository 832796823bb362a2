package operator

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Settings are what the commands take from a configuration file: an agent's, a
// bouncer's, or the small one that patronictl's users have. Whatever else stands
// there is the agent's own business.
type Settings struct {
	Scope     string          `mapstructure:"scope"`
	Namespace string          `mapstructure:"namespace"`
	Consul    settings.Consul `mapstructure:"consul"`
	Ctl       config.Ctl      `mapstructure:"ctl"`
	RestAPI   config.RestAPI  `mapstructure:"restapi"`
	Postgres  Postgres        `mapstructure:"postgresql"`
	Lictor    Lictor          `mapstructure:"lictor"`
	// Prefix is lictor.routes_prefix in a bouncer's file.
	Prefix string `mapstructure:"routes_prefix"`
	// Other holds all other sections, unread.
	Other map[string]any `mapstructure:",remain"`
	// PasswordToPatroni says that members which run Patroni get the password, though the
	// shard's secret is held.
	PasswordToPatroni bool `mapstructure:"-"`
	// Path is the file; empty: there was none.
	Path string `mapstructure:"-"`
}

// Postgres is how to log in to the members' PostgreSQL.
type Postgres struct {
	Authentication config.Authentication `mapstructure:"authentication"`
	Database       string                `mapstructure:"database"`
	Other          map[string]any        `mapstructure:",remain"`
}

// Lictor is where Lictor's own keys are.
type Lictor struct {
	RoutesPrefix string         `mapstructure:"routes_prefix"`
	Compat       string         `mapstructure:"compat"`
	Other        map[string]any `mapstructure:",remain"`
}

// Flags are the options that every command has. What they set goes over the
// environment and the file.
type Flags struct {
	Config    string
	Consul    string // host, host:port or URL
	Token     string // of Consul; a file, so that it shows in no list of processes
	Scope     string
	Namespace string
	Insecure  bool
	// PasswordToPatroni is Settings.PasswordToPatroni.
	PasswordToPatroni bool
}

// ConfigVariable names a configuration file when no flag does. patronictl's own
// variable, and its usual file, count after it.
const ConfigVariable = "LICTOR_CONFIG_FILE"

// Load reads the settings. Without a file they come from environment and flags
// alone.
func Load(f Flags, environ []string) (Settings, error) {
	source := settings.Source{Path: f.Config, Environ: slices.Clone(environ), Flags: map[string]any{}}
	if source.Path == "" {
		source.Path = defaultPath(source)
	}
	if source.Path == "" && source.Get("LICTOR_CONFIGURATION") == "" && source.Get("PATRONI_CONFIGURATION") == "" {
		source.Environ = append(source.Environ, "LICTOR_CONFIGURATION={}")
	}
	for name, value := range map[string]string{
		"scope": f.Scope, "namespace": f.Namespace, "consul.url": consulURL(f.Consul), "consul.token_file": f.Token,
	} {
		if value != "" {
			source.Flags[name] = value
		}
	}
	if f.Insecure {
		source.Flags["ctl.insecure"] = true
	}
	var s Settings
	_, err := settings.Load(source, settingsSchema(), &s, func() ([]cluster.Warning, error) {
		if f.Token != "" {
			s.Consul.Token = ""
		}
		filled := s.Consul.FillFromEnvironment(source.Get)
		warnings, err := s.Consul.Validate()
		return warnings, errors.Join(filled, err, s.checkNames())
	})
	if err != nil {
		return Settings{}, Usage(err)
	}
	s.Path, s.PasswordToPatroni = source.Path, f.PasswordToPatroni
	s.Namespace = strings.Trim(s.Namespace, "/")
	if s.Namespace == "" {
		s.Namespace = cluster.DefaultNamespace
	}
	return s, nil
}

// checkNames checks what becomes part of Consul's keys, from wherever it comes; what is
// not set is the default.
func (s Settings) checkNames() error {
	var errs []error
	check := func(path, value string, rule func(string) error) {
		if value == "" {
			return
		}
		if err := rule(value); err != nil {
			errs = append(errs, cluster.Problem{Path: path, Value: printable.Quote(value), Rule: err.Error()})
		}
	}
	check("scope", s.Scope, cluster.CheckName)
	check("namespace", s.Namespace, cluster.CheckNamespace)
	check("lictor.routes_prefix", s.Lictor.RoutesPrefix, cluster.CheckNamespace)
	check("routes_prefix", s.Prefix, cluster.CheckNamespace)
	return errors.Join(errs...)
}

// consulURL turns what people type into a URL: the flag goes over all of the
// file's ways to say where Consul is.
func consulURL(address string) string {
	if address == "" || strings.Contains(address, "://") {
		return address
	}
	return "http://" + address
}

// defaultPath is the file that is read when none is named.
func defaultPath(source settings.Source) string {
	for _, variable := range []string{ConfigVariable, "PATRONICTL_CONFIG_FILE"} {
		if path := source.Get(variable); path != "" {
			return path
		}
	}
	base := source.Get("XDG_CONFIG_HOME")
	if base == "" {
		base = filepath.Join(source.Get("HOME"), ".config")
	}
	for _, name := range []string{"lictor/lictor.yml", "patroni/patronictl.yaml"} {
		if path := filepath.Join(base, name); filepath.IsAbs(path) {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				return path
			}
		}
	}
	return ""
}

// settingsSchema lists Patroni's variables that concern the commands.
func settingsSchema() settings.Schema {
	s := settings.Schema{
		Patroni: map[string]string{
			"SCOPE": "scope", "NAMESPACE": "namespace",
			"RESTAPI_USERNAME": "restapi.authentication.username", "RESTAPI_PASSWORD": "restapi.authentication.password",
			"CTL_USERNAME": "ctl.authentication.username", "CTL_PASSWORD": "ctl.authentication.password",
		},
		Variables: map[string]string{"ROUTES_PREFIX": "lictor.routes_prefix"},
		Refused:   map[string]string{},
		Adjust:    map[string]settings.Adjuster{"scope": plainText},
	}
	for section, keys := range map[string]string{
		"restapi": "certfile keyfile keyfile_password cafile",
		"ctl":     "insecure cacert certfile keyfile keyfile_password",
		"consul":  "host hosts port scheme url token cacert cert key verify dc consistency",
	} {
		for key := range strings.FieldsSeq(keys) {
			s.Patroni[strings.ToUpper(section+"_"+key)] = section + "." + key
		}
	}
	for _, role := range []string{"superuser", "replication", "rewind"} {
		for key := range strings.FieldsSeq("username password sslmode sslcert sslkey sslpassword sslrootcert") {
			s.Patroni[strings.ToUpper(role+"_"+key)] = "postgresql.authentication." + role + "." + key
		}
	}
	for _, store := range []string{"etcd", "etcd3", "zookeeper", "exhibitor", "kubernetes", "raft"} {
		s.Refused[store] = "Lictor keeps the state of a shard in Consul alone: configure consul"
	}
	return s
}

func plainText(value any) (any, string, error) { return fmt.Sprint(value), "", nil }

// keys are those of one shard; all shards have Lictor's prefixes in common.
func (s Settings) keys(scope string) cluster.Keys {
	return cluster.NewKeys(s.Namespace, scope, s.RoutesPrefix())
}

// RoutesPrefix is the first part of Lictor's own keys, empty for the default.
func (s Settings) RoutesPrefix() string { return cmp.Or(s.Lictor.RoutesPrefix, s.Prefix) }
