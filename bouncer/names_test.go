package bouncer

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Names as people give them: PgBouncer itself takes what it can, what it cannot is told,
// and no shard goes without its failover for another one's name.
func TestNamesOfDatabases(t *testing.T) {
	offered := []string{"my-shard", "a.b", "-x.y_1", "9"}
	quoted := []string{"my shard", "café", `a"b`, "a;b", "a@b"}
	never := []string{"a'b"}
	w := newWorld(t, func(c *config.Config) {
		c.Shards = []config.Shard{{Scope: "s1"}}
		for i, name := range append(append(append([]string{}, offered...), quoted...), never...) {
			c.Shards = append(c.Shards, config.Shard{Scope: fmt.Sprint("n", i), Databases: []string{name + "=postgres"}})
		}
	})
	key := func(scope string) string { return cluster.NewKeys("", scope, w.config.RoutesPrefix).Route() }
	for _, s := range w.config.Shards[1:] {
		w.put(key(s.Scope), w.route(0, cluster.RouteOpen))
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	version, err := w.admin().Version(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	refused := never
	if version.AtLeast(1, 25) {
		offered = append(offered, quoted...)
	} else {
		refused = append(refused, quoted...)
	}
	var told string
	w.await("what is not offered being told", func() error {
		s, err := w.status()
		if err != nil {
			return err
		}
		if told = fmt.Sprint(s.Problems); len(s.Problems) != len(refused) {
			return fmt.Errorf("problems are %s", told)
		}
		return nil
	})
	for _, name := range refused {
		if !strings.Contains(told, fmt.Sprintf("database %q cannot be written to pgbouncer.ini", name)) {
			t.Errorf("%s is not told: %s", name, told)
		}
	}
	all, err := w.admin().Databases(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range offered {
		if all[name].Port != w.site.members[0].Port || all[name+"_ro"].Port != w.site.members[0].Port {
			t.Errorf("%s is not offered: %+v", name, all[name])
		}
	}
	// The others fail over, and they are held as any.
	w.put(key("n0"), w.route(0, cluster.RouteHandover))
	w.await("hold of my-shard", func() error {
		if all, err := w.admin().Databases(w.ctx); err != nil || !all["my-shard"].Paused {
			return fmt.Errorf("%+v %w", all["my-shard"], err)
		}
		return nil
	})
	w.put(key("n0"), w.route(1, cluster.RouteOpen))
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if got := w.where(w.connect("my-shard")); got != 1 {
		t.Errorf("my-shard is answered by member %d", got)
	}
}

// A new shard takes no database from one that has it: not while the bouncer runs, not after
// its restart, and not from a bouncer that sees both for the first time.
func TestNewShardTakesNoName(t *testing.T) {
	w := newWorld(t, nil)
	key := func(namespace, scope string) string {
		return cluster.NewKeys(namespace, scope, w.config.RoutesPrefix).Route()
	}
	for _, scope := range []string{"s1", "orders_ro"} {
		w.put(key("service", scope), w.route(0, cluster.RouteOpen))
	}
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	kept := func() {
		t.Helper()
		w.await("the new ones being told", func() error {
			s, err := w.status()
			if err != nil {
				return err
			}
			told := s.Problems["dev/s1"] + " " + s.Problems["service/orders"]
			if strings.Count(told, "already belongs to shard service/") != 2 || s.Shards["service/s1"].VerifiedAt == nil {
				return fmt.Errorf("problems %v, %+v", s.Problems, s.Shards)
			}
			return nil
		})
		all, err := w.admin().Databases(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"s1", "orders_ro"} {
			if all[name].Port != w.site.members[0].Port {
				t.Errorf("%s leads to %+v", name, all[name])
			}
		}
	}
	w.put(key("dev", "s1"), w.route(1, cluster.RouteOpen))
	w.put(key("service", "orders"), w.route(1, cluster.RouteOpen))
	kept()
	rows, err := Overview(w.ctx, w.config)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, row := range rows {
		if strings.Contains(row.Problem, "already belongs") && row.Bouncer == "b1" {
			told++
		}
	}
	if told != 2 {
		t.Errorf("lictor routes tells of %d: %+v", told, rows)
	}
	stop()
	stop = w.bouncer()
	kept()
	stop()
	if err := os.Remove(w.config.StateFile); err != nil {
		t.Fatal(err)
	}
	w.bouncer()
	kept()
	// The elder one goes, and the name is free.
	if _, err := w.site.client.KV().Delete(key("service", "s1"), nil); err != nil {
		t.Fatal(err)
	}
	w.await("s1 of dev", func() error {
		all, err := w.admin().Databases(w.ctx)
		if err == nil && all["s1"].Port != w.site.members[1].Port {
			err = fmt.Errorf("%+v", all["s1"])
		}
		return err
	})
}

// Names at PgBouncer's limit of 63 bytes, which the readers' name reaches first: the longest one
// that fits is served, a longer one is told and keeps no other shard from its failover.
func TestLongNames(t *testing.T) {
	w := newWorld(t, nil)
	fits, long := strings.Repeat("y", 60), strings.Repeat("x", 61)
	quoted := "z-" + strings.Repeat("z", 57) // of which the console takes no command with _ro
	key := func(scope string) string { return cluster.NewKeys("", scope, w.config.RoutesPrefix).Route() }
	for _, scope := range []string{"s1", fits, long, quoted} {
		w.put(key(scope), w.route(0, cluster.RouteOpen))
	}
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	for _, scope := range []string{fits, quoted} { // their clients wait, and go on
		w.put(key(scope), w.route(0, cluster.RouteDown))
		id := config.ShardID("service/" + scope)
		w.await(scope+" being held", func() error {
			if s, err := w.status(); err != nil || !s.Shards[id].Held || !s.Shards[id].Paused {
				return fmt.Errorf("%+v, %w", s.Shards[id], err)
			}
			return nil
		})
		w.put(key(scope), w.route(0, cluster.RouteOpen))
		w.await(scope+" going on", func() error {
			if s, err := w.status(); err != nil || s.Shards[id].Held || s.Shards[id].AnyPaused {
				return fmt.Errorf("%+v, %w", s.Shards[id], err)
			}
			return nil
		})
	}
	w.awaitProblem(fmt.Sprintf("shard service/%s is not offered: database %q must not be longer than 60 bytes", long, long))
	w.put(key(fits), w.route(1, cluster.RouteOpen))
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.await("the long name following its route", func() error {
		all, err := w.admin().Databases(w.ctx)
		if err != nil || all[fits].Port != w.site.members[1].Port || all[fits+"_ro"].Port != w.site.members[1].Port {
			return fmt.Errorf("%+v %w", all, err)
		}
		return nil
	})
	w.awaitHealthy()
}
