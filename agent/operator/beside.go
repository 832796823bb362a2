package operator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// This file makes the configuration of a shard that is restored beside the one that it was: the
// member's file with another scope, other ports and another data directory, and without whatever
// would reach for the living shard (its stanza, its archive, its callbacks, its watchdog).

// beside is what the new shard's first member has of its own.
type beside struct {
	Scope, DataDir        string
	PostgresPort, APIPort string
	Bootstrap             map[string]any
}

// edit is one change of a configuration file: a value for a path, or its removal.
type edit struct {
	path  string
	value any // nil: it is removed
}

// edits turn the file of a member of another shard into the new shard's.
func (b beside) edits(cfg config.Config) ([]edit, error) {
	list := []edit{
		{"scope", b.Scope},
		{"bootstrap", b.Bootstrap},
		{"postgresql.data_dir", b.DataDir},
		{"watchdog.mode", "off"}, // the device is the other agent's
	}
	for _, of := range []struct{ path, address, port string }{
		{"restapi.listen", cfg.RestAPI.Listen, b.APIPort},
		{"restapi.connect_address", cfg.RestAPI.ConnectAddress, b.APIPort},
		{"postgresql.listen", cfg.Postgres.Listen, b.PostgresPort},
		{"postgresql.connect_address", cfg.Postgres.ConnectAddress, b.PostgresPort},
	} {
		if of.address == "" {
			continue
		}
		i := strings.LastIndexByte(of.address, ':')
		if i < 0 {
			return nil, usagef("%s: %q has no port", of.path, of.address)
		}
		list = append(list, edit{of.path, of.address[:i+1] + of.port})
	}
	if token := b.token(cfg); token != "" {
		list = append(list, edit{"consul.token_file", token})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Postgres.Parameters)) {
		if slices.Contains(notBeside(), strings.ToLower(name)) {
			list = append(list, edit{"postgresql.parameters." + name, nil})
		}
	}
	own := parametersBeside()
	for _, name := range slices.Sorted(maps.Keys(own)) {
		list = append(list, edit{"postgresql.parameters." + name, own[name]})
	}
	for _, path := range []string{
		"postgresql.config_dir", "log.dir", // the living shard's agent writes there
		"postgresql.proxy_address", "postgresql.pgpass",
		"postgresql.create_replica_methods", "postgresql.recovery_conf", // they read the other shard's stanza
		"postgresql.callbacks", "postgresql.pre_promote", "postgresql.before_stop", "lictor.backup", "tags",
	} {
		list = append(list, edit{path, nil})
	}
	return list, nil
}

// token is the file of the new shard's token for Consul, where the member's is named after its
// shard: that one has no rights for another. Empty: both have the same.
func (b beside) token(cfg config.Config) string {
	dir, name := filepath.Split(cfg.Consul.TokenFile)
	if ext := filepath.Ext(name); strings.TrimSuffix(name, ext) == cfg.Scope {
		return filepath.Join(dir, b.Scope+ext)
	}
	return ""
}

// dynamicBeside is the dynamic configuration of a shard, as one that was restored beside it begins.
func dynamicBeside(dynamic map[string]any) map[string]any {
	d := cluster.MergePatch(nil, dynamic)
	// One member alone has no standby to wait for or to be replaced by, slots are not in a backup and would hold WAL that
	// nobody reads, and the other site's primary has no word in it.
	for _, name := range []string{
		"pause", "synchronous_mode", "synchronous_mode_strict", "synchronous_node_count", "takeover", "suspect_after",
		"slots", "permanent_slots", "standby_cluster", "other_site",
	} {
		delete(d, name)
	}
	postgres, _ := d["postgresql"].(map[string]any)
	if postgres == nil {
		postgres = map[string]any{}
	}
	d["postgresql"] = postgres
	for _, name := range []string{"recovery_conf", "create_replica_methods"} {
		delete(postgres, name)
	}
	parameters, _ := postgres["parameters"].(map[string]any)
	if parameters == nil {
		parameters = map[string]any{}
	}
	postgres["parameters"] = parameters
	maps.DeleteFunc(parameters, func(name string, _ any) bool { return slices.Contains(notBeside(), strings.ToLower(name)) })
	maps.Copy(parameters, parametersBeside())
	return d
}

// parametersBeside are the parameters that the new shard has in any case. A subscription in the backup would take from its
// publisher's slot what the living shard is to get.
func parametersBeside() map[string]any {
	return map[string]any{"archive_mode": "off", "max_logical_replication_workers": 0}
}

