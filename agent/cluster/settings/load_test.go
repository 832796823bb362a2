package settings

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// program is a configuration with a field of every kind.
type program struct {
	Name   string          `mapstructure:"name"`
	Server server          `mapstructure:"server"`
	Tags   map[string]any  `mapstructure:"tags"`
	Users  map[string]user `mapstructure:"users"`
	Shards []shard         `mapstructure:"shards"`
	Any    any             `mapstructure:"any"`
	List   []any           `mapstructure:"list"`
	Open   open            `mapstructure:"open"`
}

type server struct {
	Listen  string            `mapstructure:"listen"`
	Port    int               `mapstructure:"port"`
	Share   float64           `mapstructure:"share"`
	Verify  *bool             `mapstructure:"verify"`
	On      bool              `mapstructure:"on"`
	Hosts   []string          `mapstructure:"hosts"`
	Lines   []string          `mapstructure:"lines"`
	Headers map[string]string `mapstructure:"headers"`
	Timeout int               `mapstructure:"timeout"`
	Login   user              `mapstructure:"login"`
}

type user struct {
	Password string   `mapstructure:"password"`
	Options  []string `mapstructure:"options"`
}

type shard struct {
	Scope string `mapstructure:"scope"`
	Size  int    `mapstructure:"size"`
}

type open struct {
	Known string         `mapstructure:"known"`
	Rest  map[string]any `mapstructure:",remain"`
}

func programSchema() Schema {
	return Schema{
		Patroni:          map[string]string{"NAME": "name", "SERVER_LISTEN": "server.listen", "LOGIN_PASSWORD": "server.login.password"},
		Variables:        map[string]string{"PORT": "server.port"},
		UserVariables:    "users",
		Renamed:          map[string]string{"server.bind": "server.listen"},
		Unused:           map[string]string{"server.speed": "it is always fast"},
		Refused:          map[string]string{"etcd": "use consul"},
		RefusedVariables: map[string]string{"ETCD_": "use consul"},
		Adjust:           map[string]Adjuster{"server.timeout": WholeSeconds, "server.lines": Lines},
	}
}

func load(source Source) (program, []cluster.Warning, error) {
	var p program
	warnings, err := Load(source, programSchema(), &p, func() ([]cluster.Warning, error) { return nil, nil })
	return p, warnings, err
}

