package bouncer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/routes"
	"github.com/lictor-ha/lictor/templates"
)

// Users come from Consul, and haproxy.cfg from the routes; a user more is a key
// more, and keys that are lost lock nobody out.
func TestKeepsFurtherFiles(t *testing.T) {
	var users string
	w := newWorld(t, func(c *config.Config) {
		dir := filepath.Dir(c.PgBouncer.Config)
		users = c.RoutesPrefix + "/users"
		c.Files = []config.File{
			{Template: filepath.Join(dir, "users.ctmpl"), Path: filepath.Join(dir, "userlist.txt")},
			{Template: "haproxy.cfg.ctmpl", Path: filepath.Join(dir, "haproxy.cfg"), Command: []string{"touch", filepath.Join(dir, "reloaded")}},
		}
		c.PgBouncer.Settings = map[string]any{"auth_type": "plain"}
	})
	set := func(name, password string) {
		t.Helper()
		if _, err := w.site.client.KV().Put(&api.KVPair{Key: users + "/" + name, Value: []byte(password)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	set("pooler", "secret")
	set("app", "app")
	w.write("users.ctmpl", fmt.Sprintf(`{{ range ls %q }}{{ userlist_quote .Key }} {{ userlist_quote .Value }}
{{ end }}`, users))
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	login := func(user, password string) error {
		conn, err := pgconn.Connect(w.ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=s1 sslmode=disable", w.port, user, password))
		if err != nil {
			return err
		}
		return conn.Close(w.ctx)
	}
	w.await("haproxy.cfg", func() error {
		text, err := os.ReadFile(filepath.Join(w.dir, "haproxy.cfg"))
		if err == nil && !strings.Contains(string(text), "listen s1_primary") {
			err = fmt.Errorf("it is %s", text)
		}
		if err == nil {
			_, err = os.Stat(filepath.Join(w.dir, "reloaded"))
		}
		return err
	})
	if err := login("app", "app"); err != nil {
		t.Fatal(err)
	}
	set("app", "changed")
	w.await("the new password", func() error {
		if err := login("app", "changed"); err != nil {
			return err
		}
		if login("app", "app") == nil {
			return errors.New("the old password works")
		}
		return nil
	})
	before, err := os.ReadFile(filepath.Join(w.dir, "userlist.txt"))
	if err != nil {
		t.Fatal(err)
	}
	problem := func(part string) {
		t.Helper()
		w.await("problem "+part, func() error {
			s, err := w.status()
			if err == nil && !strings.Contains(s.Files[filepath.Join(w.dir, "userlist.txt")].Error, part) {
				err = fmt.Errorf("%+v", s.Files)
			}
			return err
		})
		if now, err := os.ReadFile(filepath.Join(w.dir, "userlist.txt")); err != nil || string(now) != string(before) {
			t.Fatalf("the file has changed: %s %v", now, err)
		}
	}
	if _, err := w.site.client.KV().Delete(users+"/pooler", nil); err != nil {
		t.Fatal(err)
	}
	problem("lacks pgbouncer.user")
	if _, err := w.site.client.KV().DeleteTree(users, nil); err != nil {
		t.Fatal(err)
	}
	problem("empty")
	w.awaitHealthy() // PgBouncer has what it needs
}

// A user whose name or password PgBouncer cannot read is left out and told; PgBouncer has
// the others, those after it in the file, too.
func TestBadUserLocksNobodyOut(t *testing.T) {
	var prefix string
	w := newWorld(t, func(c *config.Config) {
		dir := filepath.Dir(c.PgBouncer.Config)
		prefix = c.RoutesPrefix + "/users/"
		c.Files = []config.File{{Template: filepath.Join(dir, "users.ctmpl"), Path: filepath.Join(dir, "userlist.txt")}}
		c.PgBouncer.Settings = map[string]any{"auth_type": "plain"}
	})
	text, err := templates.Read(templates.Userlist)
	if err != nil {
		t.Fatal(err)
	}
	w.write("users.ctmpl", strings.Replace(string(text), `"pgbouncer/users"`, fmt.Sprintf("%q", strings.TrimSuffix(prefix, "/")), 1))
	w.write("userlist.txt", `"pooler" "secret"`+"\n")
	bad := map[string]string{
		"b": "two\nlines", "c": "\x00", "d": "\xff", "e" + strings.Repeat("x", 63): "x", "f" + strings.Repeat("x", 200): "x", "g": strings.Repeat("p", 5000),
	}
	for name, password := range bad {
		w.putRaw(prefix+name, []byte(password))
	}
	for name, password := range map[string]string{"pooler": "secret", "a": "a", "z" + strings.Repeat("z", 62): strings.Repeat("z", 1000)} {
		w.putRaw(prefix+name, []byte(password))
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.await("the users", func() error { // they need not be PostgreSQL's
		rows, err := w.admin().Show(w.ctx, "USERS")
		if err != nil {
			return err
		}
		names := map[string]bool{}
		for _, row := range rows {
			names[row.Text("name")] = true
		}
		if !names["a"] || !names["z"+strings.Repeat("z", 62)] {
			return fmt.Errorf("%v", names)
		}
		return nil
	})
	s, err := w.status()
	if err != nil {
		t.Fatal(err)
	}
	file := s.Files[filepath.Join(w.dir, "userlist.txt")]
	if file.Error != "" || len(file.Warnings) != len(bad) {
		t.Errorf("%+v", file)
	}
	if said := strings.Join(file.Warnings, "\n"); strings.Contains(said, "two") || strings.Contains(said, "ppp") {
		t.Errorf("a password is told: %s", said)
	}
}

// Whom PgBouncer has read once it knows for as long as it runs, with an empty password when the file has the
// user no more: one who is taken out of Consul, or left out, opens the account to nobody, also after a restart
// of the bouncer, and is let in again when the key is back.
func TestRevokedUserLetsNobodyIn(t *testing.T) {
	var prefix string
	w := newWorld(t, func(c *config.Config) {
		dir := filepath.Dir(c.PgBouncer.Config)
		prefix = c.RoutesPrefix + "/users/"
		c.Files = []config.File{{Template: filepath.Join(dir, "users.ctmpl"), Path: filepath.Join(dir, "userlist.txt")}}
		c.PgBouncer.Settings = map[string]any{"auth_type": "scram-sha-256", "admin_users": "pooler,ops"}
	})
	text, err := templates.Read(templates.Userlist)
	if err != nil {
		t.Fatal(err)
	}
	w.write("users.ctmpl", strings.Replace(string(text), `"pgbouncer/users"`, fmt.Sprintf("%q", strings.TrimSuffix(prefix, "/")), 1))
	passwords := map[string]string{"pooler": "secret", "app": "app", "ops": "theirs"}
	for name, password := range passwords {
		w.putRaw(prefix+name, []byte(password))
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	login := func(user, password string) error {
		database := "s1"
		if user == "ops" {
			database = "pgbouncer"
		}
		conn, err := pgconn.Connect(w.ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=%s password='%s' dbname=%s sslmode=disable", w.port, user, password, database))
		if err != nil {
			return err
		}
		return conn.Close(w.ctx)
	}
	out := func(user string) {
		t.Helper()
		w.await(user+" is out", func() error {
			if login(user, passwords[user]) == nil {
				return errors.New("the old password works")
			}
			return nil
		})
		if login(user, "") == nil {
			t.Fatalf("%s is let in with an empty password", user)
		}
	}
	for _, user := range []string{"app", "ops"} {
		w.await(user, func() error { return login(user, passwords[user]) })
		if _, err := w.site.client.KV().Delete(prefix+user, nil); err != nil {
			t.Fatal(err)
		}
		out(user)
	}
	stop()
	w.bouncer()
	w.putRaw(prefix+"new", []byte("new")) // another file
	w.await("the new user", func() error {
		text, err := os.ReadFile(filepath.Join(w.dir, "userlist.txt"))
		if err == nil && !strings.Contains(string(text), `"new" "new"`) {
			err = fmt.Errorf("the file is %s", text)
		}
		return err
	})
	out("app")
	out("ops")
	w.putRaw(prefix+"app", []byte("app"))
	w.await("app again", func() error { return login("app", "app") })
	w.putRaw(prefix+"app", []byte("two\nlines")) // is left out
	out("app")
}

// keptFile is a further file whose command leaves a line in runs, and the state of a bouncer in dir.
func keptFile(t *testing.T, dir string) (k *fileWriter, state *stateWriter, change func(text string), runs func() int) {
	t.Helper()
	path := func(name string) string { return filepath.Join(dir, name) }
	c := config.Config{
		StateFile: path("state"), RoutesPrefix: "lictor", PgBouncer: config.PgBouncer{Config: path("pgbouncer.ini"), Admin: "127.0.0.1:6432"},
		Files: []config.File{{Template: path("own.ctmpl"), Path: path("own.cfg"), Command: []string{"sh", "-c", "test -e " + path("fails") + " && exit 1; echo >>" + path("runs")}}},
	}
	saved, err := loadState(c.StateFile, c.RoutesPrefix)
	if err != nil {
		t.Fatal(err)
	}
	table := routes.NewTable(c)
	state = &stateWriter{config: c, table: table, wake: make(chan struct{}, 1), due: saved.Due, kept: !saved.isEmpty()}
	k = newFileWriters(c, zerolog.Nop(), table, &processes{}, nil, state)[0]
	k.answered = func() bool { return true }
	t.Cleanup(k.renderer.Close)
	return k, state, func(text string) {
			if err := os.WriteFile(path("own.ctmpl"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}, func() int {
			text, _ := os.ReadFile(path("runs"))
			return strings.Count(string(text), "\n")
		}
}

// A file that changes all the time has its program reload now and then: HAProxy keeps each old process for as
// long as that has clients.
func TestCommandsOfFilesHaveARate(t *testing.T) {
	dir := t.TempDir()
	k, _, change, runs := keptFile(t, dir)
	for i := range 20 {
		change(fmt.Sprint("text ", i))
		if err := k.apply(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := runs(); n != fileBurst || !k.due {
		t.Errorf("the command ran %d times, want %d, and is due: %v", n, fileBurst, k.due)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "own.cfg")); err != nil || string(text) != "text 19" {
		t.Errorf("the file has %q, %v", text, err)
	}
	k.commands.SetBurst(fileBurst + 1)
	k.commands.SetLimit(rate.Inf)
	if err := k.apply(t.Context()); err != nil || runs() != fileBurst+1 || k.due {
		t.Errorf("what was put off has run %d times, %v", runs(), err)
	}
}

// What was written, and has not taken effect when the bouncer ends or gets another configuration, does so
// in the next run.
func TestCommandIsDueAfterARestart(t *testing.T) {
	dir := t.TempDir()
	k, _, change, runs := keptFile(t, dir)
	change("one")
	if err := os.WriteFile(filepath.Join(dir, "fails"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.apply(t.Context()); err == nil || runs() != 0 {
		t.Fatalf("the command has run %d times, %v", runs(), err)
	}
	if err := os.Remove(filepath.Join(dir, "fails")); err != nil {
		t.Fatal(err)
	}
	k, state, _, runs := keptFile(t, dir)
	for range 2 {
		if err := k.apply(t.Context()); err != nil || runs() != 1 {
			t.Errorf("the command has run %d times, %v", runs(), err)
		}
	}
	if err := state.write(); err != nil {
		t.Fatal(err)
	}
	if saved, err := loadState(filepath.Join(dir, "state"), "lictor"); err != nil || len(saved.Due) > 0 {
		t.Errorf("%v is due still, %v", saved.Due, err)
	}
}

// What a template makes of these depends on where the primaries are.
func TestMayShowRoutes(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]bool{
		`{{ range shards }}{{ end }}`: true, `{{ with shard "s1" }}{{ end }}`: true, `{{ range fallback }}{{ .Value }}{{ end }}`: true,
		`{{ if haproxy_resolves }}resolvers{{ end }}`: true, `{{ range users "x" }}{{ end }}`: false, `{{ key "sharding" }}`: false,
	} {
		if mayShowRoutes([]byte(source)) != want {
			t.Errorf("%s: not %v", source, want)
		}
	}
}
