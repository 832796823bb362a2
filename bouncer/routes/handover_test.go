package routes

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// handoverCase is a clock that the test moves, and one shard.
type handoverCase struct {
	t   *testing.T
	now time.Time
	h   *Handovers
}

func newHandoverCase(t *testing.T) *handoverCase {
	c := &handoverCase{t: t, now: time.Unix(1000, 0)}
	c.h = NewHandovers(cluster.NewKeys("", "s1", ""), func(config.ShardID) bool { return true })
	c.h.clock = func() time.Time { return c.now }
	return c
}

func handoverPair(t *testing.T, id string, state cluster.HandoverState, index uint64, session string) *api.KVPair {
	t.Helper()
	value, err := json.Marshal(cluster.Handover{ID: id, Leader: "db1", Successor: "db2", Timeline: 1, DeadlineMS: 10000, State: state})
	if err != nil {
		t.Fatal(err)
	}
	return &api.KVPair{Key: "lictor/handovers/service/s1", Value: value, ModifyIndex: index, Session: session}
}

func (c *handoverCase) see(index uint64, pairs ...*api.KVPair) (ended bool) {
	c.t.Helper()
	_, ended, problems := c.h.merge(pairs, index)
	if len(problems) > 0 {
		c.t.Fatalf("%v", problems)
	}
	return ended
}

func (c *handoverCase) holds(leader string, timeline int, state cluster.RouteState, index uint64) bool {
	r := cluster.Route{State: state, Timeline: timeline, Leader: cluster.RouteMember{Name: leader}}
	return c.h.Holds("service/s1", r, index) != nil
}

func TestHandoverHoldsUntil(t *testing.T) {
	announced := func(t *testing.T) *api.KVPair { return handoverPair(t, "x", cluster.HandoverAnnounced, 10, "session") }
	type moment struct {
		leader   string
		timeline int
		state    cluster.RouteState
		index    uint64
		want     bool
	}
	for name, test := range map[string]struct {
		happens func(*handoverCase)
		moment
	}{
		"nothing happens":         {func(*handoverCase) {}, moment{"db1", 1, cluster.RouteOpen, 5, true}},
		"replicas change":         {func(*handoverCase) {}, moment{"db1", 1, cluster.RouteOpen, 12, true}},
		"the successor promotes":  {func(*handoverCase) {}, moment{"db2", 1, cluster.RoutePromoting, 12, true}},
		"the successor serves":    {func(*handoverCase) {}, moment{"db2", 2, cluster.RouteOpen, 12, false}},
		"somebody else serves":    {func(*handoverCase) {}, moment{"db3", 2, cluster.RouteOpen, 12, false}},
		"the leader was promoted": {func(*handoverCase) {}, moment{"db1", 2, cluster.RouteOpen, 12, false}},
		// It was announced by a leader of whom this bouncer has not heard yet.
		"an older route of another": {func(*handoverCase) {}, moment{"db0", 0, cluster.RouteOpen, 9, true}},
		"the deadline passes":       {func(c *handoverCase) { c.now = c.now.Add(10 * time.Second) }, moment{"db1", 1, cluster.RouteOpen, 5, false}},
		"just before it":            {func(c *handoverCase) { c.now = c.now.Add(10*time.Second - 1) }, moment{"db1", 1, cluster.RouteOpen, 5, true}},
		"cancelled, routes not read yet": {func(c *handoverCase) {
			if !c.see(12, handoverPair(t, "x", cluster.HandoverCancelled, 12, "session")) {
				t.Error("nobody is asked to read the routes")
			}
			c.h.refreshed(c.now.Add(-1))
		}, moment{"db1", 1, cluster.RouteOpen, 5, true}},
		"cancelled": {func(c *handoverCase) {
			c.see(12, handoverPair(t, "x", cluster.HandoverCancelled, 12, "session"))
			c.h.refreshed(c.now)
		}, moment{"db1", 1, cluster.RouteOpen, 5, false}},
		"done": {func(c *handoverCase) {
			c.see(12, handoverPair(t, "x", cluster.HandoverDone, 12, "session"))
			c.h.refreshed(c.now)
		}, moment{"db1", 1, cluster.RouteOpen, 5, false}},
		"deleted": {func(c *handoverCase) {
			c.see(12)
			c.h.refreshed(c.now)
		}, moment{"db1", 1, cluster.RouteOpen, 5, false}},
		"an old answer without it": {func(c *handoverCase) {
			c.see(9)
			c.h.refreshed(c.now)
		}, moment{"db1", 1, cluster.RouteOpen, 5, true}},
		"the leader's session ends": {func(c *handoverCase) {
			c.see(10, handoverPair(t, "x", cluster.HandoverAnnounced, 10, ""))
			c.h.refreshed(c.now)
		}, moment{"db1", 1, cluster.RouteOpen, 5, false}},
		"it is announced again after the deadline": {func(c *handoverCase) {
			c.now = c.now.Add(time.Minute)
			c.holds("db1", 1, cluster.RouteOpen, 5)
			c.see(12, handoverPair(t, "x", cluster.HandoverAnnounced, 12, "session"))
		}, moment{"db1", 1, cluster.RouteOpen, 5, false}},
		"another one follows": {func(c *handoverCase) {
			c.now = c.now.Add(time.Minute)
			c.holds("db1", 1, cluster.RouteOpen, 5)
			c.see(12, handoverPair(t, "y", cluster.HandoverAnnounced, 12, "session"))
		}, moment{"db1", 1, cluster.RouteOpen, 5, true}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newHandoverCase(t)
			c.see(10, announced(t))
			test.happens(c)
			if got := c.holds(test.leader, test.timeline, test.state, test.index); got != test.want {
				t.Errorf("holds: %v, want %v", got, test.want)
			}
		})
	}
}

