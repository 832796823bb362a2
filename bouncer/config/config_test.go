package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const fullConfig = `
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
    verbose: 1
shards:
  - scope: orders
    databases: [orders, "orders_old=archive"]
    pool_size: 50
    pool_mode: session
  - scope: users
    namespace: db
`

// loadText loads a configuration that is written to a file first.
func loadText(t testing.TB, text string, source settings.Source) (Config, []cluster.Warning, error) {
	t.Helper()
	source.Path = filepath.Join(t.TempDir(), "bouncer.yml")
	if err := os.WriteFile(source.Path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(source)
}

func TestLoad(t *testing.T) {
	c, warnings, err := loadText(t, fullConfig, settings.Source{
		Environ: []string{"CONSUL_HTTP_TOKEN=secret", "LICTOR_HOLD_TIMEOUT=25", "LICTOR_PGBOUNCER_USER=admin"},
		Flags:   map[string]any{"name": "other"},
	})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), "the token goes to http://consul1:8500") {
		t.Fatal(err, warnings)
	}
	if c.Name != "other" || c.Consul.Token != "secret" || len(c.Consul.Hosts) != 2 || c.PgBouncer.User != "admin" {
		t.Errorf("layers: %+v", c)
	}
	if c.Shards[1].ID() != "db/users" || c.Shards[1].Databases[0] != "users" || c.Shards[0].Namespace != "service" {
		t.Errorf("shards: %+v", c.Shards)
	}
	if c.StateFile != "/etc/pgbouncer/pgbouncer.ini.routes.json" || c.MaxHold().Seconds() != 25 {
		t.Errorf("defaults: %+v", c)
	}
	for name, want := range map[string]string{
		"listen_addr": "*", "listen_port": "6432", "unix_socket_dir": "/run/postgresql", "max_client_conn": "5000",
		"server_login_retry": "0.5", "auth_file": "/etc/pgbouncer/userlist.txt", "admin_users": "admin",
		"tcp_user_timeout": "30000", "tcp_keepcnt": "30", "pool_mode": "transaction", "cancel_wait_timeout": "",
	} {
		if got := c.Setting(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if list := c.Settings(pgbouncer.Version{1, 24, 1}); list[len(list)-1].Name != "verbose" || !slices.Contains(list, NamedSetting{"tcp_user_timeout", "0"}) {
		t.Errorf("settings of 1.24: %v", list)
	}
	if c, _, err := loadText(t, strings.Replace(fullConfig, "hold_timeout: 20", "hold_timeout: 20\nreaders: off", 1), settings.Source{}); err != nil || c.ReadersOf(c.Shards[0]) != ReadersOff {
		t.Errorf("readers: off: %q %v", c.Readers, err)
	}
	if c.WithClosing(true).Setting("tcp_user_timeout") != "0" {
		t.Error("tcp_user_timeout is set though sockets can be closed")
	}
	for written, want := range map[string]float64{"2min": 120, "2m": 120, "1500 ms": 1.5, "20.5": 20.5} {
		if c, _, err := loadText(t, strings.Replace(fullConfig, "hold_timeout: 20", "hold_timeout: "+written, 1), settings.Source{}); err != nil || c.HoldTimeout != want {
			t.Errorf("hold_timeout %s: %v %v", written, c.HoldTimeout, err)
		}
	}
	if _, warnings, err := loadText(t, strings.Replace(fullConfig, "hold_timeout: 20", "hold_timeout: 60", 1), settings.Source{}); err != nil || len(warnings) != 1 {
		t.Errorf("hold longer than query_wait_timeout: %v %v", warnings, err)
	}
}

func TestBadConfig(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown key":                       {"routes_prefix:", "route_prefix:", "route_prefix"},
		"unknown in shard":                  {"pool_size:", "poolsize:", "poolsize"},
		"wrong type":                        {"hold_timeout: 20", "hold_timeout: [1]", "hold_timeout"},
		"hold without a unit that is known": {"hold_timeout: 20", "hold_timeout: 2 moons", "hold_timeout: \"2 moons\": must be a number of seconds, or one with a unit (ms, s, min)"},
		"hold too long":                     {"hold_timeout: 20", "hold_timeout: 4000", "hold_timeout: 4000: must be from 1 to 3600"},
		"no config":                         {"config: /etc/pgbouncer/pgbouncer.ini", "config: ''", "pgbouncer.config: must be set"},
		"relative config":                   {"config: /etc", "config: etc", "must be an absolute path"},
		"no admin":                          {"admin: /run/postgresql:6432", "admin: ''", "pgbouncer.admin: must be set"},
		"bad admin":                         {"admin: /run/postgresql:6432", "admin: host:port", "pgbouncer.admin"},
		"two passwords":                     {"user: pooler", "user: pooler\n  password: x", "pgbouncer.password_file"},
		"probe as the console's user":       {"user: pooler", "user: pooler\n  probe_password: x", "pgbouncer.probe_user: \"\": must be a role of its own"},
		"probe as another admin":            {"user: pooler", "user: pooler\n  probe_user: pgbouncer\n  probe_password: x", "pgbouncer.probe_user: \"pgbouncer\": must be a role of its own"},
		"setting mistyped":                  {"max_client_conn:", "max_clientconn:", "did you mean max_client_conn?"},
		"setting of text":                   {"max_client_conn: 5000", "max_client_conn: abc", `pgbouncer.settings.max_client_conn: "abc" must be a whole number`},
		"setting below 0":                   {"max_client_conn: 5000", "default_pool_size: -1", `"-1" must not be negative`},
		"setting of time":                   {"max_client_conn: 5000", "query_timeout: 5min", `"5min" must be a number of seconds`},
		"setting of words":                  {"max_client_conn: 5000", "pool_mode: transactions", `"transactions" must be one of session, transaction, statement`},
		"setting of a map":                  {"max_client_conn: 5000", "max_client_conn: {a: 1}", "pgbouncer.settings.max_client_conn"},
		"setting injection":                 {"max_client_conn: 5000", `max_client_conn: "1\nuser=root"`, "control characters"},
		"no scope":                          {"scope: orders", "scope: ''", "shards[0].scope"},
		"scope above":                       {"scope: orders", "scope: ..", `shards[0].scope: "..": ` + cluster.NameRule},
		"scope of a flag":                   {"scope: orders", "scope: --x", `shards[0].scope: "--x": ` + cluster.NameRule},
		"namespace above":                   {"namespace: db", "namespace: ../..", `shards[1].namespace: "../..": ` + cluster.NamespaceRule},
		"prefix above":                      {"routes_prefix: ", "routes_prefix: ../", "routes_prefix: \"../"},
		"validate":                          {"shards:", "files: [{template: /a, path: /x, validate: [haproxy, -c]}]\nshards:", "files[0].validate"},
		"shard twice":                       {"scope: users\n    namespace: db", "scope: orders\n    databases: [x]", "already shards[0]"},
		"database twice":                    {`"orders_old=archive"`, "users", "already belongs to shards[0]"},
		"reader's name":                     {`"orders_old=archive"`, "orders_ro", "already belongs"},
		"pool mode":                         {"pool_mode: session", "pool_mode: fast", `shards[0].pool_mode: "fast"`},
		"pool size":                         {"pool_size: 50", "pool_size: -1", "shards[0].pool_size"},
		"option mistyped":                   {"pool_size: 50", "options: {max_db_conections: 3}", "shards[0].options.max_db_conections: PgBouncer's section [databases] has no such option, did you mean max_db_connections?"},
		"option of text":                    {"pool_size: 50", "options: {min_pool_size: few}", `shards[0].options.min_pool_size: "few" must be a whole number from 0 on`},
		"option of a list":                  {"pool_size: 50", "options: {timezone: [UTC]}", "shards[0].options.timezone: must be a single value"},
		"option injection":                  {"pool_size: 50", `options: {timezone: "UTC\nx = host=evil"}`, "shards[0].options.timezone"},
		"option twice":                      {"pool_size: 50", "pool_size: 50\n    options: {pool_size: 40}", "shards[0].options.pool_size: is set in shards[0].pool_size as well"},
		"host as an option":                 {"pool_size: 50", "options: {host: h}", "shards[0].options.host: is none to set here"},
		"other's database":                  {"pool_size: 50", "database_options: {users: {pool_size: 3}}", `shards[0].database_options: "users": must be one of the shard's databases in PgBouncer: ["orders" "orders_ro" "orders_old" "orders_old_ro"]`},
		"option of one":                     {"pool_size: 50", "database_options: {orders_ro: {pool_size: 0}}", `shards[0].database_options.orders_ro.pool_size: "0" must be`},
		"option of all":                     {"  settings:", "  database_options: {pool_mode: fast}\n  settings:", `pgbouncer.database_options.pool_mode: "fast" must be one of`},
		"option of a user":                  {"  settings:", "  users: {app: {timezone: UTC}}\n  settings:", "pgbouncer.users.app.timezone: PgBouncer's section [users] has no such option"},
		"user of no option":                 {"  settings:", "  users: {app: {}}\n  settings:", "pgbouncer.users.app: must have an option"},
		"readers":                           {"pool_size: 50", "readers: replicas", `shards[0].readers: "replicas": must be one of off, primary-fallback, strict`},
		"readers of all":                    {"hold_timeout: 20", "readers: none", `readers: "none": must be one of`},
		"fallback nowhere":                  {"  settings:", "  fallback: {pool_size: 3}\n  settings:", "pgbouncer.fallback: must have either shard or host"},
		"fallback twice":                    {"  settings:", "  fallback: {shard: orders, host: h}\n  settings:", "pgbouncer.fallback: must have either shard or host"},
		"fallback's port":                   {"  settings:", "  fallback: {shard: orders, port: 5433}\n  settings:", "pgbouncer.fallback.port: is that of the shard's primary"},
		"fallback's option":                 {"  settings:", "  fallback: {host: h, pool: 3}\n  settings:", "pgbouncer.fallback.pool: PgBouncer's section"},
		"roots of a socket":                 {"  user: pooler", "  sslrootcert: /etc/passwd\n  user: pooler", "pgbouncer.sslrootcert: \"/etc/passwd\": has no effect on a unix socket"},
		"roots, no file":                    {"admin: /run/postgresql:6432", "admin: h:6432\n  sslrootcert: /none", "pgbouncer.sslrootcert: cannot be read"},
		"roots, no PEM":                     {"admin: /run/postgresql:6432", "admin: h:6432\n  sslrootcert: /etc/passwd", "must be a file with a certificate in PEM form"},
		"roots, no check":                   {"admin: /run/postgresql:6432", "admin: h:6432\n  sslmode: prefer\n  sslrootcert: /etc/passwd", "pgbouncer.sslmode: \"prefer\": must be one of require, verify-ca, verify-full"},
		"listen":                            {"listen: 0.0.0.0:8009", "listen: nowhere", "listen:"},
		"half credentials":                  {", password: secret", "", "authentication"},
		"a colon in the name":               {"username: admin", "username: 'ad:min'", "authentication: username must not have a colon"},
		"consul scheme":                     {"consul1:8500", "ftp://consul1", "consul"},
		"name":                              {"name: pooler1", "name: a/b", "name:"},
		"file's template":                   {"shards:", "files: [{template: x.ctmpl, path: /x}]\nshards:", "files[0].template"},
		"file's path":                       {"shards:", "files: [{template: userlist.txt.ctmpl, path: x}]\nshards:", "files[0].path"},
		"file twice":                        {"shards:", "files: [{template: /a, path: /x}, {template: /b, path: /x}]\nshards:", "already that of files[0]"},
		"pgbouncer.ini":                     {"shards:", "files: [{template: /a, path: /etc/pgbouncer/pgbouncer.ini}]\nshards:", "not pgbouncer.config"},
		"peers without id":                  {"  settings:", "  peers: [a:1]\n  settings:", "pgbouncer.peer_id"},
		"verify_client":                     {"listen:", "verify_client: always\nlisten:", "verify_client: \"always\": must be one of none, optional, required"},
		"clients, no TLS":                   {"listen:", "verify_client: required\nlisten:", "certfile: must be set: verify_client is required"},
		"clients of any CA":                 {"listen:", "verify_client: optional\ncertfile: /etc/passwd\nlisten:", "cafile: must be set: verify_client is optional"},
		"no certificate":                    {"listen:", "certfile: /none\nlisten:", "certfile: cannot be used"},
		"no authority":                      {"listen:", "cafile: /none\nlisten:", "cafile: cannot be used"},
		"the page's namespace, no page":     {"listen:", "web_namespace: db\nlisten:", "web_namespace: \"db\": has no effect: set web as well"},
		"the page's login, no page":         {"listen:", "web_authentication: {username: a, password: b}\nlisten:", "web_authentication: has no effect: set web as well"},
		"half a login for the page":         {"listen:", "web: true\nweb_authentication: {username: a}\nlisten:", "web_authentication: username and password must be set together"},
		"the page of two namespaces":        {"listen:", "web: true\nlisten:", "web_namespace: must be set: shards are of several namespaces (db, service), and the fleet page shows one"},
		"the page's namespace":              {"listen:", "web: true\nweb_namespace: a//b\nlisten:", "web_namespace: \"a//b\": "},
		"a page that is neither on nor off": {"listen:", "web: maybe\nlisten:", "web: "},
		"allowlist":                         {"listen:", "allowlist: [10.0.0.0/99]\nlisten:", "allowlist[0]"},
		"replica lag":                       {"pool_size: 50", "max_replica_lag: -1", "max_replica_lag"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(fullConfig, c.old, c.new, 1)
			if text == fullConfig {
				t.Fatal("the case changes nothing")
			}
			_, _, err := loadText(t, text, settings.Source{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error is %v, want %q", err, c.want)
			}
		})
	}
}