// loadText loads a file with this content, which only its owner may read.
func loadText(t testing.TB, text string, environ ...string) (program, []cluster.Warning, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program.yml")
	write(t, path, text, 0o600)
	return load(Source{Path: path, Environ: environ})
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestLoadReadsEveryKind(t *testing.T) {
	p, warnings, err := loadText(t, `
name: 0123            # a number to YAML, a name to us
server:
  listen: 10.0.0.1:8008
  port: "8500"        # quoted, as some like it
  share: 1
  verify: off
  on: "yes"
  hosts: a, b
  lines: |
    local all all peer
    host all all 10.0.0.0/8 md5
  headers: {X-Age: 5, X-On: on}
  timeout: 1min
  login: {password: 007}
tags: {Zone: eu, nofailover: yes, size: 1_000, text: "yes", when: 2020-01-01}
users: {AppUser: {password: secret, options: [a, 1]}}
shards: [{scope: one, size: 1}, {scope: two}]
any: {pg_stat_statements.max: 5000, deep: [1, {On: off}]}
list: {encoding: UTF8, Alpha: 1}
open: {known: a, basebackup: {fast: on}}
`)
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	no := false
	want := program{
		Name: "0123",
		Server: server{
			Listen: "10.0.0.1:8008", Port: 8500, Share: 1, Verify: &no, On: true, Hosts: []string{"a", "b"},
			Lines:   []string{"local all all peer", "host all all 10.0.0.0/8 md5"},
			Headers: map[string]string{"X-Age": "5", "X-On": "on"}, Timeout: 60, Login: user{Password: "007"},
		},
		Tags:   map[string]any{"Zone": "eu", "nofailover": true, "size": 1000, "text": "yes", "when": "2020-01-01"},
		Users:  map[string]user{"AppUser": {Password: "secret", Options: []string{"a", "1"}}},
		Shards: []shard{{"one", 1}, {"two", 0}},
		Any:    map[string]any{"pg_stat_statements.max": 5000, "deep": []any{1, map[string]any{"On": false}}},
		List:   []any{map[string]any{"Alpha": 1}, map[string]any{"encoding": "UTF8"}},
		Open:   open{Known: "a", Rest: map[string]any{"basebackup": map[string]any{"fast": true}}},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want string
	}{
		"unknown key":             {"nmae: a", "nmae: is not a known key; did you mean name? (program.yml, line 1, column 1)"},
		"unknown key, far off":    {"zebra: a", "zebra: is not a known key (program.yml"},
		"unknown key below":       {"server:\n  lisen: a", "server.lisen: is not a known key; did you mean listen? (program.yml, line 2, column 3)"},
		"unknown key of a user":   {"users: {AppUser: {pasword: hush}}", "users.AppUser.pasword: is not a known key; did you mean password?"},
		"unknown key in a list":   {"shards: [{scpoe: a}]", "shards[0].scpoe: is not a known key; did you mean scope?"},
		"keys count with case":    {"Name: a", "Name: is not a known key; did you mean name?"},
		"number":                  {"server: {port: many}", `server.port: "many": must be a whole number (program.yml, line 1, column 10)`},
		"fraction":                {"server: {port: 1.5}", "server.port: 1.5: must be a whole number"},
		"real number":             {"server: {share: half}", `server.share: "half": must be a number`},
		"truth":                   {"server: {on: perhaps}", `server.on: "perhaps": must be true or false`},
		"truth behind a pointer":  {"server: {verify: 7}", "server.verify: 7: must be true or false"},
		"text":                    {"name: {a: b}", "name: a map: must be text"},
		"list for text":           {"name: [a]", "name: a list: must be text"},
		"list":                    {"server: {hosts: {a: b}}", "server.hosts: a map: must be a list of texts"},
		"item of a list":          {"server: {hosts: [a, [b]]}", "server.hosts[1]: a list: must be text"},
		"section":                 {"server: here", "server: (hidden): must be a section with keys of its own"},
		"section, a list":         {"server: [here]", "server: (hidden): must be a section"},
		"map":                     {"tags: all", "tags: (hidden): must be a map"},
		"map of texts":            {"server: {headers: {a: [b]}}", "server.headers.a: a list: must be text"},
		"list of sections":        {"shards: [one]", `shards[0]: "one": must be a section`},
		"number in a section":     {"shards: [{size: x}]", `shards[0].size: "x": must be a whole number`},
		"secret of a wrong type":  {"users: {AppUser: {password: [hush]}}", "users.AppUser.password: (hidden): must be text"},
		"refused section":         {"etcd: {host: a}", "etcd: use consul (program.yml, line 1, column 1)"},
		"adjusted":                {"server: {timeout: soon}", `server.timeout: "soon": must be a whole number of seconds`},
		"not YAML":                {"a: b: c", "program.yml: is not valid YAML: mapping values are not allowed in this context"},
		"line of what is wrong":   {"name: a\nserver: [", "line 2"},
		"password like an alias":  {"users: {a: {password: *hush}}", "put it in quotes"},
		"tag that does not fit":   {"users: {a: {password: !!int hush}}", "users.a.password: does not fit its tag !!int"},
		"not a map":               {"- a", "program.yml: must be a map of sections"},
		"plain text":              {"hush", "program.yml: must be a map of sections"},
		"two documents":           {"name: a\n---\nname: b", "must be one YAML document"},
		"key that is a list":      {"? [a]\n: b", "a key must be a single value"},
		"alias of itself":         {"tags: &a {b: *a}", "an alias contains itself"},
		"merge of what is no map": {"tags: {<<: 5}", "<< must name a map"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _, err := loadText(t, tt.text)
			if err == nil {
				t.Fatalf("accepted as %+v", p)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q does not say %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "hush") {
				t.Errorf("the secret is in %q", err)
			}
			if refused := new(Refused); !errors.As(err, &refused) {
				t.Errorf("%T is not Refused", err)
			}
		})
	}
}

