package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// small is the least that is valid.
const small = `
scope: shard1
name: db1
restapi: {listen: "10.0.0.1:8008"}
postgresql:
  listen: 10.0.0.1:5432
  data_dir: /srv/pg/shard1
  authentication:
    superuser: {password: hush-super}
    replication: {username: replicator, password: hush-repl}
`

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "patroni.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func loadText(t testing.TB, text string, environ ...string) (Config, []Warning, error) {
	t.Helper()
	return Load(Source{Path: write(t, text), Environ: environ})
}

// with loads the small configuration with changes laid over it.
func with(t testing.TB, changes string, environ ...string) (Config, []Warning, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"1.yml": small, "2.yml": changes} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Load(Source{Path: dir, Environ: environ})
}

func TestDefaults(t *testing.T) {
	c, warnings, err := loadText(t, small)
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	want := Config{
		Scope: "shard1", Namespace: "service", Name: "db1",
		RestAPI: RestAPI{Listen: "10.0.0.1:8008", ConnectAddress: "10.0.0.1:8008", VerifyClient: "none"},
		Consul:  Consul{Consistency: "default"}, Bootstrap: Bootstrap{DCS: map[string]any{}},
		Postgres: Postgres{
			Listen: "10.0.0.1:5432", ConnectAddress: "10.0.0.1:5432", DataDir: "/srv/pg/shard1", Database: "postgres", PgCtlTimeout: 60,
			Authentication: Authentication{
				Superuser:   PgUser{Username: "postgres", Password: "hush-super"},
				Replication: PgUser{Username: "replicator", Password: "hush-repl"},
			},
		},
		Watchdog: Watchdog{Mode: "off", Device: "/dev/watchdog", Driver: "default"},
		Log:      Log{Level: "info", FileSize: 25000000, FileNum: 4, Mode: 0o640}, Lictor: Lictor{RoutesPrefix: "lictor"},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	if got := c.Keys().Leader(); got != "service/shard1/leader" {
		t.Error(got)
	}
}

func TestNamesOfTheUserSurvive(t *testing.T) {
	c, _, err := with(t, `
tags: {Zone: EU-1}
bootstrap:
  users: {AppUser: {password: x, options: [createdb]}}
  dcs: {postgresql: {parameters: {Pg_Stat_Statements.Max: 5}}, My_Key: {A.b: 1}}
postgresql: {parameters: {pg_stat_statements.max: 10000, work_mem: 4MB, archive_mode: on}}
restapi: {http_extra_headers: {X-Frame-Options: DENY}}
`, "PATRONI_OtherUser_PASSWORD=y")
	if err != nil {
		t.Fatal(err)
	}
	if c.Tags["Zone"] != "EU-1" || c.Postgres.Parameters["pg_stat_statements.max"] != 10000 || c.Bootstrap.Users["AppUser"].Password != "x" ||
		c.Bootstrap.Users["OtherUser"].Password != "y" || c.RestAPI.HTTPExtraHeaders["X-Frame-Options"] != "DENY" {
		t.Errorf("%#v", c)
	}
	dcs, err := cluster.CanonicalJSON(c.Bootstrap.DCS)
	if want := `{"My_Key":{"A.b":1},"postgresql":{"parameters":{"Pg_Stat_Statements.Max":5}}}`; err != nil || string(dcs) != want {
		t.Errorf("%s, %v", dcs, err)
	}
}

func TestForms(t *testing.T) {
	get := func(c Config) map[string]string {
		return map[string]string{
			"rest": c.RestAPI.ConnectAddress, "listen": c.Postgres.Listen, "connect": c.Postgres.ConnectAddress, "namespace": c.Namespace,
			"watchdog": c.Watchdog.Mode, "level": c.Log.Level, "format": c.Log.Format, "verify": c.RestAPI.VerifyClient,
			"timeout": fmt.Sprint(c.Postgres.PgCtlTimeout), "hba": strings.Join(c.Postgres.PgHBA, "|"), "replica": strings.Join(c.Postgres.CreateReplica, "|"),
			"post": c.Bootstrap.PostBootstrap, "initdb": fmt.Sprint(c.Bootstrap.InitDB), "kill": fmt.Sprint(c.Lictor.Fence.KillBefore), "dcs": fmt.Sprint(c.Bootstrap.DCS),
		}
	}
	for text, want := range map[string]map[string]string{
		"postgresql: {listen: 10.0.0.1}":                                         {"listen": "10.0.0.1:5432", "connect": "10.0.0.1:5432"},
		"postgresql: {listen: '0.0.0.0,10.0.0.2:5433'}":                          {"connect": "10.0.0.2:5433"},
		"postgresql: {listen: '[::1]:5432'}":                                     {"connect": "[::1]:5432"},
		"postgresql: {listen: '0.0.0.0, [fd00::1]:5433'}":                        {"connect": "[fd00::1]:5433"},
		"postgresql: {listen: '10.0.0.1, [::1]'}":                                {"listen": "10.0.0.1, [::1]:5432", "connect": "10.0.0.1:5432"},
		"postgresql: {listen: '10.0.0.1, ::1:5433'}":                             {"connect": "10.0.0.1:5433"},
		"postgresql: {connect_address: 'fd00::2:5433'}":                          {"connect": "[fd00::2]:5433"},
		"postgresql: {listen: '*:5432', connect_address: 'db1:5432'}":            {"connect": "db1:5432"},
		"restapi: {listen: '0.0.0.0:8008', connect_address: db1:8008}":           {"rest": "db1:8008"},
		"namespace: /postgresql-common/":                                         {"namespace": "postgresql-common"},
		"watchdog: {mode: off}":                                                  {"watchdog": "off"},
		"watchdog: {mode: auto}":                                                 {"watchdog": "automatic"},
		"log: {level: WARNING}":                                                  {"level": "warning"},
		"log: {level: CRITICAL}":                                                 {"level": "error"},
		"log: {format: '%(asctime)s %(levelname)s: %(message)s'}":                {"format": "patroni"},
		"log: {type: json}":                                                      {"format": "json"},
		"log: {type: json, format: [message, {levelname: level}]}":               {"format": "json"},
		"restapi: {verify_client: None}":                                         {"verify": "none"},
		"postgresql: {pg_ctl_timeout: 2min}":                                     {"timeout": "120"},
		"postgresql: {pg_hba: \"local all all peer\\nhost all all all md5\\n\"}": {"hba": "local all all peer|host all all all md5"},
		"postgresql: {create_replica_method: [basebackup]}":                      {"replica": "basebackup"},
		"bootstrap: {post_init: /bin/true}":                                      {"post": "/bin/true"},
		"bootstrap: {initdb: {encoding: UTF8, locale: C}}":                       {"initdb": "[map[encoding:UTF8] map[locale:C]]"},
		"bootstrap: {initdb: [data-checksums, {auth: md5}]}":                     {"initdb": "[data-checksums map[auth:md5]]"},
		"bootstrap: {dcs: {ttl: 10, postgresql: {parameters: }}}":                {"dcs": "map[postgresql:map[] ttl:10]"},
		"lictor: {fence: {kill_before: 900ms}}":                                  {"kill": "0.9"},
		"lictor: {fence: {kill_before: '1'}}":                                    {"kill": "1"},
	} {
		c, _, err := with(t, text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := get(c)
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: %s is %q, want %q", text, key, got[key], value)
			}
		}
	}
}

