package ansible

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// TestAdopt puts two shards under Lictor that run as operators have made them with Debian's
// commands, each in a cluster that is called main, behind a PgBouncer whose file was written
// by hand; gives them back, one half-way through its adoption; and puts them there again.
// Clients go on.
func TestAdopt(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: six systemd hosts, some 20 minutes")
	}
	databases := []string{"db1", "db2", "db3", "db4"}
	orders, users := adopted("db2", "db1"), adopted("db3", "db4") // of orders the standby is named first
	users["databases"] = []string{"people=users"}
	settings := map[string]any{}
	r := newRollout(t, append([]string{"consul1", "pooler1"}, databases...),
		map[string][]string{"consul_servers": {"consul1"}, "lictor_databases": databases, "lictor_poolers": {"pooler1"}},
		map[string]any{
			"lictor_shards":     map[string]any{"orders": orders, "users": users},
			"lictor_tls_strict": false, "lictor_adopt_stop_units": []string{"template.service"}, "lictor_pgbouncer_settings": settings,
		})
	r.entry = net.JoinHostPort(r.host("pooler1").address, "6432")
	both := []string{"orders", "people"}
	r.handMade(t, "orders", "db1", "db2", handMadeConf)
	r.handMade(t, "users", "db3", "db4", handMadeConf+"cluster_name = 'users'\n") // as it will be
	ini := r.handMadePooler(t)
	for _, database := range both {
		r.makeTable(t, database)
	}

	// What does not fit is said, and nothing is done.
	r.mustRun(t, "db1", "systemd-run --quiet --unit=squatter python3 -m http.server 8008")
	r.refuses(t, "port 8008 (api_port) is taken; max_connections is 150, and all members must have the same: set lictor_shards.orders.dcs", "adopt", "-e", "adopt=check")
	r.mustRun(t, "db1", "systemctl stop squatter")
	for _, spec := range []map[string]any{orders, users} {
		spec["dcs"] = map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"max_connections": 150}}}
	}
	r.refuses(t, "its ignore_startup_parameters is extra_float_digits,search_path: set lictor_pgbouncer_settings.ignore_startup_parameters", "adopt", "-e", "adopt=check")
	settings["ignore_startup_parameters"] = "extra_float_digits,search_path"
	r.mustPlay(t, "adopt", "-e", "adopt=check")
	for _, h := range databases {
		if out := r.mustRun(t, h, "ls /etc/systemd/system/postgresql@15-main.service.d 2>/dev/null; ls /etc/lictor/agents; systemctl is-active postgresql@15-main"); out != "active" {
			t.Errorf("%s after a check: %q", h, out)
		}
	}
	if now := r.mustRun(t, "pooler1", "cat /etc/pgbouncer/pgbouncer.ini"); now != ini {
		t.Errorf("PgBouncer's file after a check: %s", now)
	}

	before := map[string]string{}
	for _, h := range databases {
		before[h] = r.dataDirOf(t, h)
	}
	// One, while the other is served as its operator has it.
	r.underLoad(t, func() {
		r.mustPlay(t, "adopt", "-e", "shard=orders")
		r.checkPooler(t, "people = host="+r.host("db3").address+" port=5432 dbname=users", "ignore_startup_parameters = extra_float_digits,search_path")
	}, both...)
	r.checkAdopted(t, "orders", "db1", "db2")
	// The hosts of the other one have Consul by now, so that a dry run sees all of it. site takes
	// charge of nothing by itself.
	if got := r.mustPlay(t, "adopt", "--check", "-e", "shard=users", "--limit", "db3,db4"); got.changes == 0 {
		t.Error("a dry run would change nothing")
	}
	r.refuses(t, "is still to be adopted (lictor_shards.", "site", "--limit", "db3,db4")
	if got := r.mustRun(t, "db3", "systemctl is-active postgresql@15-main; ls /etc/lictor/agents"); got != "active" {
		t.Errorf("db3 after a dry run, and site: %q", got)
	}
	// Then that one, first only half of it, and back. (Pooler and Consul's server are as they
	// shall be, and left out.)
	r.underLoad(t, func() {
		r.mustRun(t, "db3", "systemctl mask lictor-agent@users.service")
		r.refuses(t, "is masked", "adopt", "-e", "shard=users", "--limit", "db3,db4")
		r.mustRun(t, "db3", "systemctl unmask lictor-agent@users.service")
		r.mustPlay(t, "adopt_back", "-e", "shard=users")
		r.checkGivenBack(t, "users", "db3", "db4")
		r.mustPlay(t, "adopt", "-e", "shard=users", "--limit", "db3,db4")
	}, both...)
	r.checkAdopted(t, "users", "db3", "db4")
	r.checkPooler(t, "people = host="+r.host("db4").address+" port=5432 dbname=users")
	r.changesNothing(t, "adopt")

	// The way back, and there again: each time the other one is started as the replica.
	const lictor = " orders --config /etc/lictor/agents/orders.yml --wait"
	r.mustRun(t, "db2", "lictor pause"+lictor)
	r.refuses(t, "it is paused", "adopt_back", "-e", "shard=orders")
	r.mustRun(t, "db2", "lictor resume"+lictor)
	r.mustRun(t, "db1", "sed -i s/150/149/ /etc/postgresql/15/main/conf.d/operator.conf")
	r.refuses(t, "max_connections is 149 in /etc/postgresql/15/main/postgresql.base.conf, and 150 on the primary", "adopt_back", "-e", "shard=orders")
	r.mustRun(t, "db1", "sed -i s/149/150/ /etc/postgresql/15/main/conf.d/operator.conf")
	r.checkAdopted(t, "orders", "db1", "db2") // nothing was done
	r.underLoad(t, func() { r.mustPlay(t, "adopt_back", "-e", "shard=orders") }, both...)
	r.checkGivenBack(t, "orders", "db2", "db1")
	r.changesNothing(t, "adopt_back", "-e", "shard=orders")
	r.underLoad(t, func() { r.mustPlay(t, "adopt", "-e", "shard=orders", "--limit", "db1,db2") }, both...)
	r.checkAdopted(t, "orders", "db2", "db1")
	r.testBackInterrupted(t)
	r.underLoad(t, func() { r.mustPlay(t, "adopt", "-e", "shard=orders", "--limit", "db1,db2") }, both...)
	r.checkAdopted(t, "orders", "db1", "db2")
	for _, h := range databases {
		if now := r.dataDirOf(t, h); now != before[h] {
			t.Errorf("%s: the data directory is another one: %s, before %s", h, now, before[h])
		}
	}

	// Strict TLS comes with site, as for any site.
	r.vars["lictor_tls_strict"] = true
	r.underLoad(t, func() { r.mustPlay(t, "site") }, both...)
}

