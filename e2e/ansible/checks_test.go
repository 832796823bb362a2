package ansible

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// checkCatalogue: the members of users are in Consul's catalogue, one as the primary.
func (r *rollout) checkCatalogue(t *testing.T) {
	t.Helper()
	const ask = `token=$(sed -n 's/.*"initial_management": "\([^"]*\)".*/\1/p' /etc/consul.d/consul.json)
		curl -s -H "X-Consul-Token: $token" http://127.0.0.1:8500/v1/catalog/service/users`
	r.await(t, "the members of users in Consul's catalogue", func() error {
		text, err := r.host("consul1").run(t.Context(), ask)
		if err != nil {
			return err
		}
		var services []struct{ ServiceTags []string }
		if err := json.Unmarshal([]byte(text), &services); err != nil {
			return fmt.Errorf("%w: %s", err, text)
		}
		primaries := 0
		for _, s := range services {
			if slices.Contains(s.ServiceTags, "primary") {
				primaries++
			}
		}
		if len(services) != 3 || primaries != 1 {
			return fmt.Errorf("the catalogue says %s", text)
		}
		return nil
	})
}

// checkSecrets: no secret stands in a log of a host, and nobody but its users can
// read the files that hold one.
func (r *rollout) checkSecrets(t *testing.T) {
	t.Helper()
	secrets := []string{appPassword}
	files := 0
	err := filepath.WalkDir(filepath.Join(r.dir, "secrets"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Base(filepath.Dir(path)) == "pki" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		secret, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
		secrets = append(secrets, secret)
		return nil
	})
	if err != nil || files == 0 {
		t.Fatalf("%d secrets: %v", files, err)
	}
	for _, h := range r.hosts {
		// Tokens are made from a secret: found where they are installed.
		tokens, err := h.run(t.Context(), `cat /etc/lictor/agents/*.token /etc/lictor/bouncer.token /etc/prometheus/consul.token 2>/dev/null
			grep -hoE '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' /etc/consul.d/consul.json 2>/dev/null; true`)
		if err != nil {
			t.Fatal(err)
		}
		// A pattern in the arguments of grep would be found by itself in what ssh logs.
		patterns := strings.Join(append(strings.Fields(tokens), secrets...), "\n")
		found, err := h.run(t.Context(), "cd /root && cat >patterns <<'END'\n"+patterns+"\nEND\n"+
			`{ journalctl --no-pager; cat /var/log/*.log /var/log/*/*.log /var/lib/postgresql/*/*/log/* 2>/dev/null; } | grep -F -f patterns | cut -c 1-300 | head -n 5
			grep -rlF -f patterns /etc /var/lib/postgresql/.* /tmp /var/tmp /var/cache 2>/dev/null | while read -r f; do find "$f" -perm /o+r; done; rm patterns`)
		if err != nil {
			t.Fatal(err)
		}
		if found != "" {
			t.Errorf("%s: secrets in logs or in files that all may read:\n%s", h.name, found)
		}
	}
}

// checkMonitoring: Prometheus reaches all that it was told to scrape.
func (r *rollout) checkMonitoring(t *testing.T) {
	t.Helper()
	r.await(t, "all targets to be up", func() error {
		var answer struct {
			Data struct {
				Result []struct {
					Metric struct{ Instance string }
					Value  [2]any
				}
			}
		}
		if err := r.tryAsk(t.Context(), http.MethodGet, "nlb1", "9090", "/api/v1/query?query=up", "", &answer); err != nil {
			return err
		}
		for _, target := range answer.Data.Result {
			if target.Value[1] != "1" {
				return fmt.Errorf("%s is down", target.Metric.Instance)
			}
		}
		want := 3 + r.agents() + 2*2 // Consul's servers, agents, bouncers and their PgBouncers
		if n := len(answer.Data.Result); n != want {
			return fmt.Errorf("%d targets, want %d", n, want)
		}
		return nil
	})
}

