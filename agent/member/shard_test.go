package member

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/pg"
)

func TestUpstreamOf(t *testing.T) {
	w := newWorld(t)
	if up, err := w.upstreamOf("b"); err != nil || up != (pg.Upstream{Name: "b", Host: "b", Port: 5432}) {
		t.Fatal(up, err)
	}
	w.Snapshot.Members[1].Value.ConnURL = ""
	w.Snapshot.Members[2].Err = errBoom
	for _, name := range []string{"b", "c", "x", ""} {
		if _, err := w.upstreamOf(name); err == nil {
			t.Errorf("%q has an address", name)
		}
	}
}
