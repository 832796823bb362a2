package bouncer

import (
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// The first rollout beside a PgBouncer that runs, while not every shard's route is known: it
// keeps what PgBouncer has of the others and their clients, and is not healthy until all are.
func TestFirstFileKeepsWhatPgBouncerHas(t *testing.T) {
	for _, include := range []bool{false, true} {
		t.Run(map[bool]string{false: "read", true: "included"}[include], func(t *testing.T) {
			w := newWorld(t, func(c *config.Config) {
				c.Shards = []config.Shard{{Scope: "s1"}, {Scope: "s2", Databases: []string{"s2=s1"}}, {Scope: "s3"}}
			})
			at0 := fmt.Sprintf("host=127.0.0.1 port=%d", w.site.members[0].Port)
			databases := fmt.Sprintf("[databases]\ns1 = %s\ns2 = %s dbname=s1 pool_size=3\n", at0, at0)
			text := fmt.Sprintf("[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = %s\nadmin_users = pooler\npool_mode = transaction\n",
				w.port, filepath.Join(w.dir, "userlist.txt"))
			if include { // which is not read here
				w.write("databases.ini", databases)
				text += "%include " + filepath.Join(w.dir, "databases.ini") + "\n"
			} else {
				text += databases
			}
			w.write("pgbouncer.ini", text)
			w.pgbouncer()
			w.awaitConsole()
			client := w.connect("s2")
			w.exec(client, "SELECT 1")
			w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
			w.bouncer()
			w.awaitLeader(1)
			if got := w.where(client); got != 0 {
				t.Errorf("the client of s2 is at %d", got)
			}
			w.await("the reason", func() error {
				var h Health
				code, err := w.http(http.MethodGet, "/health", &h)
				reasons := strings.Join(h.Reasons, " ")
				if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(reasons, "no route is known of shard service/s2") || !strings.Contains(reasons, "service/s3")) {
					err = errors.New(reasons)
				}
				return err
			})
			for _, scope := range []string{"s2", "s3"} {
				w.put(cluster.NewKeys("", scope, w.config.RoutesPrefix).Route(), w.route(1, cluster.RouteOpen))
			}
			w.awaitHealthy()
			if got := w.where(client); got != 1 {
				t.Errorf("the client of s2 is at %d", got)
			}
			if installed, err := os.ReadFile(w.config.PgBouncer.Config); err != nil || strings.Contains(string(installed), "as they were") {
				t.Errorf("the file is %s, %v", installed, err)
			}
		})
	}
}

// A shard of the configuration whose key is deleted stays, and others go on.
func TestConfiguredShardStays(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Shards = []config.Shard{{Scope: "s1"}, {Scope: "s2", Databases: []string{"s2=s1"}}}
	})
	s2 := cluster.NewKeys("", "s2", w.config.RoutesPrefix)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.put(s2.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	client := w.connect("s2")
	w.exec(client, "SELECT 1")
	if _, err := w.site.client.KV().Delete(s2.Route(), nil); err != nil {
		t.Fatal(err)
	}
	w.await("the loss being told", func() error {
		s, err := w.status()
		if err == nil && !strings.Contains(s.Problems[""], "[service/s2] have vanished") {
			err = fmt.Errorf("%v", s.Problems)
		}
		return err
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.awaitHealthy()
	if got := w.where(client); got != 0 {
		t.Errorf("the client of s2 is at %d", got)
	}
	// It leaves when the configuration says so.
	without := w.config
	without.Shards = without.Shards[:1]
	w.changes <- without
	w.await("s2 leaving", func() error {
		all, err := w.admin().Databases(w.ctx)
		if _, stays := all["s2"]; err == nil && stays {
			err = errors.New("s2 is still there")
		}
		return err
	})
}

// A bouncer that serves all shards loses none whose route its token may not read any more.
func TestHiddenRouteStays(t *testing.T) {
	hides := &atomic.Bool{}
	w := newWorld(t, func(c *config.Config) {
		pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: c.Consul.Host})
		pass.ErrorLog = stdlog.New(io.Discard, "", 0)
		pass.ModifyResponse = func(response *http.Response) error {
			if hides.Load() && routeRequestKind(response.Request.URL) == "list" {
				response.Header.Set("X-Consul-Results-Filtered-By-Acls", "true")
			}
			return nil
		}
		server := httptest.NewServer(pass)
		t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
		c.Consul.Host = strings.TrimPrefix(server.URL, "http://")
	})
	s2 := cluster.NewKeys("", "s2", w.config.RoutesPrefix).Route()
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.put(s2, w.route(0, cluster.RouteOpen))
	t.Cleanup(w.bouncer()) // before Consul's end
	w.pgbouncer()
	w.awaitHealthy()
	hides.Store(true)
	if _, err := w.site.client.KV().Delete(s2, nil); err != nil { // for the bouncer it is as if the token might not read it
		t.Fatal(err)
	}
	w.await("what is hidden being told", func() error {
		s, err := w.status()
		if err == nil && !strings.Contains(s.Problems[""], "[service/s2] are not among those that the token may read") {
			err = fmt.Errorf("%v", s.Problems)
		}
		return err
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if all, err := w.admin().Databases(w.ctx); err != nil || all["s2"].Port != w.site.members[0].Port {
		t.Errorf("%v, databases are %+v", err, all)
	}
	hides.Store(false)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.await("s2 leaving", func() error {
		all, err := w.admin().Databases(w.ctx)
		if _, stays := all["s2"]; err == nil && stays {
			err = errors.New("s2 is still there")
		}
		return err
	})
}
