package ansible

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// refusal runs a playbook on hosts that do not exist, and returns what it says instead of asking one of them.
func refusal(t *testing.T, groups map[string][]string, shards map[string]any, playbook string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	dir := t.TempDir()
	tree, err := collectionTree(filepath.Join(dir, "collections"))
	testkit.Must(t, err)
	inventory := map[string]any{"all": map[string]any{"vars": map[string]any{"lictor_shards": shards}}}
	for group, names := range groups {
		hosts := map[string]any{}
		for _, name := range names {
			hosts[name] = map[string]any{"ansible_host": "127.0.0.1", "ansible_port": 1}
		}
		inventory[group] = map[string]any{"hosts": hosts}
	}
	text, err := json.Marshal(inventory)
	testkit.Must(t, err)
	file := filepath.Join(dir, "inventory.json")
	testkit.Must(t, os.WriteFile(file, text, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ansible-playbook", append([]string{"-i", file, "lictor_ha.lictor." + playbook}, args...)...)
	cmd.Env = ansibleEnvironment(tree, dir)
	out, err := cmd.CombinedOutput()
	said := strings.Join(strings.Fields(string(out)), " ")
	if err == nil || !strings.Contains(said, "failed=1") || strings.Contains(said, "unreachable=1") {
		t.Errorf("%s %v: it does not refuse before it asks a host: %v\n%s", playbook, args, err, out)
	}
	return said
}

// What cannot be, as the inventory says, is refused before any host is asked, with what to do.
func TestRemoveMemberRefuses(t *testing.T) {
	t.Parallel()
	all := []string{"a", "b", "c"}
	for name, test := range map[string]struct {
		members, databases []string
		args               []string
		want               string
	}{
		"nothing named":         {[]string{"a", "b"}, all, nil, "say which member of which shard"},
		"no shard of that name": {[]string{"a", "b"}, all, []string{"shard=users", "member=c"}, "say which member of which shard"},
		"still in the shard":    {all, all, []string{"shard=orders", "member=c"}, "take c out of lictor_shards.orders.members first"},
		"the last one":          {[]string{"c"}, all, []string{"shard=orders", "member=c"}, "c is its last member: a shard goes as a whole"},
		"one is left":           {[]string{"a"}, all, []string{"shard=orders", "member=c"}, "only a would be left, and nobody could take over from it"},
		"in no group":           {[]string{"a", "b"}, []string{"a", "b"}, []string{"shard=orders", "member=c"}, "c is in no group that it can be reached by"},
		"a member in no group":  {[]string{"a", "d"}, all, []string{"shard=orders", "member=c"}, "its members d are not in lictor_databases"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said := refusal(t, map[string][]string{"consul_servers": {"a"}, "lictor_databases": test.databases},
				map[string]any{"orders": shard(5432, 8008, test.members...)}, "remove_member", variables(test.args)...)
			if !strings.Contains(said, test.want) {
				t.Errorf("it does not say %q:\n%s", test.want, said)
			}
		})
	}
}

func TestReplaceHostRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		databases, leaving, servers []string
		args                        []string
		want                        string
	}{
		"nothing named":      {[]string{"a", "b", "d"}, []string{"c"}, []string{"a"}, nil, "say which host goes and which one comes"},
		"itself":             {[]string{"a", "b", "d"}, []string{"c"}, []string{"a"}, []string{"old=d", "new=d"}, "say which host goes and which one comes"},
		"still there":        {[]string{"a", "b", "c", "d"}, nil, []string{"a"}, []string{"old=c", "new=d"}, "move c from lictor_databases to the group lictor_leaving"},
		"still a member":     {[]string{"a", "b", "d"}, []string{"c"}, []string{"a"}, []string{"old=b", "new=d"}, "and put d in its place among the members of orders"},
		"in no group":        {[]string{"a", "b", "d"}, nil, []string{"a"}, []string{"old=c", "new=d"}, "c is in no group: put it into lictor_leaving"},
		"a server of Consul": {[]string{"a", "b", "d"}, []string{"c"}, []string{"c"}, []string{"old=c", "new=d"}, "c is in consul_servers, too, which this does not replace"},
		"no member":          {[]string{"a", "b", "d", "e"}, []string{"c"}, []string{"a"}, []string{"old=c", "new=e"}, "e must be in lictor_databases, and among the members"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			groups := map[string][]string{"consul_servers": test.servers, "lictor_databases": test.databases, "lictor_leaving": test.leaving}
			said := refusal(t, groups, map[string]any{"orders": shard(5432, 8008, "a", "b", "d")}, "replace_host", variables(test.args)...)
			if !strings.Contains(said, test.want) {
				t.Errorf("it does not say %q:\n%s", test.want, said)
			}
		})
	}
}

func TestAddPoolerAndRepackRefuse(t *testing.T) {
	t.Parallel()
	chosen := func(repack any) map[string]any {
		s := shard(5432, 8008, "a", "b")
		s["repack"] = repack
		return map[string]any{"orders": s}
	}
	const choose = "choose its tables in the inventory, never all of them"
	for name, test := range map[string]struct {
		playbook string
		shards   map[string]any
		args     []string
		want     string
	}{
		"no pooler":         {"add_pooler", chosen(nil), nil, "say which host of the group lictor_poolers is new"},
		"not in the group":  {"add_pooler", chosen(nil), []string{"pooler=b"}, "put it there first"},
		"no shard":          {"repack", chosen(nil), nil, choose},
		"no tables":         {"repack", chosen([]any{}), []string{"shard=orders"}, choose},
		"no list of tables": {"repack", chosen([]any{map[string]any{"database": "orders", "tables": "all"}}), []string{"shard=orders"}, choose},
		"an empty list":     {"repack", chosen([]any{map[string]any{"database": "orders", "tables": []string{}}}), []string{"shard=orders"}, choose},
		"no database":       {"repack", chosen([]any{map[string]any{"tables": []string{"lines"}}}), []string{"shard=orders"}, choose},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			groups := map[string][]string{"consul_servers": {"a"}, "lictor_databases": {"a", "b"}, "lictor_poolers": {"a"}}
			if said := refusal(t, groups, test.shards, test.playbook, variables(test.args)...); !strings.Contains(said, test.want) {
				t.Errorf("it does not say %q:\n%s", test.want, said)
			}
		})
	}
}

// variables are arguments that set these.
func variables(all []string) (args []string) {
	for _, one := range all {
		args = append(args, "-e", one)
	}
	return args
}
