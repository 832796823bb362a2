package bouncer

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// smallDisk mounts a small disk, and returns what fills it and what empties it again.
func smallDisk(t *testing.T) (disk string, fill, empty func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	disk = bouncertest.Dir(t)
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512k,mode=777"); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	if err := bouncertest.GiveAway(disk); err != nil {
		t.Fatal(err)
	}
	rubbish := filepath.Join(disk, "rubbish")
	fill = func() {
		t.Helper()
		f, err := os.OpenFile(rubbish, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 512))
		}
	}
	empty = func() {
		t.Helper()
		if err := os.Remove(rubbish); err != nil {
			t.Fatal(err)
		}
	}
	return disk, fill, empty
}

// worldOnDisk is a world whose PgBouncer has its file on that disk.
func worldOnDisk(t *testing.T, disk string) *world {
	t.Helper()
	return newWorld(t, func(c *config.Config) {
		c.PgBouncer.Settings = map[string]any{"auth_file": filepath.Join(filepath.Dir(c.PgBouncer.Config), "userlist.txt")}
		c.PgBouncer.Config = filepath.Join(disk, "pgbouncer.ini")
	})
}

// A disk on which nothing can be written any more stops no failover, nor the next one.
func TestFullDiskStopsNoFailover(t *testing.T) {
	disk, fill, empty := smallDisk(t)
	w := worldOnDisk(t, disk)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
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
	w.await("a warning, and no more", func() error {
		var h Health
		code, err := w.http(http.MethodGet, "/health", &h)
		if err == nil && (code != http.StatusOK || !strings.Contains(strings.Join(h.Warnings, " "), "not kept for a restart")) {
			err = fmt.Errorf("%d %+v", code, h)
		}
		return err
	})
	if info, err := os.Stat(w.config.PgBouncer.Config); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	empty()
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	w.awaitHealthy()
}

// dropStateSpare takes away what is kept for the state file on a full disk.
func (w *world) dropStateSpare() {
	w.t.Helper()
	spare := w.config.StateFile + ".spare"
	w.await("room for the state", func() error { _, err := os.Stat(spare); return err })
	if err := os.Remove(spare); err != nil {
		w.t.Fatal(err)
	}
}

// On a full disk the state of a restart is kept in the room that is at hand for it.
func TestFullDiskKeepsState(t *testing.T) {
	disk, fill, _ := smallDisk(t)
	w := worldOnDisk(t, disk)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.await("room for the state", func() error { _, err := os.Stat(w.config.StateFile + ".spare"); return err })
	fill()
	for _, action := range []Pausing{Pause, Resume, Pause} {
		if a := w.pausing(action, "s1"); a.Warning != "" {
			t.Errorf("%s on a full disk warns %q", action, a.Warning)
		}
		if s, err := loadState(w.config.StateFile, w.config.RoutesPrefix); err != nil || (len(s.Pauses) > 0) != (action == Pause) || len(s.Routes) != 1 {
			t.Errorf("%s: %v, the state is %+v", action, err, s)
		}
	}
}

// An operator can end a pause though nothing can be written; that is written down as soon as it
// can be.
func TestFullDiskKeepsNoPause(t *testing.T) {
	disk, fill, empty := smallDisk(t)
	w := worldOnDisk(t, disk)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if a := w.pausing(Pause, "s1"); a.Warning != "" {
		t.Errorf("a pause that is kept has the warning %q", a.Warning)
	}
	w.dropStateSpare()
	fill()
	a := w.pausing(Resume, "s1")
	if a.Paused != nil || !strings.Contains(a.Warning, "the pause has ended") || !strings.Contains(a.Warning, "no space left on device") {
		t.Errorf("resume on a full disk answers %+v", a)
	}
	if got := w.standing(); got != "" {
		t.Errorf("after resume on a full disk paused is %s", got)
	}
	if _, err := Pause.Do(w.ctx, w.config, "s1", "x"); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("pause on a full disk: %v", err)
	}
	empty()
	w.await("the end of the pause in the state file", func() error {
		s, err := loadState(w.config.StateFile, w.config.RoutesPrefix)
		if err == nil && len(s.Pauses) > 0 {
			err = fmt.Errorf("it has %v", s.Pauses)
		}
		return err
	})
	stop()
	w.bouncer()
	w.awaitHealthy()
	if got := w.standing(); got != "" {
		t.Errorf("a pause that has ended is back: %s", got)
	}
}
