package member

import (
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Whom commits wait for is uncertain from the beginning of a change on.
func TestSetSync(t *testing.T) {
	w := newWorld(t).leading()
	w.commits.set, w.commits.value = true, ""
	set := ha.SetSync{Standbys: []string{"b"}, Any: 1}
	if w.View().Postgres.SyncUnsure {
		t.Fatal("unsure before")
	}
	w.begin(set)
	w.begin(set)
	c := w.take("Postgres.SetSynchronous")
	w.none("Postgres.SetSynchronous")
	if !w.View().Postgres.SyncUnsure || w.Idle() {
		t.Fatal("sure meanwhile")
	}
	c.fail(errBoom)
	if !w.View().Postgres.SyncUnsure || w.commits.setting {
		t.Fatal("sure after a failure")
	}
	w.begin(set)
	w.answer("Postgres.SetSynchronous", pg.SyncInForce{Value: "ANY 1 (b)", Since: 300}, nil)
	v := w.View().Postgres
	if v.SyncUnsure || v.SyncSince != 300 || v.SyncAny != 1 || strings.Join(v.SyncNames, ",") != "b" || w.kicked["postgres"] != 1 {
		t.Fatalf("%+v", v)
	}
	w.PG.Observed.SyncNames = "somebody else's"
	if !w.View().Postgres.SyncUnsure {
		t.Fatal("sure of what somebody has changed")
	}
}
