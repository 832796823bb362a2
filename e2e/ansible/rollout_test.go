package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// rollout is a site that TestRollout's parts share, and the packages to put there.
type rollout struct {
	*site
	*ansible
	packages []string // the same source, as two versions
	nlb      string
}

const appPassword = "not-secret-here"

// patience bounds every wait for something to become true.
const patience = 2 * time.Minute

// TestRollout sets a whole site up from bare systemd hosts and changes everything in
// it, while clients go on.
func TestRollout(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: nine systemd hosts, some 30 minutes")
	}
	r := newRollout(t)
	// Each part needs what the ones before it made.
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"site", r.testSite},
		{"site again changes nothing", r.testIdempotent},
		{"agent crash", r.testAgentCrash},
		{"rolling_agent_upgrade", r.testAgentUpgrade},
		{"rolling_bouncer", r.testRollingBouncer},
		{"consul_upgrade", r.testConsulUpgrade},
		{"add_shard", r.testAddShard},
		{"rolling_restart", r.testRollingRestart},
		{"host killed", r.testHostKilled},
		{"add_replica", r.testAddReplica},
		{"minor_upgrade", r.testMinorUpgrade},
		{"check and diff", r.testCheck},
		{"site changes nothing in the end", r.testIdempotent},
	} {
		if !t.Run(part.name, part.run) && part.name == "site" {
			break
		}
	}
}

