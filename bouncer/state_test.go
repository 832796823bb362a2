package bouncer

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/render"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

func TestStateSurvives(t *testing.T) {
	path := t.TempDir() + "/state.json"
	b := routes.NewTable(config.Config{RoutesPrefix: "p"})
	b.Merge(routes.Answer{KnownLeader: true, Pairs: []routes.Pair{somePair(t, "p/routes/service/s1", 7, someRoute("a"))}})
	if err := (savedState{Version: stateVersion, RoutesPrefix: "p", Session: "x", Routes: knownIn(b)}).save(path); err != nil {
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
	if _, err := render.Install(path, []byte("{")); err != nil {
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
