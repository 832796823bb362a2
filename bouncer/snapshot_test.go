package bouncer

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A Consul that was restored from a snapshot has routes of an earlier time: PgBouncer stays
// at the primary that it has, and follows the next one.
func TestRouteOfAnOlderTimelineIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	old := w.route(0, cluster.RouteOpen)
	w.put(w.keys.Route(), old)
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	refused := func() {
		t.Helper()
		s := w.awaitShard("a word on it", func(s ShardStatus) bool {
			return strings.Contains(s.Error, fmt.Sprintf("timeline %d, known is 2", old.Timeline)) && s.VerifiedAt != nil
		})
		if s.Leader != w.site.members[1].Name {
			t.Errorf("the leader is %s", s.Leader)
		}
		if got := w.where(w.connect("s1")); got != 1 {
			t.Errorf("query went to member %d", got)
		}
	}
	w.put(w.keys.Route(), old)
	refused()
	down := old
	down.State = cluster.RouteDown
	w.put(w.keys.Route(), down)
	refused()
	stop()
	w.bouncer() // knows it from its state file
	refused()
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	if s, err := w.status(); err != nil || s.Shards["service/s1"].Error != "" {
		t.Errorf("%+v %v", s.Shards, err)
	}
}
