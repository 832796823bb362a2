package ansible

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Who is taken out of lictor_users keeps a line in userlist.txt, with a secret of which there is no password: a
// PgBouncer that runs would let everybody in as a user whom it knows and does not find there.
func TestUserlistLocksWhoLeaves(t *testing.T) {
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	template, err := filepath.Abs("../../ansible/roles/pgbouncer/templates/userlist.txt.j2")
	testkit.Must(t, err)
	dir := t.TempDir()
	file := filepath.Join(dir, "userlist.txt")
	testkit.Must(t, os.WriteFile(file, nil, 0o600))
	render := func(users map[string]string) (map[string]string, string) {
		t.Helper()
		var list []any
		for _, name := range slices.Sorted(maps.Keys(users)) {
			list = append(list, map[string]string{"name": name, "password": users[name]})
		}
		play, err := json.Marshal([]any{map[string]any{
			"hosts": "localhost", "connection": "local", "gather_facts": false,
			"vars": map[string]any{"lictor_pgbouncer_password": "console", "lictor_auth_query": false, "lictor_users": list},
			"tasks": []any{
				map[string]any{"ansible.builtin.command": "cat " + file, "register": "lictor_userlist_before"},
				map[string]any{"ansible.builtin.copy": map[string]string{"content": "{{ lookup('ansible.builtin.template', '" + template + "') }}", "dest": file}},
			},
		}})
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "play.json"), play, 0o600))
		cmd := exec.Command("ansible-playbook", "-i", "localhost,", filepath.Join(dir, "play.json"))
		cmd.Env = append(os.Environ(), "ANSIBLE_HOME="+dir, "ANSIBLE_LOCAL_TEMP="+dir, "ANSIBLE_REMOTE_TEMP="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		text, err := os.ReadFile(file)
		testkit.Must(t, err)
		got, err := pgbouncer.ParseUserlist(text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return got, string(text)
	}
	locked := func(secret string) bool { return strings.HasPrefix(secret, "SCRAM-SHA-256$4096:") }
	got, text := render(map[string]string{"app": "1", `b"q`: `2"`})
	if want := map[string]string{"pgbouncer": "console", "app": "1", `b"q`: `2"`}; !maps.Equal(got, want) || strings.Contains(text, ";;") {
		t.Fatalf("%s", text)
	}
	got, text = render(map[string]string{"app": "1"})
	if len(got) != 3 || got["app"] != "1" || !locked(got[`b"q`]) {
		t.Fatalf("%s", text)
	}
	if again, _ := render(map[string]string{"app": "1"}); !maps.Equal(again, got) {
		t.Errorf("the next run changes the file to %v", again)
	}
	if other := pgbouncer.LockLeft([]byte("\"app\" \"1\"\n"), []byte(text)); strings.Count(string(other), ";;") != 1 || !strings.Contains(string(other), got[`b"q`]) {
		t.Errorf("the bouncer makes of it %s", other)
	}
	secret := got[`b"q`]
	got, text = render(map[string]string{`b"q`: "3"})
	if len(got) != 3 || got[`b"q`] != "3" || !locked(got["app"]) || strings.Contains(text, secret) {
		t.Errorf("%s", text)
	}
}