// Where * takes every name, a database that strict readers take away would be made by it, at a
// primary.
func TestStrictReadersBesideFallback(t *testing.T) {
	const rule = `readers: "strict": must be primary-fallback or off beside pgbouncer.fallback`
	for name, c := range map[string]struct {
		all, orders, users, fallback string
		want                         string
	}{
		"all":                  {"strict", "", "off", "{host: h}", rule},
		"discovered":           {"strict", "none", "", "{shard: orders}", rule},
		"one":                  {"", "strict", "", "{shard: users}", "shards[0]." + rule},
		"none that is for all": {"strict", "off", "primary-fallback", "{shard: orders}", ""},
		"no fallback":          {"strict", "strict", "", "{}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			text := fullConfig
			put := func(before, key, value string) {
				if value != "" {
					text = strings.Replace(text, before, before+"\n"+key+": "+value, 1)
				}
			}
			put("hold_timeout: 20", "readers", c.all)
			put("  user: pooler", "  fallback", c.fallback)
			if c.orders == "none" {
				text, _, _ = strings.Cut(text, "shards:")
			} else {
				put("pool_size: 50", "    readers", c.orders)
				put("namespace: db", "    readers", c.users)
			}
			_, _, err := loadText(t, text, settings.Source{})
			if c.want == "" && err != nil || c.want != "" && (err == nil || strings.Count(err.Error(), c.want) != 1) {
				t.Fatalf("error is %v, want %q", err, c.want)
			}
		})
	}
}

