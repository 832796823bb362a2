package render

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

const testText = `
name: pooler1
consul:
  hosts: [consul1:8500, consul2:8500]
routes_prefix: lictor
listen: 0.0.0.0:8009
connect_address: 10.0.0.7:8009
authentication: {username: admin, password: secret}
hold_timeout: 20
pgbouncer:
  config: /etc/pgbouncer/pgbouncer.ini
  admin: /run/postgresql:6432
  user: pooler
  password_file: /etc/lictor/pooler.password
  settings:
    listen_addr: "*"
    max_client_conn: 5000
    server_login_retry: 0.5
    tcp_defer_accept: 1
shards:
  - scope: orders
    databases: [orders, "orders_old=archive"]
    pool_size: 50
    pool_mode: session
  - scope: users
    namespace: db
`

func testConfig(t testing.TB) config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bouncer.yml")
	if err := os.WriteFile(path, []byte(testText), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, err := config.Load(settings.Source{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func goldenViews(c config.Config) []*Shard {
	orders := routeTo("10.0.0.1")
	orders.Replicas = []cluster.RouteMember{
		{Name: "r1", Host: "10.0.0.2", Port: 5432},
		{Name: "r2", Host: "10.0.0.3", Port: 5432},
		{Name: "r3", Host: "10.0.0.4", Port: 5432, Tags: map[string]any{"noloadbalance": true}},
		{Name: "r4", Host: "10.0.0.5", Port: 5433},
	}
	users := routeTo("10.0.1.1")
	users.State = cluster.RoutePromoting
	views, _ := View(c, map[config.ShardID]ShardRoute{"service/orders": {Route: orders}, "db/users": {Route: users}}, pgbouncer.Version{})
	return views
}

func TestRenderGolden(t *testing.T) {
	c := testConfig(t)
	data := newTemplateData(nil)
	defer data.close()
	views := goldenViews(c)
	r := &Renderer{config: c, data: data}
	source, err := r.Template()
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Render(source, views, pgbouncer.Version{1, 24, 1})
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "pgbouncer.ini")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("rendered (UPDATE_GOLDEN=1 takes it as right):\n%s\nwant:\n%s", got, want)
	}
	if _, err := Check(got, views, c, pgbouncer.Version{}); err != nil {
		t.Error(err)
	}
}

// A file of all shards, haproxy.cfg for one, is not written without any: a bouncer that has
// just started knows none for a moment.
func TestFileOfNoShardWaits(t *testing.T) {
	c := testConfig(t)
	data := newTemplateData(nil)
	defer data.close()
	source, err := templates.Read(templates.HAProxy)
	if err != nil {
		t.Fatal(err)
	}
	r := &Renderer{config: c, data: data, label: templates.HAProxy}
	if text, err := r.Render(source, nil, pgbouncer.Version{}); !errors.Is(err, ErrWaiting) {
		t.Errorf("%v, rendered %s", err, text)
	}
	r.config.AllowEmpty = true
	if _, err := r.Render(source, nil, pgbouncer.Version{}); err != nil {
		t.Error(err)
	}
	r.config.AllowEmpty = false
	if _, err := r.Render([]byte("no shards here"), nil, pgbouncer.Version{}); err != nil {
		t.Errorf("a file that is not of shards waits for them: %v", err)
	}
}

// The ports of a shard in haproxy.cfg are its own, whatever becomes of another one's route:
// whoever may delete that would have its neighbours' clients sent elsewhere.
func TestHAProxyPortsStay(t *testing.T) {
	c := testConfig(t)
	source, err := templates.Read(templates.HAProxy)
	if err != nil {
		t.Fatal(err)
	}
	// db/users comes before service/orders.
	orders := map[config.ShardID]ShardRoute{"service/orders": {Route: routeTo("10.0.0.1")}}
	both := map[config.ShardID]ShardRoute{"service/orders": {Route: routeTo("10.0.0.1")}, "db/users": {Route: routeTo("10.0.1.1")}}
	for name, known := range map[string]map[config.ShardID]ShardRoute{"both are known": both, "the other one is not": orders} {
		data := newTemplateData(nil)
		defer data.close()
		r := &Renderer{config: c, data: data, label: templates.HAProxy}
		views, _ := View(c, known, pgbouncer.Version{})
		for _, v := range views {
			d := newMemberPorts(v)
			data.brain.Remember(d, map[string]memberPort{})
			data.followed[d.String()] = &followed{dependency: d, cancel: func() {}}
		}
		text, err := r.Render(source, views, pgbouncer.Version{})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "listen orders_primary\n    bind *:5002\n") {
			t.Errorf("%s:\n%s", name, text)
		}
	}
}

