package render

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// A shard keeps its view, by its address, until something of it has changed.
func TestViewsAreKept(t *testing.T) {
	t.Parallel()
	w := NewViewer(testConfig(t))
	shards := map[config.ShardID]ShardRoute{
		"service/orders": {Route: routeTo("10.0.0.1"), Revision: 1},
		"db/users":       {Route: routeTo("10.0.1.1"), Revision: 2},
	}
	version := pgbouncer.Version{1, 24}
	view := func() map[config.ShardID]*Shard {
		t.Helper()
		views, _ := w.View(shards, version)
		found := map[config.ShardID]*Shard{}
		for _, v := range views {
			found[v.ID] = v
		}
		return found
	}
	set := func(id config.ShardID, host string, revision uint64) {
		shards[id] = ShardRoute{Route: routeTo(host), Revision: revision}
	}
	before := view()
	expect := func(what string, kept ...config.ShardID) {
		t.Helper()
		now := view()
		same := map[config.ShardID]bool{}
		for _, id := range kept {
			same[id] = true
		}
		for id, v := range now {
			if (before[id] == v) != same[id] {
				t.Errorf("%s: %s: the view is the one before: %t", what, id, before[id] == v)
			}
			if host := shards[id].Route.Leader.Host; v.Route.Leader.Host != host {
				t.Errorf("%s: %s leads to %s, not to %s", what, id, v.Route.Leader.Host, host)
			}
		}
		before = now
	}
	expect("nothing has changed", "service/orders", "db/users")
	set("db/users", "10.0.1.2", 3)
	expect("one has changed", "service/orders")
	shards["x/orders"] = ShardRoute{Route: routeTo("10.0.2.1"), Revision: 4}
	expect("another one of the name", "db/users")
	if label := before["service/orders"].template.Label; label != "service:orders" {
		t.Errorf("%s", label)
	}
	delete(shards, "x/orders")
	expect("and it has gone", "db/users")
	version = pgbouncer.Version{1, 25}
	expect("another version")
	set("db/users", "10.0.1.3", 0)
	expect("not known", "service/orders")
	set("db/users", "10.0.1.4", 0)
	expect("still not known", "service/orders")
}

// A name is given anew in each view: it comes back to a shard when the other one has gone.
func TestKeptViewsClaimNames(t *testing.T) {
	t.Parallel()
	w := NewViewer(config.Config{Name: "b1"})
	shards := map[config.ShardID]ShardRoute{
		"a/orders": {Route: routeTo("10.0.0.1"), Revision: 1, CreateIndex: 1},
		"b/orders": {Route: routeTo("10.0.1.1"), Revision: 2, CreateIndex: 2},
	}
	for _, want := range []config.ShardID{"a/orders", "a/orders", "b/orders"} {
		if want == "b/orders" {
			delete(shards, "a/orders")
		}
		views, left := w.View(shards, pgbouncer.Version{1, 24})
		if len(views) != 1 || views[0].ID != want || len(left) != len(shards)-1 {
			t.Errorf("%d views, left out: %v", len(views), left)
		}
	}
}

// Whatever changes, a viewer that keeps what it can shows what one shows that knows nothing yet.
func TestKeptViewsAreAsFreshOnes(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 13))
	c := config.Config{Name: "b1", PgBouncer: config.PgBouncer{Fallback: map[string]any{"shard": "a/s1"}}}
	kept, version := NewViewer(c), pgbouncer.Version{1, 24}
	shards, revision := map[config.ShardID]ShardRoute{}, uint64(0)
	for step := range 2000 {
		for range min(step, random.IntN(3)) {
			id := config.ShardID(fmt.Sprintf("%c/s%d", 'a'+rune(random.IntN(2)), random.IntN(6)))
			if random.IntN(4) == 0 {
				delete(shards, id)
				continue
			}
			revision++
			one, known := shards[id]
			one.Route, one.Revision = routeTo(fmt.Sprintf("10.0.0.%d", random.IntN(3))), revision
			if random.IntN(2) == 0 {
				one.Route.Replicas = nil
			}
			if !known || random.IntN(8) == 0 {
				one.CreateIndex = revision
			}
			shards[id] = one
		}
		if random.IntN(20) == 0 {
			version[1] = 24 + random.IntN(2)
		}
		views, left := kept.View(shards, version)
		if step == 0 && len(left) != 1 {
			t.Errorf("without any shard left out is %v, want the fallback", left)
		}
		fresh, freshLeft := View(c, shards, version)
		if fmt.Sprint(left) != fmt.Sprint(freshLeft) || len(views) != len(fresh) {
			t.Fatalf("step %d: left out %v, want %v", step, left, freshLeft)
		}
		for i, v := range views {
			got, want := *v, *fresh[i]
			got.template.of, want.template.of = nil, nil
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("step %d: %+v, want %+v", step, got, want)
			}
		}
	}
}
