package bouncer

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Without tcp_user_timeout a peer that does not read for 10 s is slow, not lost: nobody's
// connection is reset, also with the keepalives as they are.
func TestSlowPeersAreNotLost(t *testing.T) {
	t.Parallel() // it waits
	const stall = 10 * time.Second
	w := newWorld(t, func(c *Config) { c.PgBouncer.Settings = map[string]any{"tcp_user_timeout": 0} })
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
