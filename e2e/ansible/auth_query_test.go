package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// The role's tasks set auth_query up on a real PostgreSQL, and a real PgBouncer with its
// settings and its userlist lets a role in that was made afterwards. Nobody else asks for
// passwords there, and a second run changes nothing.
func TestAuthQuery(t *testing.T) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	for _, program := range []string{"ansible-playbook", "pgbouncer"} {
		if _, err := exec.LookPath(program); err != nil || len(bins) == 0 || os.Geteuid() != 0 {
			t.Skip("root, PostgreSQL and " + program + " are needed: make deps")
		}
	}
	ctx := testkit.Within(t, 3*time.Minute)
	d := newAuthSite(t, bins[len(bins)-1])
	d.startPostgres(ctx, t)

	if out := d.play(ctx, t); !strings.Contains(out, "changed=") || strings.Contains(out, "changed=0 ") {
		t.Errorf("the first run changes nothing:\n%s", out)
	}
	if out := d.play(ctx, t); strings.Count(out, "changed: ") != 0 {
		t.Errorf("the second run changes something:\n%s", out)
	}
	d.startPgBouncer(t)
	d.tellsNoPassword(ctx, t)

	d.sql(ctx, t, "orders", `CREATE ROLE newcomer LOGIN PASSWORD 'new'`)
	d.sql(ctx, t, "orders", `CREATE ROLE late LOGIN PASSWORD 'late' VALID UNTIL '2001-01-01'`)
	testkit.Await(ctx, t, "PgBouncer does not start", func() error { return d.login(ctx, "orders", "app", "apps") })
	for _, c := range []struct {
		database, user, password string
		refused                  bool
	}{
		{"orders", "newcomer", "new", false},
		{"invoices", "newcomer", "new", false},
		{"orders", "newcomer", "wrong", true},
		{"orders", "nobody", "new", true},
		{"orders", "postgres", "super", true},
		{"orders", "late", "late", true},
	} {
		err := d.login(ctx, c.database, c.user, c.password)
		refused := err != nil && (strings.Contains(err.Error(), "authentication failed") || strings.Contains(err.Error(), "no such user"))
		if refused != c.refused || err != nil && !c.refused {
			t.Errorf("%s in %s with %q: %v", c.user, c.database, c.password, err)
		}
	}
	d.hold(ctx, t)
	// It is changed at once, too.
	d.sql(ctx, t, "orders", `ALTER ROLE newcomer PASSWORD 'newer'`)
	if err := d.login(ctx, "orders", "newcomer", "newer"); err != nil {
		t.Error(err)
	}
	for user, password := range map[string]string{"app": "apps", "newcomer": "newer"} {
		conn, err := pgx.Connect(ctx, d.direct("orders", user, password))
		testkit.Must(t, err)
		if _, err := conn.Exec(ctx, "SELECT pgbouncer.user_lookup('app')"); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s looks a password up: %v", user, err)
		}
		testkit.Must(t, conn.Close(ctx))
	}
	conn, err := pgx.Connect(ctx, d.direct("orders", "pgbouncer_auth", "asks"))
	testkit.Must(t, err)
	defer conn.Close(ctx)
	var found int
	testkit.Must(t, conn.QueryRow(ctx, `SELECT count(*) FROM unnest('{postgres,late,nobody,newcomer}'::text[]) n, pgbouncer.user_lookup(n)`).Scan(&found))
	if found != 1 {
		t.Errorf("%d users are told of, not one", found)
	}
	// A schema that an application's role has made there is told, and left alone.
	d.sql(ctx, t, "invoices", `DROP SCHEMA pgbouncer CASCADE; GRANT CREATE ON DATABASE invoices TO newcomer; SET ROLE newcomer; CREATE SCHEMA pgbouncer`)
	if out, err := d.run(ctx); err == nil || !strings.Contains(out, "database invoices of orders: the schema pgbouncer belongs to no superuser") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// tellsNoPassword: the statements that make roles with their passwords stand neither in the log