func TestRelativePathsBeginWhereTheAgentWasStarted(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	c, _, err := with(t, "postgresql: {data_dir: data/db1, pgpass: pgpass1}\nlictor: {state_dir: state}")
	if err != nil || c.Postgres.DataDir != dir+"/data/db1" || c.Postgres.PgPass != dir+"/pgpass1" || c.Lictor.StateDir != dir+"/state" {
		t.Errorf("%s, %v", c, err)
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ change, want string }{
		"scope missing":           {"scope: ", "scope: must be set"},
		"scope that is a flag":    {"scope: --x", `scope: "--x": ` + cluster.NameRule},
		"scope above":             {"scope: ..", `scope: "..": ` + cluster.NameRule},
		"name above":              {"name: ..", `name: "..": ` + cluster.NameRule},
		"name with an escape":     {`name: "a\x1b[2J"`, `name: "a\x1b[2J": ` + cluster.NameRule},
		"scope that turns around": {`scope: "a\u202eb"`, `scope: "a\u202eb": ` + cluster.NameRule},
		"namespace above":         {"namespace: ../..", `namespace: "../..": ` + cluster.NamespaceRule},
		"namespace with a flag":   {"namespace: a/--b", `namespace: "a/--b": ` + cluster.NamespaceRule},
		"routes prefix above":     {"lictor: {routes_prefix: ..}", `lictor.routes_prefix: "..": ` + cluster.NamespaceRule},
		"scope with a slash":      {"scope: a/b", `scope: "a/b": ` + cluster.NameRule},
		"scope with a blank":      {"scope: a b", "scope: "},
		"name missing":            {"name: ''", "name: must be set"},
		"name with a comma":       {"name: 'a,b'", "name: "},
		"name too long":           {"name: " + strings.Repeat("a", 64), "must not be longer than 63 bytes"},
		"namespace":               {"namespace: a b", "namespace: "},
		"namespace, empty part":   {"namespace: a//b", `namespace: "a//b": ` + cluster.NamespaceRule},
		"routes in the namespace": {"namespace: /lictor/", "lictor.routes_prefix: \"lictor\": must differ from namespace"},

		"restapi.listen missing":    {"restapi: {listen: ''}", "restapi.listen: must be set"},
		"restapi.listen":            {"restapi: {listen: 8008}", `restapi.listen: "8008": must be host:port`},
		"restapi.listen, several":   {"restapi: {listen: 'a,b:8008'}", "must be one host:port"},
		"one port":                  {"restapi: {listen: '10.0.0.1:5432'}", `restapi.listen: "10.0.0.1:5432": must have another port than postgresql.listen, which is 10.0.0.1:5432`},
		"one port, wildcard":        {"postgresql: {listen: '*:8008', connect_address: '10.0.0.1:8008'}", "restapi.listen: \"10.0.0.1:8008\": must have another port than postgresql.listen, which is *:8008"},
		"restapi wildcard":          {"restapi: {listen: '0.0.0.0:8008'}", "restapi.connect_address: must be set: restapi.listen is 0.0.0.0:8008"},
		"restapi.connect_address":   {"restapi: {connect_address: '*:8008'}", "must be an address or name that other hosts can connect to"},
		"restapi.verify_client":     {"restapi: {verify_client: always}", `restapi.verify_client: "always": must be one of none, optional, required`},
		"clients by any authority":  {"restapi: {verify_client: optional, certfile: /etc/passwd}", "restapi.cafile: must be set: restapi.verify_client is optional"},
		"verify_client without TLS": {"restapi: {verify_client: required, cafile: /etc/passwd}", "restapi.certfile: must be set: restapi.verify_client is required"},
		"restapi.certfile":          {"restapi: {certfile: " + none + "}", "restapi.certfile: \"" + none + "\": there is no such file"},
		"restapi.keyfile alone":     {"restapi: {keyfile: " + plain + "}", "restapi.certfile: must be set together with restapi.keyfile"},
		"restapi.authentication":    {"restapi: {authentication: {username: a}}", "restapi.authentication: username and password must be set together"},
		"ctl.authentication":        {"ctl: {authentication: {username: 'a:b', password: c}}", "ctl.authentication: username must not have a colon"},
		"script_timeout":            {"lictor: {script_timeout: 0}", "lictor.script_timeout: 0: must be at least 1 s"},
		"log.dir":                   {"log: {dir: logs}", "log.dir: \"logs\": must be an absolute path"},
		"log.mode":                  {"log: {mode: '0444'}", "log.mode: \"0444\": must be permissions in octal"},
		"log.file_size":             {"log: {file_size: 1000}", "log.file_size: 1000: must be at least 1048576 bytes"},
		"log.file_num":              {"log: {file_num: -1}", "log.file_num: -1: must be at least 1"},
		"backup.every":              {"lictor: {backup: {stanza: s, every: 0}}", "lictor.backup.every: 0: must be at least 1 s"},
		"backup.max_age":            {"lictor: {backup: {stanza: s, max_age: soon}}", "lictor.backup.max_age: \"soon\": must be a number of hours, at least 1 and at most 87600"},
		"backup.max_verified_age":   {"lictor: {backup: {stanza: s, max_verified_age: soon}}", "lictor.backup.max_verified_age: \"soon\": must be a number of hours, at least 1 and at most 87600"},
		"backup.max_restore, long":  {"lictor: {backup: {stanza: s, max_restore: 2562048}}", "lictor.backup.max_restore: 2562048: must be a number of hours, at least 1 and at most 87600"},
		"backup.max_restore":        {"lictor: {backup: {stanza: s, max_restore: 0}}", "lictor.backup.max_restore: 0: must be a number of hours, at least 1 and at most 87600"},
		"backup.stanza missing":     {"lictor: {backup: {max_restore: 3}}", "lictor.backup.stanza: must be set: without it nothing is asked of backups"},
		"backup.stanza":             {"lictor: {backup: {stanza: '--x'}}", "lictor.backup.stanza: \"--x\": must be the name of a stanza of pgBackRest"},
		"backup.stanza, an escape":  {`lictor: {backup: {stanza: "a\e[2J"}}`, `lictor.backup.stanza: "a\x1b[2J": must be the name of a stanza of pgBackRest: it must consist of letters`},
		"backup.stanza, bidi":       {`lictor: {backup: {stanza: "a\u202eb"}}`, `lictor.backup.stanza: "a\u202eb": must be the name of a stanza of pgBackRest: it must consist of letters`},
		"backup.stanza, a path":     {"lictor: {backup: {stanza: '..'}}", "lictor.backup.stanza: \"..\": must be the name"},
		"backup.command":            {"lictor: {backup: {stanza: s, command: 'a \"b'}}", "lictor.backup.command: \"a \\\"b\": must be a command that can be split into words"},
		"restapi.allowlist":         {"restapi: {allowlist: [10.0.0.0/33]}", "restapi.allowlist[0]"},
		"restapi.server_tokens":     {"restapi: {server_tokens: all}", "restapi.server_tokens"},
		"ctl.cacert":                {"ctl: {cacert: " + none + "}", "ctl.cacert"},
		"ctl.keyfile alone":         {"ctl: {keyfile: " + plain + "}", "ctl.certfile: must be set"},

		"consul.host":        {"consul: {host: 'a b'}", "consul.host: \"a b\""},
		"consul.scheme":      {"consul: {scheme: ftp}", "consul.scheme"},
		"consul.consistency": {"consul: {consistency: weak}", "consul.consistency"},
		"consul.cacert":      {"consul: {cacert: " + none + "}", "consul.cacert"},

		"ttl":                      {"bootstrap: {dcs: {ttl: 2}}", "bootstrap.dcs.ttl: 2: must be at least 3 s (2.yml, line 1, column 19)"},
		"timing":                   {"bootstrap: {dcs: {ttl: 8, loop_wait: 4, retry_timeout: 3}}", "bootstrap.dcs.ttl: 8: loop_wait + 2 x retry_timeout must not be more than ttl, but 4 + 2 x 3 = 10"},
		"dynamic parameters":       {"bootstrap: {dcs: {postgresql: {parameters: {a b: 1}}}}", "bootstrap.dcs.postgresql.parameters.a b: is not the name of a parameter"},
		"dynamic pg_hba":           {"bootstrap: {dcs: {postgresql: {pg_hba: [local all all peer, host all all md5]}}}", `bootstrap.dcs.postgresql.pg_hba[1]: "host all all md5": must be: host DATABASE USER ADDRESS METHOD`},
		"standby cluster":          {"bootstrap: {dcs: {standby_cluster: {port: 5432}}}", "bootstrap.dcs.standby_cluster: needs host"},
		"not JSON":                 {"bootstrap: {dcs: {x: .inf}}", "bootstrap.dcs: must be possible to write as JSON"},
		"initdb, Lictor's own":     {"bootstrap: {initdb: [{pgdata: /x}]}", `bootstrap.initdb[0]: "pgdata": must not be set`},
		"initdb, with dashes":      {"bootstrap: {initdb: [--no-sync]}", "bootstrap.initdb[0]"},
		"initdb, with =":           {"bootstrap: {initdb: ['--pwfile=/x']}", "bootstrap.initdb[0]"},
		"initdb, shortened":        {"bootstrap: {initdb: [{pgd: /x}]}", `bootstrap.initdb[0]: "pgd": must not be set`},
		"initdb, a letter":         {"bootstrap: {initdb: [{U: me}]}", `bootstrap.initdb[0]: "U": must not be set`},
		"initdb's superuser":       {"bootstrap: {initdb: [{username: me}]}", `bootstrap.initdb[0]: "username": must not be set`},
		"initdb, two keys":         {"bootstrap: {initdb: [{a: b, c: d}]}", "bootstrap.initdb[0]: must be the name of an option, or a map of one name to its value"},
		"initdb, no value":         {"bootstrap: {initdb: [{encoding: }]}", "bootstrap.initdb[0]"},
		"bootstrap, unknown":       {"bootstrap: {intdb: []}", "bootstrap.intdb: is not a known key; did you mean initdb?"},
		"bootstrap.method":         {"bootstrap: {method: restore}", "bootstrap.method: \"restore\": must be initdb, or have a section bootstrap.restore with a command"},
		"bootstrap.post_bootstrap": {"bootstrap: {post_bootstrap: \"a 'b\"}", "bootstrap.post_bootstrap"},
		"options of a user":        {"bootstrap: {users: {a: {password: b, options: [createdb, admin]}}}", `bootstrap.users.a.options[1]: "admin": must be one of SUPERUSER, `},
		"bootstrap.users":          {"bootstrap: {users: {a: {password: CHANGE-ME}}}", "bootstrap.users.a.password: is still the placeholder"},

		"postgresql.listen missing":    {"postgresql: {listen: ''}", "postgresql.listen: must be set"},
		"postgresql.listen":            {"postgresql: {listen: 'a:b'}", "postgresql.listen: \"a:b\": must be host:port"},
		"postgresql wildcard":          {"postgresql: {listen: '*:5432'}", "postgresql.connect_address: must be set: postgresql.listen is *:5432"},
		"IPv6 wildcard":                {"postgresql: {listen: '[::]:5432'}", "postgresql.connect_address: must be set"},
		"connect_address":              {"postgresql: {connect_address: db1}", "postgresql.connect_address: \"db1\": must be host:port"},
		"connect_address, a zone":      {"postgresql: {connect_address: '[fe80::1%eth0]:5432'}", "postgresql.connect_address: \"[fe80::1%eth0]:5432\": its host must be a host name, or an IP address without a zone"},
		"connect_address, several":     {"postgresql: {connect_address: 'a,b:5432'}", "postgresql.connect_address"},
		"proxy_address":                {"postgresql: {proxy_address: '0.0.0.0:6432'}", "postgresql.proxy_address"},
		"data_dir missing":             {"postgresql: {data_dir: ''}", "postgresql.data_dir: must be set"},
		"data_dir /":                   {"postgresql: {data_dir: /}", "postgresql.data_dir: \"/\": must be a directory of its own"},
		"data_dir /var/lib":            {"postgresql: {data_dir: /srv/../var/lib/}", "must be a directory of its own"},
		"data_dir a home":              {"postgresql: {data_dir: " + home + "}", "must be a directory of its own"},
		"data_dir a file":              {"postgresql: {data_dir: " + plain + "}", "postgresql.data_dir: \"" + plain + "\": must be a directory"},
		"config_dir in data_dir":       {"postgresql: {config_dir: /srv/pg/shard1/etc}", "postgresql.config_dir: \"/srv/pg/shard1/etc\": must not lie in postgresql.data_dir"},
		"config_dir is everybody's":    {"postgresql: {config_dir: /etc}", "postgresql.config_dir: \"/etc\": must be a directory of its own"},
		"config_dir is a file":         {"postgresql: {config_dir: /etc/passwd}", "postgresql.config_dir: \"/etc/passwd\": must be a directory"},
		"state_dir in data_dir":        {"lictor: {state_dir: /srv/pg/shard1/lictor}", "lictor.state_dir: \"/srv/pg/shard1/lictor\": must not lie in postgresql.data_dir"},
		"state_dir is data_dir":        {"lictor: {state_dir: /srv/pg/shard1/}", "must not lie in postgresql.data_dir"},
		"pgpass in data_dir":           {"postgresql: {pgpass: /srv/pg/shard1/.pgpass}", "postgresql.pgpass: \"/srv/pg/shard1/.pgpass\": must not lie in postgresql.data_dir"},
		"data_dir below a file":        {"postgresql: {data_dir: " + plain + "/x}", "cannot be looked at"},
		"bin_dir":                      {"postgresql: {bin_dir: " + none + "}", "postgresql.bin_dir"},
		"bin_name":                     {"postgresql: {bin_name: {psql: a}}", "postgresql.bin_name.psql"},
		"bin_name that is not found":   {"postgresql: {bin_name: {postgres: pgserver}}", "postgresql.bin_name.postgres: \"pgserver\": must have postgres in it"},
		"replication user":             {"postgresql: {authentication: {replication: {username: ''}}}", "postgresql.authentication.replication.username: must be set"},
		"password without user":        {"postgresql: {authentication: {rewind: {password: hush}}}", "postgresql.authentication.rewind.username: must be set together"},
		"password of two lines":        {"postgresql: {authentication: {rewind: {username: a, password: \"hush\\nhush\"}}}", "postgresql.authentication.rewind.password: must be one line"},
		"placeholder":                  {"postgresql: {authentication: {superuser: {password: CHANGE-ME}}}", "postgresql.authentication.superuser.password: is still the placeholder of the sample configuration: choose a password"},
		"one role, two passwords":      {"postgresql: {authentication: {replication: {username: postgres}}}", "postgresql.authentication.replication.password: must be that of postgresql.authentication.superuser: both are the role postgres, which has one password"},
		"one role to rewind":           {"postgresql: {authentication: {rewind: {username: replicator, password: hush}}}", "postgresql.authentication.rewind.password: must be that of postgresql.authentication.replication"},
		"sslmode":                      {"postgresql: {authentication: {superuser: {sslmode: verify}}}", "postgresql.authentication.superuser.sslmode"},
		"sslcert":                      {"postgresql: {authentication: {superuser: {sslkey: /etc/hosts, sslcert: " + none + "}}}", "postgresql.authentication.superuser.sslcert"},
		"sslcert without its key":      {"postgresql: {authentication: {superuser: {sslcert: /etc/hosts}}}", "postgresql.authentication.superuser.sslkey: must be set together with sslcert"},
		"gssencmode":                   {"postgresql: {authentication: {superuser: {gssencmode: require}}}", "postgresql.authentication.superuser.gssencmode: \"require\": is not supported"},
		"sslnegotiation":               {"postgresql: {authentication: {superuser: {sslnegotiation: direct}}}", "postgresql.authentication.superuser.sslmode: must be require, verify-ca or verify-full"},
		"sslpassword":                  {"postgresql: {authentication: {superuser: {sslpassword: 'hush '}}}", "postgresql.authentication.superuser.sslpassword: must be one line without blanks at its end"},
		"parameter, a list":            {"postgresql: {parameters: {search_path: [a, b]}}", "postgresql.parameters.search_path: a list: must be a single value"},
		"parameter's name":             {"postgresql: {parameters: {'a=b': 1}}", "postgresql.parameters.a=b: is not the name of a parameter"},
		"data_directory":               {"postgresql: {parameters: {data_directory: /x}}", "postgresql.parameters.data_directory: must not be set: PostgreSQL would run where"},
		"data_directory, dynamic":      {"bootstrap: {dcs: {postgresql: {parameters: {DATA_DIRECTORY: /x}}}}", "bootstrap.dcs.postgresql.parameters.DATA_DIRECTORY: must not be set"},
		"config_file":                  {"postgresql: {parameters: {config_file: /x}}", "postgresql.parameters.config_file: must not be set"},
		"parameter of two lines":       {"postgresql: {parameters: {a: \"b\\nc\"}}", "postgresql.parameters.a: must be one line"},
		"callback":                     {"postgresql: {callbacks: {on_start: 'a \"b'}}", "postgresql.callbacks.on_start"},
		"pg_ctl_timeout":               {"postgresql: {pg_ctl_timeout: soon}", "postgresql.pg_ctl_timeout: \"soon\""},
		"basebackup, Lictor's own":     {"postgresql: {basebackup: [{pgdata: /x}]}", "postgresql.basebackup[0]"},
		"basebackup, shortened":        {"postgresql: {basebackup: [{dbn: x}]}", `postgresql.basebackup[0]: "dbn": must not be set`},
		"basebackup, a letter":         {"postgresql: {basebackup: [checkpoint, X]}", `postgresql.basebackup[1]: "X": must not be set`},
		"basebackup map":               {"postgresql: {basebackup: {wal-method: none}}", "postgresql.basebackup.wal-method"},
		"basebackup text":              {"postgresql: {basebackup: fast}", "postgresql.basebackup: must be a list or a map"},
		"postgresql, unknown":          {"postgresql: {listne: a}", "postgresql.listne: is not a known key; did you mean listen?"},
		"postgresql, unknown map":      {"postgresql: {autentication: {superuser: {password: hush}}}", "postgresql.autentication: is not a known key; did you mean authentication?"},
		"method not named":             {"postgresql: {wal_e: {threads: 4}}", "a custom method must be named in postgresql.create_replica_methods"},
		"use_pg_rewind":                {"postgresql: {use_pg_rewind: perhaps}", `postgresql.use_pg_rewind: "perhaps": must be true or false (2.yml, line 1, column 14)`},
		"os_user":                      {"lictor: {os_user: no-such-user}", ""},
		"name that PostgreSQL changes": {"name: dübel", "name: \"dübel\": must have ASCII characters only"},
		"name of any standby":          {"name: '*'", `name: "*": ` + cluster.NameRule},
		"role that PostgreSQL cuts":    {"postgresql: {authentication: {replication: {username: " + strings.Repeat("r", 64) + "}}}", "must not be longer than 63 bytes"},
		"role of two lines":            {"postgresql: {authentication: {replication: {username: \"a\\nb\"}}}", "must not contain control characters"},
		"database that is cut":         {"postgresql: {database: " + strings.Repeat("d", 64) + "}", "postgresql.database: "},

		"tag":               {"tags: {nofailover: perhaps}", "tags.nofailover: \"perhaps\": must be true or false"},
		"tag priority":      {"tags: {failover_priority: high}", "tags.failover_priority"},
		"tag replicatefrom": {"tags: {replicatefrom: 5}", "tags.replicatefrom"},
		"watchdog.mode":     {"watchdog: {mode: sometimes}", `watchdog.mode: "sometimes": must be one of off, automatic, required`},
		"watchdog required": {"watchdog: {mode: required}\nbootstrap: {dcs: {ttl: 4, loop_wait: 1, retry_timeout: 1}}", "needs a ttl of at least 5s"},
		"watchdog margin":   {"watchdog: {safety_margin: 8}", "watchdog.safety_margin"},
		"watchdog driver":   {"watchdog: {driver: soft}", "watchdog.driver"},
		"log.level":         {"log: {level: loud}", `log.level: "loud": must be one of debug, info, warning, error`},
		"log.format":        {"log: {format: xml}", "log.format"},
		"compat":            {"lictor: {compat: patroni-5}", "lictor.compat"},

		"fence order":         {"lictor: {fence: {demote_before: 0.5}}", "lictor.fence.demote_before: \"0.5\": must be more than lictor.fence.kill_before, which is 0.8 s"},
		"fence kill":          {"lictor: {fence: {kill_before: -1}}", "lictor.fence.kill_before: \"-1\": must be more than 0 s"},
		"fence kill too late": {"lictor: {fence: {kill_before: 0.1}}", "lictor.fence.kill_before: \"0.1\": must be at least 0.2 s"},
		"fence not a number":  {"lictor: {fence: {kill_before: .nan}}", "lictor.fence.kill_before"},
		"fence against ttl":   {"lictor: {fence: {demote_before: 6}}", "lictor.fence.demote_before: \"6\": must be less than ttl - one beat = 6 s"},
		"fence against its":   {"bootstrap: {dcs: {ttl: 4}}\nlictor: {fence: {demote_before: 3}}", "must be less than ttl - one beat = 3 s"},
		"fence of wrong type": {"lictor: {fence: {kill_before: soon}}", "lictor.fence.kill_before: \"soon\": must be a number of seconds"},

		"etcd":       {"etcd: {host: a}", "etcd: Lictor keeps the state of a shard in Consul alone"},
		"etcd3":      {"etcd3: {host: a}", "etcd3: Lictor"},
		"zookeeper":  {"zookeeper: {hosts: a}", "zookeeper: Lictor"},
		"exhibitor":  {"exhibitor: {hosts: a}", "exhibitor: Lictor"},
		"kubernetes": {"kubernetes: {}", "kubernetes: Lictor"},
		"raft":       {"raft: {}", "raft: Lictor"},
		"citus":      {"citus: {group: 0}", "citus: Citus clusters"},
		"unknown":    {"posgresql: {}", "posgresql: is not a known key; did you mean postgresql?"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "os_user" {
				if os.Geteuid() != 0 {
					t.Skip("the user is looked up by root alone")
				}
				tt.want = "lictor.os_user: \"no-such-user\": must be a user of this host"
			}
			c, _, err := with(t, tt.change)
			if err == nil {
				t.Fatalf("accepted as %s", c)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v\ndoes not say %q", err, tt.want)
			}
			if n := len(strings.Split(err.Error(), "\n")); n != 2 {
				t.Errorf("%d problems, want one:\n%v", n-1, err)
			}
			if strings.Contains(err.Error(), "hush") {
				t.Errorf("a secret is in %v", err)
			}
		})
	}
}

