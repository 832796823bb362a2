package bouncer

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A bouncer that starts with a file that is wrong beyond one shard goes on with what was last
// followed of it, follows routes as ever, and tells.
func TestStartWithAWrongFile(t *testing.T) {
	w := newWorld(t, nil)
	state := t.TempDir() // it belongs to the bouncer's own user
	path := filepath.Join(w.dir, "bouncer.yml")
	load := func(with func(settings.Source) (config.Config, []cluster.Warning, error), clients string) error {
		t.Helper()
		c := w.config
		w.write("bouncer.yml", fmt.Sprintf(`
name: %s
listen: %s
consul: {host: "%s"}
routes_prefix: %s
hold_timeout: 300
pgbouncer: {config: %s, admin: "%s", user: pooler, settings: {query_wait_timeout: 301, max_client_conn: %s}}
shards: [{scope: s1}]
`, c.Name, c.Listen, c.Consul.Host, c.RoutesPrefix, c.PgBouncer.Config, c.PgBouncer.Admin, clients))
		loaded, _, err := with(settings.Source{Path: path, Environ: []string{"STATE_DIRECTORY=" + state}})
		if err == nil {
			w.config = loaded
		}
		return err
	}
	if err := load(config.LoadServable, "abc"); err == nil || !strings.Contains(err.Error(), "max_client_conn") || !strings.Contains(err.Error(), "There is none to start with") {
		t.Fatalf("the first start: %v", err)
	}
	if err := load(config.LoadServable, "90"); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	w.await("the file being kept", func() error {
		files, err := filepath.Glob(filepath.Join(state, "*.last-good"))
		if err == nil && len(files) != 1 {
			return errors.New("none")
		}
		info, err := os.Stat(files[0])
		if err == nil && info.Mode().Perm() != 0o600 { // it has passwords
			t.Errorf("its mode is %v", info.Mode())
		}
		return err
	})
	stop()

	for i, bad := range []string{"abc", "90}}\nshards: ["} { // a value, and what is no YAML at all
		if err := load(config.LoadServable, bad); err != nil {
			t.Fatal(err)
		}
		stop := w.bouncer()
		w.put(w.keys.Route(), w.route((i+1)%2, cluster.RouteOpen))
		w.awaitLeader((i + 1) % 2)
		w.await("/health", func() error {
			var h Health
			code, err := w.http(http.MethodGet, "/health", &h)
			if err == nil && (code != http.StatusOK || len(h.Warnings) != 1 || !strings.Contains(h.Warnings[0], "what was last followed of it") || !strings.Contains(h.Warnings[0], path)) {
				err = fmt.Errorf("%d %+v", code, h)
			}
			return err
		})
		if s, err := w.status(); err != nil || !strings.Contains(s.Problems["bouncer.yml"], "configuration from "+path+" is refused") {
			t.Errorf("%v, problems are %v", err, s.Problems)
		}
		if i == 1 { // it is mended, and SIGHUP
			if err := load(config.Load, "95"); err != nil {
				t.Fatal(err)
			}
			w.changes <- w.config
			w.awaitHealthy()
			if s, err := w.status(); err != nil || len(s.Problems) > 0 {
				t.Errorf("%v, problems are %v", err, s.Problems)
			}
		}
		stop()
	}
	// What was mended is what stands next time.
	if err := load(config.LoadServable, "abc"); err != nil || fmt.Sprint(w.config.PgBouncer.Settings["max_client_conn"]) != "95" {
		t.Errorf("%v, settings are %v", err, w.config.PgBouncer.Settings)
	}
}
