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
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A Consul address whose blocking query is silent for ever, because its process was
// stopped or its host was lost, is found out by what another one says.
func TestSilentConsulAddressIsFoundOut(t *testing.T) {
	var second *proxy
	w := newWorld(t, func(c *Config) {
		second = newProxy(t, shared.consul)
		c.Consul.Hosts = []string{c.Consul.Host, second.address}
		c.Consul.Host = ""
	})
	clients, err := consulClients(w.config)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := newConsulPool(clients)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.close()
	b := newBook(w.config)
	// No presence, which would notice after some seconds.
	watcher := newWatcher(zerolog.New(w.log), pool, b, newHandovers(w.config.keys(), b.serves), func() {})
	ctx, cancel := context.WithCancel(w.ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { watcher.watch(ctx) })
	running.Go(func() { watcher.serve(ctx) })

	await := func(leader int) {
		w.await("route", func() error {
			if known := knownTo(b)["service/s1"]; known.Route.Leader.Name != w.site.members[leader].Name {
				return fmt.Errorf("%+v", known)
			}
			return nil
		})
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	await(0)
	w.proxy.hang(true)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	await(1)
	w.await("the other address in use", func() error {
		if pool.inUse() != 1 {
			return errors.New("still the silent one")
		}
		return nil
	})
	// And back, when the other one is lost too.
	w.proxy.hang(false)
	second.hang(true)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	await(0)
}

// A session belongs to the node of the Consul agent that it was made at, and ends
// when that node is given up: the bouncer moves its key to another one before.
func TestPresenceMovesToAnotherAddress(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		second := newProxy(t, shared.consul)
		c.Consul.Hosts = []string{c.Consul.Host, second.address}
		c.Consul.Host = ""
	})
	w.bouncer()
	holder := func() (*api.KVPair, error) {
		pair, _, err := w.site.client.KV().Get(w.config.keys().Bouncers()+w.config.Name, nil)
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
	if _, err := cluster.ParseBouncer(pair.Value); err != nil {
		t.Errorf("the key's value: %v", err)
	}
}

// waiting starts a shard whose primary is lost while a client waits, and returns
// what the client gets, and a function that brings the lost primary back.
func (w *world) waiting(prepare func(member cluster.RouteMember)) (answer <-chan error, back func(edit func(data string))) {
	w.t.Helper()
	member := cluster.RouteMember{Name: "db9", Host: "127.0.0.1", Port: freePort(w.t)}
	data := w.dir + "/data"
	stop, err := w.site.runPostgres(data, member.Port)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { stop(syscall.SIGQUIT) })
	if err := createDatabase(member); err != nil {
		w.t.Fatal(err)
	}
	if prepare != nil {
		prepare(member)
	}
	r := w.route(0, cluster.RouteOpen)
	r.Leader = member
	w.put(w.keys.Route(), r)
	w.bouncer()
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
	got := make(chan error, 1)
	go func() {
		at, err := w.ask(w.ctx, client)
		if err == nil && at != 1 {
			err = fmt.Errorf("it reached member %d", at)
		}
		got <- err
	}()
	w.awaitShard("hold", func(s ShardStatus) bool { return s.Held && s.Ill && s.Paused })
	w.await("the client waiting", func() error {
		pools, err := w.admin().Pools(w.ctx)
		for _, p := range pools {
			if p.ClientsWaiting > 0 {
				return err
			}
		}
		return fmt.Errorf("%+v %w", pools, err)
	})
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

// A primary that answers again is no reason to release clients while Consul cannot
// say whether it still is one.
func TestLostPrimaryIsBackWhileConsulIsSilent(t *testing.T) {
	w := newWorld(t, nil)
	answer, back := w.waiting(nil)
	w.proxy.set(true)
	back(nil)
	w.await("a look at Consul", func() error {
		if !strings.Contains(w.log.String(), "Consul cannot be reached") {
			return errors.New("none yet")
		}
		return nil
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.proxy.set(false)
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
}

// Except when it says itself that it is one: members run a primary only as long as
// nobody else may.
func TestLostPrimaryIsBackAndSaysSo(t *testing.T) {
	needInHotStandby(t)
	w := newWorldFor(t, 25*time.Second, nil) // less than hold_timeout
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
	s := w.awaitShard("end of the hold", func(s ShardStatus) bool { return !s.Held && !s.Ill })
	if s.State != cluster.RouteOpen {
		t.Errorf("state %s", s.State)
	}
}

// Nor is one that has become a replica before Consul knows of a new primary.
func TestLostPrimaryIsBackAsReplica(t *testing.T) {
	needInHotStandby(t)
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
		if err := giveAway(signal); err != nil {
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

func execute(m cluster.RouteMember, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=app dbname=postgres sslmode=disable", m.Host, m.Port))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql).ReadAll()
	return errors.Join(err, conn.Close(ctx))
}