// checkRights: what an agent's token must not do, Consul refuses.
func (r *rollout) checkRights(t *testing.T) {
	t.Helper()
	const put = `curl -s -o /dev/null -w '%%{http_code}' -X PUT -d '{}' -H "X-Consul-Token: $(cat %s)" http://127.0.0.1:8500/v1/kv/%s`
	for _, tt := range []struct{ host, token, key string }{
		{"db1", "/etc/lictor/agents/orders.token", "service/users/leader"},
		{"db1", "/etc/lictor/agents/orders.token", "lictor/routes/service/users"},
		{"db1", "/etc/lictor/agents/orders.token", "lictor/bouncers/pooler1"},
		{"db1", "/etc/lictor/agents/orders.token", "lictor/secrets/service/users"},
		{"pooler1", "/etc/lictor/bouncer.token", "lictor/bouncers/pooler2"},
		{"pooler1", "/etc/lictor/bouncer.token", "lictor/bouncers-applied/pooler2"},
		{"pooler1", "/etc/lictor/bouncer.token", "lictor/handovers/service/orders"},
		{"pooler1", "/etc/lictor/bouncer.token", "lictor/routes/service/orders"},
		{"pooler1", "/etc/lictor/bouncer.token", "service/orders/leader"},
		{"pooler1", "/dev/null", "lictor/bouncers/pooler1"},
	} {
		got, err := r.host(tt.host).run(t.Context(), fmt.Sprintf(put, tt.token, tt.key))
		if err != nil || got != "403" {
			t.Errorf("%s writes %s with the token %s: Consul answers %s, want 403: %v", tt.host, tt.key, tt.token, got, err)
		}
	}
	const session = `curl -s -o /dev/null -w '%%{http_code}' -X PUT -d '{"Node":"%s","Checks":[],"TTL":"10s"}' -H "X-Consul-Token: $(cat %s)" http://127.0.0.1:8500/v1/session/create`
	for _, tt := range []struct{ host, token, node, want string }{
		{"db1", "/etc/lictor/agents/orders.token", "db1", "200"},
		{"db1", "/etc/lictor/agents/orders.token", "consul1", "200"}, // asked when its own agent hangs
		{"db1", "/etc/lictor/agents/orders.token", "db2", "403"},
		{"pooler1", "/etc/lictor/bouncer.token", "pooler2", "403"},
	} {
		got, err := r.host(tt.host).run(t.Context(), fmt.Sprintf(session, tt.node, tt.token))
		if err != nil || got != tt.want {
			t.Errorf("%s makes a session of %s with the token %s: Consul answers %s, want %s: %v", tt.host, tt.node, tt.token, got, tt.want, err)
		}
	}
}

func (r *rollout) testIdempotent(t *testing.T) {
	if got := r.mustPlay(t, "site", "--diff"); got.changes != 0 {
		t.Errorf("nothing had to be changed, but was:\n%s", strings.Join(got.changed, "\n"))
	}
}

// testCheck: a dry run of nothing says that nothing changes; one of a change says
// where, and does not make it.
func (r *rollout) testCheck(t *testing.T) {
	const processes = "systemctl show --property=MainPID consul pgbouncer lictor-bouncer 'lictor-agent@*'; head -qn 1 /var/lib/postgresql/15/*/postmaster.pid 2>/dev/null; true"
	running := map[string]string{}
	for _, h := range r.hosts {
		running[h.name], _ = h.run(t.Context(), processes)
	}
	for _, dry := range []struct {
		playbook string
		changes  bool // whether it would change something
		args     []string
	}{
		{"add_shard", false, []string{"-e", "shard=orders"}},
		{"add_replica", false, []string{"-e", "shard=orders", "-e", "member=db1"}},
		{"rolling_agent_upgrade", false, nil},
		{"rolling_bouncer", true, nil},
		{"rolling_restart", false, nil},
		{"rolling_restart", true, []string{"-e", "all=true"}},
		{"minor_upgrade", false, nil},
		{"minor_upgrade", true, []string{"-e", "all=true"}},
		{"consul_upgrade", false, nil},
		{"consul_upgrade", true, []string{"-e", "all=true"}},
	} {
		got, err := r.play(t.Context(), dry.playbook, append(dry.args, "--check", "--diff")...)
		if err != nil {
			t.Error(err)
		} else if got.changes > 0 != dry.changes {
			t.Errorf("a dry run of %s %v says that %d tasks would change something: %v", dry.playbook, dry.args, got.changes, got.changed)
		}
	}
	for _, h := range r.hosts {
		if now, err := h.run(t.Context(), processes); err != nil || now != running[h.name] {
			t.Errorf("%s: a dry run has restarted something: %v: before\n%s\nafter\n%s", h.name, err, running[h.name], now)
		}
	}
	if got := r.mustPlay(t, "site", "--check", "--diff"); got.changes != 0 {
		t.Errorf("nothing would have to be changed, but it says:\n%s", strings.Join(got.changed, "\n"))
	}
	const config = "cat /etc/lictor/bouncer.yml /etc/lictor/agents/orders.yml 2>/dev/null; true"
	before := map[string]string{}
	for _, name := range []string{"db1", "pooler1"} {
		before[name], _ = r.host(name).run(t.Context(), config)
	}
	got := r.mustPlay(t, "site", "--check", "--diff", "--limit", "lictor_poolers", "-e", "lictor_bouncer_hold_timeout=25")
	want := "Install the bouncer's configuration"
	for _, changed := range got.changed {
		if !strings.HasSuffix(changed, want) && !strings.HasSuffix(changed, "Let the bouncer read its configuration again") {
			t.Errorf("a change of the bouncers' hold_timeout would change %q", changed)
		}
	}
	if n := strings.Count(strings.Join(got.changed, "\n"), want); n != 2 {
		t.Errorf("%d bouncers would get another configuration, want 2", n)
	}
	for name, text := range before {
		if now, _ := r.host(name).run(t.Context(), config); now != text || text == "" {
			t.Errorf("%s: a dry run has changed a file", name)
		}
	}
}