// testBackInterrupted stops a way back when the primary, db1, is stopped and its keys are gone.
// Whoever starts an agent then gets no second primary.
func (r *rollout) testBackInterrupted(t *testing.T) {
	t.Helper()
	r.mustRun(t, "db1", "systemctl mask postgresql@15-main.service")
	r.refuses(t, "is masked", "adopt_back", "-e", "shard=orders")
	r.mustRun(t, "db2", "systemctl start lictor-agent@orders")
	r.await(t, "the standby's agent waits for the primary", func() error {
		_, err := r.host("db2").run(t.Context(), "journalctl --since=-60s -u lictor-agent@orders | grep 'the shard is new to Consul and this member'")
		return err
	})
	if got := r.mustRun(t, "db2", "cd / && runuser -u postgres -- psql -Atc 'SELECT pg_is_in_recovery()'"); got != "t" {
		t.Errorf("the standby, while its primary is down and its agent runs: pg_is_in_recovery is %q", got)
	}
	r.mustRun(t, "db1", "systemctl unmask postgresql@15-main.service")
	r.mustPlay(t, "adopt_back", "-e", "shard=orders")
	r.checkGivenBack(t, "orders", "db1", "db2")
}

// checkGivenBack looks at a shard that Debian's units run again.
func (r *rollout) checkGivenBack(t *testing.T, scope, primary, standby string) {
	t.Helper()
	for _, h := range []string{primary, standby} {
		if got := r.mustRun(t, h, "systemctl is-active postgresql@15-main; systemctl is-active lictor-agent@"+scope+"; systemctl is-enabled lictor-agent@"+scope+"; "+
			"ls /etc/postgresql/15/main/postgresql.base.conf /etc/lictor/agents/"+scope+".yml 2>/dev/null; "+
			"grep -v '^#' /etc/postgresql/15/main/start.conf | grep .; ls /var/lib/lictor-adopted"); got != "active\ninactive\ndisabled\nauto\ngiven-back\nshards" {
			t.Errorf("%s after the way back: %q", h, got)
		}
	}
	if got := r.mustRun(t, primary, "cd / && runuser -u postgres -- psql -Atc 'SELECT count(*), pg_is_in_recovery() FROM pg_stat_replication'"); got != "1|f" {
		t.Errorf("standbys of the shard that was given back: %s", got)
	}
}

