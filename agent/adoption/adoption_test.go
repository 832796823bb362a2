package adoption

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/agent/testkit/sysv"
)

// patience bounds every wait; it says nothing about how fast things are.
const patience = 2 * time.Minute

// server is a PostgreSQL as Debian's packages leave one: its configuration files lie apart
// from the data.
type server struct {
	t              *testing.T
	bin, data, etc string
	socket         string
	port           int
	credential     *syscall.Credential
}

func newServer(t *testing.T, dir, name string) *server {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if own := os.Getenv("POSTGRES_BIN"); own != "" {
		bins = []string{own}
	}
	if len(bins) == 0 {
		t.Skip("no PostgreSQL programs in /usr/lib/postgresql")
	}
	ports, err := testkit.FreePorts(1)
	testkit.Must(t, err)
	s := &server{t: t, bin: bins[len(bins)-1], data: filepath.Join(dir, name, "data"), etc: filepath.Join(dir, name, "etc"), socket: dir, port: ports[0]}
	testkit.Must(t, os.MkdirAll(s.etc, 0o755))
	if os.Geteuid() == 0 {
		s.credential, err = postgres.Credential("", s.data)
		testkit.Must(t, err)
		for _, made := range []string{filepath.Join(dir, name), s.etc} {
			testkit.Must(t, os.Chown(made, int(s.credential.Uid), int(s.credential.Gid)))
		}
	}
	t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(s.data, "postmaster.pid")); err == nil {
			s.run("pg_ctl", "-D", s.data, "-m", "immediate", "-w", "stop")
		}
	})
	return s
}

func (s *server) run(program string, args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.credential}
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v: %s", program, err, out)
	}
	return strings.TrimSpace(string(out))
}

// start starts it with settings of the operator's.
func (s *server) start(hba string, settings ...string) {
	s.t.Helper()
	for name, content := range map[string]string{
		"postgresql.conf": fmt.Sprintf("data_directory = '%s'\nhba_file = '%s/pg_hba.conf'\nident_file = '%s/pg_ident.conf'\nport = %d\nunix_socket_directories = '%s'\nfsync = off\n%s\n",
			s.data, s.etc, s.etc, s.port, s.socket, strings.Join(settings, "\n")),
		"pg_hba.conf": hba, "pg_ident.conf": "# nothing\n",
	} {
		path := filepath.Join(s.etc, name)
		testkit.Must(s.t, os.WriteFile(path, []byte(content), 0o644))
	}
	log := filepath.Join(filepath.Dir(s.data), "log")
	s.run("pg_ctl", "-D", s.data, "-o", "-c config_file="+filepath.Join(s.etc, "postgresql.conf"), "-l", log, "-w", "start")
}

func (s *server) sql(statement string) string {
	s.t.Helper()
	return s.run("psql", "-X", "-h", s.socket, "-p", strconv.Itoa(s.port), "-U", "postgres", "-d", "postgres", "-Atc", statement)
}

func (s *server) look(t *testing.T) Found {
	t.Helper()
	f, err := Look(testkit.Within(t, patience), fmt.Sprintf("host=%s port=%d user=postgres", s.socket, s.port))
	testkit.Must(t, err)
	return f
}

