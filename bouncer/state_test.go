package bouncer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/install"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

func TestStateSurvives(t *testing.T) {
	path := t.TempDir() + "/state.json"
	b := routes.NewTable(config.Config{RoutesPrefix: "p"})
	b.Merge(routes.Answer{KnownLeader: true, Pairs: []routes.Pair{somePair(t, "p/routes/service/s1", 7, someRoute("a"))}})
	if err := (savedState{Version: stateVersion, RoutesPrefix: "p", Session: "x", Routes: knownIn(b)}).save(install.NewConfig(path)); err != nil {
		t.Fatal(err)
	}
	s, err := loadState(path, "p")
	if err != nil || s.Session != "x" {
		t.Fatalf("%+v %v", s, err)
	}
	again := routes.NewTable(config.Config{RoutesPrefix: "p"})
	again.Restore(s.Routes)
	k := knownIn(again)["service/s1"]
	if k.Route.Leader.Host != "a" || k.ModifyIndex != 7 || k.Confirmed {
		t.Fatalf("restored %+v", k)
	}
	// Consul's word confirms it, which may be what starts a hold.
	if out := again.Merge(routes.Answer{KnownLeader: true, Pairs: []routes.Pair{somePair(t, "p/routes/service/s1", 7, someRoute("a"))}}); len(out.Changed) != 1 {
		t.Fatalf("confirmation changed %v", out.Changed)
	}
	if s, err := loadState(path, "another"); err != nil || len(s.Routes) != 0 {
		t.Fatalf("another prefix: %+v %v", s, err)
	}
	if _, err := install.File(path, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := loadState(path, "p"); err == nil {
		t.Fatal("a damaged file is no error")
	}
}

// What is in the file and must not be there any more goes out of it, though nothing is left to keep.
func TestStateIsEmptied(t *testing.T) {
	c := config.Config{RoutesPrefix: "p", StateFile: t.TempDir() + "/state.json"}
	k := &stateWriter{config: c, table: routes.NewTable(c), wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
	if err := k.write(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.StateFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with nothing to keep there is a file: %v", err)
	}
	for _, draining := range []bool{true, false} {
		k.rememberDraining(draining)
		if err := k.write(); err != nil {
			t.Fatal(err)
		}
		if s, err := loadState(c.StateFile, "p"); err != nil || s.Draining != draining {
			t.Errorf("draining %v is kept as %v, %v", draining, s.Draining, err)
		}
	}
}

// The newest state of this bouncer is found, whichever process is the first one now, and none of
// another bouncer.
func TestStateIsFound(t *testing.T) {
	dir := t.TempDir()
	several := func(files ...string) config.Config {
		c := config.Config{Name: "b1"}
		for _, f := range files {
			c.PgBouncer.Processes = append(c.PgBouncer.Processes, config.Process{Admin: dir + ":6432", Config: filepath.Join(dir, f)})
		}
		if err := c.Complete(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	age := time.Hour
	keep := func(c config.Config) string {
		t.Helper()
		s := savedState{Version: stateVersion, RoutesPrefix: c.RoutesPrefix, Name: c.Name, Listen: c.Listen, Session: c.StateFile}
		age -= time.Minute
		at := time.Now().Add(-age)
		if err := errors.Join(s.save(install.NewConfig(c.StateFile)), os.Chtimes(c.StateFile, at, at)); err != nil {
			t.Fatal(err)
		}
		return c.StateFile
	}
	check := func(what string, c config.Config, want string) {
		t.Helper()
		if got := findState(c); got != want {
			t.Errorf("%s: found %s, want %s", what, got, want)
		}
	}
	one := config.Config{Name: "b1", PgBouncer: config.PgBouncer{Config: filepath.Join(dir, "pgbouncer.ini")}}
	if err := one.Complete(); err != nil {
		t.Fatal(err)
	}
	check("none", one, one.StateFile)
	before := keep(one)
	check("one becomes several", several("1.ini", "2.ini"), before)
	before = keep(several("1.ini", "2.ini"))
	check("the first one is removed", several("2.ini"), before)
	check("another order", several("2.ini", "1.ini"), before)
	before = keep(several("2.ini", "1.ini"))
	check("the order of before, with its old file", several("1.ini", "2.ini"), before)
	other, elsewhere := several("3.ini"), several("4.ini")
	other.Name, elsewhere.Listen = "b2", "127.0.0.1:8010"
	keep(other)
	keep(elsewhere)
	check("of other bouncers", several("1.ini", "2.ini"), before)
	named := several("1.ini")
	named.StateFile = filepath.Join(dir, "state")
	check("state_file is set", named, named.StateFile)
}

// What could not be made to last once is tried again, though it is in place: a power cut would bring an
// operator's pause back that has ended.
func TestKeepIsTriedUntilItSucceeds(t *testing.T) {
	dir := bouncertest.Dir(t)
	readable := func(is bool) {
		t.Helper()
		mode := os.FileMode(0o300) // a file can be put there, and not be synced
		if is {
			mode = 0o700
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	state, good := install.NewConfig(filepath.Join(dir, "state.json")), install.NewConfig(filepath.Join(dir, "pgbouncer.ini"))
	further := install.NewLasting(filepath.Join(dir, "haproxy.cfg"))
	for name, keep := range map[string]func() error{
		"state":     func() error { return savedState{Version: stateVersion, RoutesPrefix: "p"}.save(state) },
		"last good": func() error { return good.KeepGood([]byte("[databases]\n")) },
		"a further file": func() error {
			_, err := further.Checked([]byte("defaults\n"), func(string) error { return nil })
			return err
		},
	} {
		readable(false)
		for i := range 3 {
			if err := keep(); err == nil {
				t.Errorf("%s, try %d: it is taken for lasting", name, i+1)
			}
		}
		readable(true)
		if err := keep(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		readable(false)
		if err := keep(); err != nil {
			t.Errorf("%s: what lasts is synced again: %v", name, err)
		}
	}
	readable(true)
}
