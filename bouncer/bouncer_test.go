package bouncer

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/templates"
)

func TestRouteChangeMovesQueries(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	client := w.connect("s1")
	if got := w.where(client); got != 0 {
		t.Fatalf("query went to member %d", got)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if got := w.where(w.connect("s1")); got != 1 {
		t.Fatalf("new query went to member %d", got)
	}
	if got := w.where(client); got != 1 {
		t.Fatalf("query of the old client went to member %d", got)
	}
	if got := w.where(w.connect("s1_ro")); got != 1 {
		t.Fatalf("reader went to member %d", got)
	}
	w.await("presence", func() error {
		kv, v, err := w.presence()
		if err != nil {
			return err
		}
		s := v.Applied["service/s1"]
		if kv.Session == "" || v.URL != "http://"+w.config.Listen || s.Leader != "db2" || s.VerifiedAt == nil {
			return fmt.Errorf("key is %+v", v)
		}
		return nil
	})
}

func TestReadersGoToReplicas(t *testing.T) {
	w := newWorld(t, nil)
	r := w.route(0, cluster.RouteOpen)
	replica := w.site.members[1]
	r.Replicas = []cluster.RouteMember{replica}
	w.put(w.keys.Route(), r)
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	if writer, reader := w.where(w.connect("s1")), w.where(w.connect("s1_ro")); writer != 0 || reader != 1 {
		t.Fatalf("writer went to %d, reader to %d", writer, reader)
	}
	// Held writers are no reason to hold readers.
	r.State = cluster.RouteHandover
	w.put(w.keys.Route(), r)
	w.awaitShard("hold", func(s ShardStatus) bool { return s.Held })
	if reader := w.where(w.connect("s1_ro")); reader != 1 {
		t.Fatalf("reader went to %d", reader)
	}
	// PgBouncer shows a list of hosts as it was written.
	second := replica
	second.Name, second.Host = "db3", "127.0.0.2"
	r.State, r.Replicas = cluster.RouteOpen, append(r.Replicas, second)
	w.put(w.keys.Route(), r)
	w.awaitLeader(0)
	w.await("both replicas", func() error {
		all, err := w.admin().Databases(w.ctx)
		if err == nil && all["s1_ro"].Host != "127.0.0.1,127.0.0.2" {
			err = fmt.Errorf("s1_ro leads to %s", all["s1_ro"].Host)
		}
		return err
	})
	w.awaitHealthy()
	if reader := w.where(w.connect("s1_ro")); reader != 1 {
		t.Fatalf("reader went to %d", reader)
	}
}

// A template may use what consul-template offers, and follows it.
func TestTemplateFollowsConsulKeys(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Template = c.PgBouncer.Config + ".ctmpl" })
	text, err := templates.Read(templates.PgBouncer)
	if err != nil {
		t.Fatal(err)
	}
	w.write("pgbouncer.ini.ctmpl", string(text)+"stats_users = {{ key \""+w.config.RoutesPrefix+"/stats\" }}\n")
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.await("what is missing being named", func() error {
		var h Health
		if _, err := w.http(http.MethodGet, "/health", &h); err != nil {
			return err
		}
		if !strings.Contains(strings.Join(h.Reasons, " "), "waiting for data: kv.block("+w.config.RoutesPrefix+"/stats)") {
			return fmt.Errorf("reasons are %v", h.Reasons)
		}
		return nil
	})
	for _, value := range []string{"first", "second"} {
		w.putRaw(w.config.RoutesPrefix+"/stats", []byte(value))
		w.await("the key's value in the file", func() error {
			installed, err := os.ReadFile(w.config.PgBouncer.Config)
			if err == nil && !strings.Contains(string(installed), "stats_users = "+value) {
				err = fmt.Errorf("file is %s", installed)
			}
			return err
		})
	}
	var rendered strings.Builder
	if err := Render(w.ctx, w.config, &rendered); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(rendered.String(), "stats_users = second") || !strings.Contains(rendered.String(), "host=127.0.0.1") {
		t.Fatalf("Render gives %s", rendered.String())
	}
}

func TestOtherTemplates(t *testing.T) {
	w := newWorld(t, nil)
	r := w.route(0, cluster.RouteOpen)
	r.Replicas = []cluster.RouteMember{w.site.members[1]}
	w.put(w.keys.Route(), r)
	// The template reads keys outside the test's own prefix.
	t.Cleanup(func() {
		_, _ = w.site.client.KV().DeleteTree("pgbouncer/users/", nil)
		_, _ = w.site.client.KV().DeleteTree("service/s1/", nil)
	})
	w.putRaw("pgbouncer/users/app", []byte(`se"cret`))
	w.putRaw(w.keys.Member("db1"), []byte(`{"api_url": "http://127.0.0.1:9008/patroni"}`))
	render := func(name string) string {
		t.Helper()
		text, err := templates.Read(name)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := RenderTemplate(w.ctx, w.config, string(text), &b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got := render(templates.Userlist); got != `"app" "se""cret"`+"\n" {
		t.Errorf("userlist.txt is %q", got)
	}
	haproxy := render(templates.HAProxy)
	for _, want := range []string{"check port 9008", "check port 8008", "OPTIONS /primary", "bind *:5001"} {
		if !strings.Contains(haproxy, want) {
			t.Errorf("haproxy.cfg lacks %q:\n%s", want, haproxy)
		}
	}
	w.write("haproxy.cfg", haproxy)
	if _, err := exec.LookPath("haproxy"); err == nil {
		if out, err := exec.Command("haproxy", "-c", "-f", w.dir+"/haproxy.cfg").CombinedOutput(); err != nil {
			t.Errorf("haproxy refuses it: %v\n%s\n%s", err, out, haproxy)
		}
	}
}
