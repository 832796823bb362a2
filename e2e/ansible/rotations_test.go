package ansible

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testToTLS changes the site, which runs without TLS, in the two runs that the docs name;
// clients that take what is offered go on.
func (r *rollout) testToTLS(t *testing.T) {
	delete(r.vars, "lictor_tls")
	r.underLoad(t, func() {
		r.mustPlay(t, "site", "-e", "lictor_tls_strict=false")
		r.mustPlay(t, "site")
	}, "orders", "users")
	for _, tt := range []struct{ host, what, command, want string }{
		{"pooler1", "PgBouncer's clients without TLS", "PGSSLMODE=disable PGPASSWORD=" + appPassword + " psql -X -h 127.0.0.1 -p 6432 -U app -d orders -c 'SELECT 1' 2>&1 || true", "SSL required"},
		{"pooler1", "PostgreSQL's clients without TLS", "PGSSLMODE=disable PGPASSWORD=" + appPassword + " psql -X -h db1 -p 5432 -U app -d orders -c 'SELECT 1' 2>&1 || true", "no encryption"},
		{"db1", "the agent's API without TLS", "curl -s http://127.0.0.1:8008/health 2>&1 || true", "Client sent an HTTP request to an HTTPS server"},
		{"pooler1", "the bouncer's API without TLS", "curl -s http://127.0.0.1:8009/health 2>&1 || true", "Client sent an HTTP request to an HTTPS server"},
	} {
		command := strings.ReplaceAll(tt.command, "-h db1", "-h "+r.host("db1").address)
		if got, err := r.host(tt.host).run(t.Context(), command); err != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q: %v", tt.what, got, tt.want, err)
		}
	}
	r.checkMonitoring(t)
	r.checkSecrets(t)
	// Every replica streams, and every server connection of PgBouncer comes, encrypted.
	for _, name := range []string{"db1", "db2", "db3"} {
		for _, port := range []string{"5432", "5433"} {
			got, err := r.host(name).run(t.Context(), "runuser -u postgres -- psql -h /var/run/postgresql -p "+port+
				" -XAtc 'SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL AND NOT ssl'")
			if err != nil || got != "0" {
				t.Errorf("%s, port %s: %s connections from the network without TLS: %v", name, port, got, err)
			}
		}
	}
}

// testRotateTokens: the programs go on with new tokens, and the old ones are good for
// nothing.
func (r *rollout) testRotateTokens(t *testing.T) {
	const read = `cat /etc/lictor/agents/*.token /etc/lictor/bouncer.token /etc/prometheus/consul.token 2>/dev/null; true`
	before := map[string]string{}
	for _, h := range r.hosts {
		var err error
		if before[h.name], err = h.run(t.Context(), read); err != nil {
			t.Fatal(err)
		}
	}
	r.underLoad(t, func() { r.mustPlay(t, "rotate_tokens") }, r.databases()...)
	ended := 0
	for _, h := range r.hosts {
		now, err := h.run(t.Context(), read)
		if err != nil {
			t.Fatal(err)
		}
		for token := range strings.FieldsSeq(before[h.name]) {
			if strings.Contains(now, token) {
				t.Errorf("%s has kept a token", h.name)
			}
			got, err := r.host("consul1").run(t.Context(), "curl -s -o /dev/null -w '%{http_code}' -H 'X-Consul-Token: "+token+"' http://127.0.0.1:8500/v1/acl/token/self")
			if err != nil || got != "403" {
				t.Errorf("a token of %s before the rotation: Consul answers %s, want 403: %v", h.name, got, err)
			}
			ended++
		}
	}
	if want := r.agents() + 2 + 1; ended != want { // agents, bouncers, the monitoring
		t.Errorf("%d tokens were looked at, want %d", ended, want)
	}
	r.checkMonitoring(t)
	r.checkRights(t)
}

// testRotateConsul: Consul goes on with other tokens and another key of the gossip, no client and no
// shard notices, and whoever had read them on a server has nothing any more.
func (r *rollout) testRotateConsul(t *testing.T, leader string) {
	const read = `sed -nE 's/.*"(initial_management|agent|encrypt)": "([^"]*)".*/\2/p' /etc/consul.d/consul.json`
	before := map[string]string{}
	for _, h := range r.hosts {
		before[h.name], _ = h.run(t.Context(), read) // a balancer has none
	}
	r.underLoad(t, func() { r.mustPlay(t, "rotate_consul") }, r.databases()...)
	ended := 0
	for _, h := range r.hosts {
		now, _ := h.run(t.Context(), read)
		for secret := range strings.FieldsSeq(before[h.name]) {
			if strings.Contains(now, secret) {
				t.Errorf("%s has kept something in consul.json", h.name)
			}
			if strings.HasSuffix(secret, "=") {
				continue // the key of the gossip
			}
			got, err := h.run(t.Context(), "curl -s -o /dev/null -w '%{http_code}' -H 'X-Consul-Token: "+secret+"' http://127.0.0.1:8500/v1/acl/token/self")
			if err != nil || got != "403" {
				t.Errorf("a token of Consul on %s before the rotation: Consul answers %s, want 403: %v", h.name, got, err)
			}
			ended++
		}
	}
	if ended == 0 {
		t.Error("no token was looked at")
	}
	if now := r.leader(t, "8008"); now != leader {
		t.Errorf("%s leads, %s did before: a shard noticed", now, leader)
	}
}

