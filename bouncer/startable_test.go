package bouncer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A file that PgBouncer needs at its next start, and that has gone since it runs, keeps no shard at
// its old primary: a certificate that is just being renewed, for one.
func TestLostCertificatePinsNoShard(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		path := filepath.Join(filepath.Dir(c.PgBouncer.Config), "one.pem")
		c.PgBouncer.Settings = map[string]any{"client_tls_sslmode": "allow", "client_tls_cert_file": path, "client_tls_key_file": path}
	})
	path := bouncertest.Certificate(t, w.dir, "one")
	if err := bouncertest.GiveAway(path); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	told := func() {
		t.Helper()
		w.await("what is missing being told", func() error { return w.warned("client_tls_cert_file") })
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	told()
	stop() // nor with a bouncer that starts
	w.bouncer()
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	told()
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.awaitHealthy()
}
