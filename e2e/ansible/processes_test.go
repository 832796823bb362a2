package ansible

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A bouncer takes the file that the role makes for one process of PgBouncer, and for several.
func TestPoolerConfiguration(t *testing.T) {
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	roles, err := filepath.Abs("../../ansible/roles")
	testkit.Must(t, err)
	for n, admins := range map[int][]string{1: {"/var/run/postgresql:6432"}, 3: {"/run/lictor-pgbouncer/1:6432", "/run/lictor-pgbouncer/2:6432", "/run/lictor-pgbouncer/3:6432"}} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir := t.TempDir()
			write := func(name string, value any) string {
				text, err := json.Marshal(value)
				testkit.Must(t, err)
				path := filepath.Join(dir, name)
				testkit.Must(t, os.WriteFile(path, text, 0o600))
				return path
			}
			vars := write("vars.json", map[string]any{
				"lictor_pgbouncer_processes": n, "lictor_tls": false, "lictor_bouncer_scheme": "http", "lictor_secrets_dir": dir,
				"lictor_addresses": map[string]string{"localhost": "127.0.0.1"}, "lictor_address": "127.0.0.1", "lictor_auth_query": true,
				"lictor_shards":        map[string]any{"orders": shard(5432, 8008, "localhost")},
				"lictor_bouncer_extra": map[string]any{"consul": map[string]any{"cacert": "", "token_file": ""}},
			})
			play := write("play.json", []any{map[string]any{
				"hosts": "localhost", "connection": "local", "gather_facts": false,
				"vars_files": []string{roles + "/common/defaults/main.yml", roles + "/bouncer/defaults/main.yml", vars},
				"tasks": []any{
					map[string]any{"ansible.builtin.template": map[string]string{"src": roles + "/bouncer/templates/bouncer.yml.j2", "dest": dir + "/bouncer.yml"}},
					map[string]any{"ansible.builtin.copy": map[string]string{"content": "{{ lictor_pgbouncer_units | join(' ') }} {{ lictor_pgbouncer_state }}", "dest": dir + "/units"}},
				},
			}})
			cmd := exec.Command("ansible-playbook", "-i", "localhost,", "-e", "@"+vars, play)
			cmd.Env = append(os.Environ(), "ANSIBLE_HOME="+dir, "ANSIBLE_LOCAL_TEMP="+dir, "ANSIBLE_REMOTE_TEMP="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			c, _, err := config.Load(settings.Source{Path: dir + "/bouncer.yml"})
			testkit.Must(t, err)
			var got, units []string
			for i, one := range c.Each() {
				got = append(got, one.PgBouncer.Admin)
				if units = append(units, fmt.Sprintf("lictor-pgbouncer@%d.service", i+1)); one.Setting("auth_user") == "" || one.Setting("listen_addr") != "*" {
					t.Errorf("settings are %v", one.PgBouncer.Settings)
				}
			}
			if n == 1 {
				units = []string{"pgbouncer.service"}
			}
			if text, err := os.ReadFile(dir + "/units"); err != nil || string(text) != strings.Join(units, " ")+" "+c.StateFile {
				t.Errorf("units and state are %s %v", text, err)
			}
			if !slices.Equal(got, admins) {
				t.Errorf("consoles are %q", got)
			}
		})
	}
}

// newerPgBouncer puts Debian 13's PgBouncer into the place of a host's own; whoever runs goes on.
func newerPgBouncer(t *testing.T, h *host) {
	t.Helper()
	dir, err := output(t.Context(), 15*time.Minute, "../tools/versions.sh", "trixie")
	testkit.Must(t, err)
	program := filepath.Join(dir, "programs", "pgbouncer")
	libraries, err := output(t.Context(), commandTimeout, "sh", "-c", "ldd '"+program+"' | grep -o '"+dir+"[^ ]*'; echo '"+dir+"'/usr/lib/*/ld-linux*.so.*")
	testkit.Must(t, err)
	args := append([]string{"--parents", "--dereference"}, strings.Fields(libraries)...)
	testkit.Must(t, exec.Command("cp", append(args, h.dir("root"))...).Run())
	testkit.Must(t, exec.Command("cp", "--remove-destination", program, filepath.Join(h.dir("root"), "usr/sbin/pgbouncer")).Run())
}