// What a leader left behind that died long ago holds nobody.
func TestVoidHandoverHoldsNobody(t *testing.T) {
	for name, p := range map[string]*api.KVPair{
		"without a session": handoverPair(t, "x", cluster.HandoverAnnounced, 10, ""),
		"done":              handoverPair(t, "x", cluster.HandoverDone, 10, "session"),
		"cancelled":         handoverPair(t, "x", cluster.HandoverCancelled, 10, "session"),
	} {
		c := newHandoverCase(t)
		c.see(10, p)
		if c.holds("db1", 1, cluster.RouteOpen, 5) {
			t.Errorf("%s: it holds", name)
		}
	}
	c := newHandoverCase(t)
	if _, _, problems := c.h.merge(api.KVPairs{{Key: "lictor/handovers/service/s1", Value: []byte(`{`), ModifyIndex: 1, Session: "s"}}, 1); len(problems) != 1 {
		t.Errorf("problems are %v", problems)
	}
}

// A handover that cannot be read is told once, however often others change, until it has gone.
func TestWrongHandoverIsToldOnce(t *testing.T) {
	h := NewHandovers(cluster.NewKeys("", "", ""), func(config.ShardID) bool { return true })
	bad := &api.KVPair{Key: "lictor/handovers/service/bad", Value: []byte("{"), ModifyIndex: 1, Session: "session"}
	for i, want := range []int{1, 0, 0} {
		good := handoverPair(t, "h"+strconv.Itoa(i), cluster.HandoverAnnounced, uint64(i+2), "session")
		changed, _, problems := h.merge(api.KVPairs{bad, good}, uint64(i+2))
		if len(problems) != want || !changed || h.Trouble()[bad.Key] == nil {
			t.Errorf("time %d: %v, changed %v, %v", i, problems, changed, h.Trouble())
		}
	}
	if _, _, problems := h.merge(nil, 9); len(problems) != 0 || len(h.Trouble()) != 0 {
		t.Errorf("when it has gone: %v, %v", problems, h.Trouble())
	}
}

// A thousand leaders that wait for their own handovers wake for their own, and what one of
// them asks costs the same as if it were alone.
func TestHandoversCostTheSameHoweverManyThereAre(t *testing.T) {
	const shards = 1000
	h := NewHandovers(cluster.NewKeys("", "", ""), func(config.ShardID) bool { return true })
	var pairs api.KVPairs
	id := func(i int) config.ShardID { return config.ShardID(fmt.Sprintf("service/s%d", i)) }
	for i := range shards {
		pairs = append(pairs, handoverPair(t, "h"+strconv.Itoa(i), cluster.HandoverAnnounced, uint64(i+1), "session"))
		pairs[i].Key = "lictor/handovers/" + string(id(i))
	}
	if _, _, problems := h.merge(pairs, shards+1); len(problems) > 0 {
		t.Fatal(problems)
	}
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	for i := range shards {
		one, found, mine := h.Of(id(i))
		_, _, others := h.Of(id((i + 1) % shards))
		if !found || one.Value.ID != "h"+strconv.Itoa(i) {
			t.Fatalf("%+v", one)
		}
		h.Respond(id(i), cluster.HandoverAnswer{ID: one.Value.ID, Paused: true})
		if !closed(mine) || closed(others) {
			t.Fatalf("the answer to %s wakes those who wait for it: %v, and for the next one: %v", id(i), closed(mine), closed(others))
		}
		if one, _, _ := h.Of(id(i)); !one.Answer.Paused {
			t.Fatalf("%+v", one)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _, _ = h.Of(id(7)) }); n > 3 {
		t.Errorf("a look at one makes %v allocations", n)
	}
}