func newRollout(t *testing.T) *rollout {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lictor-ansible-") // overlays want a disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("LICTOR_ANSIBLE_KEEP") != "" {
			t.Logf("what the playbooks said is kept in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r := &rollout{}
	for _, version := range []string{"0.1.0+a", "0.1.0+b"} {
		r.packages = append(r.packages, buildPackage(t, dir, version))
	}
	consul, err := output(t.Context(), 15*time.Minute, "../tools/consul.sh")
	if err != nil {
		t.Fatal(err)
	}

	r.site, err = newSite(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.close(ctx); err != nil {
			t.Error(err)
		}
	})
	groups := map[string][]string{
		"consul_servers": {"consul1", "consul2", "consul3"}, "lictor_databases": {"db1", "db2", "db3"},
		"lictor_poolers": {"pooler1", "pooler2"}, "lictor_balancers": {"nlb1"}, "lictor_monitoring": {"nlb1"},
	}
	start := time.Now()
	if err := r.boot(t.Context(), "consul1", "consul2", "consul3", "db1", "db2", "db3", "pooler1", "pooler2", "nlb1"); err != nil {
		t.Fatal(err)
	}
	t.Logf("nine hosts booted in %s", time.Since(start).Round(time.Millisecond))
	r.ansible, err = newAnsible(r.site, groups, map[string]any{
		"lictor_networks":     []string{"10.77.0.0/24"},
		"lictor_package_file": r.packages[0], "consul_binary": consul,
		"lictor_users": []any{map[string]string{"name": "app", "password": appPassword}},
		// Small, as all hosts share one machine.
		"lictor_parameters": map[string]any{"shared_buffers": "32MB"}, "lictor_nlb_maxconn": 2000,
		"lictor_apt_update": false, // the hosts reach no package server
		"lictor_shards": map[string]any{
			"orders": shard(5432, 8008, "db1", "db2", "db3"),
			"users":  shard(5433, 8018, "db2", "db3", "db1"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.nlb = net.JoinHostPort(r.host("nlb1").address, "5432")
	return r
}

func shard(port, apiPort int, members ...string) map[string]any {
	return map[string]any{"port": port, "api_port": apiPort, "members": members}
}

// buildPackage builds the .deb of this machine's architecture.
func buildPackage(t *testing.T, dir, version string) string {
	t.Helper()
	dist := filepath.Join(dir, "dist-"+version)
	cmd := exec.CommandContext(t.Context(), "../../packages/build.sh", version, dist)
	cmd.Env = append(os.Environ(), "ARCHITECTURES="+runtime.GOARCH, "PACKAGERS=deb")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("packages: %v: %s", err, out)
	}
	return filepath.Join(dist, "lictor_"+version+"_"+runtime.GOARCH+".deb")
}

func (r *rollout) mustPlay(t *testing.T, playbook string, args ...string) result {
	t.Helper()
	got, err := r.play(t.Context(), playbook, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s: %s, %d tasks changed something", playbook, strings.Join(args, " "), got.took.Round(100*time.Millisecond), got.changes)
	return got
}

// underLoad runs a change while clients of the databases go on, and reports every
// error that one of them saw.
func (r *rollout) underLoad(t *testing.T, change func(), databases ...string) {
	t.Helper()
	l := r.startLoad(t.Context(), r.nlb, appPassword, databases...)
	defer func() {
		commits, errors, longest := l.stop()
		t.Logf("clients of %v: %d transactions, %d errors, the longest took %s", databases, commits, len(errors), longest)
		for _, e := range errors {
			t.Error(e)
		}
		if commits == 0 {
			t.Error("no transaction was committed")
		}
	}()
	change()
}

func (r *rollout) testSite(t *testing.T) {
	r.mustPlay(t, "site")
	for _, database := range []string{"orders", "users"} {
		r.makeTable(t, database)
	}
	r.underLoad(t, func() { sleep(t.Context(), time.Second) }, "orders", "users")
	r.checkMonitoring(t)
	r.checkRights(t)
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
		const want = 3 + 2*3 + 2 // Consul's servers, agents, bouncers
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
		{"pooler1", "/etc/lictor/bouncer.token", "lictor/routes/service/orders"},
		{"pooler1", "/etc/lictor/bouncer.token", "service/orders/leader"},
		{"pooler1", "/dev/null", "lictor/bouncers/pooler1"},
	} {
		got, err := r.host(tt.host).run(t.Context(), fmt.Sprintf(put, tt.token, tt.key))
		if err != nil || got != "403" {
			t.Errorf("%s writes %s with the token %s: Consul answers %s, want 403: %v", tt.host, tt.key, tt.token, got, err)
		}
	}
}

func (r *rollout) makeTable(t *testing.T, database string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var conn *pgx.Conn
	r.await(t, "a connection to "+database+" through the load balancer", func() (err error) {
		conn, err = connect(ctx, r.site, r.nlb, appPassword, database)
		return err
	})
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE TABLE load (id bigserial PRIMARY KEY, at timestamptz NOT NULL)"); err != nil {
		t.Fatal(err)
	}
}

func (r *rollout) testIdempotent(t *testing.T) {
	if got := r.mustPlay(t, "site"); got.changes != 0 {
		t.Errorf("nothing had to be changed, but was:\n%s", strings.Join(got.changed, "\n"))
	}
}

// testCheck: a dry run of nothing says that nothing changes; one of a change says
// where, and does not make it.
func (r *rollout) testCheck(t *testing.T) {
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

// testAgentCrash: an agent that is killed is back at once, and adopts the PostgreSQL
// that ran on.
func (r *rollout) testAgentCrash(t *testing.T) {
	leader := r.leader(t, "8008")
	before := r.postmaster(t, leader)
	r.underLoad(t, func() {
		if _, err := r.host(leader).run(t.Context(), "systemctl kill --signal=SIGKILL --kill-who=main lictor-agent@orders"); err != nil {
			t.Fatal(err)
		}
		r.await(t, "the agent after its crash", func() error {
			restarts, err := r.host(leader).run(t.Context(), "systemctl show --property=NRestarts --value lictor-agent@orders && systemctl is-active lictor-agent@orders")
			if err == nil && restarts != "1\nactive" {
				err = fmt.Errorf("restarts and state are %q", restarts)
			}
			return err
		})
		r.awaitHealthy(t, "8008", 3)
		sleep(t.Context(), 10*time.Second) // longer than a lease
	}, "orders")
	if after := r.postmaster(t, leader); after != before {
		t.Errorf("PostgreSQL was restarted: its postmaster was %s and is %s", before, after)
	}
	if now := r.leader(t, "8008"); now != leader {
		t.Errorf("%s leads, %s did before its agent was killed", now, leader)
	}
}

func (r *rollout) testAgentUpgrade(t *testing.T) {
	before := map[string]string{}
	for _, name := range []string{"db1", "db2", "db3"} {
		before[name] = r.postmaster(t, name)
	}
	r.vars["lictor_package_file"] = r.packages[1]
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

func (r *rollout) testConsulUpgrade(t *testing.T) {
	r.underLoad(t, func() { r.mustPlay(t, "consul_upgrade") }, "orders", "users")
}

func (r *rollout) testRollingBouncer(t *testing.T) {
	r.underLoad(t, func() { r.mustPlay(t, "rolling_bouncer", "-e", "drain_wait=60s") }, "orders", "users")
}

func (r *rollout) testAddShard(t *testing.T) {
	r.vars["lictor_shards"].(map[string]any)["carts"] = shard(5434, 8028, "db3", "db1")
	r.underLoad(t, func() { r.mustPlay(t, "add_shard", "-e", "shard=carts") }, "orders", "users")
	r.makeTable(t, "carts")
	r.underLoad(t, func() { sleep(t.Context(), time.Second) }, "carts")
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
	r.underLoad(t, func() { r.mustPlay(t, "minor_upgrade") }, "orders", "users", "carts")
	for name, postmaster := range before {
		if r.postmaster(t, name) == postmaster {
			t.Errorf("%s: PostgreSQL goes on with the old version", name)
		}
	}
}

// testHostKilled: a power cut of a primary's host. Its clients see errors, none is
// for long; the host comes back as it is and takes its place.
func (r *rollout) testHostKilled(t *testing.T) {
	leader := r.leader(t, "8008")
	l := r.startLoad(t.Context(), r.nlb, appPassword, "orders")
	if err := r.host(leader).kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	var successor string
	r.await(t, "another leader", func() error {
		for _, name := range []string{"db1", "db2", "db3"} {
			if name == leader {
				continue
			}
			if err := r.tryAsk(t.Context(), http.MethodGet, name, "8008", "/primary", "", nil); err == nil {
				successor = name
				return nil
			}
		}
		return fmt.Errorf("nobody leads orders but %s, which is off", leader)
	})
	r.await(t, "a transaction", func() error {
		conn, err := connect(t.Context(), r.site, r.nlb, appPassword, "orders")
		if err != nil {
			return err
		}
		defer conn.Close(t.Context())
		return transaction(t.Context(), conn)
	})
	if err := r.host(leader).start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.host(leader).awaitUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the old primary as a replica", func() error {
		return r.tryAsk(t.Context(), http.MethodGet, leader, "8008", "/replica", "", nil)
	})
	for port, members := range map[string]int{"8008": 3, "8018": 3, "8028": 2} {
		r.awaitHealthy(t, port, members)
	}
	commits, errors, longest := l.stop()
	t.Logf("%s was killed, %s took over: %d transactions, %d errors, the longest transaction took %s; the host is back and all shards are whole",
		leader, successor, commits, len(errors), longest)
}

// await retries until what is true, and fails the test when it does not become so.
func (r *rollout) await(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		sleep(t.Context(), 100*time.Millisecond)
	}
}

type clusterView struct {
	Members []struct{ Name, Role, State string }
}

// leader is the leader of the shard whose agents listen on a port.
func (r *rollout) leader(t *testing.T, port string) (name string) {
	t.Helper()
	r.await(t, "a leader", func() error {
		var view clusterView
		if err := r.tryAsk(t.Context(), http.MethodGet, "db1", port, "/cluster", "", &view); err != nil {
			return err
		}
		for _, m := range view.Members {
			if m.Role == "leader" && m.State == "running" {
				name = m.Name
				return nil
			}
		}
		return fmt.Errorf("no leader in %v", view)
	})
	return name
}

// awaitHealthy waits until a shard has a leader and all members stream.
func (r *rollout) awaitHealthy(t *testing.T, port string, members int) {
	t.Helper()
	r.await(t, "the shard to be whole", func() error {
		var view clusterView
		if err := r.tryAsk(t.Context(), http.MethodGet, "db1", port, "/cluster", "", &view); err != nil {
			return err
		}
		leaders, streaming := 0, 0
		for _, m := range view.Members {
			switch {
			case m.Role == "leader" && m.State == "running":
				leaders++
			case m.State == "streaming":
				streaming++
			}
		}
		if leaders != 1 || streaming != members-1 {
			return fmt.Errorf("shard of port %s: %v", port, view)
		}
		return nil
	})
}

// postmaster is the pid and start of orders' postmaster on a host.
func (r *rollout) postmaster(t *testing.T, name string) string {
	t.Helper()
	text, err := r.host(name).run(t.Context(), "sed -n '1p;3p' /var/lib/postgresql/15/orders/postmaster.pid")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (r *rollout) ask(t *testing.T, method, name, port, path, body string, into any) {
	t.Helper()
	if err := r.tryAsk(t.Context(), method, name, port, path, body, into); err != nil {
		t.Fatal(err)
	}
}

// tryAsk asks an agent's REST API, with the site's password.
func (r *rollout) tryAsk(ctx context.Context, method, name, port, path, body string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	url := "http://" + net.JoinHostPort(r.host(name).address, port) + path
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	password, err := os.ReadFile(filepath.Join(r.dir, "secrets/api"))
	if err != nil {
		return err
	}
	req.SetBasicAuth("lictor", strings.TrimSpace(string(password)))
	client := &http.Client{Transport: &http.Transport{DialContext: r.dial, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
