package ansible

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// TestGiveBackAsksConsul: what a way back does in Consul, at a real one. systemd and PostgreSQL are
// programs that say what they would; TestAdopt has them.
func TestGiveBackAsksConsul(t *testing.T) {
	t.Parallel()
	b := newBesieged(t)
	c := startConsul(t)
	etc, data, bin := b.own(t, "main"), b.own(t, "data"), b.own(t, "bin")
	start := filepath.Join(b.secretDir, "start.conf")
	testkit.Must(t, os.WriteFile(start, []byte("auto\n"), 0o600))
	for name, text := range map[string]string{"systemctl": `[ "$1" != is-active ]`, "pg_ctl": "exit 3", "psql": "exit 0"} {
		b.write(t, filepath.Join(bin, name), "#!/bin/sh\n"+text+"\n")
		testkit.Must(t, os.Chmod(filepath.Join(bin, name), 0o755)) //nolint:gosec // a program
	}
	for key, value := range map[string]any{
		"service/orders/initialize": 7, "service/orders/config": map[string]any{"ttl": 30}, "service/orders/members/db1": map[string]any{},
		"lictor/routes/service/orders": map[string]any{"state": "open", "leader": map[string]string{"name": "localhost"}, "system_identifier": "7"},
	} {
		c.must(t, http.MethodPut, "/v1/kv/"+key, management, value, nil)
	}

	include := map[string]any{"ansible.builtin.include_vars": map[string]any{"file": defaultsOf(t, "common")}}
	const file = "playbooks/tasks/adopt_keys.yml"
	found := map[string]any{"ansible.builtin.debug": map[string]any{"msg": "{{ lictor_keys_now.initialize }}, {{ lictor_member_keys[0] }}, {{ lictor_route_now.leader.name }}"}}
	give := map[string]any{
		"environment": map[string]string{"PATH": bin + ":" + os.Getenv("PATH")},
		"lictor_ha.lictor.give_back": map[string]any{
			"shard": "orders", "member": "localhost", "unit": "lictor-test-none.service", "config_dir": etc, "data_dir": data, "bin_dir": bin, "start_conf": start, "port": 1,
			"consul": map[string]any{"api": "{{ consul_api }}", "prefix": "service/orders/", "route": "lictor/routes/service/orders", "others": []string{"db2"}},
		},
	}
	out, err := runTasks(t, map[string]any{
		"consul_https_port": c.https, "consul_ca_path": c.ca(), "consul_management_token": management, "consul_servers": []string{"localhost"},
		"lictor_addresses": map[string]string{"localhost": "127.0.0.1"}, "shard": "orders", "lictor_show_secrets": false,
	}, include, taskOf(t, file, "Ask Consul"), taskOf(t, file, "Note what it has"), found, give)
	if err != nil || !strings.Contains(out, `"msg": "7, db1, localhost"`) || strings.Contains(out, management) {
		t.Fatalf("%v: %s", err, out)
	}
	if got, said := c.ask(t, http.MethodGet, "/v1/kv/service/orders/?recurse=true", management, nil); got != http.StatusNotFound {
		t.Errorf("keys are left: %d %s", got, said)
	}
	var route []struct{ Value string }
	c.must(t, http.MethodGet, "/v1/kv/lictor/routes/service/orders", management, nil, &route)
	text, err := base64.StdEncoding.DecodeString(route[0].Value)
	testkit.Must(t, err)
	var now struct{ State string }
	testkit.Must(t, json.Unmarshal(text, &now))
	if now.State != "open" {
		t.Errorf("its route is %s", text)
	}
	if text, err := os.ReadFile(filepath.Join(etc, "start.conf")); err != nil || string(text) != "auto\n" {
		t.Errorf("start.conf is %q: %v", text, err)
	}
}