// What stands in a key may be a password: it is in no error, which /status shows to everybody.
func TestRefusedValuesAreNotTold(t *testing.T) {
	const password = "correct horse\nbattery"
	for _, source := range []string{
		`{{ key "secret/pooler" }}`, `{{ range ls "secret" }}{{ .Value }}{{ end }}`, `{{ range tree "secret" }}{{ .Value }}{{ end }}`,
		`{{ rawKey "secret/pooler" | as_word }}`, `{{ rawKey "secret/pooler" | as_name }}`, `{{ rawKey "secret/pooler" | as_host }}`, `{{ rawKey "secret/pooler" | as_port }}`,
	} {
		key, err := dependency.NewKVGetQuery("secret/pooler")
		if err != nil {
			t.Fatal(err)
		}
		key.EnableBlocking()
		list, err := dependency.NewKVListQuery("secret")
		if err != nil {
			t.Fatal(err)
		}
		data := newTemplateData(nil)
		defer data.close()
		data.brain.Remember(key, password)
		data.brain.Remember(list, []*dependency.KeyPair{{Path: "secret/pooler", Key: "pooler", Value: password}})
		for _, d := range []dependency.Dependency{key, list} {
			data.followed[d.String()] = &followed{dependency: d, cancel: func() {}}
		}
		r := &Renderer{config: testConfig(t), data: data}
		if text, err := r.Render([]byte(source), nil, pgbouncer.Version{}); err == nil || strings.Contains(err.Error(), "horse") || strings.Contains(err.Error(), "battery") {
			t.Errorf("%s: %q, %v", source, text, err)
		}
	}
}

// A request to cancel may arrive at any PgBouncer behind the load balancer; those
// before 1.19 do not start with what newer ones need for that.
func TestPeers(t *testing.T) {
	c := testConfig(t)
	c.PgBouncer.Peers, c.PgBouncer.PeerID = []string{"10.0.0.11:6432", "/run/pgb two:6433"}, 2
	if _, err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	data := newTemplateData(nil)
	defer data.close()
	r := &Renderer{config: c, data: data}
	source, err := r.Template()
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[pgbouncer.Version]bool{{1, 18, 0}: false, {1, 19, 0}: true, {1, 25, 0}: true, {}: false} {
		text, err := r.Render(source, goldenViews(c), version)
		if err != nil {
			t.Fatal(err)
		}
		file, err := Check(text, goldenViews(c), c, version)
		if err != nil {
			t.Fatal(err)
		}
		peers, has := file.Other["peers"]
		if has != want || (file.Settings["peer_id"] == "2") != want {
			t.Errorf("%v: %v, peer_id %q", version, peers, file.Settings["peer_id"])
		}
		if want && (peers["1"] != "host=10.0.0.11 port=6432" || peers["2"] != "host='/run/pgb two' port=6433") {
			t.Errorf("%v: %v", version, peers)
		}
	}
	for _, id := range []int{0, -1, 3} {
		c.PgBouncer.PeerID = id
		if _, err := c.Validate(); err == nil {
			t.Errorf("peer_id %d was taken", id)
		}
	}
}

