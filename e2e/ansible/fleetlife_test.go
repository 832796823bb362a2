package ansible

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestFleetLife takes members out of a shard, puts one back, replaces a host, adds a pooler and repacks a table, under clients.
func TestFleetLife(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: four systemd hosts, some 10 minutes")
	}
	orders := shard(5432, 8008, "a", "b", "c")
	r := newRollout(t, []string{"a", "b", "c", "d"},
		map[string][]string{"consul_servers": {"a"}, "lictor_databases": {"a", "b", "c"}, "lictor_poolers": {"a"}, "lictor_leaving": nil},
		map[string]any{"lictor_shards": map[string]any{"orders": orders}})
	r.entry = net.JoinHostPort(r.host("a").address, "6432")
	r.mustPlay(t, "site")
	r.makeTable(t, "orders")
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"a leader is removed", func(t *testing.T) { r.testRemoveLeader(t, orders) }},
		{"it comes back", func(t *testing.T) { r.testComesBack(t, orders) }},
		{"repack", func(t *testing.T) { r.testRepack(t, orders) }},
		{"replace_host", func(t *testing.T) { r.testReplaceHost(t, orders) }},
		{"add_pooler", r.testAddPooler},
	} {
		if !t.Run(part.name, part.run) {
			return // what follows needs it
		}
	}
}

