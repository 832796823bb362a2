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

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
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