func TestReaders(t *testing.T) {
	m := func(host string, port int, tags map[string]any) cluster.RouteMember {
		return cluster.RouteMember{Name: host, Host: host, Port: port, Tags: tags}
	}
	for name, c := range map[string]struct {
		replicas []cluster.RouteMember
		mode     string
		want     string
	}{
		"none":            {nil, "", "primary []"},
		"one":             {[]cluster.RouteMember{m("a", 5432, nil)}, "", "a:5432 []"},
		"two":             {[]cluster.RouteMember{m("b", 5432, nil), m("a", 5432, nil)}, "", "[a,b]:5432 []"},
		"noloadbalance":   {[]cluster.RouteMember{m("a", 5432, map[string]any{"noloadbalance": "true"})}, "", "primary []"},
		"larger group":    {[]cluster.RouteMember{m("a", 5433, nil), m("b", 5432, nil), m("c", 5432, nil)}, "", "[b,c]:5432 [a]"},
		"one host, ports": {[]cluster.RouteMember{m("a", 5433, nil), m("a", 5434, nil)}, "", "a:5434 [a]"},
		"strict":          {[]cluster.RouteMember{m("a", 5432, nil)}, config.ReadersStrict, "a:5432 []"},
		"strict, none":    {nil, config.ReadersStrict, "none []"},
		"off":             {[]cluster.RouteMember{m("a", 5432, nil)}, config.ReadersOff, "off []"},
	} {
		t.Run(name, func(t *testing.T) {
			r := routeTo("p")
			r.Replicas = c.replicas
			v := &Shard{mode: c.mode, readers: chooseReaders(r, "b2", c.mode)}
			v.name()
			to, elsewhere := v.Readers()
			if got := fmt.Sprint(to, " ", elsewhere); got != c.want {
				t.Errorf("readers are %s, want %s", got, c.want)
			}
		})
	}
	spread := map[int]bool{}
	r := routeTo("p")
	r.Replicas = []cluster.RouteMember{m("a", 5433, nil), m("a", 5434, nil)}
	for _, seed := range []string{"b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"} {
		spread[chooseReaders(r, seed, "").Port] = true
	}
	if len(spread) != 2 {
		t.Errorf("all bouncers take the same replica: %v", spread)
	}
}

func TestClashingDatabasesAreNotOffered(t *testing.T) {
	views, problems := View(config.Config{}, map[config.ShardID]ShardRoute{
		"a/s": {Route: routeTo("x")}, "b/s": {Route: routeTo("y")}, "b/s_ro": {Route: routeTo("z")}, "b/t": {Route: routeTo("z")},
	}, pgbouncer.Version{})
	if len(views) != 2 || views[0].ID != "a/s" || views[1].ID != "b/t" || len(problems) != 2 {
		t.Fatalf("%d views, problems %v", len(views), problems)
	}
}

// What a template of an operator's own may get wrong must not be installed.
func TestCheckRefuses(t *testing.T) {
	c := testConfig(t)
	views := goldenViews(c)
	good, err := os.ReadFile(filepath.Join("testdata", "pgbouncer.ini"))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]struct{ old, new, want string }{
		"empty":             {string(good), "", "is missing"},
		"cut off":           {string(good)[len(good)/3:], "", "is"},
		"wrong host":        {"host=10.0.0.1", "host=10.0.0.2", "the primary is 10.0.0.1"},
		"no host":           {"host=10.0.1.1", "", "the primary is 10.0.1.1"},
		"wrong port":        {"host=10.0.1.1 port=5432", "host=10.0.1.1 port=5433", "port 5433"},
		"reader elsewhere":  {"host=10.0.0.2,10.0.0.3", "host=10.0.0.2,10.9.9.9", "which is no member"},
		"no admin":          {"admin_users = pooler", "admin_users = other", "admin_users lacks"},
		"port of listener":  {"listen_port = 6432", "listen_port = 7432", "listen_port is 7432"},
		"control character": {"pool_mode = transaction", "pool_mode = trans\x07action", "control character"},
		"include":           {"[pgbouncer]", "%include /etc/passwd\n[pgbouncer]", "%include"},
		"no value":          {"port=5432", "port=<no value>", "must be followed by = and a value"},
		"unknown option":    {"pool_size=50", "poolsize=50", `line 7: database "orders": poolsize: PgBouncer's section [databases] has no such option, did you mean pool_size?`},
		"value of option":   {"pool_size=50", "pool_size=many", `line 7: database "orders": pool_size: "many" must be a whole number from 1 on`},
		"newer option":      {"pool_size=50", "load_balance_hosts=disable", "load_balance_hosts: PgBouncer has this option from 1.24 on, here it is 1.18.0"},
		"newer name":        {"pool_size=50", "reserve_pool_size=5", "reserve_pool_size: PgBouncer has this option from 1.24 on"},
		"fallback":          {"[pgbouncer]", "* = host=h pool=3\n[pgbouncer]", `database "*": pool: PgBouncer's section`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(string(good), change.old, change.new, 1)
			if text == string(good) {
				t.Fatal("the case changes nothing")
			}
			if _, err := Check([]byte(text), views, c, pgbouncer.Version{1, 18, 0}); err == nil || !strings.Contains(err.Error(), change.want) {
				t.Fatalf("error is %v, want %q", err, change.want)
			}
		})
	}
	if _, err := Check(good, views, c, pgbouncer.Version{}); err != nil {
		t.Fatal(err)
	}
}