// keys are what Consul has below the shard, and tokens that name a host.
func (r *rollout) leftOf(t *testing.T, name string) string {
	t.Helper()
	text, err := r.host("a").run(t.Context(), `token=$(sed -n 's/.*"initial_management": "\([^"]*\)".*/\1/p' /etc/consul.d/consul.json)
		ask() { curl -s -H "X-Consul-Token: $token" "http://127.0.0.1:8500$1"; }
		ask '/v1/kv/service/orders/?keys' | tr , '\n' | grep members/`+name+`
		ask /v1/acl/tokens | grep -o 'Agent of shard orders on `+name+`'
		for k in sync failsafe; do ask "/v1/kv/service/orders/$k?raw" | grep -o '"`+name+`"'; done; true`)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (r *rollout) testRemoveLeader(t *testing.T, orders map[string]any) {
	leader := r.leader(t, "8008")
	args := []string{"-e", "shard=orders", "-e", "member=" + leader}
	if got, err := r.play(t.Context(), "remove_member", args...); err == nil || !strings.Contains(strings.Join(got.failed, " "), "out of lictor_shards.orders.members first") {
		t.Errorf("a member that the inventory has is removed: %v %v", err, got.failed)
	}
	orders["members"] = slices.DeleteFunc([]string{"a", "b", "c"}, func(m string) bool { return m == leader })
	r.member = orders["members"].([]string)[0]

	// Outside the window for handovers nothing is done, nor said to be.
	r.ask(t, http.MethodPatch, r.member, "8008", "/config", `{"maintenance_windows":["Mon 00:00-00:01 for handover","Tue 00:00-00:01 for handover"]}`, nil)
	if got, err := r.play(t.Context(), "remove_member", append(args, "--check")...); err == nil || !strings.Contains(strings.Join(got.failed, " "), "outside the maintenance windows") {
		t.Errorf("a dry run outside the windows: %v %v", err, got.failed)
	}
	r.ask(t, http.MethodPatch, r.member, "8008", "/config", `{"maintenance_windows":null}`, nil)

	if got := r.mustPlay(t, "remove_member", append(args, "--check")...); got.changes == 0 || r.leader(t, "8008") != leader {
		t.Errorf("a dry run says %d changes; %s leads, %s did", got.changes, r.leader(t, "8008"), leader)
	}
	r.underLoad(t, func() { r.mustPlay(t, "remove_member", args...) }, "orders")
	if left := r.leftOf(t, leader); left != "" {
		t.Errorf("left of %s in Consul: %s", leader, left)
	}
	there, err := r.host(leader).run(t.Context(), "systemctl is-enabled lictor-agent@orders; ls /etc/lictor/agents /var/lib/postgresql/15/orders/PG_VERSION; pgrep -x postgres; true")
	if err != nil || !strings.HasPrefix(there, "disabled\n") || !strings.HasSuffix(there, "PG_VERSION\n\n/etc/lictor/agents:") {
		t.Errorf("on %s: %q %v", leader, there, err)
	}
	for _, m := range orders["members"].([]string) {
		slots, err := r.host(m).run(t.Context(), `runuser -u postgres -- psql -h /var/run/postgresql -XAtc "SELECT slot_name FROM pg_replication_slots WHERE slot_name = '`+leader+`'"`)
		if err != nil || slots != "" {
			t.Errorf("%s keeps the slot %s: %v", m, slots, err)
		}
	}
	var config map[string]any
	if r.ask(t, http.MethodGet, r.member, "8008", "/config", "", &config); config["member_slots_ttl"] != nil {
		t.Errorf("member_slots_ttl is left at %v", config["member_slots_ttl"])
	}
	if got := r.mustPlay(t, "remove_member", args...); got.changes != 0 {
		t.Errorf("a second time it changes: %v", got.changed)
	}
}

// testComesBack is remove_member's way back: the data directory was there all along.
func (r *rollout) testComesBack(t *testing.T, orders map[string]any) {
	for _, m := range []string{"a", "b", "c"} {
		if !slices.Contains(orders["members"].([]string), m) {
			orders["members"] = append(orders["members"].([]string), m)
			r.underLoad(t, func() { r.mustPlay(t, "add_replica", "-e", "shard=orders", "-e", "member="+m) }, "orders")
		}
	}
	r.awaitHealthy(t, "8008", 3)
}

func (r *rollout) testRepack(t *testing.T, orders map[string]any) {
	sql := func(statement string) string {
		out, err := r.host(r.leader(t, "8008")).run(t.Context(), `runuser -u postgres -- psql -h /var/run/postgresql -XAtc "`+statement+`" orders`)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	sql("CREATE TABLE lines (id int PRIMARY KEY, what text); INSERT INTO lines SELECT n, repeat('x', 100) FROM generate_series(1, 60000) n")
	sql("DELETE FROM lines WHERE id % 10 <> 0")
	sql("VACUUM lines")
	orders["repack"] = []any{map[string]any{"database": "orders", "tables": []string{"public.lines", "public.load"}}}
	before := sql("SELECT pg_total_relation_size('lines')")
	if got := r.mustPlay(t, "repack", "-e", "shard=orders", "--check"); got.changes == 0 || sql("SELECT pg_total_relation_size('lines')") != before {
		t.Errorf("a dry run says %d changes", got.changes)
	}
	r.underLoad(t, func() { r.mustPlay(t, "repack", "-e", "shard=orders") }, "orders")
	if got := sql("SELECT pg_total_relation_size('lines') * 5 < " + before); got != "t" {
		t.Errorf("it was %s bytes and is %s", before, sql("SELECT pg_total_relation_size('lines')"))
	}
	if got := r.mustPlay(t, "repack", "-e", "shard=orders"); got.changes != 0 {
		t.Errorf("a second time it changes: %v", got.changed)
	}
}

func (r *rollout) testReplaceHost(t *testing.T, orders map[string]any) {
	group := func(name string, members ...string) {
		hosts := map[string]any{}
		for _, m := range members {
			hosts[m] = map[string]any{"ansible_host": r.host(m).address}
		}
		r.inventory[name] = map[string]any{"hosts": hosts}
	}
	orders["members"] = []string{"a", "d", "b"}
	group("lictor_databases", "a", "b", "d")
	group("lictor_leaving", "c")
	r.member = "a"
	args := []string{"-e", "old=c", "-e", "new=d"}
	r.underLoad(t, func() { r.mustPlay(t, "replace_host", args...) }, "orders")
	r.awaitHealthy(t, "8008", 3)
	if left := r.leftOf(t, "c"); left != "" {
		t.Errorf("left of c in Consul: %s", left)
	}
	there, err := r.host("c").run(t.Context(), "systemctl is-active consul lictor-agent@orders; ls /var/lib/postgresql/15/orders/PG_VERSION; pgrep -x postgres; true")
	if err != nil || !strings.HasSuffix(there, "/var/lib/postgresql/15/orders/PG_VERSION") || strings.HasPrefix(there, "active") {
		t.Errorf("on c: %q %v", there, err)
	}
	if got := r.mustPlay(t, "replace_host", args...); got.changes != 0 {
		t.Errorf("a second time it changes: %v", got.changed)
	}
	r.testIdempotent(t)
}

func (r *rollout) testAddPooler(t *testing.T) {
	r.inventory["lictor_poolers"].(map[string]any)["hosts"].(map[string]any)["b"] = map[string]any{"ansible_host": r.host("b").address}
	r.underLoad(t, func() { r.mustPlay(t, "add_pooler", "-e", "pooler=b") }, "orders")
	conn, err := connect(t.Context(), r.site, net.JoinHostPort(r.host("b").address, "6432"), appPassword, "orders")
	if err == nil {
		err = transaction(t.Context(), conn)
		_ = conn.Close(t.Context())
	}
	if err != nil {
		t.Error(fmt.Errorf("through the new pooler: %w", err))
	}
	if got := r.mustPlay(t, "add_pooler", "-e", "pooler=b"); got.changes != 0 {
		t.Errorf("a second time it changes: %v", got.changed)
	}
}
