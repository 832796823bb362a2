package ansible

import (
	"context"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// rollout is a site that TestRollout's parts share, and what to put there.
type rollout struct {
	*site
	*ansible
	consul string // Consul's binary
	entry  string // where clients connect
	member string // a host with a member of every shard
}

const appPassword = "not-secret-here"

// TestRollout sets a whole site up from bare systemd hosts and changes everything in
// it, while clients go on.
func TestRollout(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: nine systemd hosts, some 30 minutes")
	}
	r := newRollout(t,
		[]string{"consul1", "consul2", "consul3", "db1", "db2", "db3", "pooler1", "pooler2", "nlb1"},
		map[string][]string{
			"consul_servers": {"consul1", "consul2", "consul3"}, "lictor_databases": {"db1", "db2", "db3"},
			"lictor_poolers": {"pooler1", "pooler2"}, "lictor_balancers": {"nlb1"}, "lictor_monitoring": {"nlb1"},
		},
		map[string]any{
			"lictor_shards": map[string]any{
				"orders": shard(5432, 8008, "db1", "db2", "db3"),
				"users":  inCatalogue(shard(5433, 8018, "db2", "db3", "db1")),
			},
			"lictor_tls": false, // until testToTLS; TestSmallSite begins with it
		})
	r.entry = net.JoinHostPort(r.host("nlb1").address, "5432")
	// Each part needs what the ones before it made.
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"site", r.testSite},
		{"site changes to TLS", r.testToTLS},
		{"site again changes nothing", r.testIdempotent},
		{"agent crash", r.testAgentCrash},
		{"agent hangs", r.testAgentHangs},
		{"rolling_agent_upgrade", r.testAgentUpgrade},
		{"rolling_bouncer", r.testRollingBouncer},
		{"consul_upgrade", r.testConsulUpgrade},
		{"add_shard", r.testAddShard},
		{"rolling_restart", r.testRollingRestart},
		{"host killed", r.testHostKilled},
		{"add_replica", r.testAddReplica},
		{"minor_upgrade", r.testMinorUpgrade},
		{"rotate_tokens", r.testRotateTokens},
		{"rotate_passwords", r.testRotatePasswords},
		{"rotate_certificates", r.testRotateCertificates},
		{"retire_shared_tokens", r.testRetireSharedTokens},
		{"check and diff", r.testCheck},
		{"site changes nothing in the end", r.testIdempotent},
	} {
		if !t.Run(part.name, part.run) && part.name == "site" {
			break
		}
	}
}

// newRollout boots hosts, and describes them and what is to run there as an
// inventory.
func newRollout(t *testing.T, names []string, groups map[string][]string, vars map[string]any) *rollout {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lictor-ansible-") // overlays want a disk
	if err != nil {
		t.Fatal(err)
	}
	keep := os.Getenv("LICTOR_ANSIBLE_KEEP") != ""
	t.Cleanup(func() {
		if keep {
			t.Logf("what the playbooks and the hosts' journals said is kept in %s", dir)
			err = os.RemoveAll(filepath.Join(dir, "hosts"))
		} else {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			t.Error(err)
		}
	})
	r := &rollout{}
	first := buildPackage(t, dir, "0.1.0+a")
	if r.consul, err = output(t.Context(), 15*time.Minute, "../tools/consul.sh"); err != nil {
		t.Fatal(err)
	}

	r.site, err = newSite(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if keep {
			for _, h := range r.hosts {
				text, err := h.run(ctx, "journalctl --no-pager --output=short-iso-precise")
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, h.name+".journal"), []byte(text), 0o600)
				}
				if err != nil {
					t.Errorf("keeping the journal of %s: %v", h.name, err)
				}
			}
		}
		if err := r.close(ctx); err != nil {
			t.Error(err)
		}
	})
	r.member = groups["lictor_databases"][0]
	start := time.Now()
	if err := r.boot(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d hosts booted in %s", len(names), time.Since(start).Round(time.Millisecond))
	all := map[string]any{
		"lictor_networks":     []string{"10.77.0.0/24"},
		"lictor_package_file": first, "consul_binary": r.consul,
		"lictor_users": []any{map[string]string{"name": "app", "password": appPassword}},
		// Small, as all hosts share one machine.
		"lictor_parameters": map[string]any{"shared_buffers": "32MB"}, "lictor_nlb_maxconn": 2000,
		"lictor_apt_update": false, // the hosts reach no package server
	}
	maps.Copy(all, vars)
	if r.ansible, err = newAnsible(r.site, groups, all); err != nil {
		t.Fatal(err)
	}
	return r
}

func shard(port, apiPort int, members ...string) map[string]any {
	return map[string]any{"port": port, "api_port": apiPort, "members": members}
}

// inCatalogue makes the members of a shard services of Consul's.
func inCatalogue(shard map[string]any) map[string]any {
	shard["agent"] = map[string]any{"consul": map[string]any{"register_service": true}}
	return shard
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

// underLoad runs a change while clients of the databases go on, until each database
// has served some, and reports every error that one of them saw.
func (r *rollout) underLoad(t *testing.T, change func(), databases ...string) {
	t.Helper()
	l := r.startLoad(t.Context(), r.entry, appPassword, databases...)
	defer func() {
		commits, errors, longest := l.stop()
		t.Logf("clients of %v: %d transactions, %d errors, the longest took %s", databases, commits, len(errors), longest)
		for _, e := range errors {
			t.Error(e)
		}
	}()
	change()
	r.await(t, "a transaction in each database", func() error { return l.served(databases...) })
}

func (r *rollout) testSite(t *testing.T) {
	r.mustPlay(t, "site")
	for _, database := range []string{"orders", "users"} {
		r.makeTable(t, database)
	}
	r.underLoad(t, func() {}, "orders", "users")
	r.checkMonitoring(t)
	r.checkRights(t)
	r.checkCatalogue(t)
	r.checkSecrets(t)
}

func (r *rollout) makeTable(t *testing.T, database string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var conn *pgx.Conn
	r.await(t, "a connection to "+database+" through the load balancer", func() (err error) {
		conn, err = connect(ctx, r.site, r.entry, appPassword, database)
		return err
	})
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE TABLE load (id bigserial PRIMARY KEY, at timestamptz NOT NULL)"); err != nil {
		t.Fatal(err)
	}
}
