package ansible

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What cannot work is told before anything is touched: these hosts do not exist.
func TestWrongInventoriesAreTold(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	for name, test := range map[string]struct {
		host, scope, want string
		processes         any
		vars              map[string]any
	}{
		"dots":                 {"db1.example.org", "orders", "host db1.example.org: names of hosts in the inventory may", 1, nil},
		"capitals":             {"DB1", "orders", "host DB1: names of hosts in the inventory may", 1, nil},
		"ends so":              {"db1-", "orders", "host db1-: names of hosts in the inventory may", 1, nil},
		"shard's name":         {"db1", "or ders", "shard or ders: members must", 1, nil},
		"no process":           {"db1", "orders", "lictor_pgbouncer_processes 0: must be a whole number from 1 to 64", 0, nil},
		"a page for everybody": {"db1", "orders", "lictor_bouncer_web shows all shards to everybody", 1, map[string]any{"lictor_bouncer_web": true}},
		"a page for everybody, with other settings": {"db1", "orders", "lictor_bouncer_web shows all shards to everybody", 1, map[string]any{
			"lictor_bouncer_web": "yes", "lictor_bouncer_extra": map[string]any{"verify_client": "none", "allowlist": []string{}},
		}},
		"a certificate drains": {"db1", "orders", "verify_client without authentication in lictor_bouncer_extra", 1, map[string]any{
			"lictor_bouncer_extra": map[string]any{"verify_client": "optional", "web_authentication": map[string]any{"username": "a", "password": "b"}},
		}},
		"a page with a login, and capitals": {"DB1", "orders", "host DB1: names of hosts in the inventory may", 1, map[string]any{
			"lictor_bouncer_web": true, "lictor_bouncer_extra": map[string]any{"web_authentication": map[string]any{"username": "a", "password": "b"}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tree, err := collectionTree(filepath.Join(dir, "collections"))
			if err != nil {
				t.Fatal(err)
			}
			host := map[string]any{"hosts": map[string]any{test.host: map[string]any{"ansible_host": "127.0.0.1", "ansible_port": 1}}}
			vars := map[string]any{
				"lictor_shards": map[string]any{test.scope: shard(5432, 8008, test.host)}, "lictor_pgbouncer_processes": test.processes,
			}
			maps.Copy(vars, test.vars)
			text, err := json.Marshal(map[string]any{
				"all":            map[string]any{"vars": vars},
				"consul_servers": host, "lictor_databases": host, "lictor_poolers": host,
			})
			if err != nil {
				t.Fatal(err)
			}
			inventory := filepath.Join(dir, "inventory.json")
			if err := os.WriteFile(inventory, text, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "ansible-playbook", "-i", inventory, "lictor_ha.lictor.site")
			cmd.Env = ansibleEnvironment(tree, dir)
			out, err := cmd.CombinedOutput()
			said := strings.Join(strings.Fields(string(out)), " ")
			if err == nil || !strings.Contains(said, test.want) || strings.Contains(said, "unreachable=1") {
				t.Errorf("%v: it does not say %q first:\n%s", err, test.want, out)
			}
		})
	}
}