// testRotatePasswords: a shard's new passwords are in use everywhere, its old ones
// nowhere, and other shards keep theirs.
func (r *rollout) testRotatePasswords(t *testing.T) {
	names := []string{"superuser", "replication", "rewind", "api"}
	read := func(shard string) map[string]string {
		all := map[string]string{}
		for _, name := range names {
			text, err := os.ReadFile(filepath.Join(r.dir, "secrets/shards", shard, name))
			if err != nil {
				t.Fatal(err)
			}
			all[name], _, _ = strings.Cut(strings.TrimSpace(string(text)), " ")
		}
		return all
	}
	before, other := read("orders"), read("users")
	r.underLoad(t, func() { r.mustPlay(t, "rotate_passwords", "-e", "shard=orders") }, r.databases()...)
	now := read("orders")
	for _, name := range names {
		if now[name] == before[name] {
			t.Errorf("%s of orders is as before", name)
		}
	}
	if same := read("users"); fmt.Sprint(same) != fmt.Sprint(other) {
		t.Error("the passwords of users were changed, too")
	}
	leader := r.host(r.leader(t, "8008"))
	login := func(password string) (string, error) {
		return r.host("pooler1").run(t.Context(), "PGSSLMODE=require PGPASSWORD="+password+" psql -X -h "+leader.address+" -p 5432 -U postgres -d postgres -Atc 'SELECT 1' 2>&1 || true")
	}
	if got, err := login(now["superuser"]); err != nil || got != "1" {
		t.Errorf("the new password: %q: %v", got, err)
	}
	if got, err := login(before["superuser"]); err != nil || !strings.Contains(got, "authentication failed") {
		t.Errorf("the old password: %q: %v", got, err)
	}
	r.awaitHealthy(t, "8008", 3)
}

// testRotateCertificates: programs serve with new certificates, and none was restarted
// for it.
func (r *rollout) testRotateCertificates(t *testing.T) {
	const serial = `for port in %s; do openssl s_client -connect 127.0.0.1:$port %s </dev/null 2>/dev/null | openssl x509 -noout -serial; done`
	const processes = "systemctl show --property=MainPID consul pgbouncer lictor-bouncer; head -qn 1 /var/lib/postgresql/15/*/postmaster.pid 2>/dev/null; true"
	served := func(name string) []string {
		h := r.host(name)
		http, starttls := "8008", "5432"
		if strings.HasPrefix(name, "pooler") {
			http, starttls = "8009", "6432"
		}
		a, err := h.run(t.Context(), fmt.Sprintf(serial, http, ""))
		b, err2 := h.run(t.Context(), fmt.Sprintf(serial, starttls, "-starttls postgres"))
		if err != nil || err2 != nil || a == "" || b == "" {
			t.Fatalf("%s: its certificates are %q and %q: %v, %v", name, a, b, err, err2)
		}
		return []string{a, b}
	}
	hosts := []string{"db1", "db2", "db3", "pooler1", "pooler2"}
	before, running := map[string][]string{}, map[string]string{}
	for _, name := range hosts {
		before[name] = served(name)
		running[name], _ = r.host(name).run(t.Context(), processes)
	}
	r.underLoad(t, func() { r.mustPlay(t, "rotate_certificates") }, r.databases()...)
	for _, name := range hosts {
		r.await(t, "new certificates on "+name, func() error {
			for i, now := range served(name) {
				if now == before[name][i] {
					return fmt.Errorf("%s still serves with %s", name, now)
				}
			}
			return nil
		})
		if now, err := r.host(name).run(t.Context(), processes); err != nil || now != running[name] {
			t.Errorf("%s: something was restarted: %v: before\n%s\nafter\n%s", name, err, running[name], now)
		}
	}
	r.checkMonitoring(t)
}

// testRetireSharedTokens: what earlier versions gave out ends, when every host has its own.
func (r *rollout) testRetireSharedTokens(t *testing.T) {
	const shared = `token=$(sed -n 's/.*"initial_management": "\([^"]*\)".*/\1/p' /etc/consul.d/consul.json)
		curl -s -o /dev/null -w '%{http_code} ' -X PUT -H "X-Consul-Token: $token" -d '{"Name": "lictor-bouncer", "Rules": "session_prefix \"\" { policy = \"write\" }"}' http://127.0.0.1:8500/v1/acl/policy
		curl -s -H "X-Consul-Token: $token" http://127.0.0.1:8500/v1/acl/policy/name/lictor-bouncer | grep -c '"Name":"lictor-bouncer"'`
	if got, err := r.host("consul1").run(t.Context(), shared); err != nil || got != "200 1" {
		t.Fatalf("making what earlier versions had: %q: %v", got, err)
	}
	r.underLoad(t, func() { r.mustPlay(t, "retire_shared_tokens") }, r.databases()...)
	const gone = `token=$(sed -n 's/.*"initial_management": "\([^"]*\)".*/\1/p' /etc/consul.d/consul.json)
		curl -s -H "X-Consul-Token: $token" http://127.0.0.1:8500/v1/acl/policies`
	if got, err := r.host("consul1").run(t.Context(), gone); err != nil || strings.Contains(got, `"lictor-bouncer"`) || !strings.Contains(got, `"lictor-bouncer-pooler1"`) {
		t.Errorf("Consul's policies are %s: %v", got, err)
	}
}

// databases are the databases that the site has by now.
func (r *rollout) databases() []string {
	var list []string
	for scope := range r.vars["lictor_shards"].(map[string]any) {
		list = append(list, scope)
	}
	return list
}

// agents is how many agents there are by now.
func (r *rollout) agents() (n int) {
	for _, settings := range r.vars["lictor_shards"].(map[string]any) {
		n += len(settings.(map[string]any)["members"].([]string))
	}
	return n
}
