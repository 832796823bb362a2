package bouncer

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// With TLS to the servers a RELOAD costs clients nothing, also those whose server
// connection is just being made.
func TestReloadCutsNoLoginOff(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.PgBouncer.Settings = map[string]any{"server_tls_sslmode": "prefer"} })
	r := w.route(0, cluster.RouteOpen)
	behind := newProxy(t, net.JoinHostPort(r.Leader.Host, strconv.Itoa(r.Leader.Port)))
	host, port, err := net.SplitHostPort(behind.address)
	testkit.Must(t, err)
	r.Leader.Host = host
	r.Leader.Port, err = strconv.Atoi(port)
	testkit.Must(t, err)
	w.put(w.keys.Route(), r)
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitShard("the leader", func(s ShardStatus) bool { return s.Port == r.Leader.Port && s.VerifiedAt != nil })
	stop() // what follows is its RELOAD alone
	one, other := w.connect("s1"), w.connect("s1")
	w.exec(one, "SELECT 1")
	version, err := w.admin().Version(w.ctx)
	testkit.Must(t, err)
	if version.AtLeast(1, 24) { // whose RELOAD leaves connections alone while what TLS is set to has not changed
		before := w.backend(one)
		testkit.Must(t, w.admin().Reload(w.ctx))
		w.awaitPool("the server connection after RELOAD", func(p pgbouncer.Pool) bool {
			return p.Database == "s1" && p.ServersActive+p.ServersIdle+p.ServersUsed+p.ServersTested == 1 && p.ServersIn == 0
		})
		if after := w.backend(one); after != before {
			t.Errorf("after RELOAD backend %s serves in the place of %s", after, before)
		}
		return
	}
	defer behind.hang(false)
	// logsIn makes PgBouncer log in to a server that says nothing.
	answered := make(chan error, 2)
	logsIn := func() {
		behind.hang(true)
		testkit.Must(t, w.admin().Reload(w.ctx))
		w.awaitPool("no server connection", func(p pgbouncer.Pool) bool {
			return p.Database == "s1" && p.ServersActive+p.ServersIdle+p.ServersUsed+p.ServersTested+p.ServersIn == 0
		})
		go func() {
			_, err := one.Exec(w.ctx, "SELECT 1").ReadAll()
			answered <- err
		}()
		w.awaitPool("a login", func(p pgbouncer.Pool) bool { return p.Database == "s1" && p.ServersIn > 0 })
	}
	logsIn()
	console := pooler.NewConsole(w.config)
	console.LoginBound = time.Minute
	defer console.Close()
	time.AfterFunc(200*time.Millisecond, func() { behind.hang(false) }) // the RELOAD comes before
	testkit.Must(t, console.Reload(w.ctx))
	if _, err := other.Exec(w.ctx, "SELECT 1").ReadAll(); err != nil {
		t.Errorf("a client after the RELOAD: %v", err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the client for which the login was: %v", err)
	}

	// A server that never answers holds it up for no longer than the bound.
	logsIn()
	console.LoginBound = 10 * time.Millisecond
	testkit.Must(t, console.Reload(w.ctx))
	behind.hang(false)
	if err := <-answered; err != nil {
		t.Logf("the login that took too long: %v", err)
	}
}

// backend is the process of PostgreSQL that answers a client.
func (w *world) backend(conn *pgconn.PgConn) string {
	w.t.Helper()
	results, err := conn.Exec(w.ctx, "SELECT pg_backend_pid()").ReadAll()
	if err != nil {
		w.t.Fatal(err)
	}
	return string(results[0].Rows[0][0])
}
