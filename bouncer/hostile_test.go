package bouncer

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// program is a section that makes HAProxy, started in master-worker mode, run a command
// as the user that starts it.
const program = "8008\nprogram evil\n    command /bin/sh -c id\n"

// Whoever may write a shard's keys, register a service or name a member writes no line of
// haproxy.cfg and none of pgbouncer.ini: told by HAProxy and PgBouncer themselves. What
// is good in the same files goes on.
func TestHostileConsulValues(t *testing.T) {
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("HAProxy is needed")
	}
	var own string
	w := newWorld(t, func(c *config.Config) {
		dir := filepath.Dir(c.PgBouncer.Config)
		own = filepath.Join(dir, "own.cfg")
		c.Files = []config.File{
			{Template: templates.HAProxy, Path: filepath.Join(dir, "haproxy.cfg"), Validate: []string{haproxy, "-c", "-f", "%s"}},
			{Template: filepath.Join(dir, "own.ctmpl"), Path: own},
		}
	})
	prefix := w.config.RoutesPrefix
	namespace := prefix + "-ns"
	t.Cleanup(func() { _, _ = w.site.client.KV().DeleteTree(namespace+"/", nil) })
	keys := cluster.NewKeys(namespace, "s1", prefix)
	w.write("own.ctmpl", fmt.Sprintf(`{{ range service %q }}server {{ .Name }} {{ .Address }}:{{ .Port }} {{ .ServiceMeta.note }}
{{ end }}{{ range nodes }}node {{ .Node }} {{ .Meta.note }}
{{ end }}end
`, prefix+"-svc"))
	good := w.route(0, cluster.RouteOpen)
	good.Leader.Tags = map[string]any{"note": program, "zone": "a"}
	w.put(keys.Route(), good)
	member := func(url string) []byte {
		text, err := json.Marshal(cluster.Member{APIURL: url, ConnURL: "postgres://127.0.0.1:5432/postgres"})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	w.putRaw(keys.Member("db1"), member("http://127.0.0.1:"+program))
	hostile := func(scope string, change func(*cluster.Route)) {
		r := w.route(1, cluster.RouteOpen)
		change(&r)
		value, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		// Consul takes a key as an attacker may wish it in a transaction only.
		put := &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: prefix + "/routes/" + namespace + "/" + scope, Value: value}}
		if ok, _, _, err := w.site.client.Txn().Txn(api.TxnOps{put}, nil); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	hostile("s2\n"+program, func(*cluster.Route) {})
	hostile("--x", func(*cluster.Route) {})
	hostile("..", func(*cluster.Route) {})
	hostile("s3", func(r *cluster.Route) { r.Leader.Name = "x\n" + program })
	hostile("s4", func(r *cluster.Route) { r.Leader.Host = "h\x0bprogram" })
	hostile("s5", func(r *cluster.Route) { r.Leader.Host = "$(id)" })
	hostile("s6", func(r *cluster.Route) { r.Replicas = []cluster.RouteMember{r.Leader} })
	hostile("s7", func(r *cluster.Route) { r.Leader.Name = "\u202eevil" })
	hostile("s8", func(r *cluster.Route) { r.Leader.Host = "fe80::1%eth0" })
	// These are hosts by their form. Some have no address, as one that was shut down has none.
	hosts := []string{"nowhere.invalid", "gone", "a_b", "999.1.1.1", "1.2.3", "1", "0", "::", "fe80::1", "unix", "db1."}
	for i, host := range hosts {
		hostile(fmt.Sprintf("host%d", i), func(r *cluster.Route) { r.Leader.Host = host })
	}
	for name, port := range map[string]int{"good": 1, "bad": 2} {
		s := &api.CatalogRegistration{
			Node: prefix + "-" + name, Address: "127.0.0.1", SkipNodeUpdate: false, NodeMeta: map[string]string{"note": "x" + program},
			Service: &api.AgentService{ID: name, Service: prefix + "-svc", Address: "127.0.0.1", Port: port, Meta: map[string]string{"note": "check " + program}},
		}
		if name == "bad" {
			s.Service.Address = "127.0.0.1:1 check\n" + program
		}
		if _, err := w.site.client.Catalog().Register(s, nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = w.site.client.Catalog().Deregister(&api.CatalogDeregistration{Node: s.Node}, nil) })
	}
	w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	file := filepath.Join(w.dir, "haproxy.cfg")
	w.await("haproxy.cfg, and what is wrong", func() error {
		s, err := w.status()
		if err != nil {
			return err
		}
		if f := s.Files[file]; f.ChangedAt == nil || f.Error != "" || len(f.Warnings) != 1 || !strings.Contains(f.Warnings[0], "api_url") {
			return fmt.Errorf("%+v", f)
		}
		if f := s.Files[own]; f.ChangedAt == nil || f.Error != "" || len(f.Warnings) != 1 || !strings.Contains(f.Warnings[0], "-svc") {
			return fmt.Errorf("%+v", f)
		}
		if len(s.Problems) != 9 {
			return fmt.Errorf("%d problems: %v", len(s.Problems), s.Problems)
		}
		return nil
	})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(haproxy, "-c", "-f", file).CombinedOutput(); err != nil {
		t.Errorf("HAProxy refuses it: %v: %s\n%s", err, out, text)
	}
	if strings.Contains(string(text), "program") || !strings.Contains(string(text), "check port 8008\n") || strings.Count(string(text), "listen ") != 2*(1+len(hosts)) {
		t.Errorf("haproxy.cfg is\n%s", text)
	}
	if text, err := os.ReadFile(own); err != nil || strings.Contains(string(text), "program") || strings.Count(string(text), "server ") != 1 {
		t.Errorf("own.cfg is\n%s %v", text, err)
	}
	ini, err := os.ReadFile(w.config.PgBouncer.Config)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := pgbouncer.ParseFile(ini)
	if err != nil || len(parsed.Databases) != 2*(1+len(hosts)) || strings.Contains(string(ini), "program") {
		t.Errorf("pgbouncer.ini is\n%s %v", ini, err)
	}
	// A port that is one is taken.
	w.putRaw(keys.Member("db1"), member("http://127.0.0.1:18008/patroni"))
	w.await("the port", func() error {
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "check port 18008\n") {
			return fmt.Errorf("%s %w", text, err)
		}
		return nil
	})
}