func TestAccepted(t *testing.T) {
	for _, change := range []string{
		"postgresql: {listen: '10.0.0.2:8008', connect_address: '10.0.0.2:8008'}", // the REST API is at another address
		"postgresql: {authentication: {replication: {username: postgres, password: hush-super}}}",
		"postgresql: {use_unix_socket: true, authentication: {superuser: {password: }}}",
		"postgresql: {use_unix_socket: true, authentication: {superuser: {password: ''}}}",
		"bootstrap: {dcs: {ttl: 5}}",
		"bootstrap: {dcs: {ttl: 3}}",
		"lictor: {compat: patroni-4}",
		"bootstrap: {dcs: {ttl: 3, failsafe_mode: false, synchronous_mode: on}}",
		"lictor: {fence: {demote_before: 3, kill_before: 1}}",
		"tags: {nofailover: true, clonefrom: no, replicatefrom: db2, custom: [1, {a: b}]}",
		"tags: {nostream: true}\npostgresql: {recovery_conf: {restore_command: 'cp /archive/%f %p'}}",
		"tags: {nostream: true}\nbootstrap: {dcs: {postgresql: {parameters: {restore_command: 'cp /archive/%f %p'}}}}",
		"watchdog: {safety_margin: -1}",
		"restapi: {allowlist: [10.0.0.0/8, 10.1.1.1, host.example]}",
		"consul: {hosts: 'a:8500, https://b'}",
		"consul: {hosts: 'https://a:8501, https://b', token: x}",
		"postgresql: {basebackup: {checkpoint: fast}}",
		"postgresql: {basebackup: [verbose, {max-rate: 100M}]}",
		"postgresql: {authentication: {replication: {username: 'Repl User'}}}",
		"",
	} {
		if _, warnings, err := with(t, change); err != nil || len(warnings) != 0 {
			t.Errorf("%s: %v, %v", change, warnings, err)
		}
	}
}

