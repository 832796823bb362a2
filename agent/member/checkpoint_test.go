package member

import (
	"testing"
)

// The key says that no checkpoint was made on a new timeline until one was.
func TestCheckpointAfterPromotion(t *testing.T) {
	w := newWorld(t).leading()
	w.checkpoint.promotedTo = 3
	w.agree("Consul.Touch", "Consul.WriteAsLeader", "Postgres.TimelineHistory")
	w.Publish()
	c := w.take("Postgres.Checkpoint")
	if v := w.Value(); v.CheckpointAfterPromote == nil || *v.CheckpointAfterPromote {
		t.Fatal("not said")
	}
	w.Publish()
	w.none("Postgres.Checkpoint")
	c.fail(errBoom)
	w.Publish()
	w.answer("Postgres.Checkpoint")
	w.Publish()
	w.none("Postgres.Checkpoint")
	if w.Value().CheckpointAfterPromote != nil {
		t.Fatal("still said")
	}
}
