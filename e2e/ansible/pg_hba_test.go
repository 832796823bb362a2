package ansible

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// The users of applications and lictor_auth_user are taken from the poolers only: a pooler that logs in at one
// shard's host tells it nothing by which it would be in at another shard's.
func TestApplicationsComeByPoolers(t *testing.T) {
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	defaults, err := filepath.Abs("../../ansible/roles/agent/defaults/main.yml")
	testkit.Must(t, err)
	dir := t.TempDir()
	out := filepath.Join(dir, "lines")
	users := []any{map[string]string{"name": "app"}, map[string]string{"name": `o"d, d`}}
	cases := map[string]struct {
		poolers, direct, want []string
	}{
		"poolers": {[]string{"10.0.0.8", "fd00::9"}, []string{"10.0.9.0/24"}, []string{
			`host all "app","o""d, d","lookup" 10.0.0.8/32 scram-sha-256`, `host all "app","o""d, d","lookup" fd00::9/128 scram-sha-256`,
			`host all "app","o""d, d","lookup" 10.0.9.0/24 scram-sha-256`, `host all "app","o""d, d","lookup" 10.0.0.0/8 reject`,
		}},
		"a name":     {[]string{"10.0.0.8", "pooler2"}, []string{}, nil},
		"no poolers": {[]string{}, []string{}, nil},
	}
	var plays []any
	for name, c := range cases {
		plays = append(plays, map[string]any{
			"hosts": "localhost", "connection": "local", "gather_facts": false, "vars_files": []string{defaults},
			"vars": map[string]any{
				"lictor_tls": false, "lictor_tls_strict": false, "lictor_networks": []string{"10.0.0.0/8"}, "lictor_direct_networks": c.direct,
				"lictor_users": users, "lictor_auth_query": true, "lictor_auth_user": "lookup", "lictor_pooler_addresses": c.poolers,
			},
			"tasks": []any{map[string]any{"ansible.builtin.copy": map[string]string{"content": "{{ lictor_pg_hba | to_json }}", "dest": out + name}}},
		})
	}
	text, err := json.Marshal(plays)
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "play.json"), text, 0o600))
	cmd := exec.Command("ansible-playbook", "-i", "localhost,", filepath.Join(dir, "play.json"))
	cmd.Env = append(os.Environ(), "ANSIBLE_HOME="+dir, "ANSIBLE_LOCAL_TEMP="+dir, "ANSIBLE_REMOTE_TEMP="+dir)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for name, c := range cases {
		text, err := os.ReadFile(out + name)
		testkit.Must(t, err)
		var lines []string
		testkit.Must(t, json.Unmarshal(text, &lines))
		want := append([]string{"local all all peer", "host all all 127.0.0.1/32 scram-sha-256"}, c.want...)
		want = append(want, "host all all 10.0.0.0/8 scram-sha-256", "host replication replicator 10.0.0.0/8 scram-sha-256")
		if !slices.Equal(lines, want) {
			t.Errorf("%s: %q", name, lines)
		}
		if errs := cluster.CheckHBA("pg_hba", lines); len(errs) > 0 {
			t.Errorf("%s: %v", name, errs)
		}
	}
}