// TestDebianPair makes a primary and its standby as operators have them on Debian, and
// the agents' files for them, which a loader and PostgreSQL itself take.
func TestDebianPair(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "lictor-adopt-")
	testkit.Must(t, err)
	t.Cleanup(func() {
		sysv.Remove(filepath.Join(dir, "*"))
		os.RemoveAll(dir)
	})
	testkit.Must(t, os.Chmod(dir, 0o777))
	const hba = "# TYPE  DATABASE  USER  ADDRESS  METHOD\nlocal   all   all   trust\nhost all all 127.0.0.1/32 scram-sha-256\nhost  replication  streamer 10.0.0.0/8   scram-sha-256\nhost replication streamer 127.0.0.1/32 trust\n"

	primary := newServer(t, dir, "a")
	primary.run("initdb", "-D", primary.data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C")
	primary.start(hba, "cluster_name = '15/main'", "max_connections = 250", "wal_level = logical", "work_mem = 7MB", "shared_preload_libraries = 'pg_stat_statements'",
		"pg_stat_statements.max = 777", "listen_addresses = '127.0.0.1'", "synchronous_standby_names = ''", "external_pid_file = '"+dir+"/pid'")
	primary.sql("CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'stream-secret'")
	primary.sql("CREATE ROLE winder LOGIN")
	for _, function := range []string{"pg_ls_dir(text, boolean, boolean)", "pg_stat_file(text, boolean)", "pg_read_binary_file(text)", "pg_read_binary_file(text, bigint, bigint, boolean)"} {
		primary.sql("GRANT EXECUTE ON FUNCTION " + function + " TO winder")
	}
	primary.sql("ALTER SYSTEM SET maintenance_work_mem = '99MB'")
	primary.sql("SELECT pg_reload_conf()")

	standby := newServer(t, dir, "b")
	standby.run("pg_basebackup", "-D", standby.data, "-R", "-C", "-S", "theirs", "-c", "fast",
		"-d", fmt.Sprintf("host=127.0.0.1 port=%d user=streamer password=stream-secret application_name=walreceiver", primary.port))
	standby.start(hba, "cluster_name = '15/main'", "max_connections = 250", "listen_addresses = '127.0.0.1'", "hot_standby = on")

	var p, s Found
	testkit.Await(testkit.Within(t, patience), t, "the standby streams", func() error {
		if p, s = primary.look(t), standby.look(t); !s.Upstream.Streaming || len(p.Standbys) != 1 {
			return fmt.Errorf("%+v %+v", p.Standbys, s.Upstream)
		}
		return nil
	})
	ctx := testkit.Within(t, patience)
	agents, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres application_name=Lictor", primary.socket, primary.port))
	testkit.Must(t, err)
	if with := primary.look(t); p.Agent || !with.Agent {
		t.Errorf("an agent's session is seen: %t, and without one: %t", with.Agent, p.Agent)
	}
	testkit.Must(t, agents.Close(ctx))
	if p.Standby || !s.Standby || p.SystemIdentifier != s.SystemIdentifier || p.SystemIdentifier == "" {
		t.Errorf("roles and identifiers: %+v %+v", p, s)
	}
	want := Upstream{Host: "127.0.0.1", Port: strconv.Itoa(primary.port), User: "streamer", Name: "walreceiver", Slot: "theirs", Streaming: true}
	if diff := cmp.Diff(want, s.Upstream); diff != "" {
		t.Error(diff)
	}
	for _, f := range append(p.Findings(), s.Findings()...) {
		if f.Stops {
			t.Errorf("nothing is wrong with them: %s", f)
		}
	}
	if _, err := p.Config(Options{Name: "db1", Address: "10.0.0.11"}); err == nil || !strings.Contains(err.Error(), "--scope") || !strings.Contains(err.Error(), "15/main") {
		t.Errorf("a cluster_name that every host has: %v", err)
	}

	text, err := p.Config(Options{Scope: "orders", Name: "db1", Address: "10.0.0.11"})
	testkit.Must(t, err)
	if strings.Contains(string(text), "stream-secret") {
		t.Error("a password is in the file")
	}
	if _, _, err := load(t, string(text)); err == nil || strings.Count(err.Error(), "placeholder") != 4 {
		t.Errorf("a file whose passwords are not filled in must be refused for each: %v", err)
	}
	c, warnings, err := load(t, strings.ReplaceAll(string(text), config.Placeholder, "chosen"))
	testkit.Must(t, err)
	for _, w := range warnings {
		t.Errorf("%s", w)
	}
	_, problems, unasked := postgres.CheckFile(testkit.Within(t, patience), c.Postgres, c.Bootstrap.DCS)
	testkit.Must(t, problems)
	testkit.Must(t, unasked)
	got := map[string]any{
		"scope": c.Scope, "name": c.Name, "listen": c.Postgres.Listen, "connect": c.Postgres.ConnectAddress, "data": c.Postgres.DataDir, "config": c.Postgres.ConfigDir,
		"bin": c.Postgres.BinDir, "hba": c.Postgres.PgHBA, "dcs": c.Bootstrap.DCS, "replication": c.Postgres.Authentication.Replication.Username,
		"rewind": c.Postgres.Authentication.Rewind.Username, "superuser": c.Postgres.Authentication.Superuser.Username, "socket": c.Postgres.UseUnixSocket,
		"work_mem": c.Postgres.Parameters["work_mem"], "pgss": c.Postgres.Parameters["pg_stat_statements.max"], "altered": c.Postgres.Parameters["maintenance_work_mem"],
	}
	if diff := cmp.Diff(map[string]any{
		"scope": "orders", "name": "db1", "listen": fmt.Sprintf("127.0.0.1:%d", primary.port), "connect": fmt.Sprintf("10.0.0.11:%d", primary.port),
		"data": primary.data, "config": primary.etc, "bin": primary.bin,
		"hba":         []string{"local all all trust", "host all all 127.0.0.1/32 scram-sha-256", "host replication streamer 10.0.0.0/8 scram-sha-256", "host replication streamer 127.0.0.1/32 trust"},
		"dcs":         map[string]any{"postgresql": map[string]any{"use_pg_rewind": true, "parameters": map[string]any{"max_connections": 250, "wal_level": "logical"}}},
		"replication": "streamer", "rewind": "winder", "superuser": "postgres", "socket": true, "work_mem": "7MB", "pgss": 777, "altered": "99MB",
	}, got); diff != "" {
		t.Error(diff)
	}
	for _, ours := range []string{"cluster_name", "data_directory", "port", "listen_addresses", "hba_file", "external_pid_file"} {
		if v, there := c.Postgres.Parameters[ours]; there {
			t.Errorf("parameter %s: %v: follows from the file, or names a place", ours, v)
		}
	}
	if text, err = s.Config(Options{Scope: "orders", Name: "db2", Address: "10.0.0.12"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := load(t, strings.ReplaceAll(string(text), config.Placeholder, "chosen")); err != nil {
		t.Error(err)
	}

	// What stands in the way is said before.
	primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'")
	primary.sql("SELECT pg_reload_conf()")
	standby.run("pg_ctl", "-D", standby.data, "-m", "fast", "-w", "stop")
	testkit.Await(testkit.Within(t, patience), t, "commits that would wait for a name which nobody has any more are told", func() error {
		if all := primary.look(t).Findings(); len(all) == 0 || !all[0].Stops || !strings.Contains(all[0].What, `"walreceiver"`) {
			return fmt.Errorf("found %v", all)
		}
		return nil
	})
	primary.sql("ALTER SYSTEM RESET synchronous_standby_names")
	primary.run("pg_ctl", "-D", primary.data, "-m", "fast", "-w", "stop")
	standby.start(hba, "max_connections = 250")
	if all := standby.look(t).Findings(); len(all) == 0 || !all[0].Stops || !strings.Contains(all[0].What, "does not stream") {
		t.Errorf("a standby that does not stream: %v", all)
	}
}

func load(t *testing.T, text string) (config.Config, []string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yml")
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o600))
	c, warnings, err := config.Load(config.Source{Path: path})
	var told []string
	for _, w := range warnings {
		told = append(told, w.String())
	}
	return c, told, err
}

func TestNoSuperuser(t *testing.T) {
	t.Parallel()
	_, err := Look(t.Context(), "host=/nonexistent password=very-secret port=x")
	if err == nil || strings.Contains(err.Error(), "very-secret") {
		t.Errorf("a connection string that is none: %v", err)
	}
}
