package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/viper"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// Source is where the configuration comes from: a file or directory, under the
// environment. Without a path the whole YAML comes from LICTOR_CONFIGURATION or
// PATRONI_CONFIGURATION.
type Source struct{ Path string }

// Warning is something that is allowed but probably not meant.
type Warning string

func (w Warning) String() string { return string(w) }

// wholeConfiguration are the variables that may hold the whole YAML.
var wholeConfiguration = [...]string{"LICTOR_CONFIGURATION", "PATRONI_CONFIGURATION"}

// Load reads, layers, decodes and checks the configuration. Every problem is
// reported at once.
func Load(source Source) (Config, []Warning, error) {
	raw, err := source.read()
	if err != nil {
		return Config{}, nil, err
	}
	warnings, err := refuseOthers(raw)
	if err != nil {
		return Config{}, nil, err
	}
	environment(raw)
	aliases(raw)
	cfg := Config{}
	if err := settings.Decode(raw, &cfg); err != nil {
		return Config{}, nil, fmt.Errorf("configuration %s is refused:\n%w", source, err)
	}
	if err := cfg.Consul.FromEnvironment(os.Getenv); err != nil {
		return Config{}, nil, err
	}
	cfg.setDefaults()
	more, err := cfg.Validate()
	warnings = append(warnings, more...)
	warnings = append(warnings, source.readable(cfg)...)
	if err != nil {
		return Config{}, warnings, fmt.Errorf("configuration %s is refused:\n%w", source, err)
	}
	return cfg, warnings, nil
}

func (s Source) String() string {
	if s.Path == "" {
		return "of the environment"
	}
	return s.Path
}

func (s Source) read() (map[string]any, error) {
	if s.Path != "" {
		return settings.ReadFile(s.Path)
	}
	for _, name := range wholeConfiguration {
		if text := os.Getenv(name); text != "" {
			raw, err := settings.Parse([]byte(text))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return raw, nil
		}
	}
	return nil, fmt.Errorf("no configuration: name a file, or set %s", strings.Join(wholeConfiguration[:], " or "))
}

// readable warns about a file with passwords that others can read.
func (s Source) readable(cfg Config) []Warning {
	a := cfg.Postgres.Authentication
	if s.Path == "" || a.Superuser.Password+a.Replication.Password+a.Rewind.Password+cfg.Consul.Token+cfg.RestAPI.Authentication.Password == "" {
		return nil
	}
	info, err := os.Stat(s.Path)
	if err != nil || info.Mode().Perm()&0o004 == 0 {
		return nil
	}
	return []Warning{Warning(fmt.Sprintf("%s holds passwords and everybody can read it: chmod 640", s.Path))}
}

// otherStores are Patroni's sections for stores that Lictor does not speak.
var otherStores = [...]string{"etcd", "etcd3", "zookeeper", "exhibitor", "kubernetes", "raft"}

// unusedSections are known to Patroni and not used by Lictor.
var unusedSections = [...]string{"citus", "citus_group", "mlock"}

func refuseOthers(raw map[string]any) ([]Warning, error) {
	var (
		errs     []error
		warnings []Warning
	)
	for _, store := range otherStores {
		if _, set := raw[store]; set {
			errs = append(errs, fmt.Errorf("%s: Lictor keeps its state in Consul alone: remove this section and configure consul", store))
		}
	}
	for _, section := range unusedSections {
		if _, set := raw[section]; set {
			delete(raw, section)
			warnings = append(warnings, Warning(section+": Patroni knows this section, Lictor does not use it"))
		}
	}
	return warnings, errors.Join(errs...)
}

// aliases renames what Patroni also takes under another name.
func aliases(raw map[string]any) {
	if b, ok := raw["bootstrap"].(map[string]any); ok {
		if v, set := b["post_init"]; set {
			if _, both := b["post_bootstrap"]; !both {
				b["post_bootstrap"] = v
			}
			delete(b, "post_init")
		}
	}
	if p, ok := raw["postgresql"].(map[string]any); ok {
		if _, set := p["create_replica_methods"]; !set && p["create_replica_method"] != nil {
			p["create_replica_methods"] = p["create_replica_method"]
		}
		delete(p, "create_replica_method")
		for _, key := range []string{"pg_hba", "pg_ident"} {
			if text, ok := p[key].(string); ok {
				p[key] = toAny(strings.Split(strings.TrimSpace(text), "\n"))
			}
		}
	}
}

func toAny(lines []string) []any {
	out := make([]any, 0, len(lines))
	for _, l := range lines {
		out = append(out, l)
	}
	return out
}

// environment lays LICTOR_<SECTION>_<KEY> over the file, and below it
// PATRONI_<SECTION>_<KEY>. Viper finds them; it gets its keys with a delimiter
// of its own and never sees the file, as it would fold the case of names that
// belong to the user.
func environment(raw map[string]any) {
	const delimiter = "\x00"
	v := viper.NewWithOptions(viper.KeyDelimiter(delimiter))
	bind := func(name string, path ...string) {
		key := strings.Join(path, delimiter)
		_ = v.BindEnv(key, "LICTOR_"+name, "PATRONI_"+name) // fails only without a key
		if value := v.GetString(key); value != "" {
			settings.Set(raw, value, path...)
		}
	}
	for _, name := range []string{"scope", "namespace", "name"} {
		bind(strings.ToUpper(name), name)
	}
	for section, shape := range map[string]any{
		"restapi": RestAPI{}, "ctl": Ctl{}, "consul": Consul{}, "postgresql": Postgres{},
		"watchdog": Watchdog{}, "log": Log{}, "lictor": Lictor{},
	} {
		for _, key := range scalarKeys(reflect.TypeOf(shape)) {
			bind(strings.ToUpper(section+"_"+key), section, key)
		}
	}
	for _, section := range []string{"restapi", "ctl"} {
		for _, key := range []string{"username", "password"} {
			bind(strings.ToUpper(section+"_"+key), section, "authentication", key)
		}
	}
	for _, role := range []string{"superuser", "replication", "rewind"} {
		for _, key := range scalarKeys(reflect.TypeOf(PgUser{})) {
			bind(strings.ToUpper(role+"_"+key), "postgresql", "authentication", role, key)
		}
	}
}

// scalarKeys lists the keys of a section that fit into one variable.
func scalarKeys(t reflect.Type) []string {
	var keys []string
	for f := range slices.Values(reflect.VisibleFields(t)) {
		kind := f.Type.Kind()
		if kind == reflect.Pointer {
			kind = f.Type.Elem().Kind()
		}
		key, _, _ := strings.Cut(f.Tag.Get("mapstructure"), ",")
		scalar := kind == reflect.String || kind == reflect.Int || kind == reflect.Bool || kind == reflect.Float64 ||
			kind == reflect.Slice && f.Type.Elem().Kind() == reflect.String
		if key != "" && scalar {
			keys = append(keys, key)
		}
	}
	return keys
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