func TestWarned(t *testing.T) {
	for change, want := range map[string]string{
		"bootstrap: {method: m, m: {command: /bin/true, recovery_conf: {Recovery_Target_Time: '2026-11-29 10:00'}}}": "bootstrap.m.recovery_conf.recovery_target_time: \"2026-11-29 10:00\": must be a date",
		"bootstrap: {method: m, m: {command: /bin/true, keep_existing_recovery_con: true, target: x}}":               "bootstrap.m.keep_existing_recovery_con: is given to the command as an option, --keep_existing_recovery_con=...; did you mean keep_existing_recovery_conf?",
		"postgresql: {create_replica_methods: [m], m: {comand: /bin/true, repo: 1, keep: 2}}":                        "postgresql.m.comand: is given to the command as an option, --comand=...; did you mean command?",
		"bootstrap: {dcs: {ttl: 30, loop_wait: 10, retry_timeout: 10}}":                                              "bootstrap.dcs.ttl: 30 s: when a host is lost, its shard takes no writes for up to 31 s",
		"{lictor: {compat: patroni-4}, bootstrap: {dcs: {ttl: 10, loop_wait: 2, retry_timeout: 10}}}":                "bootstrap.dcs.ttl: loop_wait 2 and retry_timeout 10 do not fit into ttl 10; in force: ttl 10, loop_wait 1, retry_timeout 4",
		"{lictor: {compat: patroni-3}, bootstrap: {dcs: {ttl: 10, loop_wait: 2, retry_timeout: 10}}}":                "in force: ttl 10, loop_wait 1, retry_timeout 4",
		"{bootstrap: {dcs: {synchronous_mode: on}}, postgresql: {parameters: {synchronous_commit: local}}}":          "postgresql.parameters.synchronous_commit: local: commits wait for no standby in spite of synchronous_mode",
		"bootstrap: {pg_hba: [local all all peer], dcs: {postgresql: {pg_hba: [local all all peer]}}}":               "bootstrap.pg_hba: has no effect: postgresql.pg_hba is the whole file",
		"ttl: 30":                        "ttl: has no effect: it is a setting of the whole shard: put it under bootstrap.dcs",
		"restapi: {thread_pool_size: 6}": "restapi.thread_pool_size: has no effect: Lictor has no pool of threads",
		"postgresql: {parameters_primary: {work_mem: 8MB}}":                            "postgresql.parameters_primary: has no effect: PostgreSQL gets the same settings in every role",
		"postgresql: {pg_hba_replica: [local all all peer]}":                           "postgresql.pg_hba_replica: has no effect",
		"postgresql: {pg_ident_standby_leader: [a b c]}":                               "postgresql.pg_ident_standby_leader: has no effect",
		"bootstrap: {dcs: {postgresql: {pg_hba_primary: [local all all peer]}}}":       "bootstrap.dcs.postgresql.pg_hba_primary: has no effect so far",
		"tags: {nostream: true}":                                                       "tags.nostream: this file has no restore_command",
		"thread_pool_size: 5":                                                          "thread_pool_size: has no effect",
		"log: {dateformat: '%H'}":                                                      "log.dateformat: has no effect: lines have the form",
		"log: {static_fields: {a: b}}":                                                 "log.static_fields: has no effect",
		"restapi: {ciphers: HIGH}":                                                     "restapi.ciphers: has no effect",
		"log: {format: '%(levelname)s'}":                                               "log.format: a format of Python's logging cannot be followed",
		"log: {type: json, format: [a]}":                                               "log.format: Lictor's JSON lines have fields of their own",
		"postgresql: {krbsrvname: postgres}":                                           "postgresql.krbsrvname: has no effect",
		"bootstrap: {users: {a: {}}}":                                                  "bootstrap.users.a: has no password",
		"consul: {cacert: /etc/passwd}":                                                "Consul is reached over http",
		"consul: {hosts: 'a:8500, https://b', token: x}":                               "consul: the token goes to http://a:8500 without TLS",
		"bootstrap: {dcs: {loopwait: 5}}":                                              "bootstrap.dcs.loopwait: is not a known setting and has no effect; did you mean loop_wait?",
		"tags: {host: a/b}":                                                            "tags.host: is not the name of a host",
		"tags: {zone: [a, b]}":                                                         "tags.zone: is neither a word nor a number",
		"tags: {nofailover: true, failover_priority: 2}":                               "tags.failover_priority: has no effect beside nofailover: true",
		"postgresql: {authentication: {superuser: {password: zalando}}}":               "is the password of Patroni's published examples",
		"postgresql: {authentication: {replication: {password: }}}":                    "replicas can only connect where pg_hba demands no password",
		"postgresql: {authentication: {superuser: {password: ''}}}":                    "postgresql.authentication.superuser.password: is not set: the agent can only connect where pg_hba demands no password",
		"postgresql: {authentication: {rewind: {username: a}}}":                        "pg_rewind can only connect where pg_hba demands no password",
		"postgresql: {use_unix_socket_repl: true}":                                     "postgresql.use_unix_socket_repl: has no effect",
		"postgresql: {pg_ctl_timeout: 90}":                                             "postgresql.pg_ctl_timeout: has no effect",
		"postgresql: {parameters: {hba_file: /etc/hba}, pg_hba: [local all all peer]}": "postgresql.pg_hba: has no effect: the parameter hba_file",
		"postgresql: {parameters: {max_connections: 500}}":                             "postgresql.parameters.max_connections: has no effect here: all members must have the same",
		"bootstrap: {dcs: {primary_stop_timeout: 30}}":                                 "bootstrap.dcs.primary_stop_timeout: has no effect",
		"log: {level: CRITICAL}":                                                       "log.level: critical: Lictor has no level above error: error is in force",
	} {
		text := change
		if strings.Contains(change, "replication: {password: }") {
			text = "postgresql: {authentication: {replication: {password: ''}}}"
		}
		if _, warnings, err := with(t, text); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), want) {
			t.Errorf("%s: %v, %v; want %q", change, warnings, err, want)
		}
	}
}