func TestAllProblemsAreReportedAtOnce(t *testing.T) {
	var p program
	path := filepath.Join(t.TempDir(), "p.yml")
	write(t, path, "nmae: a\nserver: {port: x, verify: y, lisen: z, hosts: {a: b}}\netcd: {}\nusers: {a: {options: {b: c}}}\n", 0o600)
	_, err := Load(Source{Path: path, Environ: []string{"LICTOR_SERVER_SHARE=half", "PATRONI_ETCD_HOST=a"}}, programSchema(), &p, func() ([]cluster.Warning, error) {
		return nil, errors.Join(
			cluster.Problem{Path: "name", Rule: "must be set"},
			cluster.Problem{Path: "server.port", Rule: "must be more than 0"}, // it could not be read: one problem is enough
		)
	})
	var refused *Refused
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	var got []string
	for _, problem := range cluster.Problems(refused.Err) {
		got = append(got, problem.Path)
	}
	want := []string{"PATRONI_ETCD_HOST", "etcd", "name", "nmae", "server.hosts", "server.lisen", "server.port", "server.share", "server.verify", "users.a.options"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%v", diff, err)
	}
	if !strings.Contains(err.Error(), `server.share: "half": must be a number (environment variable LICTOR_SERVER_SHARE)`) {
		t.Error(err)
	}
}

