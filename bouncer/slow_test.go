package bouncer

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// A peer that does not read for 10 s is slow, not lost: nobody's connection is reset,
// whether sockets can be closed here or TCP's timeouts must free clients.
func TestSlowPeersAreNotLost(t *testing.T) {
	for name, can := range map[string]bool{"closing": true, "powerless": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits
			slowPeers(t, can)
		})
	}
}

func slowPeers(t *testing.T, closes bool) {
	const stall = 10 * time.Second
	w := newWorld(t, func(c *config.Config) { *c = c.WithClosing(closes) })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	client, writer := w.connect("s1"), w.connect("s1")
	copied := make(chan error, 1)
	go func() { // the server does not read: one row of the COPY takes long
		if _, err := writer.Exec(w.ctx, `BEGIN; CREATE TEMP TABLE t (a text CHECK (CASE WHEN a = 'slow' THEN pg_sleep(10)::text IS NOT NULL ELSE true END))`).ReadAll(); err != nil {
			copied <- err
			return
		}
		_, err := writer.CopyFrom(w.ctx, io.MultiReader(strings.NewReader("slow\n"), strings.NewReader(strings.Repeat(strings.Repeat("x", 1000)+"\n", 50_000))), "COPY t FROM STDIN")
		copied <- err
	}()
	// The client does not read.
	result := client.Exec(w.ctx, "SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
	time.Sleep(stall) // what is tested is that nothing happens
	rows := 0
	for result.NextResult() {
		for reader := result.ResultReader(); reader.NextRow(); rows++ {
		}
	}
	if err := result.Close(); err != nil || rows != 100_000 {
		t.Errorf("a client that did not read for %v got %d rows: %v", stall, rows, err)
	}
	if err := <-copied; err != nil {
		t.Errorf("COPY that stalled: %v", err)
	}
}

// Where sockets cannot be closed, PgBouncer itself frees the clients of a lost primary
// from 1.24 on; before, that is told.
func TestPowerlessFreeing(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { *c = c.WithClosing(false) })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	version, err := w.admin().Version(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	want, said := string(config.FreeByKill), 0
	if !version.AtLeast(1, 24) {
		want, said = string(config.FreeByTimeout), 1
	}
	w.await("the way of freeing in Consul", func() error {
		kv, _, err := w.site.client.KV().Get(w.config.Keys().Bouncers()+"b1", nil)
		if err != nil || kv == nil {
			return fmt.Errorf("no key: %w", err)
		}
		if b, err := cluster.ParseBouncer("b1", kv.Value); err != nil || b.Frees != want || !b.Succession {
			return fmt.Errorf("%q, knows announced identifiers: %v, %w", b.Frees, b.Succession, err)
		}
		return nil
	})
	if n := strings.Count(w.log.String(), "by TCP's timeouts only"); n != said {
		t.Errorf("said %d times that TCP's timeouts must free clients, want %d", n, said)
	}
	if want != string(config.FreeByKill) {
		return
	}
	stuck := w.connect("s1")
	freed := make(chan error, 1)
	go func() {
		_, err := stuck.Exec(w.ctx, "SELECT pg_sleep(600)").ReadAll()
		freed <- err
	}()
	w.awaitPool("a query that runs", func(p pgbouncer.Pool) bool { return p.Database == "s1" && p.ServersActive > 0 })
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-freed; err == nil || w.ctx.Err() != nil {
		t.Errorf("the client of the lost primary: %v", err)
	}
}