func TestAPrintedConfigurationHasNoSecrets(t *testing.T) {
	c, _, err := with(t, `
restapi: {authentication: {username: u, password: hush-rest}}
consul: {token: hush-token}
bootstrap: {users: {AppUser: {password: hush-user}}}
postgresql: {recovery_conf: {primary_conninfo: "host=a password=hush-conninfo"}}
`)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []any{c, &c, c.Postgres.Authentication, c.Consul, c.Bootstrap.Users, c.RestAPI} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(format, shown); strings.Contains(text, "hush") {
				t.Errorf("%s of %T:\n%s", format, shown, text)
			}
		}
	}
	if text := c.String(); !strings.Contains(text, "AppUser") || !strings.Contains(text, "scope: shard1") {
		t.Error(text)
	}
}

func TestSample(t *testing.T) {
	if _, _, err := loadText(t, string(Sample())); err == nil || strings.Count(err.Error(), "is still the placeholder of the sample configuration") != 4 ||
		len(strings.Split(err.Error(), "\n")) != 5 {
		t.Errorf("the sample itself: %v", err)
	}
	// bin_dir and the like are commented out: they depend on the host.
	text := strings.ReplaceAll(string(Sample()), Placeholder, "a-password")
	c, warnings, err := loadText(t, text)
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	d, _, err := cluster.ParseDynamic(c.Bootstrap.DCS)
	if err != nil {
		t.Fatal(err)
	}
	defaults, _, err := cluster.ParseDynamic(nil)
	if err != nil {
		t.Fatal(err)
	}
	if d.Timing != defaults.Timing || d.MaximumLagOnFailover != defaults.MaximumLagOnFailover || d.PrimaryStartTimeout != defaults.PrimaryStartTimeout ||
		d.PrimaryStopTimeout != defaults.PrimaryStopTimeout || d.FailsafeMode != defaults.FailsafeMode {
		t.Errorf("the sample calls %+v the defaults, which are %+v", d, defaults)
	}
	// What is commented out must be right, too.
	var uncommented strings.Builder
	for line := range strings.Lines(text) {
		trimmed := strings.TrimLeft(line, " ")
		if rest, ok := strings.CutPrefix(trimmed, "# "); ok && strings.Contains(line, ":") && isSetting(rest) {
			line = strings.Repeat(" ", len(line)-len(trimmed)) + rest
		}
		uncommented.WriteString(line)
	}
	_, _, err = loadText(t, uncommented.String())
	for _, p := range cluster.Problems(unwrapped(err)) {
		if !strings.Contains(p.Rule, "no such file") && !strings.Contains(p.Rule, "not a file") && !strings.Contains(p.Rule, "must be the directory") {
			t.Errorf("a commented line: %v", p)
		}
	}
}

