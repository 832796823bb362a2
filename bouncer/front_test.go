package bouncer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// awaitReason waits until /health refuses for a reason with part in it.
func (w *world) awaitReason(part string) {
	w.t.Helper()
	w.await("the reason "+part, func() error {
		var h Health
		code, err := w.http(http.MethodGet, "/health", &h)
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(strings.Join(h.Reasons, " "), part)) {
			err = fmt.Errorf("%d %v", code, h.Reasons)
		}
		return err
	})
}

// /health is what a client meets: a PgBouncer that takes no more of them is not healthy,
// whatever its console says, nor one that says nothing. That there is no primary is not
// its fault, nor that nobody could log in without one.
func TestHealthIsWhatClientsMeet(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Settings = map[string]any{"max_client_conn": 10, "listen_addr": "127.0.0.1, 127.0.0.2"}
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	var clients []*pgconn.PgConn
	for full := false; !full; {
		conn, err := pgconn.Connect(w.ctx, w.dsn("s1"))
		if full = err != nil; !full {
			clients = append(clients, conn)
		}
	}
	w.awaitReason("takes no client at 127.0.0.1")
	w.awaitReason("takes no client at 127.0.0.2")
	for _, conn := range clients {
		_ = conn.Close(context.Background())
	}
	w.awaitHealthy()
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	w.awaitHealthy()
}

func TestHealthOfSilentPgBouncer(t *testing.T) {
	w, pid := supervised(t)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if err := syscall.Kill(pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.awaitReason("takes no client")
	if err := syscall.Kill(pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.awaitHealthy()
}

// From 1.23 on PgBouncer ends by SIGTERM when its clients have gone, and each connection to
// its console counts: the bouncer follows routes until the last client goes, and then lets go.
func TestPgBouncerEndsWhenItsClientsHaveGone(t *testing.T) {
	t.Run("port", func(t *testing.T) { endsWhenItsClientsHaveGone(t, nil) })
	t.Run("unix-socket", func(t *testing.T) { // which stays open until the end, from 1.25 on
		endsWhenItsClientsHaveGone(t, func(c *config.Config) {
			_, port, _ := strings.Cut(c.PgBouncer.Admin, ":")
			c.PgBouncer.Admin = filepath.Dir(c.PgBouncer.Config) + ":" + port
			c.PgBouncer.Settings = map[string]any{"listen_addr": "127.0.0.1"}
		})
	})
}

// At an address that the bouncer does not take for its own host's.
func TestPgBouncerElsewhereEnds(t *testing.T) {
	endsWhenItsClientsHaveGone(t, func(c *config.Config) {
		_, port, _ := strings.Cut(c.PgBouncer.Admin, ":")
		c.PgBouncer.Admin = "0.0.0.0:" + port
		c.PgBouncer.Settings = map[string]any{"listen_addr": "localhost"}
	})
}

func endsWhenItsClientsHaveGone(t *testing.T, edit func(*config.Config)) {
	t.Helper()
	w := newWorld(t, edit)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", w.config.PgBouncer.Config))
	w.await("configuration file", func() error {
		_, err := os.Stat(w.config.PgBouncer.Config)
		return err
	})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	gone := make(chan struct{})
	ended.Go(func() { _ = cmd.Wait(); close(gone) })
	t.Cleanup(func() { _ = cmd.Process.Kill(); ended.Wait() })
	w.awaitLeader(0)
	version, err := w.admin().Version(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !version.AtLeast(1, 23) {
		t.Skipf("PgBouncer %s ends at once", version)
	}
	w.console.Close()
	if response, err := http.Get("http://" + w.config.Listen + "/metrics/pgbouncer"); err != nil || response.Body.Close() != nil {
		t.Errorf("the figures cannot be had: %v", err)
	}
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.awaitReason("takes no client")
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if got := w.where(client); got != 1 {
		t.Errorf("the client that stays is at %d", got)
	}
	select {
	case <-gone:
		t.Fatal("it ended while a client was there")
	default:
	}
	if err := client.Close(w.ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-w.ctx.Done():
		t.Fatal("it did not end")
	}
	w.await("the end being told", func() error {
		s, err := w.status()
		if err == nil && s.PgBouncer.Answers {
			err = errors.New("it is said to answer")
		}
		return err
	})
}
