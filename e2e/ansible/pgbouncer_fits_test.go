package ansible

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPgBouncerFits: what an operator's file of PgBouncer has, and a bouncer's would not, is
// told before the one is replaced by the other.
func TestPgBouncerFits(t *testing.T) {
	t.Parallel()
	b := newBesieged(t)
	dir := b.own(t, "pgbouncer")
	write := func(name, content string) string {
		b.write(t, filepath.Join(dir, name), content)
		return filepath.Join(dir, name)
	}
	included := write("databases.ini", "orders = host=127.0.0.1 port=5432\nold = host=127.0.0.1\n")
	users := write("userlist.txt", "\"app\" \"another\"\n\"hashed\" \"md504d4a9616f5b4c7cdb75992b7c5a43e9\"\n\"bob\" \"md50123456789abcdef0123456789abcdef\"\n")
	ini := write("pgbouncer.ini", "; an operator's\n[databases]\n%include "+included+"\nusers = host='127.0.0.2' port=5433 dbname = people pool_size=3\norders_ro = host=127.0.0.9\n"+
		"[pgbouncer]\nlisten_addr = *\nauth_file = "+users+"\nmax_client_conn = 5000\nserver_login_retry = 15\nunix_socket_dir = "+dir+"\n[users]\napp = pool_mode=session\n")

	database := func(shard string, addresses ...string) map[string]any {
		return map[string]any{"shard": shard, "dbname": shard, "port": 5432, "addresses": addresses, "options": map[string]any{}}
	}
	args := map[string]any{
		"path": ini, "port": 6432, "socket_dir": "/var/run/postgresql",
		"databases": map[string]any{"orders": database("orders", "127.0.0.1"), "users": database("users", "127.0.0.4")},
		"users":     []any{map[string]string{"name": "app", "password": "secret"}, map[string]string{"name": "hashed", "password": "secret"}},
	}
	want := []string{
		"no shard has the database old: name it in lictor_shards.SHARD.databases, or set lictor_bouncer_extra.pgbouncer.fallback",
		"its database users leads to 127.0.0.2 (127.0.0.2), and the primary of users is at 127.0.0.4",
		"its database users leads to port 5433, and users has port 5432",
		"its database users is the database people in PostgreSQL: name it users=people in lictor_shards.users.databases",
		"its database users has the option pool_size: set it in lictor_shards.users.pool (pool_size, pool_mode, or options)",
		"its max_client_conn is 5000: set lictor_pgbouncer_settings.max_client_conn, to this value or to another one",
		"its auth_type is md5 and would be scram-sha-256: set lictor_pgbouncer_settings.auth_type",
		"its pool_mode is session and would be transaction: set lictor_pgbouncer_settings.pool_mode",
		"its unix_socket_dir is " + dir + ", and the bouncer looks for it in /var/run/postgresql: change that, and restart it",
		"the password of its user app is another one than in lictor_users",
		"its user bob is none of lictor_users",
		"it has a section [users]: set lictor_bouncer_extra.pgbouncer.users",
	}
	if diff := cmp.Diff(want, fits(t, args)); diff != "" {
		t.Error(diff)
	}

	// When the inventory says all that.
	args["databases"] = map[string]any{
		"orders": database("orders", "127.0.0.1"), "old": map[string]any{"shard": "orders", "addresses": []string{}},
		"users": map[string]any{"shard": "users", "dbname": "people", "port": 5433, "addresses": []string{"127.0.0.2"}, "options": map[string]any{"pool_size": 3}},
	}
	args["settings"] = map[string]any{"max_client_conn": 5000, "auth_type": "md5", "pool_mode": "session"}
	args["socket_dir"], args["extra"] = dir, []string{"users"}
	args["users"] = []any{map[string]string{"name": "app", "password": "another"}, map[string]string{"name": "hashed", "password": "secret"}}
	args["others"] = true
	if diff := cmp.Diff([]string{}, fits(t, args)); diff != "" {
		t.Error(diff)
	}

	// PgBouncer's user says which files are included; root reads none for it.
	b.link(t, b.secret, filepath.Join(dir, "more.ini"))
	write("pgbouncer.ini", "%include "+filepath.Join(dir, "more.ini")+"\n[pgbouncer]\n")
	if out, err := runTasks(t, map[string]any{}, map[string]any{"lictor_ha.lictor.pgbouncer_fits": args}); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("root's file, included: %v %s", err, out)
	}
}

// fits is what the module pgbouncer_fits says.
func fits(t *testing.T, args map[string]any) []string {
	t.Helper()
	tree, err := collectionTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "ansible", "-i", "localhost,", "-c", "local", "localhost", "-m", "lictor_ha.lictor.pgbouncer_fits", "-a", string(text), "--tree", out)
	cmd.Env = append(ansibleEnvironment(tree, t.TempDir()), "ANSIBLE_PYTHON_INTERPRETER=auto_silent")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	answer, err := os.ReadFile(filepath.Join(out, "localhost"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Problems []string }
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	return got.Problems
}
