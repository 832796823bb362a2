package ansible

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func (r *rollout) testAgentUpgrade(t *testing.T) {
	before := map[string]string{}
	for _, name := range []string{"db1", "db2", "db3"} {
		before[name] = r.postmaster(t, name)
	}
	r.vars["lictor_package_file"] = buildPackage(t, r.dir, "0.1.0+b") // of the same source
	r.underLoad(t, func() { r.mustPlay(t, "rolling_agent_upgrade") }, "orders", "users")
	for name, postmaster := range before {
		if now := r.postmaster(t, name); now != postmaster {
			t.Errorf("%s: PostgreSQL was restarted", name)
		}
		version, err := r.host(name).run(t.Context(), "for p in $(pgrep -f '^/usr/bin/lictor agent'); do /proc/$p/exe --version; done | sort -u")
		if err != nil || !strings.Contains(version, "0.1.0+b") || strings.Contains(version, "\n") {
			t.Errorf("%s: its agents are %q: %v", name, version, err)
		}
	}
}

// anotherConsul is another file that runs as well: programs may be followed by
// anything.
func (r *rollout) anotherConsul(t *testing.T) string {
	t.Helper()
	binary, err := os.ReadFile(r.consul)
	if err != nil {
		t.Fatal(err)
	}
	another := filepath.Join(r.dir, "consul")
	if err := os.WriteFile(another, append(binary, "another"...), 0o755); err != nil { //nolint:gosec // as programs are
		t.Fatal(err)
	}
	return another
}

func (r *rollout) testConsulUpgrade(t *testing.T) {
	r.vars["consul_binary"] = r.anotherConsul(t)
	r.underLoad(t, func() { r.mustPlay(t, "consul_upgrade") }, "orders", "users")
	for _, h := range r.hosts {
		running, err := h.run(t.Context(), "cat /proc/$(systemctl show --property=MainPID --value consul)/exe | tail -c 7; test -e /etc/consul.d/consul.json || echo another")
		if err != nil || running != "another" {
			t.Errorf("%s does not run the new Consul: %v", h.name, err)
		}
	}
}

func (r *rollout) testRollingBouncer(t *testing.T) {
	r.underLoad(t, func() { r.mustPlay(t, "rolling_bouncer", "-e", "drain_wait=60s") }, "orders", "users")
}

func (r *rollout) testAddShard(t *testing.T) {
	r.vars["lictor_shards"].(map[string]any)["carts"] = shard(5434, 8028, "db3", "db1")
	r.underLoad(t, func() { r.mustPlay(t, "add_shard", "-e", "shard=carts") }, "orders", "users")
	r.makeTable(t, "carts")
	r.underLoad(t, func() {}, "carts")
}

func (r *rollout) testAddReplica(t *testing.T) {
	r.vars["lictor_shards"].(map[string]any)["carts"] = shard(5434, 8028, "db3", "db1", "db2")
	r.underLoad(t, func() { r.mustPlay(t, "add_replica", "-e", "shard=carts", "-e", "member=db2") }, "orders", "users", "carts")
	r.awaitHealthy(t, "8028", 3)
}

func (r *rollout) testRollingRestart(t *testing.T) {
	leader := r.leader(t, "8008")
	r.ask(t, http.MethodPatch, leader, "8008", "/config", `{"postgresql":{"parameters":{"max_connections":110}}}`, nil)
	r.await(t, "all members to wait for a restart", func() error {
		for _, name := range []string{"db1", "db2", "db3"} {
			var status struct {
				PendingRestart bool `json:"pending_restart"`
			}
			if err := r.tryAsk(t.Context(), http.MethodGet, name, "8008", "/patroni", "", &status); err != nil || !status.PendingRestart {
				return fmt.Errorf("%s: pending_restart is %v: %w", name, status.PendingRestart, err)
			}
		}
		return nil
	})
	r.underLoad(t, func() { r.mustPlay(t, "rolling_restart") }, "orders", "users", "carts")
	for _, name := range []string{"db1", "db2", "db3"} {
		got, err := r.host(name).run(t.Context(), `runuser -u postgres -- psql -h /var/run/postgresql -p 5432 -XAtc "SHOW max_connections"`)
		if err != nil || got != "110" {
			t.Errorf("%s: max_connections is %q after the restart: %v", name, got, err)
		}
	}
}

func (r *rollout) testMinorUpgrade(t *testing.T) {
	before := map[string]string{}
	for _, name := range []string{"db1", "db2", "db3"} {
		before[name] = r.postmaster(t, name)
	}
	r.underLoad(t, func() { r.mustPlay(t, "minor_upgrade", "-e", "all=true") }, "orders", "users", "carts")
	for name, postmaster := range before {
		if r.postmaster(t, name) == postmaster {
			t.Errorf("%s: PostgreSQL goes on with the old version", name)
		}
	}
}