// refuses runs a playbook that must stop, and say why.
func (r *rollout) refuses(t *testing.T, why, playbook string, args ...string) {
	t.Helper()
	got, err := r.play(t.Context(), playbook, args...)
	if err == nil || !strings.Contains(strings.Join(got.failed, "\n"), why) {
		t.Fatalf("%s %s must stop with %q: %v %q", playbook, strings.Join(args, " "), why, err, got.failed)
	}
}

// checkPooler looks for lines in PgBouncer's file.
func (r *rollout) checkPooler(t *testing.T, lines ...string) {
	t.Helper()
	text := r.mustRun(t, "pooler1", "cat /etc/pgbouncer/pgbouncer.ini")
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("PgBouncer's file has no line %q: %s", line, text)
		}
	}
}

// adopted is a shard whose members Debian's commands have made.
func adopted(members ...string) map[string]any {
	s := shard(5432, 8008, members...)
	s["cluster"] = "main"
	return s
}

// What an operator has put into conf.d and at the end of pg_hba.conf.
const (
	handMadeConf = `listen_addresses = '*'
max_connections = 150
shared_buffers = 32MB
wal_keep_size = 256MB
work_mem = 7MB
`
	handMadeHBA = `host all all 10.77.0.0/24 scram-sha-256
host replication all 10.77.0.0/24 scram-sha-256
`
)

// handMade makes a primary and its standby as an operator does.
func (r *rollout) handMade(t *testing.T, scope, primary, standby, conf string) {
	t.Helper()
	var (
		configure = "\nprintf '%s' \"" + conf + "\" >/etc/postgresql/15/main/conf.d/operator.conf\n" +
			"printf '%s' \"" + handMadeHBA + "\" >>/etc/postgresql/15/main/pg_hba.conf\n"
		start = "\nsystemctl enable postgresql.service && systemctl start postgresql@15-main\n"
	)
	r.mustRun(t, primary, "set -e\npg_createcluster 15 main -- --data-checksums --encoding=UTF8 --locale=C.UTF-8"+configure+start+
		"cd / && runuser -u postgres -- psql -q -c \"CREATE ROLE app LOGIN PASSWORD '"+appPassword+"'\""+
		" -c \"CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'stream'\" -c 'CREATE DATABASE "+scope+" OWNER app'")
	r.mustRun(t, standby, "set -e\npg_createcluster 15 main\nrm -rf /var/lib/postgresql/15/main"+configure+
		"cd / && runuser -u postgres -- pg_basebackup -D /var/lib/postgresql/15/main -R -C -S theirs -c fast -d 'host="+r.host(primary).address+
		" user=streamer password=stream application_name=walreceiver'"+start)
}