func TestLayers(t *testing.T) {
	const file = "name: file\nserver: {listen: file, port: 1, hosts: [file], headers: {File: x}}\ntags: {Zone: file, kept: 1}\n"
	for name, tt := range map[string]struct {
		environ []string
		flags   map[string]any
		want    func(*program)
	}{
		"the file alone":                  {nil, nil, func(*program) {}},
		"PATRONI over the file":           {[]string{"PATRONI_NAME=patroni"}, nil, func(p *program) { p.Name = "patroni" }},
		"LICTOR over PATRONI":             {[]string{"LICTOR_NAME=lictor", "PATRONI_NAME=patroni"}, nil, func(p *program) { p.Name = "lictor" }},
		"in whatever order":               {[]string{"PATRONI_NAME=patroni", "LICTOR_NAME=lictor"}, nil, func(p *program) { p.Name = "lictor" }},
		"flags over all":                  {[]string{"LICTOR_NAME=lictor"}, map[string]any{"name": "flag"}, func(p *program) { p.Name = "flag" }},
		"an empty variable is none":       {[]string{"LICTOR_NAME=", "PATRONI_NAME=patroni"}, nil, func(p *program) { p.Name = "patroni" }},
		"a nested setting":                {[]string{"PATRONI_SERVER_LISTEN=p", "LICTOR_SERVER_LISTEN=l"}, nil, func(p *program) { p.Server.Listen = "l" }},
		"a name of its own":               {[]string{"LICTOR_PORT=5"}, nil, func(p *program) { p.Server.Port = 5 }},
		"PATRONI, where Patroni has none": {[]string{"PATRONI_SERVER_PORT=5"}, nil, func(*program) {}},
		"a value with = in it":            {[]string{"LICTOR_NAME=a=b"}, nil, func(p *program) { p.Name = "a=b" }},
		"a list":                          {[]string{"LICTOR_SERVER_HOSTS=a,B:1"}, nil, func(p *program) { p.Server.Hosts = []string{"a", "B:1"} }},
		"a list in YAML":                  {[]string{"LICTOR_SERVER_HOSTS=[a, 'b,c']"}, nil, func(p *program) { p.Server.Hosts = []string{"a", "b,c"} }},
		"a list in lines":                 {[]string{"LICTOR_SERVER_HOSTS=- a\n- b"}, nil, func(p *program) { p.Server.Hosts = []string{"a", "b"} }},
		"a map keeps its case":            {[]string{"LICTOR_TAGS=Zone: Eu, a.B: 5"}, nil, func(p *program) { p.Tags = map[string]any{"Zone": "Eu", "a.B": 5} }},
		"a map in YAML":                   {[]string{"LICTOR_SERVER_HEADERS={X-A: b}"}, nil, func(p *program) { p.Server.Headers = map[string]string{"X-A": "b"} }},
		"a map as a flag":                 {nil, map[string]any{"tags": map[string]any{"Zone": "Flag"}}, func(p *program) { p.Tags = map[string]any{"Zone": "Flag"} }},
		"a number as a flag":              {nil, map[string]any{"server.port": 7}, func(p *program) { p.Server.Port = 7 }},
		"text as a flag":                  {nil, map[string]any{"server.port": "7"}, func(p *program) { p.Server.Port = 7 }},
		"an adjusted setting":             {[]string{"LICTOR_SERVER_TIMEOUT=2min"}, nil, func(p *program) { p.Server.Timeout = 120 }},
		"anything":                        {[]string{"LICTOR_ANY={a.B: on}"}, nil, func(p *program) { p.Any = map[string]any{"a.B": true} }},
		"a user keeps its case": {[]string{"PATRONI_AppUser_PASSWORD=x", "PATRONI_AppUser_OPTIONS=[createdb, login]", "PATRONI_appuser_PASSWORD=y"}, nil, func(p *program) {
			p.Users = map[string]user{"AppUser": {Password: "x", Options: []string{"createdb", "login"}}, "appuser": {Password: "y"}}
		}},
		"a setting is no user": {[]string{"PATRONI_LOGIN_PASSWORD=x"}, nil, func(p *program) { p.Server.Login.Password = "x" }},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p.yml")
			write(t, path, file, 0o600)
			got, _, err := load(Source{Path: path, Environ: tt.environ, Flags: tt.flags})
			if err != nil {
				t.Fatal(err)
			}
			want := program{
				Name: "file", Server: server{Listen: "file", Port: 1, Hosts: []string{"file"}, Headers: map[string]string{"File": "x"}},
				Tags: map[string]any{"Zone": "file", "kept": 1},
			}
			tt.want(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLayersRefuse(t *testing.T) {
	for name, tt := range map[string]struct {
		environ []string
		flags   map[string]any
		want    string
	}{
		"a list":          {[]string{"LICTOR_SERVER_HOSTS={a: b}"}, nil, "server.hosts: a map: must be a list of texts (environment variable LICTOR_SERVER_HOSTS)"},
		"a broken list":   {[]string{"LICTOR_SERVER_HOSTS=[a"}, nil, "server.hosts: must be a list: a, b or YAML (environment variable LICTOR_SERVER_HOSTS)"},
		"a map":           {[]string{"LICTOR_TAGS=[Zone]"}, nil, "tags: must be a map"},
		"an unknown flag": {nil, map[string]any{"server.lisen": "a"}, "server.lisen: is not a known key; did you mean listen?"},
		"another store":   {[]string{"PATRONI_ETCD_HOST=a"}, nil, "PATRONI_ETCD_HOST: use consul"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p.yml")
			write(t, path, "", 0o600)
			if got, _, err := load(Source{Path: path, Environ: tt.environ, Flags: tt.flags}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestSources(t *testing.T) {
	t.Run("whole YAML in a variable", func(t *testing.T) {
		p, _, err := load(Source{Environ: []string{"PATRONI_CONFIGURATION=name: b\n", "LICTOR_CONFIGURATION=name: a\nserver: {port: 5}\n", "LICTOR_PORT=6"}})
		if err != nil || p.Name != "a" || p.Server.Port != 6 {
			t.Error(p, err)
		}
	})
	t.Run("that is not valid", func(t *testing.T) {
		if _, _, err := load(Source{Environ: []string{"PATRONI_CONFIGURATION=server: {port: x}"}}); err == nil ||
			!strings.Contains(err.Error(), "(PATRONI_CONFIGURATION, line 1, column 10)") {
			t.Error(err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		if _, _, err := load(Source{}); err == nil || !strings.Contains(err.Error(), "LICTOR_CONFIGURATION") {
			t.Error(err)
		}
	})
	t.Run("no such file", func(t *testing.T) {
		if _, _, err := load(Source{Path: "/no/such/file.yml"}); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	t.Run("empty file", func(t *testing.T) {
		if p, _, err := loadText(t, "# nothing\n"); err != nil || p.Name != "" {
			t.Error(p, err)
		}
	})
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "10-base.yml"), "name: base\nserver: {listen: base, port: 1, hosts: [a, b]}\ntags: {Zone: base, kept: 1}\n", 0o600)
		write(t, filepath.Join(dir, "20-site.yaml"), "name: site\nserver: {listen: site, hosts: [c]}\ntags: {Zone: site}\nusers:\n", 0o600)
		write(t, filepath.Join(dir, "30-other.txt"), "name: other\n", 0o600)
		if err := os.Mkdir(filepath.Join(dir, "40-dir.yml"), 0o700); err != nil {
			t.Fatal(err)
		}
		p, _, err := load(Source{Path: dir})
		want := program{Name: "site", Server: server{Listen: "site", Port: 1, Hosts: []string{"c"}}, Tags: map[string]any{"Zone": "site", "kept": 1}}
		if diff := cmp.Diff(want, p); err != nil || diff != "" {
			t.Error(diff, err)
		}
		write(t, filepath.Join(dir, "25.yml"), "server: {port: x}", 0o600)
		write(t, filepath.Join(dir, "26.yml"), "server: [", 0o600)
		if _, _, err := load(Source{Path: dir}); err == nil || !strings.Contains(err.Error(), "26.yml: is not valid YAML") {
			t.Error(err)
		}
	})
	t.Run("directory without files", func(t *testing.T) {
		if _, _, err := load(Source{Path: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "has no *.yml or *.yaml") {
			t.Error(err)
		}
	})
}

func TestLoadWarns(t *testing.T) {
	for name, tt := range map[string]struct {
		text    string
		environ string
		want    string
	}{
		"old name":             {"server: {bind: a}", "", ""},
		"old name and new":     {"server: {bind: a, listen: b}", "", "server.bind: is an old name of server.listen and has no effect beside it (program.yml, line 1, column 10)"},
		"unused":               {"server: {speed: 5}", "", "server.speed: has no effect: it is always fast (program.yml, line 1, column 10)"},
		"key set twice":        {"name: a\nname: b", "", "name: is set twice, the last one counts (program.yml, line 2, column 1)"},
		"variable's slip":      {"", "LICTOR_SERVER_LISTN=a", "LICTOR_SERVER_LISTN: is not a known variable and has no effect; did you mean LICTOR_SERVER_LISTEN?"},
		"no setting":           {"", "LICTOR_BIN=/usr/bin/lictor", "LICTOR_BIN: is not a known variable and has no effect"},
		"the operators' file":  {"", "LICTOR_CONFIG_FILE=/etc/lictor.yml", ""},
		"empty":                {"name: a", "LICTOR_NAME=", "LICTOR_NAME: is empty and has no effect"},
		"twice in a map":       {"", "LICTOR_TAGS={a: 1, a: 2}", "tags: environment variable LICTOR_TAGS: a: is set twice, the last one counts (, line 2, column 10)"},
		"another program's":    {"", "PATRONI_SOMETHING=1", ""},
		"quite another's":      {"", "HOME=/root", ""},
		"the whole, beside it": {"", "LICTOR_CONFIGURATION=name: b", "LICTOR_CONFIGURATION: has no effect beside a file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			_, warnings, err := loadText(t, tt.text, tt.environ)
			if err != nil {
				t.Fatal(err)
			}
			if (len(warnings) != 0) != (tt.want != "") || len(warnings) == 1 && warnings[0].String() != tt.want {
				t.Errorf("%v, want %q", warnings, tt.want)
			}
		})
	}
}

func TestAFileWithSecretsThatEverybodyMayRead(t *testing.T) {
	for _, tt := range []struct {
		text string
		mode os.FileMode
		warn bool
	}{
		{"users: {a: {password: hush}}", 0o644, true},
		{"users: {a: {password: hush}}", 0o640, false},
		{"users: {a: {password: }}", 0o644, false},
		{"name: a", 0o644, false},
	} {
		path := filepath.Join(t.TempDir(), "p.yml")
		write(t, path, tt.text, tt.mode)
		_, warnings, err := load(Source{Path: path})
		if err != nil || (len(warnings) == 1 && strings.Contains(warnings[0].String(), "may be read by everybody")) != tt.warn {
			t.Errorf("%s, %o: %v, %v", tt.text, tt.mode, warnings, err)
		}
	}
}

func TestMergeKeys(t *testing.T) {
	p, warnings, err := loadText(t, `
tags: &base {Zone: eu, size: 1}
any: {<<: *base, size: 2}
open: {known: a, x: {<<: [{a: 1, b: 1}, {a: 2, c: 3}]}}
`)
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	if diff := cmp.Diff(map[string]any{"Zone": "eu", "size": 2}, p.Any); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]any{"a": 1, "b": 1, "c": 3}, p.Open.Rest["x"]); diff != "" {
		t.Error(diff)
	}
}

func TestDumpHidesSecrets(t *testing.T) {
	p := program{
		Name:   "a",
		Server: server{Login: user{Password: "hush-1"}, Headers: map[string]string{"Authorization": "hush-2"}},
		Tags:   map[string]any{"Zone": "eu", "api_token": "hush-3", "deep": []any{map[string]any{"password": "hush-4"}}},
		Users:  map[string]user{"AppUser": {Password: "hush-5"}},
		Open:   open{Rest: map[string]any{"m": map[string]any{"conninfo": "host=a password=hush-6 user=b", "url": "https://me:hush-7@a"}}},
	}
	text := Dump(p)
	if strings.Contains(text, "hush") {
		t.Error(text)
	}
	for _, want := range []string{"name: a", "Zone: eu", "AppUser:", "password: (hidden)", "https://xxxxx@a", "user=b"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\ndoes not show %q", text, want)
		}
	}
	if strings.Contains(text, "share") {
		t.Errorf("%s\nshows what is not set", text)
	}
}

// FuzzLoad: whatever a file holds, loading ends, and its errors tell nothing of
// what stands in a password's place.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"name: a", "server: {port: 1, hosts: a}", "a: &a [*a]", "tags: {<<: {a: 1}}", "? [a]\n: b", "- a", "---\n---\n", "name: !!binary aGk=",
		"users: {a: {password: x}}", "shards: [{scope: 1}, 2]", "server: {timeout: 1min, lines: a}", "a: b: c", "\x00", "open: {x: 1}", "list: 5", "server:\n\tport: 1",
	} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "p.yml")
		write(t, path, text, 0o600)
		p, warnings, err := load(Source{Path: path})
		if err == nil {
			_ = fmt.Sprint(Dump(p), warnings)
		}
		for _, secret := range []string{
			fmt.Sprintf("users: {a: {password: [hush]}}\nx%q: 1\n", text),
			"server: {login: hush}\n" + text,
		} {
			write(t, path, secret, 0o600)
			if _, _, err := load(Source{Path: path}); err != nil && strings.Contains(err.Error(), "hush") && !strings.Contains(text, "hush") {
				t.Errorf("the secret is in %q", err)
			}
		}
	})
}