// What PgBouncer's own settings say that it asks for is answered, and no more.
func TestRequireAuthOfTheConsole(t *testing.T) {
	for _, c := range []struct{ method, template, want string }{
		{"", "", "!password,!md5"},
		{"scram-sha-256", "", "!password,!md5"},
		{"scram-sha-256", "/x.ctmpl", "!password"},
		{"md5", "", "!password"},
		{"trust", "", "!password"},
		{"plain", "", ""},
		{"pam", "", ""},
		{"LDAP", "", ""},
		{"hba", "", ""},
	} {
		cfg := Config{Template: c.template, PgBouncer: PgBouncer{Config: t.TempDir() + "/pgbouncer.ini", Admin: "127.0.0.1:6432", User: "pooler", Settings: map[string]any{}}}
		if c.method != "" {
			cfg.PgBouncer.Settings["auth_type"] = c.method
		}
		if o, err := cfg.Admin(); err != nil || o.RequireAuth != c.want {
			t.Errorf("%+v: %q, %v", c, o.RequireAuth, err)
		}
	}
}

func TestPasswordFromUserlist(t *testing.T) {
	dir := t.TempDir()
	c := Config{PgBouncer: PgBouncer{Config: dir + "/pgbouncer.ini", Admin: "127.0.0.1:6432", User: "pooler"}}
	for text, want := range map[string]string{
		"\"app\" \"x\"\n\"pooler\" \"se\"\"cret\"\n":         `se"cret`,
		"\"pooler\" \"SCRAM-SHA-256$4096:a$b:c\"":            "",
		"\"pooler\" \"md5d41d8cd98f00b204e9800998ecf8427e\"": "",
		"pooler x": "",
	} {
		if err := os.WriteFile(dir+"/userlist.txt", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if o, err := c.Admin(); err != nil || o.Password != want {
			t.Errorf("%q gives %q, %v", text, o.Password, err)
		}
	}
}

// The fleet page shows the namespace that the shards are of, and who may read it by mistake is told.
func TestWeb(t *testing.T) {
	const base = "consul: {host: 127.0.0.1:8500}\npgbouncer: {config: /p.ini, admin: /run:6432}\n"
	for _, c := range []struct{ text, namespace, warned string }{
		{"", "", ""},
		{"web: false\nlisten: 0.0.0.0:8009", "", ""},
		{"web: true", "service", ""},
		{"web: true\nshards: [{scope: a, namespace: /db/}, {scope: b, namespace: db}]", "db", ""},
		{"web: true\nweb_namespace: /other/\nshards: [{scope: a}]", "other", ""},
		{"web: true\nweb_namespace: db\nshards: [{scope: a}, {scope: b, namespace: db}]", "db", ""},
		{"web: true\nlisten: 0.0.0.0:8009", "service", "everybody who reaches 0.0.0.0:8009 sees all shards"},
		{"web: true\nlisten: 0.0.0.0:8009\nallowlist: [10.0.0.0/8]", "service", ""},
		{"web: true\nlisten: 0.0.0.0:8009\nauthentication: {username: a, password: b}", "service", "browsers send the password in clear text"},
		{"web: true\nlisten: 0.0.0.0:8009\nweb_authentication: {username: a, password: b}", "service", "browsers send the password in clear text"},
		{"web: true\nlisten: '[::1]:8009'\nauthentication: {username: a, password: b}", "service", ""},
	} {
		got, warnings, err := loadText(t, base+c.text, settings.Source{})
		if err != nil || got.WebNamespace != c.namespace {
			t.Errorf("%s: %q, %v", c.text, got.WebNamespace, err)
		}
		if said := strings.Join(texts(warnings), "\n"); (said == "") != (c.warned == "") || !strings.Contains(said, c.warned) {
			t.Errorf("%s: warned %q", c.text, said)
		}
	}
}

func texts(warnings []cluster.Warning) (all []string) {
	for _, w := range warnings {
		all = append(all, w.String())
	}
	return all
}
