package bouncer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Options of databases and users stand in PgBouncer as bouncer.yml has them; those that it
// is too old for are told and keep no shard from anything.
func TestOptionsOfDatabasesAndUsers(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.DatabaseOptions = map[string]any{"application_name": "it's a pooler", "timezone": "Asia/Tokyo"}
		c.PgBouncer.Users = map[string]map[string]any{"app": {"max_user_connections": 7, "transaction_timeout": 60}}
		c.Shards = []config.Shard{{
			Scope: "s1", Databases: []string{"s1=postgres"}, PoolSize: 3,
			Options: map[string]any{
				"reserve_pool_size": 2, "max_db_connections": 9, "connect_query": `SET "my.setting" = 'a; b''c'`, "query_wait_timeout": 55,
			},
			DatabaseOptions: map[string]map[string]any{"s1_ro": {"pool_size": 4, "timezone": "UTC", "user": "app"}},
		}, {Scope: "s2", Databases: []string{"s2=postgres"}}}
	})
	s2 := cluster.NewKeys("", "s2", w.config.RoutesPrefix).Route()
	w.put(s2, w.route(0, cluster.RouteOpen))
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	version, err := w.admin().Version(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	databases, err := w.admin().Show(w.ctx, "DATABASES")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range databases {
		number := func(names ...string) float64 {
			for _, name := range names {
				if n, found := d.Number(name); found {
					return n
				}
			}
			return -1
		}
		switch d.Text("name") {
		case "s1", "s1_ro":
			got := fmt.Sprintf("%v %v %v %s", number("pool_size"), number("reserve_pool", "reserve_pool_size"), number("max_connections"), d.Text("force_user"))
			if want := map[string]string{"s1": "3 2 9 ", "s1_ro": "4 2 9 app"}[d.Text("name")]; got != want {
				t.Errorf("%s: %s, want %s", d.Text("name"), got, want)
			}
		}
	}
	users, err := w.admin().Show(w.ctx, "USERS")
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		if most, shown := u.Number("max_user_connections"); shown && u.Text("name") == "app" && most != 7 { // from 1.23 on
			t.Errorf("app may have %v connections", most)
		}
	}
	for database, want := range map[string]string{"s1": "it's a pooler|Asia/Tokyo|a; b'c", "s1_ro": "it's a pooler|UTC|a; b'c", "s2": "it's a pooler|Asia/Tokyo|"} {
		conn := w.connect(database)
		result, err := conn.Exec(w.ctx, "SELECT concat_ws('|', current_setting('application_name'), current_setting('timezone'), coalesce(current_setting('my.setting', true), ''))").ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(result[0].Rows[0][0]); got != want {
			t.Errorf("%s has %s, want %s", database, got, want)
		}
	}
	told := func() []string {
		s, err := w.status()
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, p := range s.Problems {
			all = append(all, p)
		}
		return all
	}
	var want []string
	for path, since := range map[string]pgbouncer.Version{
		"pgbouncer.users.app.transaction_timeout": {1, 25}, "shards[0].options.query_wait_timeout": {1, 26},
	} {
		if !version.AtLeast(since[0], since[1]) {
			want = append(want, fmt.Sprintf("%s is not written: PgBouncer has this option from %d.%d on, here it is %s", path, since[0], since[1], version))
		}
	}
	got := strings.Join(told(), "\n")
	for _, text := range want {
		if !strings.Contains(got, text) || !strings.Contains(w.log.String(), text) {
			t.Errorf("%q is not told in\n%s", text, got)
		}
	}
	if len(told()) != len(want) {
		t.Errorf("told is\n%s", got)
	}
	w.awaitHealthy()
	w.put(s2, w.route(1, cluster.RouteOpen))
	w.await("the other shard following its route", func() error {
		s, err := w.status()
		if err != nil || s.Shards["service/s2"].Leader != "db2" || s.Shards["service/s2"].VerifiedAt == nil {
			return fmt.Errorf("%+v %w", s.Shards["service/s2"], err)
		}
		return nil
	})
}