// isBeside reports whether parameters are such as the new shard has.
func isBeside(parameters map[string]any) bool {
	own := parametersBeside()
	for name, value := range parameters {
		if kept, set := own[name]; set && cluster.ParameterText(kept) == cluster.ParameterText(value) {
			delete(own, name)
		} else if slices.Contains(notBeside(), strings.ToLower(name)) {
			return false
		}
	}
	return len(own) == 0
}

// notBeside are parameters that the new shard does not take from the living one: they lead into its archive, to
// files that it writes, or to slots that are not there. Those of parametersBeside are among them, however they are written.
func notBeside() []string {
	return slices.AppendSeq([]string{
		"archive_command", "archive_library", "archive_cleanup_command", "restore_command",
		"external_pid_file", "stats_temp_directory", "log_directory", "synchronized_standby_slots",
	}, maps.Keys(parametersBeside()))
}

// editYAML changes a YAML document and leaves everything else in it as it was written.
func editYAML(content []byte, heading string, edits []edit) ([]byte, error) {
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	if err := decoder.Decode(&document); err != nil {
		return nil, fmt.Errorf("reading it as YAML: %w", err)
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("it must be one YAML document")
	}
	if len(document.Content) != 1 || document.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it must be a map of sections")
	}
	for _, e := range edits {
		if err := change(document.Content[0], strings.Split(e.path, "."), e); err != nil {
			return nil, fmt.Errorf("%s: %w", e.path, err)
		}
	}
	document.HeadComment = heading
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(&document), encoder.Close()); err != nil {
		return nil, fmt.Errorf("writing it as YAML: %w", err)
	}
	return out.Bytes(), nil
}

// change carries out an edit below a map.
func change(in *yaml.Node, path []string, e edit) error {
	if in.Kind == yaml.AliasNode || in.Kind == yaml.MappingNode && hasMerge(in) {
		return errors.New("is written with a YAML alias: write the section out")
	}
	if in.Kind == yaml.ScalarNode && in.Tag == "!!null" { // a section without content
		*in = yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	}
	if in.Kind != yaml.MappingNode {
		return errors.New("must be a map")
	}
	at := -1
	for i := 0; i+1 < len(in.Content); i += 2 {
		if in.Content[i].Value == path[0] {
			at = i
		}
	}
	switch {
	case at < 0 && e.value == nil:
		return nil
	case at < 0:
		in.Content = append(in.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: path[0]}, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"})
		at = len(in.Content) - 2
	}
	switch value := in.Content[at+1]; {
	case len(path) > 1:
		return change(value, path[1:], e)
	case e.value == nil:
		in.Content = append(in.Content[:at:at], in.Content[at+2:]...)
		return nil
	default:
		var replaced yaml.Node
		if err := replaced.Encode(e.value); err != nil {
			return fmt.Errorf("its value: %w", err)
		}
		in.Content[at+1] = &replaced
		return nil
	}
}

func hasMerge(in *yaml.Node) bool {
	for i := 0; i+1 < len(in.Content); i += 2 {
		if in.Content[i].Tag == "!!merge" {
			return true
		}
	}
	return false
}

// freePort is the first port after one at which nobody listens on any of the hosts; wanted,
// if set, is it alone.
func freePort(hosts []string, after, wanted string) (string, error) {
	if wanted != "" {
		return wanted, listens(hosts, wanted)
	}
	n, err := strconv.Atoi(after)
	if err != nil {
		return "", usagef("%q is no port", after)
	}
	const most = 100
	for next := n + 1; next <= min(n+most, 1<<16-1); next++ {
		if port := strconv.Itoa(next); listens(hosts, port) == nil {
			return port, nil
		}
	}
	return "", refusedf("none of the %d ports after %s is free: name one", most, after)
}

// listens reports an error where nobody could listen.
func listens(hosts []string, port string) error {
	for _, host := range hosts {
		if host == "*" {
			host = ""
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, port)) //nolint:noctx // it waits for nothing
		if err != nil {
			return refusedf("port %s: %w", port, err)
		}
		if err := l.Close(); err != nil {
			return refusedf("port %s: %w", port, err)
		}
	}
	return nil
}

// writeLike writes a new file with the owner and mode of another one; in a directory of another
// user than root it is that user's. It replaces nothing, and what cannot be written whole is not left.
func writeLike(path, like string, content []byte) (err error) {
	info, err := os.Stat(like)
	if err != nil {
		return fmt.Errorf("%s: %w", like, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	_, others := osuser.Keeper(path).Other()
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && !others {
		err = errors.Join(err, f.Chown(int(owner.Uid), int(owner.Gid)))
	}
	if err = errors.Join(err, f.Chmod(info.Mode().Perm()&^0o007), f.Sync(), f.Close()); err == nil {
		err = os.Link(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
