package bouncer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// threeAddresses makes a world whose Consul has three addresses.
func threeAddresses(t *testing.T) (w *world, addresses []*proxy) {
	w = newWorld(t, func(c *config.Config) {
		addresses = []*proxy{newProxy(t, shared.consul), newProxy(t, shared.consul)}
		c.Consul.Hosts = []string{c.Consul.Host, addresses[0].address, addresses[1].address}
		c.Consul.Host = ""
	})
	return w, append([]*proxy{w.proxy}, addresses...)
}

// watches runs a watcher alone, without the presence, which would notice a silent
// Consul address after some seconds. await waits until it knows the leader.
func (w *world) watches(holding bool) (pool *consul.Pool, await func(leader int)) {
	w.t.Helper()
	clients, err := consul.NewClients(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	if pool, err = consul.NewPool(clients); err != nil {
		w.t.Fatal(err)
	}
	b := routes.NewTable(w.config)
	watcher := routes.NewWatcher(zerolog.New(w.log), pool, b, routes.NewHandovers(w.config.Keys(), b.Serves), func() {})
	watcher.Holding = func() bool { return holding }
	ctx, cancel := context.WithCancel(w.ctx)
	var running sync.WaitGroup
	running.Go(func() { watcher.Watch(ctx) })
	running.Go(func() { watcher.Serve(ctx) })
	w.t.Cleanup(func() { cancel(); running.Wait(); pool.Close() })
	return pool, func(leader int) {
		w.t.Helper()
		w.await("route", func() error {
			if known := knownIn(b)["service/s1"]; known.Route.Leader.Name != w.site.members[leader].Name {
				return fmt.Errorf("%+v", known)
			}
			return nil
		})
	}
}

// A Consul address whose blocking query is silent for ever, because its process was
// stopped or its host was lost, is found out by what another one says.
func TestSilentConsulAddressIsFoundOut(t *testing.T) {
	w, addresses := threeAddresses(t)
	pool, await := w.watches(false)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	await(0)
	first := pool.InUse()
	addresses[first].hang(true)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	await(1)
	w.await("another address in use", func() error {
		if pool.InUse() == first {
			return errors.New("still the silent one")
		}
		return nil
	})
	// And on, when that one is lost too.
	addresses[first].hang(false)
	addresses[pool.InUse()].hang(true)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	await(0)
}

// While clients are held the routes are read from any address that answers, though
// neither of those that would tell of a change does.
func TestRoutesAreReadWhileHolding(t *testing.T) {
	w, addresses := threeAddresses(t)
	pool, await := w.watches(true)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	await(0)
	inUse := pool.InUse()
	addresses[inUse].hang(true)
	addresses[(inUse+1)%len(addresses)].hang(true)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	await(1)
}

// A session belongs to the node of the Consul agent that it was made at, and ends
// when that node is given up: the bouncer moves its key to another one before.
func TestPresenceMovesToAnotherAddress(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		second := newProxy(t, shared.consul)
		c.Consul.Hosts = []string{c.Consul.Host, second.address}
		c.Consul.Host = ""
	})
	w.bouncer()
	holder := func() (*api.KVPair, error) {
		pair, _, err := w.site.client.KV().Get(w.config.Keys().Bouncers()+w.config.Name, nil)
		if err == nil && (pair == nil || pair.Session == "") {
			err = errors.New("the bouncer has no key")
		}
		return pair, err
	}
	var before *api.KVPair
	w.await("presence", func() (err error) { before, err = holder(); return err })
	w.proxy.hang(true)
	w.await("another session", func() error {
		now, err := holder()
		if err == nil && now.Session == before.Session {
			err = errors.New("the session is the old one still")
		}
		return err
	})
	pair, err := holder()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.ParseBouncer(w.config.Name, pair.Value); err != nil {
		t.Errorf("the key's value: %v", err)
	}
}

// waiting starts a shard whose primary is lost while a client waits, and returns
// what the client gets, and a function that brings the lost primary back.
func (w *world) waiting(prepare func(member cluster.RouteMember)) (answer <-chan error, back func(edit func(data string))) {
	w.t.Helper()
	member := cluster.RouteMember{Name: "db9", Host: "127.0.0.1", Port: bouncertest.FreePort(w.t)}
	data := w.dir + "/data"
	stop, err := w.site.runPostgres(data, member.Port)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { stop(syscall.SIGQUIT) })
	if err := execute(member, "CREATE DATABASE s1"); err != nil {
		w.t.Fatal(err)
	}
	if prepare != nil {
		prepare(member)
	}
	r := w.route(0, cluster.RouteOpen)
	r.Leader = member
	w.put(w.keys.Route(), r)
	w.stop = w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	stop(syscall.SIGQUIT)
	w.await("PgBouncer noticing", func() error {
		servers, err := w.admin().Servers(w.ctx)
		for _, s := range servers {
			if s.Database == "s1" {
				err = fmt.Errorf("%+v", servers)
			}
		}
		return err
	})
	got := w.awaitMember1(client)
	w.awaitShard("hold", func(s ShardStatus) bool { return s.Held && s.Unhealthy && s.Paused })
	w.awaitPool("the client waiting", func(p pgbouncer.Pool) bool { return p.ClientsWaiting > 0 })
	return got, func(edit func(data string)) {
		if edit != nil {
			edit(data)
		}
		again, err := w.site.runPostgres(data, member.Port)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { again(syscall.SIGQUIT) })
	}
}