// A file that its program refuses never takes the place of the old one, and is told.
func TestRefusedFileIsNotInstalled(t *testing.T) {
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("HAProxy is needed")
	}
	var file string
	w := newWorld(t, func(c *config.Config) {
		dir := filepath.Dir(c.PgBouncer.Config)
		file = filepath.Join(dir, "haproxy.cfg")
		c.Files = []config.File{{
			Template: filepath.Join(dir, "own.ctmpl"), Path: file,
			Validate: []string{haproxy, "-c", "-f", "%s"}, Command: []string{"touch", filepath.Join(dir, "reloaded")},
		}}
	})
	const before = "# the old one\n"
	w.write("haproxy.cfg", before)
	key := w.config.RoutesPrefix + "/values/mode"
	w.putRaw(key, []byte("no-such-mode"))
	w.write("own.ctmpl", fmt.Sprintf(`defaults
    mode {{ key %q }}
    timeout connect 4s
    timeout client 4s
    timeout server 4s
listen x
    bind 127.0.0.1:%d
`, key, bouncertest.FreePort(t)))
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	told := func(part string) {
		t.Helper()
		w.await("told "+part, func() error {
			s, err := w.status()
			if err != nil {
				return err
			}
			if f := s.Files[file]; !strings.Contains(f.Error, part) || f.ChangedAt != nil {
				return fmt.Errorf("%+v", f)
			}
			return nil
		})
		if text, err := os.ReadFile(file); err != nil || string(text) != before {
			t.Errorf("the file is %q, %v", text, err)
		}
		if _, err := os.Stat(filepath.Join(w.dir, "reloaded")); err == nil {
			t.Error("the command has run")
		}
		if !strings.Contains(w.log.String(), part) {
			t.Errorf("the log does not tell %q", part)
		}
	}
	told("refused by command " + haproxy)
	w.putRaw(key, []byte("tcp\n"+program))
	told("is not one word")
	if left, err := filepath.Glob(filepath.Join(w.dir, ".haproxy*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	w.putRaw(key, []byte("tcp"))
	w.await("the good one", func() error {
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "mode tcp\n") {
			return fmt.Errorf("%s %w", text, err)
		}
		_, err := os.Stat(filepath.Join(w.dir, "reloaded"))
		return err
	})
	w.awaitHealthy()
}