// handMadePooler is a PgBouncer with a file of an operator's, and what keeps that.
func (r *rollout) handMadePooler(t *testing.T) (ini string) {
	t.Helper()
	ini = fmt.Sprintf("[databases]\norders = host=%s port=5432\npeople = host=%s port=5432 dbname=users\n", r.host("db1").address, r.host("db3").address) +
		"\n[pgbouncer]\nlisten_addr = *\nlisten_port = 6432\nauth_type = scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt\n" +
		"unix_socket_dir = /var/run/postgresql\nlogfile = /var/log/postgresql/pgbouncer.log\npidfile = /var/run/postgresql/pgbouncer.pid\npool_mode = transaction\n" +
		"ignore_startup_parameters = extra_float_digits,search_path"
	r.mustRun(t, "pooler1", "set -e\nprintf '%s\\n' '"+ini+"' >/etc/pgbouncer/pgbouncer.ini\n"+
		"printf '%s\\n' '\"app\" \""+appPassword+"\"' >/etc/pgbouncer/userlist.txt\n"+
		"printf '[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n' >/etc/systemd/system/template.service\n"+
		"systemctl daemon-reload\nsystemctl enable --now template.service pgbouncer.service")
	return ini
}

func (r *rollout) mustRun(t *testing.T, name, command string) string {
	t.Helper()
	out, err := r.host(name).run(t.Context(), command)
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return out
}

// dataDirOf tells a data directory from a copy of it: its inodes, and its cluster.
func (r *rollout) dataDirOf(t *testing.T, name string) string {
	t.Helper()
	return r.mustRun(t, name, "stat -c %i /var/lib/postgresql/15/main /var/lib/postgresql/15/main/PG_VERSION && "+
		"/usr/lib/postgresql/15/bin/pg_controldata /var/lib/postgresql/15/main | grep 'system identifier'")
}

// checkAdopted looks at a shard after its adoption: it runs with the operator's files and
// the agents' command line, and the old primary was started anew by a handover.
func (r *rollout) checkAdopted(t *testing.T, scope, primary, standby string) {
	t.Helper()
	if leader := r.leaderOf(t, primary); leader != standby {
		t.Errorf("%s: %s leads; the old primary %s was to be started anew by a handover to %s", scope, leader, primary, standby)
	}
	for _, name := range []string{primary, standby} {
		const query = "SELECT concat_ws(' ', current_setting('cluster_name'), current_setting('max_connections'), current_setting('work_mem'), " +
			"current_setting('config_file'), current_setting('wal_log_hints'))"
		got := r.mustRun(t, name, "cd / && runuser -u postgres -- psql -Atc \""+query+"\"")
		if want := scope + " 150 7MB /etc/postgresql/15/main/postgresql.conf on"; got != want {
			t.Errorf("%s on %s runs with %q, want %q", scope, name, got, want)
		}
		got = r.mustRun(t, name, "systemctl is-active postgresql@15-main; grep -v '^#' /etc/postgresql/15/main/start.conf | grep .; grep -c 10.77.0.0 /etc/postgresql/15/main/pg_hba.conf")
		if got != "inactive\ndisabled\n2" {
			t.Errorf("%s: Debian's unit, start.conf and the operator's lines of pg_hba.conf: %q", name, got)
		}
		got = r.mustRun(t, name, "cd / && runuser -u postgres -- psql -Atc \"SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'theirs'\"")
		if got != "0" {
			t.Errorf("%s: the slot that the standby had before is still there", name)
		}
	}
}

// leaderOf is the leader of the shard of which a host has a member.
func (r *rollout) leaderOf(t *testing.T, name string) string {
	t.Helper()
	var cluster struct {
		Members []struct{ Name, Role string }
	}
	out := r.mustRun(t, name, "curl -sf --cacert /etc/lictor/tls/ca.pem https://localhost:8008/cluster")
	if err := json.Unmarshal([]byte(out), &cluster); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	for _, m := range cluster.Members {
		if m.Role == "leader" {
			return m.Name
		}
	}
	return ""
}

func (r *rollout) changesNothing(t *testing.T, playbook string, args ...string) {
	t.Helper()
	if got := r.mustPlay(t, playbook, args...); got.changes != 0 {
		t.Errorf("%s %s, when everything is as it should be, changes %q", playbook, strings.Join(args, " "), got.changed)
	}
}