// A template of an operator's own must leave several processes what tells them apart.
func TestCheckOfOneProcess(t *testing.T) {
	c := testConfig(t)
	c.PgBouncer.Processes = []config.Process{{Admin: "/run/pgbouncer/1:6432", Config: "/etc/pgbouncer/1.ini"}, {Admin: "/run/pgbouncer/2:6432", Config: "/etc/pgbouncer/2.ini"}}
	one := c.Each()[1]
	r := NewRenderer(one, nil, "")
	defer r.Close()
	source, err := r.Template()
	if err != nil {
		t.Fatal(err)
	}
	views := goldenViews(one)
	good, err := r.Render(source, views, pgbouncer.Version{1, 26, 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Check(good, views, one, pgbouncer.Version{1, 26, 1}); err != nil {
		t.Errorf("%v\n%s", err, good)
	}
	for _, line := range []string{"2 = host=/run/pgbouncer/2 port=6432\n", "peer_id = 2\n"} {
		if !strings.Contains(string(good), line) {
			t.Errorf("the file lacks %q:\n%s", line, good)
		}
	}
	for want, change := range map[string][2]string{
		"admin of the process is /run/pgbouncer/2:6432": {"unix_socket_dir = /run/pgbouncer/2", "unix_socket_dir = /run"},
		"so_reuseport is not on":                        {"so_reuseport = 1\n", ""},
	} {
		text := strings.Replace(string(good), change[0], change[1], 1)
		if _, err := Check([]byte(text), views, one, pgbouncer.Version{1, 26, 1}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

func TestUserlistEscapes(t *testing.T) {
	got, err := pgbouncer.QuoteUserlist(`a"b`)
	if err != nil || got != `"a""b"` {
		t.Fatalf("%s %v", got, err)
	}
	if _, err := pgbouncer.QuoteUserlist("a\nb"); err == nil {
		t.Fatal("a newline is taken")
	}
	for _, name := range []string{templates.Userlist, templates.HAProxy, templates.PgBouncer} {
		if text, err := templates.Read(name); err != nil || len(text) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A template of one's own gets no name into the file at which PgBouncer would refuse all of it.
func TestQuotedNameInTemplate(t *testing.T) {
	c := testConfig(t)
	text := "[databases]\n'my shard' = host=h\n[pgbouncer]\nadmin_users = pooler\n"
	if _, err := Check([]byte(text), nil, c, pgbouncer.Version{1, 24, 0}); err == nil || !strings.Contains(err.Error(), "before PgBouncer 1.25") {
		t.Errorf("1.24: %v", err)
	}
	if _, err := Check([]byte(text), nil, c, pgbouncer.Version{1, 25, 0}); err != nil {
		t.Errorf("1.25: %v", err)
	}
}

func routeTo(host string) cluster.Route {
	return cluster.Route{
		Version: 1, SystemIdentifier: "7000000000000000001", State: cluster.RouteOpen, Timeline: 1,
		Leader: cluster.RouteMember{Name: "m-" + host, Host: host, Port: 5432}, Since: time.Unix(1000, 0).UTC(),
	}
}

// Names that HAProxy does not take stay apart from each other.
func TestHAProxyName(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"a", "a.b", "a:b", "a:3ab", "ä", "a@b", "a+b"} {
		got, err := haproxyName(name)
		if err != nil || seen[got] != "" || strings.ContainsAny(got, "@+ä") {
			t.Errorf("%s: %q %v, as %q", name, got, err, seen[got])
		}
		seen[got] = name
	}
	if _, err := haproxyName(""); err == nil {
		t.Error("an empty name is taken")
	}
}
