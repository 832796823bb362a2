package bouncer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A shard whose route changes again and again costs one RELOAD a second, by which all clients of
// PgBouncer would wait else, and no other shard's change waits for it. When it comes to rest
// PgBouncer leads to where it has. (TestFlappingShard has what others wait, to the millisecond.)
func TestFlappingRouteDelaysNobody(t *testing.T) {
	const (
		lasts   = 6 * time.Second
		burst   = 10 // as docs/design.md says
		least   = 4 * burst
		reloads = `"message":"RELOAD done and read back"`
	)
	w := newWorld(t, nil)
	flapping := cluster.NewKeys("", "flapping", w.config.RoutesPrefix)
	route := w.route(0, cluster.RouteOpen)
	w.put(flapping.Route(), route)
	w.put(w.keys.Route(), route)
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()

	before := strings.Count(w.log.String(), reloads)
	begun := time.Now()
	n, flapped := 0, make(chan struct{})
	go func() {
		defer close(flapped)
		for ; w.ctx.Err() == nil && (n < least || time.Since(begun) < lasts); n++ {
			route.Leader, route.Timeline = w.site.members[(n+1)%2], route.Timeline+1
			if n%5 == 4 {
				route.State = cluster.RoutePromoting
			} else {
				route.State = cluster.RouteOpen
			}
			value, err := json.Marshal(route)
			if err == nil {
				_, err = w.site.client.KV().Put(&api.KVPair{Key: flapping.Route(), Value: value}, nil)
			}
			if err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	changes := 0
	var slowest time.Duration
	for over := false; !over; changes++ {
		at := time.Now()
		w.put(w.keys.Route(), w.route((changes+1)%2, cluster.RouteOpen))
		w.awaitLeader((changes + 1) % 2)
		slowest = max(slowest, time.Since(at))
		select {
		case <-time.After(1200 * time.Millisecond): // as often as a shard may change
		case <-flapped:
			over = true
		}
	}
	route.State, route.Timeline = cluster.RouteOpen, route.Timeline+1
	route.Leader = w.site.members[1]
	w.put(flapping.Route(), route)
	w.await("the last route", func() error {
		standing, err := w.admin().Databases(w.ctx)
		if err == nil && standing["flapping"].Port != route.Leader.Port {
			err = fmt.Errorf("%+v", standing["flapping"])
		}
		return err
	})
	w.awaitHealthy()
	seconds := time.Since(begun).Seconds()
	done := strings.Count(w.log.String(), reloads) - before
	t.Logf("%d routes of one shard in %.1f s, %d of another (%v at most): %d RELOADs", n, seconds, changes, slowest, done)
	if most := burst + int(seconds) + 1 + changes; done > most {
		t.Errorf("%d RELOADs, want %d at most", done, most)
	}
	if !strings.Contains(w.log.String(), "changes too often") {
		t.Error(errors.New("the log does not say so"))
	}
}
