package operator

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/testkit"
)

const livingFile = `# our orders
scope: orders
name: db1
restapi: {listen: "127.0.0.1:8008", connect_address: "db1:8008"}
consul: {host: "127.0.0.1:8500"}
bootstrap:
  dcs: {ttl: 5}
  initdb: [data-checksums]
postgresql:
  listen: 127.0.0.1:5432
  data_dir: /srv/orders
  config_dir: /etc/orders
  authentication:
    superuser: {username: postgres, password: 0123}  # as text
    replication: {username: replicator, password: secret}
  parameters: {Archive_Mode: "on", archive_command: push, work_mem: 8MB, external_pid_file: /run/orders.pid, Log_Directory: /var/log/orders}
  create_replica_methods: [pgbackrest, basebackup]
  pgbackrest: {command: restore, keep_data: true}
  recovery_conf: {restore_command: get}
  callbacks: {on_role_change: /etc/vip.sh}
  pre_promote: /etc/may.sh
watchdog: {mode: required}
tags: {nofailover: true}
lictor: {backup: {stanza: orders}}
log: {dir: /var/log}
`

// The new shard's file is the member's, without what would reach for the living shard; what
// else stands there stays as it was written.
func TestFileOfAShardBeside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "orders.yml")
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path, livingFile)
	site := &Site{Settings: Settings{Path: path}}
	cfg, err := site.memberFile("orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	plan := beside{Scope: "monday", DataDir: "/srv/monday", PostgresPort: "5433", APIPort: "8009", Bootstrap: map[string]any{
		"method": "pgbackrest", "pgbackrest": map[string]any{"command": "restore it", "no_params": true, "keep_existing_recovery_conf": true},
		"dcs": dynamicBeside(map[string]any{"ttl": 5, "pause": true, "synchronous_mode": "strict", "other_site": map[string]any{"host": "b"}, "postgresql": map[string]any{
			"parameters": map[string]any{"archive_mode": "on", "archive_command": "push", "max_connections": 7, "stats_temp_directory": "/run/orders"}, "recovery_conf": map[string]any{"restore_command": "get"},
		}}),
	}}
	content, err := site.besideFile(cfg, plan)
	if err != nil {
		t.Fatal(err)
	}
	o := RestoreOptions{File: filepath.Join(dir, "monday.yml")}
	if err := site.install(o, cfg, plan, content); err != nil {
		t.Fatal(err)
	}
	made, _, err := config.Load(config.Source{Path: o.File})
	if err != nil {
		t.Fatal(err)
	}
	if made.Scope != "monday" || made.Name != "db1" || made.Postgres.Listen != "127.0.0.1:5433" || made.Postgres.ConnectAddress != "127.0.0.1:5433" ||
		made.RestAPI.Listen != "127.0.0.1:8009" || made.RestAPI.ConnectAddress != "db1:8009" || made.Postgres.DataDir != "/srv/monday" {
		t.Errorf("%s", made)
	}
	if auth := made.Postgres.Authentication; auth.Superuser.Password != "0123" || auth.Replication.Password != "secret" {
		t.Error("the passwords are others")
	}
	if made.Postgres.PrePromote != "" || made.Watchdog.Mode != "off" || len(made.Tags) > 0 || made.Postgres.Parameters["work_mem"] != "8MB" || len(made.Bootstrap.InitDB) > 0 {
		t.Errorf("%s", made)
	}
	if made.Postgres.ConfigDir != "" || made.Log.Dir != "" || len(made.Postgres.Parameters) != 3 {
		t.Errorf("the new agent writes where the living shard's does: %s, %v", made, made.Postgres.Parameters)
	}
	if text := string(content); !strings.Contains(text, "# as text") || !strings.HasPrefix(text, "# orders restored as monday") {
		t.Errorf("comments are gone:\n%s", text)
	}
	dynamic := made.Bootstrap.DCS
	postgres := dynamic["postgresql"].(map[string]any)
	parameters := postgres["parameters"].(map[string]any)
	if len(dynamic) != 2 || len(postgres) != 1 || len(parameters) != 3 || parameters["archive_mode"] != "off" {
		t.Errorf("dcs: %v", dynamic)
	}
	if info, err := os.Stat(o.File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode: %v, %v", info, err)
	}

	if err := site.install(o, cfg, plan, content); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
	o.File = filepath.Join(dir, "other.yml")
	for key, variable := range map[string]string{"scope": "LICTOR_SCOPE=orders", "postgresql.config_dir": "LICTOR_POSTGRESQL_CONFIG_DIR=/etc/orders", "postgresql.parameters": `LICTOR_POSTGRESQL_PARAMETERS={"log_directory": "/var/log/orders"}`} {
		o.Environ = []string{variable}
		if err := site.install(o, cfg, plan, content); ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), key+": the environment sets it") {
			t.Errorf("the environment: %v", err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 2 {
		t.Errorf("there are %v, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("there are %v, %v", left, err)
	}
}

// Every key of the dynamic configuration is kept for the copy, or left out, on purpose; and what is kept is a
// configuration, of one member alone that reaches for nothing of the living shard's.
func TestDynamicConfigurationOfAShardBeside(t *testing.T) {
	kept, dropped := true, false
	slots := map[string]any{"feed": map[string]any{"type": "logical", "database": "app", "plugin": "pgoutput"}}
	keys := map[string]struct {
		kept  bool
		value any
	}{
		"ttl": {kept, 20}, "loop_wait": {kept, 5}, "retry_timeout": {kept, 5},
		"maximum_lag_on_failover": {kept, 1 << 20}, "maximum_lag_on_syncnode": {kept, -1}, "maximum_lag_for_readers": {kept, 1 << 20}, "maximum_delay_for_readers": {kept, 5},
		"max_timelines_history": {kept, 10}, "check_timeline": {kept, true},
		"primary_start_timeout": {kept, 60}, "master_start_timeout": {kept, 60}, "primary_stop_timeout": {kept, 0}, "master_stop_timeout": {kept, 0},
		"failsafe_mode": {kept, true}, "ignore_slots": {kept, []any{map[string]any{"name": "own"}}}, "member_slots_ttl": {kept, 60},
		"rebuild": {kept, "auto"}, "maintenance_windows": {kept, []any{"sun 02:00-04:00 UTC"}}, "postgresql": {kept, map[string]any{}},
		"pause": {dropped, true},
		// One member alone has nobody to wait for, or to take over.
		"synchronous_mode": {dropped, "quorum"}, "synchronous_mode_strict": {dropped, true}, "synchronous_node_count": {dropped, 2},
		"takeover": {dropped, "quorum"}, "suspect_after": {dropped, 2},
		// Nobody reads them there, and they would hold WAL for ever.
		"slots": {dropped, slots}, "permanent_slots": {dropped, slots},
		"standby_cluster": {dropped, map[string]any{"host": "b"}}, "other_site": {dropped, map[string]any{"host": "b"}},
	}
	postgres := map[string]struct {
		kept  bool
		value any
	}{
		"pg_hba": {kept, []any{"local all all peer"}}, "pg_ident": {kept, []any{"m a b"}}, "use_pg_rewind": {kept, true}, "use_slots": {kept, true},
		"remove_data_directory_on_rewind_failure": {kept, true}, "remove_data_directory_on_diverged_timelines": {kept, true},
		"recovery_conf": {dropped, map[string]any{"restore_command": "get"}},
		"parameters": {kept, map[string]any{
			"max_connections": 7, "Archive_Mode": "on", "archive_command": "push", "LOG_DIRECTORY": "/var/log/orders", "synchronized_standby_slots": "b",
		}},
	}
	section, living := map[string]any{}, map[string]any{}
	for name, key := range postgres {
		section[name] = key.value
	}
	for name, key := range keys {
		living[name] = key.value
	}
	living["postgresql"] = section
	made := dynamicBeside(living)
	has := func(in map[string]any, name string) bool { _, there := in[name]; return there }
	for _, name := range cluster.DynamicKeys() {
		if key, known := keys[name]; !known || has(made, name) != key.kept {
			t.Errorf("%s: said to be kept or not: %v; kept: %v", name, known, has(made, name))
		}
	}
	of := made["postgresql"].(map[string]any)
	for _, name := range cluster.PostgresKeys() {
		if key, known := postgres[name]; !known || has(of, name) != key.kept {
			t.Errorf("postgresql.%s: said to be kept or not: %v; kept: %v", name, known, has(of, name))
		}
	}
	// Its own subscriptions would take from others what the living shard is to get.
	if got, want := of["parameters"], map[string]any{"max_connections": 7, "archive_mode": "off", "max_logical_replication_workers": 0}; !reflect.DeepEqual(got, want) {
		t.Errorf("parameters: %v, want %v", got, want)
	}
	if len(living) != len(keys) || len(section) != len(postgres) {
		t.Error("the living shard's configuration was changed")
	}
	d, _, err := cluster.ParseDynamic(made)
	if err != nil || d.SynchronousMode.On() || len(d.PermanentSlots()) > 0 || d.Pause {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestFilesThatNoShardIsMadeOf(t *testing.T) {
	for name, test := range map[string]struct{ from, to, want string }{
		"another shard's":         {"scope: orders", "scope: users", "is of the shard users, not of orders"},
		"without a stanza":        {"lictor: {backup: {stanza: orders}}", "", "lictor.backup.stanza"},
		"a section is an alias":   {"tags: {nofailover: true}", "tags: &t {nofailover: true}\nextra: {x: *t}", ""},
		"a parameter by an alias": {"parameters: {Archive_Mode", "parameters: {<<: &p {a: b}, Archive_Mode", "postgresql.parameters.Archive_Mode: is written with a YAML alias"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "orders.yml")
			if err := os.WriteFile(path, []byte(strings.Replace(livingFile, test.from, test.to, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			site := &Site{Settings: Settings{Path: path}}
			cfg, err := site.memberFile("orders", nil)
			if err == nil {
				_, err = site.besideFile(cfg, beside{Scope: "monday", DataDir: "/srv/monday", PostgresPort: "5433", APIPort: "8009"})
			}
			if test.want != "" && (ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestFreePort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it waits for nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, taken, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := freePort([]string{"127.0.0.1"}, "5432", taken); ExitCode(err) != ExitRefused {
		t.Errorf("a port that is taken: %v", err)
	}
	if port, err := freePort([]string{"127.0.0.1"}, taken, ""); err != nil || port == taken {
		t.Errorf("%s, %v", port, err)
	}
}

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{"--set=a_1F": "--set=a_1F", "--target=2026 10:00": "'--target=2026 10:00'", "a'b": `'a'"'"'b'`} {
		if got := shellWord(word); got != want {
			t.Errorf("%s: %s", word, got)
		}
	}
}

// Root writes the new shard's file, and another user has put a link to a directory of root's
// where it was to be: nothing is written there.
func TestFileOfAShardBesideThroughALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const nobody = 65534
	dir := t.TempDir()
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		testkit.Must(t, os.Chmod(at, 0o755))
	}
	living, roots, theirs := filepath.Join(dir, "living.yml"), filepath.Join(dir, "roots"), filepath.Join(dir, "theirs")
	testkit.Must(t, os.WriteFile(living, []byte(livingFile), 0o600))
	testkit.Must(t, os.Mkdir(roots, 0o755))
	testkit.Must(t, os.Mkdir(theirs, 0o755))
	testkit.Must(t, os.Symlink(roots, filepath.Join(theirs, "link")))
	testkit.Must(t, os.Lchown(filepath.Join(theirs, "link"), nobody, nobody))
	testkit.Must(t, os.Chown(theirs, nobody, nobody))
	site := &Site{Settings: Settings{Path: living}}
	cfg, err := site.memberFile("orders", nil)
	testkit.Must(t, err)
	plan := beside{Scope: cfg.Scope, DataDir: cfg.Postgres.DataDir}
	err = site.install(RestoreOptions{File: filepath.Join(theirs, "link", "monday.yml")}, cfg, plan, []byte(livingFile))
	if left, _ := os.ReadDir(roots); !errors.Is(err, fs.ErrPermission) || len(left) > 0 {
		t.Errorf("root's directory has %v: %v", left, err)
	}
	// What is written for another user is that user's.
	path := filepath.Join(theirs, "monday.yml")
	testkit.Must(t, osuser.Keeper(path).Do(func() error { return writeLike(path, living, nil) }))
	info, err := os.Stat(path)
	testkit.Must(t, err)
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != nobody {
		t.Errorf("its owner is %d", owner)
	}
}
