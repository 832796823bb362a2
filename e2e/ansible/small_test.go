package ansible

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestSmallSite sets up what a small installation looks like: three hosts, each a
// server of Consul, a database host and a pooler. Consul is downloaded, and the
// package comes from the hosts' apt sources.
func TestSmallSite(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: three systemd hosts, some 5 minutes")
	}
	names := []string{"a", "b", "c"}
	r := newRollout(t, names,
		map[string][]string{"consul_servers": names, "lictor_databases": names, "lictor_poolers": names},
		map[string]any{"lictor_shards": map[string]any{"orders": shard(5432, 8008, names...)}, "lictor_auth_query": true})
	r.entry = net.JoinHostPort(r.host("a").address, "6432")

	d, err := newDepot(t.Context(), r.site)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.debs(t.Context(), r.vars["lictor_package_file"].(string), buildPackage(t, r.dir, "0.1.0+b")); err != nil {
		t.Fatal(err)
	}
	for _, h := range r.hosts {
		if _, err := h.run(t.Context(), "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] "+d.url+" ./' >/etc/apt/sources.list"); err != nil {
			t.Fatal(err)
		}
	}
	delete(r.vars, "lictor_package_file")
	delete(r.vars, "consul_binary")
	r.vars["lictor_package_name"] = "lictor=0.1.0+a"
	r.vars["lictor_apt_update"] = true
	r.publishConsul(t, d, "1", r.consul)

	r.mustPlay(t, "site")
	r.makeTable(t, "orders")
	r.testIdempotent(t)
	r.checkNewRole(t)
	r.checkSecrets(t)

	before := r.leader(t, "8008")
	r.publishConsul(t, d, "2", r.anotherConsul(t))
	r.underLoad(t, func() { r.mustPlay(t, "consul_upgrade") }, "orders")
	for _, h := range r.hosts {
		running, err := h.run(t.Context(), "readlink /proc/$(systemctl show --property=MainPID --value consul)/exe")
		if err != nil || running != "/opt/consul/consul_2/consul" {
			t.Errorf("%s runs %s, not the new Consul: %v", h.name, running, err)
		}
	}
	if now := r.leader(t, "8008"); now != before {
		t.Errorf("%s leads, %s did before: a shard noticed the upgrade of Consul", now, before)
	}

	r.testRotateConsul(t, before)

	r.vars["lictor_package_name"] = "lictor=0.1.0+b"
	r.underLoad(t, func() { r.mustPlay(t, "rolling_agent_upgrade") }, "orders")
	for _, h := range r.hosts {
		version, err := h.run(t.Context(), "/proc/$(systemctl show --property=MainPID --value lictor-agent@orders)/exe --version")
		if err != nil || !strings.Contains(version, "0.1.0+b") {
			t.Errorf("%s: the agent is %q: %v", h.name, version, err)
		}
	}
}

// checkNewRole logs in as a role that no file of a pooler knows (lictor_auth_query).
func (r *rollout) checkNewRole(t *testing.T) {
	t.Helper()
	leader := r.host(r.leader(t, "8008"))
	if out, err := leader.run(t.Context(), `runuser -u postgres -- psql -p 5432 -c "CREATE ROLE newcomer LOGIN PASSWORD 'new'" postgres`); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	host, port, err := net.SplitHostPort(r.entry)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig("host=" + host + " port=" + port + " user=newcomer password=new dbname=orders sslmode=require")
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode, config.DialFunc = pgx.QueryExecModeExec, r.dial
	r.await(t, "a login of the new role", func() error {
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	})
}

// publishConsul makes the hosts download a program as Consul of this version.
func (r *rollout) publishConsul(t *testing.T, d *depot, version, program string) {
	t.Helper()
	archive := "consul_" + version + ".zip"
	checksum, err := d.zip(archive, "consul", program)
	if err != nil {
		t.Fatal(err)
	}
	r.vars["consul_url"], r.vars["consul_checksum"] = d.url+"/"+archive, checksum
}