// append adds text to a file.
func (w *world) append(path, text string) {
	w.t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = file.WriteString(text)
	if err := errors.Join(err, file.Close()); err != nil {
		w.t.Fatal(err)
	}
}

// A primary that answers again is no reason to release clients while Consul cannot
// say whether it still is one.
func TestLostPrimaryIsBackWhileConsulIsSilent(t *testing.T) {
	w := newWorld(t, nil)
	answer, back := w.waiting(nil)
	w.proxy.set(true)
	w.await("Consul being missed", func() error {
		if !strings.Contains(w.log.String(), "Consul cannot be reached") {
			return errors.New("not yet")
		}
		return nil
	})
	var log string
	back(func(data string) {
		log = filepath.Join(data, "log", "postgresql.log")
		w.append(filepath.Join(data, "postgresql.conf"), "logging_collector = on\nlog_directory = 'log'\nlog_filename = 'postgresql.log'\n")
	})
	// Each probe starts when what the one before has found was handed on, and that is
	// taken when what was found before it was dealt with.
	w.await("a probe's answer being dealt with", func() error {
		text, err := os.ReadFile(log)
		if n := strings.Count(string(text), `role "pooler" does not exist`); err == nil && n < 3 {
			err = fmt.Errorf("%d probes", n)
		}
		return err
	})
	if s, err := w.status(); err != nil || !s.Shards["service/s1"].Held {
		t.Errorf("clients are not held any more: %+v, %v", s.Shards, err)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.proxy.set(false)
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
}

// Except when it says itself that it is one: members run a primary only as long as
// nobody else may.
func TestLostPrimaryIsBackAndSaysSo(t *testing.T) {
	bouncertest.NeedInHotStandby(t)
	w := newWorld(t, nil)
	answer, back := w.waiting(func(m cluster.RouteMember) {
		if err := execute(m, "CREATE ROLE pooler LOGIN"); err != nil {
			t.Fatal(err)
		}
	})
	w.proxy.set(true)
	back(nil)
	if err := <-answer; !errors.Is(err, errElsewhere) {
		t.Fatalf("the waiting client got %v", err)
	}
	s := w.awaitShard("end of the hold", func(s ShardStatus) bool { return !s.Held && !s.Unhealthy })
	if s.State != cluster.RouteOpen {
		t.Errorf("state %s", s.State)
	}
}

// Nor is one that does not serve yet, however its refusal looks after a try with TLS.
func TestLostPrimaryIsBackAndStarts(t *testing.T) {
	w := newWorld(t, nil)
	answer, back := w.waiting(nil)
	var log string
	back(func(data string) {
		log = filepath.Join(data, "log", "postgresql.log")
		w.append(filepath.Join(data, "postgresql.conf"), "logging_collector = on\nlog_directory = 'log'\nlog_filename = 'postgresql.log'\nlog_file_mode = 0644\nhot_standby = off\n")
		signal := filepath.Join(data, "standby.signal")
		if err := os.WriteFile(signal, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := bouncertest.GiveAway(signal); err != nil {
			t.Fatal(err)
		}
	})
	w.await("probes being answered", func() error {
		text, err := os.ReadFile(log)
		if n := strings.Count(string(text), "FATAL:  the database system is"); err == nil && n < 8 {
			err = fmt.Errorf("%d refusals", n)
		}
		return err
	})
	if s, err := w.status(); err != nil || !s.Shards["service/s1"].Held || strings.Contains(w.log.String(), "clients released") {
		t.Errorf("clients are not held any more: %+v, %v", s.Shards, err)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
}

// Nor is one that has become a replica before Consul knows of a new primary.
func TestLostPrimaryIsBackAsReplica(t *testing.T) {
	bouncertest.NeedInHotStandby(t)
	w := newWorld(t, nil)
	answer, back := w.waiting(func(m cluster.RouteMember) {
		if err := execute(m, "CREATE ROLE pooler LOGIN"); err != nil {
			t.Fatal(err)
		}
	})
	back(func(data string) {
		signal := filepath.Join(data, "standby.signal")
		if err := os.WriteFile(signal, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := bouncertest.GiveAway(signal); err != nil {
			t.Fatal(err)
		}
	})
	w.await("the replica being recognized", func() error {
		if !strings.Contains(w.log.String(), "as a replica") {
			return errors.New("not yet")
		}
		return nil
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
}
