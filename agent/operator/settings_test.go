package operator

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The name of a shard on the command line is no path to other keys.
func TestOpenRefusesWhatIsNoName(t *testing.T) {
	for _, scope := range []string{"..", "--x", "a/b", "a\x1b[2J", "a\u202eb", "a b", strings.Repeat("x", 500_000)} {
		_, err := (&Site{}).Open(t.Context(), scope)
		if err == nil || ExitCode(err) != ExitUsage || len(err.Error()) > 1000 {
			t.Errorf("%.20q: %v", scope, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	agents := file("agent.yml", "scope: shard1\nname: db1\nnamespace: /db/\nrestapi: {listen: 127.0.0.1:8008, authentication: {username: u, password: p}}\n"+
		"consul: {host: c1, token: t}\nbootstrap: {dcs: {ttl: 8}}\npostgresql: {listen: 127.0.0.1:5432, data_dir: /x, authentication: {superuser: {username: postgres}}}\ntags: {a: b}\n")
	ctl := file("home/.config/patroni/patronictl.yaml", "scope: mine\nconsul: {url: 'https://c2:8501', verify: false}\nctl: {insecure: true}\n")
	bouncers := file("bouncer.yml", "consul: {hosts: [c3, c4]}\npgbouncer: {config: /etc/pgbouncer.ini}\nshards: [{scope: a}]\n")
	etcd := file("etcd.yml", "scope: x\netcd: {host: e}\n")
	typo := file("typo.yml", "consul: {hots: c1}\n")
	for _, c := range []struct {
		name    string
		f       Flags
		environ []string
		want    string // namespace, scope, addresses
		fails   string
	}{
		{"an agent's file", Flags{Config: agents}, nil, "db shard1 http://c1:8500", ""},
		{"a bouncer's file", Flags{Config: bouncers}, nil, "service  http://c3:8500 http://c4:8500", ""},
		{"patronictl's usual file", Flags{}, []string{"HOME=" + filepath.Join(dir, "home")}, "service mine https://c2:8501", ""},
		{"named by the environment", Flags{}, []string{"PATRONICTL_CONFIG_FILE=" + ctl, ConfigVariable + "=" + agents}, "db shard1 http://c1:8500", ""},
		{"nothing", Flags{}, []string{"HOME=" + dir}, "service  http://127.0.0.1:8500", ""},
		{"variables", Flags{}, []string{"PATRONI_CONSUL_HOST=c5:1", "LICTOR_SCOPE=s", "PATRONI_SUPERUSER_PASSWORD=x"}, "service s http://c5:1", ""},
		{"flags go over all", Flags{Config: agents, Consul: "c6", Scope: "o", Namespace: "n"}, []string{"LICTOR_SCOPE=s"}, "n o http://c6:8500", ""},
		{"a socket", Flags{Consul: "unix:///run/consul.sock"}, nil, "service  unix:///run/consul.sock", ""},
		{"another store", Flags{Config: etcd}, nil, "", "Consul alone"},
		{"a typo", Flags{Config: typo}, nil, "", "consul.hots"},
		{"a namespace above", Flags{Namespace: "../.."}, nil, "", `namespace: "../..": must be one name`},
		{"a scope that is a flag", Flags{Scope: "--x"}, nil, "", `scope: "--x": must consist of letters`},
		{"a scope with an escape, by a variable", Flags{}, []string{"LICTOR_SCOPE=a\x1b[2J"}, "", `scope: "a\x1b[2J": must consist of letters`},
		{"a prefix above, by a variable", Flags{}, []string{"LICTOR_ROUTES_PREFIX=.."}, "", `lictor.routes_prefix: "..": must be one name`},
		{"no such file", Flags{Config: "/nowhere"}, nil, "", "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Load(c.f, c.environ)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) || ExitCode(err) != ExitUsage {
					t.Fatalf("got %v, want %s", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			site, err := Connect(s)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Namespace + " " + s.Scope + " " + strings.Join(site.addresses(), " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
