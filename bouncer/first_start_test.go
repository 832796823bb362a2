package bouncer

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// putPatroni writes what Patroni writes of a shard whose leader is member number leader.
func (w *world) putPatroni(namespace, scope string, leader int) {
	w.t.Helper()
	m := w.site.members[leader]
	session, _, err := w.site.client.Session().CreateNoChecks(nil, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_, _ = w.site.client.Session().Destroy(session, nil)
		_, _ = w.site.client.KV().DeleteTree(namespace+"/", nil)
	})
	for key, value := range map[string]string{
		"initialize": "7000000000000000001", "leader": m.Name, "status": `{"optime":100000000,"slots":{}}`,
		"members/" + m.Name: fmt.Sprintf(`{"conn_url":"postgres://%s:%d/postgres","role":"master","state":"running","timeline":1,"xlog_location":100000000}`, m.Host, m.Port),
	} {
		pair := &api.KVPair{Key: namespace + "/" + scope + "/" + key, Value: []byte(value)}
		if _, err := w.site.client.KV().Put(pair, nil); err != nil {
			w.t.Fatal(err)
		}
		if pair.Session = session; key == "leader" {
			if held, _, err := w.site.client.KV().Acquire(pair, nil); err != nil || !held {
				w.t.Fatalf("%s: %v", key, err)
			}
		}
	}
}

// The first rollout beside a PgBouncer that runs, for shards that Patroni runs: what is heard of
// one after the other takes no database from those that are not heard of yet.
func TestFirstFileOfPatronisShards(t *testing.T) {
	const namespace = "first-file-of-patroni"
	w := newWorld(t, func(c *config.Config) {
		for _, scope := range []string{"s1", "s2", "s3"} {
			c.Shards = append(c.Shards, config.Shard{Namespace: namespace, Scope: scope, Databases: []string{scope + "=s1"}})
		}
	})
	var lines strings.Builder
	for _, name := range []string{"s1", "s2", "s3"} {
		fmt.Fprintf(&lines, "%s = host=127.0.0.1 port=%d dbname=s1\n", name, w.site.members[0].Port)
	}
	w.write("pgbouncer.ini", fmt.Sprintf("[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = %s/userlist.txt\nadmin_users = pooler\npool_mode = transaction\n[databases]\n%s", w.port, w.dir, lines.String()))
	w.pgbouncer()
	w.awaitConsole()
	client := w.connect("s3")
	w.exec(client, "SELECT 1")
	w.putPatroni(namespace, "s1", 1)
	w.bouncer()
	leads := func(ports map[string]int) {
		t.Helper()
		w.await("databases", func() error {
			all, err := w.admin().Databases(w.ctx)
			for name, port := range ports {
				if err == nil && all[name].Port != port {
					err = fmt.Errorf("%s is at %+v", name, all[name])
				}
			}
			return err
		})
	}
	at0, at1 := w.site.members[0].Port, w.site.members[1].Port
	leads(map[string]int{"s1": at1, "s2": at0, "s3": at0})
	w.putPatroni(namespace, "s2", 1)
	leads(map[string]int{"s1": at1, "s2": at1, "s3": at0})
	if got := w.where(client); got != 0 {
		t.Errorf("the client of s3 is at %d", got)
	}
	var h Health
	if code, err := w.http(http.MethodGet, "/health", &h); err != nil || code != http.StatusServiceUnavailable || !strings.Contains(strings.Join(h.Reasons, " "), "no route is known of shard "+namespace+"/s3") {
		t.Errorf("%d %+v %v", code, h, err)
	}
	w.putPatroni(namespace, "s3", 1)
	leads(map[string]int{"s1": at1, "s2": at1, "s3": at1})
	w.awaitHealthy()
	if got := w.where(client); got != 1 {
		t.Errorf("the client of s3 is at %d", got)
	}
}

// A bouncer that starts with a template that is none, or is not there, leads everybody to the
// newest primaries by the last good file; without one it installs nothing, and says so.
func TestStartWithAWrongTemplate(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Template = c.PgBouncer.Config + ".ctmpl" })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.write("pgbouncer.ini.ctmpl", "{{ range shards }")
	stop := w.bouncer()
	w.await("a word on it", func() error {
		var h Health
		code, err := w.http(http.MethodGet, "/health", &h)
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(strings.Join(h.Reasons, " "), "there is no other good configuration")) {
			err = fmt.Errorf("%d %+v", code, h)
		}
		return err
	})
	if _, err := os.Stat(w.config.PgBouncer.Config); err == nil {
		t.Error("a file was installed")
	}
	w.write("pgbouncer.ini.ctmpl", strings.Replace(brokenTemplate, "pool_mode_of_nobody = yes\n", "", 1))
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	for i, spoil := range []func(){
		func() { w.write("pgbouncer.ini.ctmpl", "{{ range shards }") },
		func() {
			if err := os.Remove(w.config.Template); err != nil {
				t.Fatal(err)
			}
		},
	} {
		stop()
		spoil()
		leader := (i + 1) % 2
		w.put(w.keys.Route(), w.route(leader, cluster.RouteOpen)) // while there is no bouncer
		stop = w.bouncer()
		w.awaitLeader(leader)
		if got := w.where(client); got != leader {
			t.Errorf("the client is at %d", got)
		}
		w.await("/health", func() error { return w.warned("last good configuration is in place") })
	}
}
