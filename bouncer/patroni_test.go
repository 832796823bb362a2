package bouncer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// realPatroni is one member run by the Patroni that is installed.
type realPatroni struct {
	name     string
	pg, rest int
	process  *exec.Cmd
}

func (w *world) patroni(name string) *realPatroni {
	w.t.Helper()
	p := &realPatroni{name: name, pg: bouncertest.FreePort(w.t), rest: bouncertest.FreePort(w.t)}
	dir := filepath.Join(w.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := bouncertest.GiveAway(dir); err != nil {
		w.t.Fatal(err)
	}
	user := map[string]any{"username": "app", "password": "app"}
	text, err := yaml.Marshal(map[string]any{
		"scope": "p1", "namespace": "/" + w.config.RoutesPrefix + "/", "name": name,
		"consul":  map[string]any{"host": w.site.consul, "register_service": false},
		"restapi": map[string]any{"listen": "127.0.0.1:" + strconv.Itoa(p.rest), "connect_address": "127.0.0.1:" + strconv.Itoa(p.rest)},
		"bootstrap": map[string]any{
			"dcs":    map[string]any{"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "postgresql": map[string]any{"parameters": map[string]any{"wal_level": "replica"}}},
			"initdb": []any{map[string]any{"auth": "trust"}, "no-sync"},
		},
		"postgresql": map[string]any{
			"listen": "127.0.0.1:" + strconv.Itoa(p.pg), "connect_address": "127.0.0.1:" + strconv.Itoa(p.pg),
			"data_dir": filepath.Join(dir, "data"), "bin_dir": bouncertest.PostgresBin(), "pgpass": filepath.Join(dir, "pgpass"),
			"authentication": map[string]any{"superuser": user, "replication": user},
			"parameters":     map[string]any{"unix_socket_directories": dir, "fsync": "off", "shared_buffers": "2MB", "max_connections": 40},
			"pg_hba":         []string{"local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"},
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	file := filepath.Join(dir, "patroni.yml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		w.t.Fatal(err)
	}
	log := &bouncertest.Log{}
	p.process = bouncertest.Unprivileged(exec.Command("/usr/bin/patroni", file))
	p.process.Stdout, p.process.Stderr, p.process.Dir = log, log, dir
	p.process.WaitDelay = time.Second // its PostgreSQL, which may outlive it, has its output too
	if err := p.process.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		// Patroni stops PostgreSQL before it ends.
		_ = p.process.Process.Signal(syscall.SIGTERM)
		ended := make(chan struct{})
		go func() { _ = p.process.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = p.process.Process.Kill()
			<-ended
		}
		if w.t.Failed() {
			w.t.Logf("log of Patroni %s:\n%s", name, log.String())
		}
	})
	return p
}

func (w *world) awaitRole(p *realPatroni, path string) {
	w.t.Helper()
	w.await(p.name+" "+path, func() error {
		response, err := http.Get("http://127.0.0.1:" + strconv.Itoa(p.rest) + path)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", response.StatusCode)
		}
		return nil
	})
}

// A shard that Debian's Patroni runs is followed by Patroni's own keys, through a
// switchover.
func TestFollowsPatroni(t *testing.T) {
	if _, err := os.Stat("/usr/bin/patroni"); err != nil {
		t.Skip("Patroni is not installed")
	}
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	w := newWorldFor(t, 3*time.Minute, func(c *config.Config) {
		c.Shards = []config.Shard{{Scope: "p1", Namespace: c.RoutesPrefix, Databases: []string{"p1=postgres"}}}
	})
	w.bouncer()
	w.pgbouncer()
	a := w.patroni("a")
	w.awaitRole(a, "/primary")
	b := w.patroni("b")
	w.awaitRole(b, "/replica")
	id := config.ShardID(w.config.RoutesPrefix + "/p1")
	leads := func(p *realPatroni) {
		t.Helper()
		w.await(p.name+" followed", func() error {
			s, err := w.status()
			if err != nil {
				return err
			}
			if got := s.Shards[id]; got.Port != p.pg || got.VerifiedAt == nil || got.State != cluster.RouteOpen || got.Held {
				return fmt.Errorf("%+v %v", got, s.Problems)
			}
			return nil
		})
	}
	serves := func(database string, want int) {
		t.Helper()
		client := w.connect(database)
		results, err := client.Exec(w.ctx, "SELECT inet_server_port()").ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(results[0].Rows[0][0]); got != strconv.Itoa(want) {
			t.Fatalf("%s leads to %s, not %d", database, got, want)
		}
	}
	leads(a)
	serves("p1", a.pg)
	w.await("the replica taking readers", func() error {
		all, err := w.admin().Databases(w.ctx)
		if err != nil || all["p1_ro"].Port != b.pg {
			return fmt.Errorf("%+v %w", all["p1_ro"], err)
		}
		return nil
	})
	serves("p1_ro", b.pg)
	body, err := json.Marshal(map[string]string{"leader": "a", "candidate": "b"})
	if err != nil {
		t.Fatal(err)
	}
	w.await("switchover", func() error {
		response, err := http.Post("http://127.0.0.1:"+strconv.Itoa(a.rest)+"/switchover", "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		// It refuses with 412 while the candidate is not ready, and says 503 when it
		// gave up to wait for the end.
		if err != nil || response.StatusCode != http.StatusOK && response.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("%s: %s %w", response.Status, text, err)
		}
		return nil
	})
	leads(b)
	serves("p1", b.pg)
	// Lictor takes the shard over: its route rules from now on.
	keys := cluster.NewKeys(w.config.RoutesPrefix, "p1", w.config.RoutesPrefix)
	pair, _, err := w.site.client.KV().Get(keys.Initialize(), nil)
	if err != nil || pair == nil {
		t.Fatalf("%v %v", pair, err)
	}
	route := w.route(0, cluster.RouteOpen)
	route.SystemIdentifier, route.Timeline = string(pair.Value), 9
	value, err := json.Marshal(route)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.site.client.KV().Put(&api.KVPair{Key: keys.Route(), Value: value}, nil); err != nil {
		t.Fatal(err)
	}
	w.await("the route", func() error {
		s, err := w.status()
		if err == nil && s.Shards[id].Leader != "db1" {
			err = fmt.Errorf("%+v", s.Shards[id])
		}
		return err
	})
}