// nor in pg_stat_statements.
func (d *authSite) tellsNoPassword(ctx context.Context, t *testing.T) {
	t.Helper()
	d.sql(ctx, t, "postgres", "CREATE EXTENSION pg_stat_statements")
	log, err := os.ReadFile(filepath.Join(d.dir, "log"))
	testkit.Must(t, err)
	conn, err := pgx.Connect(ctx, d.direct("postgres", "postgres", "super"))
	testkit.Must(t, err)
	defer conn.Close(ctx)
	var seen, told int
	testkit.Must(t, conn.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE query LIKE '%apps%' OR query LIKE '%asks%') FROM pg_stat_statements WHERE query LIKE '%CREATE%'`).Scan(&seen, &told))
	if seen == 0 || told > 0 || !strings.Contains(string(log), "CREATE EXTENSION") || strings.Contains(string(log), "apps") {
		t.Errorf("pg_stat_statements tells %d of %d statements with a password; the log has %d bytes, a password: %v", told, seen, len(log), strings.Contains(string(log), "apps"))
	}
}

// hold shows who waits while a shard is held: those who are looked up, not those in the file.
func (d *authSite) hold(ctx context.Context, t *testing.T) {
	t.Helper()
	connect := func(database, user, password string) (*pgx.Conn, error) {
		config, err := pgx.ParseConfig(d.through(database, user, password))
		testkit.Must(t, err)
		config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		return pgx.ConnectConfig(ctx, config)
	}
	console, err := connect("pgbouncer", "pgbouncer", "console")
	testkit.Must(t, err)
	defer console.Close(ctx)
	_, err = console.Exec(ctx, "PAUSE orders")
	testkit.Must(t, err)
	waits := make(chan error, 1)
	go func() {
		conn, err := connect("orders", "newcomer", "new")
		if err == nil {
			_ = conn.Close(ctx)
		}
		waits <- err
	}()
	for range 3 {
		conn, err := connect("orders", "app", "apps")
		testkit.Must(t, err)
		testkit.Must(t, conn.Close(ctx))
	}
	select {
	case err := <-waits:
		t.Errorf("who must be looked up does not wait while the shard is held: %v", err)
	default:
	}
	_, err = console.Exec(ctx, "RESUME orders")
	testkit.Must(t, err)
	testkit.Must(t, <-waits)
}

// authSite is a PostgreSQL and a PgBouncer on this machine, set up by the roles' files.
type authSite struct {
	dir, bin   string
	port, pool int
	credential *syscall.Credential
}

func newAuthSite(t *testing.T, bin string) *authSite {
	t.Helper()
	dir, err := os.MkdirTemp("", "lictor-a-")
	testkit.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	testkit.Must(t, os.Chmod(dir, 0o777))
	ports, err := testkit.FreePorts(2)
	testkit.Must(t, err)
	u, err := user.Lookup("postgres")
	testkit.Must(t, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	testkit.Must(t, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	testkit.Must(t, err)
	d := &authSite{
		dir: dir, bin: bin, port: ports[0], pool: ports[1],
		credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
	}
	roles, err := filepath.Abs("../../ansible/roles")
	testkit.Must(t, err)
	d.write(t, "vars.json", map[string]any{
		"scope": "orders", "lictor_tls": false, "lictor_secrets_dir": dir, "lictor_superuser_password": "super", "lictor_pgbouncer_password": "console",
		"lictor_addresses": map[string]string{"localhost": "127.0.0.1"}, "lictor_users": []any{map[string]string{"name": "app", "password": "apps"}},
		"lictor_auth_query": true, "lictor_auth_password": "asks", "lictor_show_secrets": true,
		"lictor_shards": map[string]any{"orders": map[string]any{"port": d.port, "api_port": 1, "members": []string{"localhost"}, "databases": []string{"orders", "invoices"}}},
	})
	d.write(t, "play.json", []any{map[string]any{
		"hosts": "localhost", "connection": "local", "gather_facts": false,
		"vars_files": []string{roles + "/common/defaults/main.yml", roles + "/agent/defaults/main.yml", roles + "/bouncer/defaults/main.yml"},
		"tasks": []any{
			map[string]any{"ansible.builtin.include_tasks": roles + "/agent/tasks/databases.yml"},
			map[string]any{"ansible.builtin.template": map[string]string{"src": roles + "/pgbouncer/templates/userlist.txt.j2", "dest": dir + "/userlist.txt"}},
			map[string]any{"ansible.builtin.copy": map[string]string{"content": "{{ lictor_pgbouncer_auth | to_json }}", "dest": dir + "/settings.json"}},
		},
	}})
	return d
}

func (d *authSite) write(t *testing.T, name string, value any) {
	t.Helper()
	text, err := json.Marshal(value)
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(filepath.Join(d.dir, name), text, 0o600))
}

func (d *authSite) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.SysProcAttr = d.dir, &syscall.SysProcAttr{Credential: d.credential}
	return cmd
}

func (d *authSite) startPostgres(ctx context.Context, t *testing.T) {
	t.Helper()
	data, password := filepath.Join(d.dir, "data"), filepath.Join(d.dir, "password")
	testkit.Must(t, os.WriteFile(password, []byte("super"), 0o644))
	if out, err := d.command(ctx, filepath.Join(d.bin, "initdb"), "-D", data, "-A", "scram-sha-256", "-U", "postgres", "--pwfile", password, "-N").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	postgres := d.command(context.WithoutCancel(ctx), filepath.Join(d.bin, "postgres"), "-D", data, "-p", strconv.Itoa(d.port), "-k", d.dir, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
		"-c", "shared_preload_libraries=pg_stat_statements", "-c", "log_statement=all")
	log, err := os.Create(filepath.Join(d.dir, "log"))
	testkit.Must(t, err)
	defer log.Close()
	postgres.Stdout, postgres.Stderr = log, log
	testkit.Must(t, postgres.Start())
	t.Cleanup(func() { _ = postgres.Process.Signal(syscall.SIGQUIT); _ = postgres.Wait() })
	testkit.Await(ctx, t, "PostgreSQL does not start", func() error {
		conn, err := pgx.Connect(ctx, d.direct("postgres", "postgres", "super"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
}

func (d *authSite) startPgBouncer(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "settings.json"))
	testkit.Must(t, err)
	var settings map[string]string
	testkit.Must(t, json.Unmarshal(text, &settings))
	var ini strings.Builder
	ini.WriteString("[databases]\n")
	for _, name := range []string{"orders", "invoices"} {
		fmt.Fprintf(&ini, "%s = host=127.0.0.1 port=%d\n", name, d.port)
	}
	fmt.Fprintf(&ini, "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = scram-sha-256\nadmin_users = pgbouncer\nauth_file = %s/userlist.txt\n", d.pool, d.dir)
	for name, value := range settings {
		fmt.Fprintf(&ini, "%s = %s\n", name, value)
	}
	file := filepath.Join(d.dir, "pgbouncer.ini")
	testkit.Must(t, os.WriteFile(file, []byte(ini.String()), 0o644))
	testkit.Must(t, os.Chmod(filepath.Join(d.dir, "userlist.txt"), 0o644))
	pgbouncer := d.command(context.WithoutCancel(t.Context()), "pgbouncer", file)
	testkit.Must(t, pgbouncer.Start())
	t.Cleanup(func() { _ = pgbouncer.Process.Kill(); _ = pgbouncer.Wait() })
}

func (d *authSite) direct(database, user, password string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d dbname=%s user=%s password=%s sslmode=disable", d.port, database, user, password)
}

func (d *authSite) through(database, user, password string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d dbname=%s user=%s password=%s sslmode=disable", d.pool, database, user, password)
}

func (d *authSite) sql(ctx context.Context, t *testing.T, database, statements string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, d.direct(database, "postgres", "super"))
	testkit.Must(t, err)
	_, err = conn.Exec(ctx, statements)
	testkit.Must(t, err)
	testkit.Must(t, conn.Close(ctx))
}

// login logs in through PgBouncer and asks something.
func (d *authSite) login(ctx context.Context, database, user, password string) error {
	config, err := pgx.ParseConfig(d.through(database, user, password))
	if err != nil {
		return err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var who string
	if err := conn.QueryRow(ctx, "SELECT current_user").Scan(&who); err != nil || who != user {
		return fmt.Errorf("as %q: %w", who, err)
	}
	return nil
}

func (d *authSite) run(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "ansible-playbook", "-i", "localhost,", "-e", "@"+filepath.Join(d.dir, "vars.json"), filepath.Join(d.dir, "play.json"))
	cmd.Env = append(os.Environ(), "ANSIBLE_HOME="+d.dir+"/.ansible", "ANSIBLE_LOCAL_TEMP="+d.dir, "ANSIBLE_REMOTE_TEMP="+d.dir, "ANSIBLE_NOCOLOR=1")
	out, err := cmd.CombinedOutput()
	return strings.Join(strings.Fields(string(out)), " "), err
}

func (d *authSite) play(ctx context.Context, t *testing.T) string {
	t.Helper()
	out, err := d.run(ctx)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return out
}