// After Consul was set back, so that its indexes are lower, handovers are followed as ever; a read or a list
// from before what is known is not.
func TestHandoverAfterConsulWasSetBack(t *testing.T) {
	const id = config.ShardID("service/s1")
	pair := func(id string, index uint64) *api.KVPair {
		return handoverPair(t, id, cluster.HandoverAnnounced, index, "session")
	}
	follows := func(c *handoverCase, what, want string) {
		t.Helper()
		if one, found, _ := c.h.Of(id); !found || one.Value.ID != want || one.Over {
			t.Errorf("%s: followed is %+v, want %s", what, one, want)
		}
	}
	read := func(c *handoverCase, p *api.KVPair, before uint64) {
		t.Helper()
		if _, _, err := c.h.put(id, p, before); err != nil {
			t.Error(err)
		}
	}
	for _, ended := range []bool{true, false} {
		start := func() *handoverCase {
			c := newHandoverCase(t)
			c.see(4990)
			read(c, pair("one", 5000), 0)
			c.see(5000, pair("one", 5000))
			if ended {
				c.see(5001)
			}
			return c
		}
		c := start()
		read(c, pair("two", 70), c.h.indexOf(id))
		follows(c, "by a read", "two")
		c.see(60) // a list of before it
		follows(c, "by a read, then an older list", "two")
		read(c, pair("three", 65), 5000)
		follows(c, "a read of before it", "two")

		c = start()
		c.see(80, pair("two", 70))
		follows(c, "by a list", "two")

		c = start()
		c.see(60)
		c.see(80, pair("two", 70))
		follows(c, "by a list after another", "two")
		c.see(90, pair("two", 70))
		c.see(95)
		if c.holds("db1", 1, cluster.RouteOpen, 0); len(c.h.ending()) != 1 {
			t.Error("its end is not heard of")
		}
	}
}

// A shard whose leader announces one handover after the other is followed in ten of them, then in one a second; the
// others are told, and hold nobody. Another shard's is followed as ever.
func TestHandoversHaveAPace(t *testing.T) {
	c := newHandoverCase(t)
	index, followed, told := uint64(0), 0, 0
	announce := func(scope, id string) bool {
		t.Helper()
		index++
		p := handoverPair(t, id, cluster.HandoverAnnounced, index, "session")
		p.Key = "lictor/handovers/service/" + scope
		if _, _, err := c.h.put(config.ShardID("service/"+scope), p, 0); err != nil {
			told++
		}
		one, found, _ := c.h.Of(config.ShardID("service/" + scope))
		return found && one.Value.ID == id && !one.Over
	}
	for i := range 100 {
		if announce("s1", fmt.Sprint(i)) {
			followed++
		}
		c.now = c.now.Add(10 * time.Millisecond)
	}
	if followed != paceBurst || told != 100-paceBurst {
		t.Errorf("%d were followed, %d told", followed, told)
	}
	if c.h.refreshed(c.now); c.holds("db1", 1, cluster.RouteOpen, 0) {
		t.Error("one that the key has no more holds clients")
	}
	if !announce("s2", "x") {
		t.Error("another shard's is not followed")
	}
	if c.now = c.now.Add(paceEvery); !announce("s1", "later") || announce("s1", "at once") {
		t.Error("later there is not one a second")
	}
}

// A change of the configuration makes no handover last longer, nor begin again; one that went on goes on.
func TestHandoverIsFollowedOnceOverAConfiguration(t *testing.T) {
	announced := func(t *testing.T) *api.KVPair { return handoverPair(t, "x", cluster.HandoverAnnounced, 10, "session") }
	change := func(c *handoverCase) {
		next := newHandoverCase(c.t)
		next.h.clock = c.h.clock
		next.h.GoOn(c.h)
		c.h = next.h
	}
	holds := func(c *handoverCase) bool { return c.holds("db1", 1, cluster.RouteOpen, 5) }
	for name, run := range map[string]func(*testing.T, *handoverCase){
		"its deadline stays": func(t *testing.T, c *handoverCase) {
			for range 3 {
				if !holds(c) {
					t.Fatal("it holds nobody")
				}
				c.now = c.now.Add(4 * time.Second)
				change(c)
				c.see(10, announced(t))
			}
			if holds(c) {
				t.Error("it holds after its deadline")
			}
		},
		"what is over stays over": func(t *testing.T, c *handoverCase) {
			c.now = c.now.Add(time.Minute)
			if holds(c) {
				t.Fatal("it holds after its deadline")
			}
			change(c)
			if c.see(11, announced(t)); holds(c) {
				t.Error("it is followed again")
			}
		},
		"it holds before the first list": func(t *testing.T, c *handoverCase) {
			if change(c); !holds(c) {
				t.Error("it holds nobody")
			}
		},
		"its end meanwhile is heard of": func(t *testing.T, c *handoverCase) {
			c.see(11)
			change(c)
			if !c.see(11) {
				t.Error("the routes are not read")
			}
			if c.h.refreshed(c.now); holds(c) {
				t.Error("it holds after its end")
			}
		},
		"it is not answered": func(t *testing.T, c *handoverCase) {
			c.h.Respond("service/s1", cluster.HandoverAnswer{ID: "x", Paused: true})
			change(c)
			if one, found, _ := c.h.Of("service/s1"); !found || one.Answer.Paused {
				t.Errorf("%+v, %v", one, found)
			}
		},
		"a shard that is served no more": func(t *testing.T, c *handoverCase) {
			next := newHandoverCase(t)
			next.h.serves = func(config.ShardID) bool { return false }
			next.h.GoOn(c.h)
			if _, found, _ := next.h.Of("service/s1"); found {
				t.Error("it is known")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newHandoverCase(t)
			c.see(10, announced(t))
			run(t, c)
		})
	}
}
