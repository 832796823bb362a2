package bouncer

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/install"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// A bouncer that begins with a state of before a failover, as its disk was full or it was killed, leads
// nobody back to the old primary, and cuts no transaction on the right one.
func TestStaleStateMovesNobody(t *testing.T) {
	for _, how := range []string{"sighup", "restart while Consul is silent"} {
		t.Run(how, func(t *testing.T) {
			disk, fill, empty := smallDisk(t)
			w := worldOnDisk(t, disk)
			w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
			stop := w.bouncer()
			w.pgbouncer()
			w.awaitLeader(0)
			w.awaitHealthy()
			w.await("room that is kept", func() error { _, err := os.Stat(w.config.PgBouncer.Config + ".spare"); return err })
			w.dropStateSpare()
			fill()
			w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
			w.awaitLeader(1)
			w.await("the state is not kept", func() error {
				if !strings.Contains(w.log.String(), "are not kept for a restart") {
					return os.ErrExist
				}
				return nil
			})
			busy := w.connect("s1")
			done := make(chan error, 1)
			go func() {
				_, err := busy.Exec(w.ctx, "SELECT pg_sleep(2)").ReadAll()
				done <- err
			}()
			w.awaitPool("runs", func(p pgbouncer.Pool) bool { return p.Database == "s1" && p.ServersActive > 0 })
			if how == "sighup" {
				w.changes <- w.config
			} else {
				w.proxy.set(true)
				stop()
				w.bouncer()
			}
			if err := <-done; err != nil {
				t.Errorf("a transaction on the right primary: %v", err)
			}
			if at := w.where(w.connect("s1")); at != 1 {
				t.Errorf("a new query goes to member %d", at)
			}
			w.await("a status", func() error { _, err := w.status(); return err })
			if s, err := w.status(); err != nil || s.Shards["service/s1"].Port != w.site.members[1].Port || s.Shards["service/s1"].VerifiedAt == nil {
				t.Errorf("%v, status is %+v", err, s.Shards)
			}
			w.proxy.set(false)
			empty()
			w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
			w.awaitLeader(0)
		})
	}
}

// Of the state file and PgBouncer's file the one counts that is of the later timeline.
func TestStateAgainstFile(t *testing.T) {
	dir := t.TempDir()
	c := config.Config{
		Name: "b1", RoutesPrefix: "p", Listen: "127.0.0.1:0", ConnectAddress: "127.0.0.1:1", Consul: settings.Consul{Host: "127.0.0.1:1"},
		PgBouncer: config.PgBouncer{Config: filepath.Join(dir, "pgbouncer.ini"), Admin: dir + ":6432"},
	}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		host     string
		timeline int
		state    cluster.RouteState
		replica  string
		want     string
	}{
		{"db2", 2, cluster.RouteOpen, "db1", "host=db2 / host=db1"}, // there is no file yet
		{"db1", 1, cluster.RouteOpen, "db2", "host=db2 / host=db1"},
		{"db2", 2, cluster.RouteOpen, "db3", "host=db2 / host=db1"}, // no less old as far as is known
		{"db3", 2, cluster.RouteOpen, "db2", "host=db2 / host=db1"},
		{"db3", 3, cluster.RouteDown, "db2", "host=db2 / host=db1"},
		{"db3", 3, cluster.RoutePromoting, "db2", "host=db2 / host=db1"},
		{"db3", 3, cluster.RouteOpen, "db2", "host=db3 / host=db2"},
	} {
		b := routes.NewTable(c)
		r := someRoute(step.host)
		r.Timeline, r.State, r.Replicas = step.timeline, step.state, []cluster.RouteMember{{Name: "r", Host: step.replica, Port: 5432}}
		b.Merge(routes.Answer{KnownLeader: true, Pairs: []routes.Pair{somePair(t, "p/routes/service/s1", 7, r)}})
		if err := (savedState{Version: stateVersion, RoutesPrefix: "p", Routes: knownIn(b)}).save(install.NewConfig(c.StateFile)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		err := Run(ctx, c, nil, &manager{}, nil, zerolog.Nop())
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(c.PgBouncer.Config)
		if err != nil {
			t.Fatal(err)
		}
		file, err := pgbouncer.ParseFile(text)
		if err != nil {
			t.Fatal(err)
		}
		writers, _ := file.Database("s1")
		readers, _ := file.Database("s1_ro")
		if got := "host=" + writers.Host() + " / host=" + readers.Host(); got != step.want {
			t.Errorf("with a state of %+v the file leads to %s", step, got)
		}
	}
}

// Nor is a further file written of routes that may be older than it, before Consul has said where they lead; one
// that is not there is, and one that has nothing to do with routes.
func TestStaleStateChangesNoFurtherFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	c := config.Config{
		Name: "b1", RoutesPrefix: "p", Listen: "127.0.0.1:0", ConnectAddress: "127.0.0.1:1", Consul: settings.Consul{Host: "127.0.0.1:1"},
		PgBouncer: config.PgBouncer{Config: path("pgbouncer.ini"), Admin: dir + ":6432"},
		Files: []config.File{
			{Template: path("routes.ctmpl"), Path: path("there")}, {Template: path("routes.ctmpl"), Path: path("absent")}, {Template: path("other.ctmpl"), Path: path("other")},
		},
	}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"routes.ctmpl": "{{range shards}}{{(primary .).Host}}{{end}}", "other.ctmpl": "other, anew", "there": "newer", "other": "other",
	} {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := routes.NewTable(c)
	b.Merge(routes.Answer{KnownLeader: true, Pairs: []routes.Pair{somePair(t, "p/routes/service/s1", 7, someRoute("old"))}})
	if err := (savedState{Version: stateVersion, RoutesPrefix: "p", Routes: knownIn(b)}).save(install.NewConfig(c.StateFile)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := Run(ctx, c, nil, &manager{}, nil, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"there": "newer", "absent": "old", "other": "other, anew"} {
		if text, err := os.ReadFile(path(name)); err != nil || string(text) != want {
			t.Errorf("%s is %q, want %q: %v", name, text, want, err)
		}
	}
}