// isSetting reports whether a commented line is a setting, not a sentence.
func isSetting(text string) bool {
	key, _, _ := strings.Cut(strings.TrimLeft(text, " "), ":")
	return key != "" && !strings.ContainsAny(key, " ,.") && key == strings.ToLower(key)
}

func unwrapped(err error) error {
	if refused, ok := err.(*settings.Refused); ok { //nolint:errorlint // Load returns it bare
		return refused.Err
	}
	return err
}

// FuzzLoad: whatever the file holds, loading ends, and what is accepted passes
// its own check.
func FuzzLoad(f *testing.F) {
	f.Add(small)
	f.Add(strings.ReplaceAll(string(Sample()), Placeholder, "a-password"))
	for _, seed := range []string{"postgresql: {listen: ':'}", "tags: {failover_priority: 1e99}", "bootstrap: {dcs: {ttl: [1]}, initdb: [{}]}", "log: {format: [1]}", "lictor: {fence: {kill_before: .inf}}"} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "patroni.yml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _, err := Load(Source{Path: path})
		if err != nil {
			return
		}
		if _, err := c.Validate(); err != nil {
			t.Errorf("accepted, yet not valid: %v", err)
		}
		if _, err := c.Consul.ClientConfigs(); err != nil {
			t.Errorf("accepted, yet no client can be made: %v", err)
		}
		_ = c.String()
	})
}

func TestSocketsInside(t *testing.T) {
	for directories, want := range map[string]string{
		"/run/postgresql": "", "": "", "@abstract": "", ".": ".", "/run, ../x": "", "/run, x": "x", "/data/pg": "/data/pg", `"/data/pg/run"`: "/data/pg/run", "/data/pgx": "",
		`"/run/a,/data/pg/x"`: "", `"/run, ""a", "/data/pg/b,c"`: "/data/pg/b,c",
	} {
		if got := SocketsInside(directories, "/data/pg/"); got != want {
			t.Errorf("%q: %q, want %q", directories, got, want)
		}
	}
}