// PgBouncer keeps a user that was taken out of bouncer.yml until it is restarted: that is told.
func TestUserOfDatabaseTakenAway(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Shards = []config.Shard{{Scope: "s1", Databases: []string{"s1=postgres"}, Options: map[string]any{"user": "app"}}}
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	w.awaitProblem("")
	changed := w.config
	changed.Shards = []config.Shard{{Namespace: "service", Scope: "s1", Databases: []string{"s1=postgres"}}}
	w.changes <- changed
	w.awaitProblem("PgBouncer keeps user=app of its database s1 until it is restarted")
	kill()
	w.pgbouncer()
	w.awaitProblem("")
}

// awaitProblem waits until one problem is told, empty: none is.
func (w *world) awaitProblem(part string) {
	w.t.Helper()
	w.await("problem "+part, func() error {
		s, err := w.status()
		if err != nil {
			return err
		}
		for _, p := range s.Problems {
			if part != "" && strings.Contains(p, part) {
				return nil
			}
		}
		if part != "" || len(s.Problems) > 0 || !s.PgBouncer.Answers {
			return fmt.Errorf("problems are %v", s.Problems)
		}
		return nil
	})
}

// Settings that PgBouncer is too old for, or too new, with which it would not start, are told and keep
// nothing from going on: it starts, and shards follow their routes.
func TestSettingsOfOtherVersions(t *testing.T) {
	wanted := map[string]any{"transaction_timeout": 60, "max_prepared_statements": 7, "pool_idle_timeout": 3600, "suspend_timeout": 11}
	w := newWorld(t, func(c *config.Config) { c.PgBouncer.Settings = wanted })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.awaitHealthy()
	has, err := w.admin().Config(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	version, err := w.admin().Version(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.status()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range wanted {
		told := s.Problems["pgbouncer.settings."+name]
		if got, known := has[name]; known && (got.Value != fmt.Sprint(value) || told != "") || !known && !strings.HasPrefix(told, "pgbouncer.settings."+name+" is not written: PgBouncer ") {
			t.Errorf("%s: SHOW CONFIG has %v, told is %q", name, got, told)
		}
	}
	known := config.KnownSettings(version)
	for _, name := range known {
		if _, known := has[name]; !known && name != "service_name" { // another name of job_name
			t.Errorf("PgBouncer %s has no setting %s", version, name)
		}
	}
	ever := append(config.KnownSettings(pgbouncer.Version{1, 18}), config.KnownSettings(pgbouncer.Version{1, 99})...)
	for name := range has {
		if slices.Contains(ever, name) && !slices.Contains(known, name) {
			t.Errorf("PgBouncer %s has the setting %s, which would not be written", version, name)
		}
	}
}

// Options of a user whom auth_file does not have make one without a password of it, before 1.23: they are not
// written until the user stands there, and told.
func TestOptionsMakeNoUser(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Settings = map[string]any{"auth_type": "scram-sha-256"}
		c.PgBouncer.Users = map[string]map[string]any{"ghost": {"pool_mode": "session"}, "app": {"pool_mode": "session"}}
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	login := func(password string) error {
		conn, err := pgconn.Connect(w.ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=ghost password='%s' dbname=s1 sslmode=disable", w.port, password))
		if err != nil {
			return err
		}
		return conn.Close(w.ctx)
	}
	if login("") == nil {
		t.Error("ghost is let in with an empty password")
	}
	version, err := w.admin().Version(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	file := func(ghost bool) error {
		text, err := os.ReadFile(w.config.PgBouncer.Config)
		if err == nil && (!strings.Contains(string(text), "\napp = ") || strings.Contains(string(text), "\nghost = ") != ghost) {
			err = fmt.Errorf("it is %s", text)
		}
		return err
	}
	if !version.AtLeast(1, 23) {
		if err := file(false); err != nil {
			t.Error(err)
		}
		w.awaitProblem("pgbouncer.users.ghost is not written")
	}
	w.write("userlist.txt", `"pooler" "secret"`+"\n"+`"app" "app"`+"\n"+`"ghost" "boo"`+"\n")
	w.await("the options of a user who is there", func() error { return file(true) })
	w.await("ghost", func() error {
		if login("") == nil {
			return errors.New("ghost is let in with an empty password")
		}
		return nil
	})
}
