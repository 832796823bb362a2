package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func TestMerge(t *testing.T) {
	base := map[string]any{"a": 1, "b": map[string]any{"x": 1, "y": 2}, "c": 3}
	inner := base["b"]
	merge(base, map[string]any{"a": nil, "b": map[string]any{"y": nil, "z": 3}, "d": map[string]any{"e": 1}})
	want := map[string]any{"b": map[string]any{"x": 1, "z": 3}, "c": 3, "d": map[string]any{"e": 1}}
	if diff := cmp.Diff(want, base); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"x": 1, "y": 2}, inner); diff != "" {
		t.Errorf("the map that was merged into was changed (-want +got):\n%s", diff)
	}
}

func TestDynamic(t *testing.T) {
	d := Options{}.dynamic()
	if _, set := d["ttl"]; set || d["synchronous_mode"] != true {
		t.Errorf("defaults: %v", d)
	}
	d = Options{TTL: 5, Async: true, Parameters: map[string]any{"work_mem": "8MB"}, Dynamic: map[string]any{"failsafe_mode": false}}.dynamic()
	parameters := d["postgresql"].(map[string]any)["parameters"].(map[string]any)
	if d["ttl"] != 5 || d["synchronous_mode"] != false || d["failsafe_mode"] != false || parameters["work_mem"] != "8MB" || parameters["max_connections"] == nil {
		t.Errorf("%v", d)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for field, o := range map[string]Options{
		"dir":       {Substrate: Loopback, Shards: 1, Members: 1, ConsulServers: 1},
		"substrate": {Dir: "/x", Substrate: "vm", Shards: 1, Members: 1, ConsulServers: 1},
		"members":   {Dir: "/x", Substrate: Loopback, Shards: 1, Members: -1, ConsulServers: 1},
	} {
		if err := o.validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestSocketPath(t *testing.T) {
	if err := checkSocketPath("/tmp/lab/hosts/shard1-db1"); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"/" + strings.Repeat("d", 100), "/tmp/with space", "/tmp/a,b"} {
		if checkSocketPath(dir) == nil {
			t.Errorf("%q is accepted", dir)
		}
	}
}

func TestRuleset(t *testing.T) {
	f := faults{isolated: map[string]bool{"p3": true}, cuts: map[[2]string]bool{{"p1", "p2"}: true}}
	got := f.ruleset()
	for _, rule := range []string{`iifname "p3" drop`, `oifname "p3" drop`, `iifname "p1" oifname "p2" drop`} {
		if !strings.Contains(got, rule) {
			t.Errorf("no %s in\n%s", rule, got)
		}
	}
	if strings.Contains(got, `iifname "p2"`) {
		t.Error("a one-way cut drops the other direction")
	}
	if strings.Contains(faults{}.ruleset(), "drop\n") {
		t.Error("a healthy network drops")
	}
}

// fakeLab is a laid out lab without processes.
func fakeLab(t *testing.T) *Lab {
	t.Helper()
	o, err := findOwner()
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	l := &Lab{Dir: dir, owner: o, Options: Options{Dir: dir, Programs: Programs{Lictor: "/bin/true", PostgresBin: "/pg/bin", PgBouncer: "/bin/true", HAProxy: "/bin/true"}}.withDefaults()}
	l.Secrets = Secrets{Superuser: "s1", Replication: "s2", Rewind: "s3", App: "s4", Pooler: "s5"}
	if l.ports, err = claimPorts(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.ports.release)
	if err := os.MkdirAll(filepath.Join(dir, hostsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	l.Options.Database, l.Options.Pooler = Lictor{}, LictorBouncer{}
	for _, add := range []func() error{
		func() error { return l.addBalancer(t.Context()) },
		func() error { return l.addConsulHosts(t.Context()) },
		func() error { return l.addShard(t.Context(), 0) },
		func() error { return l.addBouncer(t.Context(), 0) },
	} {
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestMemberConfiguration(t *testing.T) {
	l := fakeLab(t)
	m := l.Shard(0).Members()[1]
	edited := Lictor{Edit: func(_ *Member, c map[string]any) { c["tags"] = map[string]any{"nofailover": true} }}
	specs, err := edited.Install(l, m)
	if err != nil {
		t.Fatal(err)
	}
	if len(specs) != 1 || specs[0].Unprivileged {
		t.Errorf("%+v", specs)
	}
	path := filepath.Join(m.Dir, "agent.yml")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("a file with passwords has mode %v", info.Mode())
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Scope, Name string
		RestAPI     struct {
			Listen string `yaml:"listen"`
		} `yaml:"restapi"`
		Consul     struct{ Hosts []string }
		Postgresql struct {
			Listen         string
			DataDir        string `yaml:"data_dir"`
			Authentication map[string]struct{ Username, Password string }
		}
		Bootstrap struct{ DCS map[string]any }
		Tags      map[string]any
	}
	if err := yaml.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	if got.Scope != "shard1" || got.Name != "shard1-db2" || got.RestAPI.Listen != m.REST || got.Postgresql.Listen != m.Postgres ||
		got.Postgresql.DataDir != m.DataDir || len(got.Consul.Hosts) != 3 || got.Tags["nofailover"] != true {
		t.Errorf("%+v", got)
	}
	if a := got.Postgresql.Authentication["replication"]; a.Username != ReplicationRole || a.Password != "s2" {
		t.Errorf("replication: %+v", a)
	}
	if got.Bootstrap.DCS["synchronous_mode"] != true {
		t.Errorf("dcs: %v", got.Bootstrap.DCS)
	}
}

func TestPortsOfALabAreItsOwn(t *testing.T) {
	first, second := fakeLab(t), fakeLab(t)
	seen := map[string]bool{}
	for _, l := range []*Lab{first, second} {
		addresses := append(l.ConsulHosts(), l.balancer.Listen)
		for _, m := range l.Members() {
			addresses = append(addresses, m.Postgres, m.REST)
		}
		for _, a := range addresses {
			if seen[a] {
				t.Errorf("%s was given out twice", a)
			}
			seen[a] = true
		}
	}
}

func TestBalancerConfiguration(t *testing.T) {
	l := fakeLab(t)
	config := l.balancer.config()
	b := l.bouncers[0]
	for _, want := range []string{
		"server pooler1 " + b.PgBouncer + " check", "port " + portOf(b.API), "httpchk GET /health", "bind " + l.balancer.Listen, "on-marked-down shutdown-sessions",
	} {
		if !strings.Contains(config, want) {
			t.Errorf("no %q in\n%s", want, config)
		}
	}
	l.Options.Pooler = PlainPgBouncer{}
	if config := l.balancer.config(); strings.Contains(config, "httpchk") || !strings.Contains(config, "check inter") {
		t.Errorf("a pooler without a health page is not tried by TCP:\n%s", config)
	}
}

func TestHostEnvironment(t *testing.T) {
	got := hostEnvironment([]string{"PATH=/bin", "PGHOST=prod", "CONSUL_HTTP_ADDR=prod:8500", "HOME=/root", "LANG=C", "LICTOR_SCOPE=x"}, "/lab/hosts/a")
	want := []string{hostMarker + "=/lab/hosts/a", "HOME=/lab/hosts/a", "PATH=/bin", "LANG=C"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