// TestPoolerProcesses sets a pooler with two processes of PgBouncer up, and replaces them with
// and without draining it, as their version asks for.
func TestPoolerProcesses(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: one systemd host, some 4 minutes")
	}
	names := []string{"a"}
	r := newRollout(t, names,
		map[string][]string{"consul_servers": names, "lictor_databases": names, "lictor_poolers": names},
		map[string]any{"lictor_shards": map[string]any{"orders": shard(5432, 8008, names...)}, "lictor_pgbouncer_processes": 2})
	h := r.host("a")
	r.entry = net.JoinHostPort(h.address, "6432")
	// runs is the version of each unit that runs, and the process.
	runs := func(units ...string) (versions, pids []string) {
		t.Helper()
		for _, unit := range units {
			out, err := h.run(t.Context(), "p=$(systemctl show --property=MainPID --value "+unit+"); test $p != 0 && /proc/$p/exe --version | head -1 && echo $p")
			lines := strings.Split(out, "\n")
			if err != nil || len(lines) != 2 {
				t.Fatalf("%s does not run: %s %v", unit, out, err)
			}
			versions, pids = append(versions, strings.TrimPrefix(lines[0], "PgBouncer ")), append(pids, lines[1])
		}
		return versions, pids
	}
	both := []string{"lictor-pgbouncer@1", "lictor-pgbouncer@2"}
	drained := func() string {
		out, err := h.run(t.Context(), "journalctl -u lictor-bouncer | grep -c 'drain switched' || true")
		testkit.Must(t, err)
		return out
	}

	r.mustPlay(t, "site")
	r.makeTable(t, "orders")
	r.testIdempotent(t)
	old, before := runs(both...)
	newerPgBouncer(t, h)
	r.mustPlay(t, "rolling_bouncer", "-e", "drain_wait=1s", "-e", "balancer_wait=0")
	versions, pids := runs(both...)
	if slices.ContainsFunc(pids, func(pid string) bool { return slices.Contains(before, pid) }) || versions[0] == old[0] || versions[1] != versions[0] || drained() == "0" {
		t.Errorf("%v, after it %v; pids %v, %v; drained %s times", old, versions, before, pids, drained())
	}

	times := drained()
	load := r.startLoad(t.Context(), r.entry, appPassword, "orders")
	r.mustPlay(t, "rolling_bouncer", "-e", "drain_wait=60s")
	r.await(t, "a transaction", func() error { return load.served("orders") })
	commits, errors, longest := load.stop()
	t.Logf("%d transactions, the longest took %s; %q", commits, longest, errors)
	for _, err := range errors { // whoever logs in just when a process is told to end must try again
		if !strings.Contains(err, "pooler is shutting down") && !strings.Contains(err, "connection reset") {
			t.Error(err)
		}
	}
	_, after := runs(both...)
	if slices.ContainsFunc(after, func(pid string) bool { return slices.Contains(pids, pid) }) || drained() != times {
		t.Errorf("pids %v, after it %v; drained %s times, then %s", pids, after, times, drained())
	}

	// Another number of processes is rolling_bouncer's, too.
	r.vars["lictor_pgbouncer_processes"] = 1
	if got, err := r.play(t.Context(), "site"); err == nil || !strings.Contains(strings.Join(got.failed, " "), "rolling_bouncer does that") {
		t.Errorf("site stops processes that have clients: %v", got.failed)
	}
	runs(both...)
	r.mustPlay(t, "rolling_bouncer", "-e", "drain_wait=1s", "-e", "balancer_wait=0")
	runs("pgbouncer")
	if out, err := h.run(t.Context(), "systemctl is-active "+strings.Join(both, " ")+" || true"); err != nil || strings.Contains(out, "\nactive") || strings.HasPrefix(out, "active") {
		t.Errorf("they still run: %s %v", out, err)
	}
	r.underLoad(t, func() {}, "orders")
	r.testIdempotent(t)
}
