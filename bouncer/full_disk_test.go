package bouncer

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A disk on which nothing can be written any more stops no failover, nor the next one.
func TestFullDiskStopsNoFailover(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	disk := bouncertest.Dir(t)
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512k,mode=777"); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	if err := bouncertest.GiveAway(disk); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Settings = map[string]any{"auth_file": filepath.Join(filepath.Dir(c.PgBouncer.Config), "userlist.txt")}
		c.PgBouncer.Config = filepath.Join(disk, "pgbouncer.ini")
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	fill := func() {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(disk, "rubbish"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 512))
		}
	}
	w.await("room that is kept", func() error { _, err := os.Stat(w.config.PgBouncer.Config + ".spare"); return err })
	fill()
	client := w.connect("s1")
	for _, leader := range []int{1, 0, 1} {
		w.put(w.keys.Route(), w.route(leader, cluster.RouteOpen))
		w.awaitLeader(leader)
		if got := w.where(client); got != leader {
			t.Errorf("answered by member %d, want %d", got, leader)
		}
	}
	if info, err := os.Stat(w.config.PgBouncer.Config); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Remove(filepath.Join(disk, "rubbish")); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	w.awaitHealthy()
}
