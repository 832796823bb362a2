package adoption

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// Options are what PostgreSQL does not know of the member that it will be.
type Options struct {
	Scope     string // empty: cluster_name, where that tells shards apart
	Namespace string
	Name      string
	Address   string // at which others reach this host
}

// check returns an error if an agent would not take what is said of the member.
func (o Options) check(scope string) error {
	var errs []error
	for _, field := range []struct {
		flag, value string
		err         error
	}{
		{"scope", scope, cluster.CheckName(scope)},
		{"name", o.Name, cluster.CheckName(o.Name)},
		{"namespace", o.Namespace, cluster.CheckNamespace(cmp.Or(o.Namespace, cluster.DefaultNamespace))},
		{"address", o.Address, cluster.CheckHost(o.Address)},
	} {
		if field.err != nil {
			errs = append(errs, fmt.Errorf("--%s: %q %w", field.flag, field.value, field.err))
		}
	}
	return errors.Join(errs...)
}

// Config is the file of the agent that would take charge of what was found. Where a secret
// belongs stands a placeholder, with which the file is refused.
func (f Found) Config(o Options) ([]byte, error) {
	scope := o.Scope
	if scope == "" {
		if scope = f.ClusterName; unspecific(scope) {
			return nil, fmt.Errorf("--scope: must be set: cluster_name is %q, which tells no shard from another; the scope is the shard's name, the same on all its members and on no other shard's", scope)
		}
	}
	if err := o.check(scope); err != nil {
		return nil, err
	}
	shared, local := f.parameters()
	ofShard := entries{{key: "use_pg_rewind", value: true}}
	if len(shared) > 0 {
		ofShard = append(ofShard, entry{key: "parameters", value: pairs(shared), comment: "all members must have the same of these: they are on PostgreSQL's command line"})
	}
	address := func(port int) string { return net.JoinHostPort(o.Address, strconv.Itoa(port)) }
	file := entries{
		{key: "scope", value: scope, comment: "the shard's name, the same on all its members"},
		{key: "name", value: o.Name, comment: "this member's name, another one on each member"},
		{key: "namespace", value: cmp.Or(o.Namespace, "service")},
		{key: "restapi", value: entries{
			{key: "listen", value: "0.0.0.0:8008", comment: "each agent of a host needs a port of its own"},
			{key: "connect_address", value: address(8008)},
			{key: "authentication", value: entries{{key: "username", value: "lictor"}, {key: "password", value: config.Placeholder}}},
		}},
		{key: "consul", value: entries{{key: "host", value: "127.0.0.1:8500"}}},
		{key: "bootstrap", value: entries{{key: "dcs", value: entries{{key: "postgresql", value: ofShard}}, comment: "becomes the shard's configuration when its first agent starts"}}},
		{key: "postgresql", value: f.postgresql(local, address)},
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Made by `lictor generate-config` from PostgreSQL %s in %s.\n", f.version(), f.DataDirectory)
	fmt.Fprintf(&out, "# Put the passwords in the place of %s (password_file: names a file instead), then: lictor validate FILE\n", config.Placeholder)
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	node, err := file.node()
	if err == nil {
		err = encoder.Encode(node)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the file: %w", err)
	}
	return out.Bytes(), nil
}

func (f Found) postgresql(local []Setting, address func(int) string) entries {
	all := entries{
		{key: "listen", value: listen(f.ListenAddresses, f.Port)},
		{key: "connect_address", value: address(f.Port)},
		{key: "data_dir", value: f.DataDirectory},
	}
	confDir := filepath.Dir(f.ConfigFile)
	if confDir != filepath.Clean(f.DataDirectory) {
		all = append(all, entry{key: "config_dir", value: confDir, comment: "the agent keeps postgresql.conf there as postgresql.base.conf, and includes it"})
	}
	all = append(all, entry{key: "bin_dir", value: f.BinDir})
	if first, _, _ := strings.Cut(f.Sockets, ","); strings.HasPrefix(strings.TrimSpace(first), "/") {
		all = append(all, entry{key: "use_unix_socket", value: true})
	}
	role := func(name string) entries {
		return entries{{key: "username", value: name}, {key: "password", value: config.Placeholder}}
	}
	authentication := entries{{key: "superuser", value: role(f.User)}, {key: "replication", value: role(f.replicator())}}
	if len(f.Rewinders) > 0 {
		authentication = append(authentication, entry{key: "rewind", value: role(f.Rewinders[0])})
	}
	all = append(all, entry{key: "authentication", value: authentication})
	// The agent's own files lie in config_dir; others are the operator's and stay as they are.
	for _, file := range []struct {
		parameter, section, path string
		lines                    []string
	}{{"hba_file", "pg_hba", f.HBAFile, f.HBA}, {"ident_file", "pg_ident", f.IdentFile, f.Ident}} {
		if filepath.Clean(file.path) != filepath.Join(confDir, file.section+".conf") {
			local = append(local, Setting{Name: file.parameter, Value: file.path})
		} else if len(file.lines) > 0 {
			all = append(all, entry{key: file.section, value: file.lines, comment: "the whole of " + file.path})
		}
	}
	slices.SortFunc(local, func(a, b Setting) int { return strings.Compare(a.Name, b.Name) })
	if len(local) > 0 {
		all = append(all, entry{key: "parameters", value: pairs(local)})
	}
	var recovery []Setting
	for _, s := range f.Settings {
		if slices.Contains([]string{"restore_command", "archive_cleanup_command", "recovery_min_apply_delay"}, s.Name) && s.Value != "" {
			recovery = append(recovery, s)
		}
	}
	if len(recovery) > 0 {
		all = append(all, entry{key: "recovery_conf", value: pairs(recovery)})
	}
	return all
}

// parameters are the settings that the file has: those of the whole shard and this
// member's own. What follows from other keys of the file is left out, and what would name
// a place of the host's that PostgreSQL's own configuration file names anyway.
func (f Found) parameters() (shared, local []Setting) {
	accept := map[string]func(string) (string, bool){}
	for _, p := range cluster.SharedParameters() {
		accept[p.Name] = p.Accept
	}
	left := slices.Concat(cluster.AddressParameters(), cluster.RecoveryParameters(),
		[]string{"data_directory", "config_file", "hba_file", "ident_file", "external_pid_file", "stats_temp_directory", "synchronous_standby_names"})
	for _, s := range f.Settings {
		switch take := accept[s.Name]; {
		case slices.Contains(left, s.Name):
		case take == nil:
			local = append(local, s)
		default:
			if value, ok := take(s.Value); ok && s.Name != "hot_standby" && s.Name != "wal_log_hints" {
				shared = append(shared, Setting{Name: s.Name, Value: value})
			}
		}
	}
	return shared, local
}

// Shared are the parameters, of those that all members must have the same, that are in force
// with another value than members of a new shard would have.
func (f Found) Shared() map[string]string {
	shared, _ := f.parameters()
	values := map[string]string{}
	for _, s := range shared {
		values[s.Name] = s.Value
	}
	for _, p := range cluster.SharedParameters() {
		if values[p.Name] == p.Fallback {
			delete(values, p.Name)
		}
	}
	return values
}

// replicator is the role that standbys log in as, as far as can be seen.
func (f Found) replicator() string {
	if f.Standby && f.Upstream.User != "" {
		return f.Upstream.User
	}
	for _, s := range f.Standbys {
		return s.User
	}
	for _, r := range f.Roles {
		if !r.Superuser {
			return r.Name
		}
	}
	return "replicator"
}

// unspecific reports whether a cluster_name is none, or one that every host may have.
func unspecific(name string) bool {
	return name == "" || name == "main" || strings.Contains(name, "/") // Debian's is 15/main
}

// listen writes listen_addresses as the agent's file has it.
func listen(addresses string, port int) string {
	var hosts []string
	for host := range strings.SplitSeq(addresses, ",") {
		switch host = strings.TrimSpace(host); {
		case host == "":
		case strings.Contains(host, ":"):
			hosts = append(hosts, "["+host+"]")
		default:
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		hosts = []string{"127.0.0.1"}
	}
	return strings.Join(hosts, ",") + ":" + strconv.Itoa(port)
}

// entries are a map of YAML in the order in which a person reads it.
type entries []entry

type entry struct {
	key     string
	value   any // entries, or what yaml writes
	comment string
}

func pairs(settings []Setting) entries {
	all := make(entries, len(settings))
	for i, s := range settings {
		var value any = s.Value
		if n, err := strconv.Atoi(s.Value); err == nil && strconv.Itoa(n) == s.Value {
			value = n
		}
		all[i] = entry{key: s.Name, value: value}
	}
	return all
}

func (e entries) node() (*yaml.Node, error) {
	m := &yaml.Node{Kind: yaml.MappingNode}
	for _, one := range e {
		key, value := &yaml.Node{}, &yaml.Node{}
		if err := key.Encode(one.key); err != nil {
			return nil, err
		}
		var err error
		if below, nested := one.value.(entries); nested {
			value, err = below.node()
			key.HeadComment = one.comment
		} else if err = value.Encode(one.value); value.Kind == yaml.ScalarNode {
			value.LineComment = one.comment
		} else {
			key.HeadComment = one.comment
		}
		if err != nil {
			return nil, err
		}
		m.Content = append(m.Content, key, value)
	}
	return m, nil
}