// Of two variables for one setting it is told which counts; where none goes before the
// other, both are refused.
func TestTwoVariables(t *testing.T) {
	_, warnings, err := loadText(t, "", "LICTOR_NAME=a", "PATRONI_NAME=b")
	if err != nil || len(warnings) != 1 || warnings[0].String() != "PATRONI_NAME: has no effect beside LICTOR_NAME" {
		t.Errorf("%v %v", warnings, err)
	}
	_, _, err = loadText(t, "", "LICTOR_SERVER_PORT=1", "LICTOR_PORT=2")
	if err == nil || !strings.Contains(err.Error(), "LICTOR_PORT: sets server.port, as LICTOR_SERVER_PORT does: keep one of them") {
		t.Error(err)
	}
	_, warnings, err = load(Source{Environ: []string{"PATRONI_CONFIGURATION=name: b", "LICTOR_CONFIGURATION=name: a"}})
	if err != nil || len(warnings) != 1 || warnings[0].String() != "PATRONI_CONFIGURATION: has no effect beside LICTOR_CONFIGURATION" {
		t.Errorf("%v %v", warnings, err)
	}
}

// What files say can be written down, and is read again as it was.
func TestTextOfFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"1.yml": "name: a\nbase: &base {yes: no, quoted: \"no\", \"on\": 'on'}\nmore:\n  <<: *base\n  number: 0123\n  text: \"0123\"\n  float: 1.50\n  null: ~\n  empty: ''\n  list: [1, two, 'x y', {a: 1e3}]\n",
		"2.yml": "name: b\nlines: |\n  one\n  two: #3\nodd: \"\\u00e4\\t* - {\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := newTree()
	if err := first.readPath(dir); err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(first.values)
	if err != nil {
		t.Fatal(err)
	}
	again := newTree()
	if err := again.readText("again", text); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first.values, again.values) {
		t.Errorf("%v\nis read again as\n%v\nfrom\n%s", first.values, again.values, text)
	}
}
