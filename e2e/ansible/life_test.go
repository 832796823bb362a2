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
		"the last one":          {[]string{"c"}, all, []string{"shard=orders", "member=c"}, "c is its last member: a shard goes as a whole, with remove_shard"},
		"one is left":           {[]string{"a"}, all, []string{"shard=orders", "member=c"}, "only a would be left, and nobody could take over from it"},
		"in no group":           {[]string{"a", "b"}, []string{"a", "b"}, []string{"shard=orders", "member=c"}, "c is in no group that it can be reached by"},
		"a member in no group":  {[]string{"a", "d"}, all, []string{"shard=orders", "member=c"}, "its members d are not in lictor_databases"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var args []string
			for _, arg := range test.args {
				args = append(args, "-e", arg)
			}
			said := refusal(t, map[string][]string{"consul_servers": {"a"}, "lictor_databases": test.databases},
				map[string]any{"orders": shard(5432, 8008, test.members...)}, "remove_member", args...)
			if !strings.Contains(said, test.want) {
				t.Errorf("it does not say %q:\n%s", test.want, said)
			}
		})
	}
}
