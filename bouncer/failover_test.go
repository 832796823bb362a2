package bouncer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
)

// load runs queries by n clients until stop is called, which returns the first
// error and how many queries each member answered.
func (w *world) load(n int) (count func(member int) int64, stop func() error) {
	w.t.Helper()
	var (
		counts  [2]atomic.Int64
		clients sync.WaitGroup
		mu      sync.Mutex
		first   error
	)
	ctx, cancel := context.WithCancel(w.ctx)
	for range n {
		conn := w.connect("s1")
		clients.Go(func() {
			for ctx.Err() == nil {
				member, err := w.ask(w.ctx, conn)
				if err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
					return
				}
				counts[member].Add(1)
				time.Sleep(2 * time.Millisecond) // think time
			}
		})
	}
	stop = func() error { cancel(); clients.Wait(); return first }
	w.t.Cleanup(func() { _ = stop() })
	return func(m int) int64 { return counts[m].Load() }, stop
}

func TestHandoverMakesClientsWait(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	count, stop := w.load(8)
	w.await("load", func() error {
		if count(0) < 20 {
			return errors.New("too few queries yet")
		}
		return nil
	})

	w.put(w.keys.Route(), w.route(0, cluster.RouteHandover))
	w.awaitShard("hold", func(s ShardStatus) bool { return s.Held })
	w.await("drained", func() error {
		pools, err := w.admin().Pools(w.ctx)
		if err != nil {
			return err
		}
		for _, p := range pools {
			if p.Database == "s1" && (p.ServersActive > 0 || p.ClientsWaiting < 8) {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
	w.awaitHealthy() // clients wait, but nothing is wrong with this PgBouncer
	before := count(0)
	w.put(w.keys.Route(), w.route(1, cluster.RoutePromoting))
	w.awaitShard("promoting", func(s ShardStatus) bool {
		return s.Held && s.State == cluster.RoutePromoting && s.Leader == "db2" && s.VerifiedAt != nil
	})
	if got := count(0); got != before || count(1) > 0 {
		t.Fatalf("queries ran while clients were held: %d -> %d, %d", before, got, count(1))
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.await("queries at the new primary", func() error {
		if count(1) < 20 {
			return errors.New("too few queries yet")
		}
		return nil
	})
	if err := stop(); err != nil {
		t.Fatalf("clients saw an error: %v", err)
	}
	if w.paused() {
		t.Fatal("the database is still paused")
	}
}

func TestCancelledHandoverReleasesClients(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	// A transaction that does not end keeps PAUSE waiting for ever.
	busy := w.connect("s1")
	w.exec(busy, "BEGIN; SELECT 1")
	w.put(w.keys.Route(), w.route(0, cluster.RouteHandover))
	w.awaitShard("hold", func(s ShardStatus) bool { return s.Held })
	w.awaitPaused(true)
	w.exec(busy, "SELECT 2") // the transaction goes on
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	w.awaitPaused(false)
	w.exec(busy, "COMMIT")
	if got := w.where(w.connect("s1")); got != 0 {
		t.Fatalf("query went to member %d", got)
	}
}

func (w *world) exec(conn *pgconn.PgConn, sql string) {
	w.t.Helper()
	if _, err := conn.Exec(w.ctx, sql).ReadAll(); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// A client in a transaction on a primary that is lost would keep its connection
// until TCP gives up; it must be freed, and must not delay the others.
func TestLostPrimaryFreesItsClients(t *testing.T) {
	w := newWorld(t, nil)
	if !w.canDestroySockets() {
		t.Skip("closing sockets is not permitted here")
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	stuck, client := w.connect("s1"), w.connect("s1")
	w.exec(stuck, "BEGIN")
	freed := make(chan error, 1)
	go func() {
		_, err := stuck.Exec(w.ctx, "SELECT pg_sleep(600)").ReadAll()
		freed <- err
	}()
	w.await("client in its transaction", func() error {
		servers, err := w.admin().Servers(w.ctx)
		if err != nil {
			return err
		}
		for _, s := range servers {
			if s.Database == "s1" && s.State == "active" {
				return nil
			}
		}
		return fmt.Errorf("%+v", servers)
	})
	w.put(w.keys.Route(), w.route(1, cluster.RoutePromoting))
	w.awaitShard("promoting", func(s ShardStatus) bool { return s.Held && s.Leader == "db2" && s.VerifiedAt != nil })
	select {
	case err := <-freed:
		if err == nil {
			t.Fatal("the transaction on the lost primary ended without an error")
		}
	case <-w.ctx.Done():
		t.Fatal("the client on the lost primary was not freed")
	}
	waiting := make(chan int, 1)
	go func() {
		if member, err := w.ask(w.ctx, client); err == nil {
			waiting <- member
		}
		close(waiting)
	}()
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if member, ok := <-waiting; !ok || member != 1 {
		t.Fatalf("the waiting client got member %d, %v", member, ok)
	}
}

// canDestroySockets tries SOCK_DESTROY on a connection of its own.
func (w *world) canDestroySockets() bool {
	w.t.Helper()
	can, _ := pooler.Probed(w.ctx, w.config).Closing()
	return can
}

func TestDeadMansTimerReleasesClients(t *testing.T) {
	t.Parallel() // it waits
	w := newWorld(t, func(c *config.Config) { c.HoldTimeout = shortHold })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	if got := w.where(w.connect("s1")); got != 0 { // waits for the timer
		t.Fatalf("query went to member %d", got)
	}
	s := w.awaitShard("end of the hold", func(s ShardStatus) bool { return !s.Held })
	if s.State != cluster.RouteDown {
		t.Fatalf("state is %s", s.State)
	}
	// The same trouble does not hold clients twice, a new one does.
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitShard("second hold", func(s ShardStatus) bool { return s.Held })
}

func TestPgBouncerRestartedWhileHolding(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	w.put(w.keys.Route(), w.route(0, cluster.RouteHandover))
	w.awaitPaused(true)
	kill()
	w.await("the loss being noticed", func() error {
		var h Health
		if code, err := w.http(http.MethodGet, "/health", &h); err != nil || code != http.StatusServiceUnavailable {
			return fmt.Errorf("%d %w", code, err)
		}
		return nil
	})
	w.pgbouncer()
	w.awaitPaused(true)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if got := w.where(w.connect("s1")); got != 1 {
		t.Fatalf("query went to member %d", got)
	}
}

func TestBouncerRestartedWhileHolding(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.put(w.keys.Route(), w.route(0, cluster.RouteHandover))
	w.awaitPaused(true)
	stop()
	if !w.paused() {
		t.Fatal("the end of the bouncer released clients that have no primary")
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.bouncer()
	w.awaitLeader(1)
	if got := w.where(w.connect("s1")); got != 1 {
		t.Fatalf("query went to member %d", got)
	}
}

func TestServesWithoutConsul(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.proxy.set(true)
	w.await("the outage being noticed", func() error {
		s, err := w.status()
		if err == nil && s.Consul.Connected {
			err = errors.New("still connected")
		}
		return err
	})
	w.awaitHealthy()
	stop()
	// What was known must survive, with nothing but its own files.
	if err := os.Remove(w.config.PgBouncer.Config); err != nil {
		t.Fatal(err)
	}
	w.bouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if got := w.where(w.connect("s1")); got != 0 {
		t.Fatalf("query went to member %d", got)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.proxy.set(false)
	w.awaitLeader(1)
	if n := strings.Count(w.log.String(), "Consul cannot be reached"); n != 2 { // once per start
		t.Fatalf("the outage was logged %d times", n)
	}
}

// warned reports whether /health warns of a configuration that could not be followed, and of nothing
// else: whoever has got that file, clients find what they found.
func (w *world) warned(part string) error {
	var h Health
	code, err := w.http(http.MethodGet, "/health", &h)
	warnings := strings.Join(h.Warnings, " ")
	if err == nil && (code != http.StatusOK || len(h.Reasons) > 0 || !strings.Contains(warnings, part) || !strings.Contains(warnings, "with the newest routes")) {
		return fmt.Errorf("%d %+v", code, h)
	}
	if err != nil {
		return err
	}
	s, err := w.status()
	if told := s.Problems[w.config.PgBouncer.Config]; err == nil && !strings.Contains(told, part) {
		err = fmt.Errorf("/status says %q", told)
	}
	return err
}

// A setting that PgBouncer refuses, also one that comes together with a route, and a
// template that cannot be executed keep no shard from its primary.
func TestRefusedSettingPinsNoShard(t *testing.T) {
	w := newWorld(t, nil)
	s2 := cluster.NewKeys("", "s2", w.config.RoutesPrefix)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.put(s2.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	told := func(part string) {
		t.Helper()
		w.await("the failure being told", func() error {
			return w.warned(part)
		})
	}
	leads := func(database string, member int) {
		t.Helper()
		w.await(fmt.Sprint(database, " at ", member), func() error {
			all, err := w.admin().Databases(w.ctx)
			if err == nil && (all[database].Port != w.site.members[member].Port || all[database+"_ro"].Port != w.site.members[member].Port) {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
	}
	bad := w.config
	bad.PgBouncer.Settings = map[string]any{"setting_of_nobody": 5}
	w.changes <- bad
	told("the last good configuration is in place")
	w.put(s2.Route(), w.route(1, cluster.RouteOpen))
	leads("s2", 1)
	if got := w.where(w.connect("s1")); got != 0 {
		t.Errorf("s1 is at %d", got)
	}
	// With a template that is none, s2 stays where it is.
	worse := w.config
	worse.Template = w.config.PgBouncer.Config + ".ctmpl"
	w.write("pgbouncer.ini.ctmpl", "{{ nothing }}")
	w.changes <- worse
	told("nothing")
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	leads("s1", 1)
	leads("s2", 1)
	w.put(cluster.NewKeys("", "s3", w.config.RoutesPrefix).Route(), w.route(1, cluster.RouteOpen))
	leads("s3", 1) // which no good file has had
	// Nor does a bouncer that starts with it.
	stop()
	good := w.config
	w.config.PgBouncer.Settings = bad.PgBouncer.Settings
	w.bouncer()
	told("setting_of_nobody")
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	leads("s1", 0)
	w.config = good
	w.changes <- w.config
	w.awaitLeader(0)
	w.awaitHealthy()
	leads("s2", 1)
	leads("s3", 1)
}

// brokenTemplate is understood here and not by PgBouncer: the error is in a
// section that it reads before the databases.
const brokenTemplate = `[pgbouncer]
{{ range settings }}{{ .Name }} = {{ .Value }}
{{ end }}pool_mode_of_nobody = yes
[databases]
{{ range $s := shards }}{{ range .Databases }}{{ .Name }} = host={{ (primary $s).Host }} port={{ (primary $s).Port }}
{{ end }}{{ end }}`

// A template that PgBouncer refuses, from one moment to the next, keeps nobody at an old
// primary: what it had before stays, with the newest routes.
func TestFailedReloadIsRolledBack(t *testing.T) {
	var path string
	w := newWorld(t, func(c *config.Config) {
		path = c.PgBouncer.Config + ".ctmpl"
		c.Template = path
	})
	w.manager.every = 10 * time.Millisecond
	good := strings.Replace(brokenTemplate, "pool_mode_of_nobody = yes\n", "", 1)
	w.write("pgbouncer.ini.ctmpl", good)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	if got := w.where(client); got != 0 {
		t.Fatalf("query went to member %d", got)
	}
	// It is refused also as long as it would change no database.
	w.write("pgbouncer.ini.ctmpl", brokenTemplate)
	refused := func() {
		t.Helper()
		w.await("the failure being reported", func() error {
			return w.warned("last good configuration is in place")
		})
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	refused()
	w.awaitLeader(1)
	if got := w.where(client); got != 1 {
		t.Fatalf("the query went to member %d", got)
	}
	// Nor does it when the next route comes, once it is known.
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	refused()
	w.await("the good file", func() error { // the bad one is tried again meanwhile
		text, err := os.ReadFile(path[:len(path)-len(".ctmpl")])
		if err == nil && strings.Contains(string(text), "pool_mode_of_nobody") {
			err = fmt.Errorf("the file is %s", text)
		}
		return err
	})
	// It is not what the next PgBouncer finds, which could not start with it.
	kill()
	w.await("the loss being noticed", func() error {
		s, err := w.status()
		if err == nil && s.PgBouncer.Answers {
			err = errors.New("not yet")
		}
		return err
	})
	looked := strings.Count(w.log.String(), "routes have changed")
	r := w.route(1, cluster.RouteOpen)
	r.Since = r.Since.Add(time.Second)
	w.put(w.keys.Route(), r)
	w.await("another change meanwhile", func() error {
		if strings.Count(w.log.String(), "routes have changed") == looked {
			return errors.New("not seen")
		}
		return nil
	})
	passes := w.manager.alive.Load()
	w.await("some more tries", func() error {
		if n := w.manager.alive.Load(); n < passes+100 {
			return fmt.Errorf("%d", n-passes)
		}
		return nil
	})
	at1 := fmt.Sprintf("port=%d", w.site.members[1].Port)
	if text, err := os.ReadFile(w.config.PgBouncer.Config); err != nil || strings.Contains(string(text), "pool_mode_of_nobody") || !strings.Contains(string(text), at1) {
		t.Fatalf("PgBouncer would start with %s, %v", text, err)
	}
	w.pgbouncer()
	w.write("pgbouncer.ini.ctmpl", good)
	w.awaitLeader(1)
	w.awaitHealthy()
}

func TestBadRoutesChangeNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	s2 := cluster.NewKeys("", "s2", w.config.RoutesPrefix)
	w.put(s2.Route(), w.route(1, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	installed := func() string {
		text, err := os.ReadFile(w.config.PgBouncer.Config)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := installed()
	problem := func(key, part string) {
		t.Helper()
		w.await("problem "+part, func() error {
			s, err := w.status()
			if err == nil && !strings.Contains(s.Problems[key], part) {
				err = fmt.Errorf("problems are %v", s.Problems)
			}
			return err
		})
		if got := installed(); got != before {
			t.Fatalf("%s changed the file:\n%s", part, got)
		}
	}
	foreign := w.route(1, cluster.RouteOpen)
	foreign.SystemIdentifier = "7000000000000000002"
	w.put(w.keys.Route(), foreign)
	problem(w.keys.Route(), "another PostgreSQL cluster")
	w.putRaw(w.keys.Route(), []byte(`{"version":`))
	problem(w.keys.Route(), "malformed")
	// All gone at once: nothing is believed.
	if _, err := w.site.client.KV().DeleteTree(w.keys.Routes(), nil); err != nil {
		t.Fatal(err)
	}
	problem("", "vanished")
	// One of them back: the other one will follow, the file does not shrink.
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if !strings.Contains(installed(), "s2") {
		t.Fatal("s2 has left")
	}
	// One alone is deleted on purpose.
	w.put(s2.Route(), w.route(1, cluster.RouteOpen))
	w.await("all back", func() error {
		s, err := w.status()
		if err == nil && len(s.Problems) > 0 {
			err = fmt.Errorf("problems are %v", s.Problems)
		}
		return err
	})
	if _, err := w.site.client.KV().Delete(s2.Route(), nil); err != nil {
		t.Fatal(err)
	}
	w.await("s2 leaving", func() error {
		if strings.Contains(installed(), "s2") {
			return errors.New("s2 is still there")
		}
		return nil
	})
	w.awaitHealthy()
}

func TestPokeReadsThroughAnotherAddress(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Consul.Hosts = []string{newHangingServer(t), c.Consul.Host}
		c.Consul.Host = ""
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.await("listener", func() error { _, err := w.status(); return err })
	var body map[string]string
	if code, err := w.http(http.MethodPost, "/poke", &body); err != nil || code != http.StatusAccepted {
		t.Fatalf("poke: %d %v", code, err)
	}
	w.awaitLeader(0)
}

func TestDrain(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	var body map[string]any
	for _, step := range []struct {
		path string
		want int
	}{{"/drain", http.StatusServiceUnavailable}, {"/undrain", http.StatusOK}} {
		if code, err := w.http(http.MethodPost, step.path, &body); err != nil || code != http.StatusOK {
			t.Fatalf("%s: %d %v", step.path, code, err)
		}
		if code, err := w.http(http.MethodGet, "/health", &body); err != nil || code != step.want {
			t.Fatalf("health after %s: %d %v", step.path, code, err)
		}
		w.await("what operators elsewhere see of "+step.path, func() error {
			_, b, err := w.presence()
			if want := step.path == "/drain"; err == nil && b.Draining != want {
				err = fmt.Errorf("draining: %t", b.Draining)
			}
			return err
		})
	}
}

// A primary that has died is known here long before its lease has run out: new
// queries wait at once, for it to come back or for another one.
func TestDeadPrimaryMakesClientsWait(t *testing.T) {
	for _, c := range []struct {
		name      string
		comesBack bool
	}{{"comesback", true}, {"isreplaced", false}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			answer, back := w.waiting(nil)
			if !w.paused() {
				t.Fatal("the database is not paused")
			}
			var want error
			if c.comesBack {
				back(nil)
				want = errElsewhere // it is none of the members that others come to
			} else {
				w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
			}
			if err := <-answer; !errors.Is(err, want) {
				t.Fatalf("the waiting client got %v, want %v", err, want)
			}
			w.awaitShard("end of the hold", func(s ShardStatus) bool { return !s.Held && !s.Unhealthy && s.VerifiedAt != nil })
			if w.paused() {
				t.Fatal("the database is still paused")
			}
		})
	}
}
