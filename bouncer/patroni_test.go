package bouncer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// patroniKVs are the keys of a cluster of three that Patroni runs: a leads.
func patroniKVs(change func(map[string]string)) cluster.Snapshot {
	values := map[string]string{
		"initialize": "7000000000000000001", "leader": "a", "status": `{"optime":100000000,"slots":{}}`,
		"members/a": `{"conn_url":"postgres://10.0.0.1:5433/postgres","role":"master","state":"running","timeline":3,"xlog_location":100000000}`,
		"members/b": `{"conn_url":"postgres://10.0.0.2/postgres","role":"replica","state":"running","timeline":3,"xlog_location":100000000,"tags":{"noloadbalance":true}}`,
		"members/c": `{"conn_url":"postgres://[fd00::3]:5434/postgres","role":"replica","state":"running","timeline":3,"xlog_location":100000000}`,
	}
	if change != nil {
		change(values)
	}
	keys := cluster.NewKeys("", "s1", "")
	var kvs []cluster.KV
	for name, value := range values {
		kv := cluster.KV{Key: keys.Prefix() + name, Value: []byte(value), ModifyIndex: 7}
		if name == "leader" {
			kv.Session, kv.ModifyIndex = "session", 9
		}
		kvs = append(kvs, kv)
	}
	return cluster.ParseSnapshot(keys, kvs, 12)
}

func TestPatroniRoute(t *testing.T) {
	now := time.Unix(1000, 0)
	first, index, err := patroniRoute(patroniKVs(nil), nil, 1000, now)
	if err != nil || index != 9 || first.Validate() != nil {
		t.Fatalf("%+v %d %v %v", first, index, err, first.Validate())
	}
	if first.State != cluster.RouteOpen || first.Timeline != 3 || first.Leader.Host != "10.0.0.1" || first.Leader.Port != 5433 || !first.Since.Equal(now) {
		t.Fatalf("%+v", first)
	}
	hosts := func(r cluster.Route) string {
		var all []string
		for _, m := range r.Replicas {
			all = append(all, m.Host+"/"+strconv.Itoa(m.Port))
		}
		return strings.Join(all, " ")
	}
	// A replica that says noloadbalance is a member nevertheless; readers are
	// chosen later.
	if got := hosts(first); got != "10.0.0.2/5432 fd00::3/5434" {
		t.Fatalf("replicas are %s", got)
	}
	without := first
	without.Replicas = nil
	role := func(member, from, to string) func(map[string]string) {
		return func(v map[string]string) { v["members/"+member] = strings.Replace(v["members/"+member], from, to, 1) }
	}
	for name, test := range map[string]struct {
		change   func(map[string]string)
		before   *cluster.Route
		state    cluster.RouteState // empty: an error
		replicas string
	}{
		"Patroni 4's word": {role("a", "master", "primary"), &first, cluster.RouteOpen, "10.0.0.2/5432 fd00::3/5434"},
		"being promoted":   {role("a", "master", "promoted"), &first, cluster.RoutePromoting, "10.0.0.2/5432 fd00::3/5434"},
		"still a replica":  {role("a", "master", "replica"), &first, cluster.RoutePromoting, "10.0.0.2/5432 fd00::3/5434"},
		"not running":      {role("a", "running", "stopping"), &first, cluster.RouteDown, "10.0.0.2/5432 fd00::3/5434"},
		"no leader":        {func(v map[string]string) { delete(v, "leader") }, &first, cluster.RouteDown, "10.0.0.2/5432 fd00::3/5434"},
		"never had one":    {func(v map[string]string) { delete(v, "leader") }, nil, "", ""},
		"a stranger leads": {func(v map[string]string) { v["leader"] = "z" }, &first, "", ""},
		"bad address":      {role("a", "10.0.0.1", ""), &first, "", ""},
		"bad member":       {func(v map[string]string) { v["members/c"] = "{" }, &first, cluster.RouteOpen, "10.0.0.2/5432"},
		"replica starts":   {role("c", "running", "starting"), &first, cluster.RouteOpen, "10.0.0.2/5432"},
		"replica lags":     {role("c", "n\":100000000", "n\":99998999"), &first, cluster.RouteOpen, "10.0.0.2/5432"},
		"it may lag":       {role("c", "n\":100000000", "n\":99999000"), &first, cluster.RouteOpen, "10.0.0.2/5432 fd00::3/5434"},
		"not back yet":     {role("c", "n\":100000000", "n\":99999000"), &without, cluster.RouteOpen, "10.0.0.2/5432"},
		"back":             {role("c", "n\":100000000", "n\":99999500"), &without, cluster.RouteOpen, "10.0.0.2/5432 fd00::3/5434"},
	} {
		got, _, err := patroniRoute(patroniKVs(test.change), test.before, 1000, now.Add(time.Hour))
		switch {
		case test.state == "":
			if err == nil {
				t.Errorf("%s: no error but %+v", name, got)
			}
		case err != nil || got.State != test.state || hosts(got) != test.replicas || !got.Since.Equal(now):
			t.Errorf("%s: %v %+v", name, err, got)
		}
	}
}

// Lictor's route takes over from Patroni's keys, and not the other way round.
func TestPatroniYieldsToRoute(t *testing.T) {
	b := newBook(config.Config{Shards: []config.Shard{{Scope: "s1", Namespace: "service"}, {Scope: "s2", Namespace: "service", Patroni: true}}, RoutesPrefix: "lictor"})
	patroni, _, err := patroniRoute(patroniKVs(nil), nil, 1000, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	changed, err := b.followed("service/s1", patroni, 500)
	if err != nil || !changed || b.routed("service/s1") {
		t.Fatalf("%v %v", changed, err)
	}
	if changed, err = b.followed("service/s1", patroni, 501); err != nil || changed {
		t.Fatalf("the same again: %v %v", changed, err)
	}
	// Routes come and go; what is Patroni's stays.
	out := b.merge(answer{KnownLeader: true, Consistent: true, Epoch: b.now()})
	if k, found := b.get("service/s1"); !found || k.Gone || len(out.News) > 0 {
		t.Fatalf("%+v %+v", k, out)
	}
	route := patroni
	route.Leader.Name = "lictor"
	value, err := json.Marshal(route)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"s1", "s2"} {
		b.merge(answer{KnownLeader: true, Pairs: []pair{{Key: "lictor/routes/service/" + id, Value: value, ModifyIndex: 3}}})
	}
	if k, _ := b.get("service/s1"); k.Route.Leader.Name != "lictor" || !b.routed("service/s1") {
		t.Fatalf("%+v", k)
	}
	if changed, err = b.followed("service/s1", patroni, 900); err != nil || changed {
		t.Fatalf("over a route: %v %v", changed, err)
	}
	if _, found := b.get("service/s2"); found {
		t.Fatal("a route was followed though patroni is set")
	}
	foreign := patroni
	foreign.SystemIdentifier = "8"
	if _, err = b.followed("service/s2", patroni, 1); err != nil {
		t.Fatal(err)
	}
	if _, err = b.followed("service/s2", foreign, 2); !errors.Is(err, errForeign) {
		t.Fatalf("a foreign cluster: %v", err)
	}
}

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
