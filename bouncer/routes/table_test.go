package routes

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

const ownSystem, otherSystem = "7000000000000000001", "7000000000000000002"

func testRoute(host string) cluster.Route {
	return cluster.Route{
		Version: 1, SystemIdentifier: ownSystem, State: cluster.RouteOpen, Timeline: 1,
		Leader: cluster.RouteMember{Name: "m-" + host, Host: host, Port: 5432}, Since: time.Unix(1000, 0).UTC(),
	}
}

func knownTo(b *Table) map[config.ShardID]Known {
	shards, _ := b.Known()
	return shards
}

func testPair(t *testing.T, key string, index uint64, r cluster.Route) Pair {
	t.Helper()
	value, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{Key: key, Value: value, ModifyIndex: index}
}

func TestTableTakesIn(t *testing.T) {
	const s1, s2 = "lictor/routes/service/s1", "lictor/routes/service/s2"
	p := func(key string, index uint64, host string) Pair { return testPair(t, key, index, testRoute(host)) }
	foreign := testRoute("c")
	foreign.SystemIdentifier = otherSystem
	poisoned := testRoute("c")
	poisoned.Leader.Name = "x\nadmin_users = evil"
	later := testRoute("c")
	later.Timeline = 3
	promoting := testRoute("d")
	promoting.Timeline, promoting.State = 2, cluster.RoutePromoting
	inState := func(state cluster.RouteState, timeline int) Pair {
		r := testRoute("e")
		r.State, r.Timeline = state, timeline
		return testPair(t, s1, 14, r)
	}
	upgraded := func(host string, timeline int, state cluster.RouteState, succeeds ...string) Pair {
		r := testRoute(host)
		r.SystemIdentifier, r.Succeeds, r.Timeline, r.State = otherSystem, succeeds, timeline, state
		return testPair(t, s1, 12+uint64(timeline), r)
	}
	known, older := testRoute("a").SystemIdentifier, "7000000000000000009"
	start := []Pair{p(s1, 10, "a"), p(s2, 11, "b")}
	watched := func(pairs ...Pair) Answer { return Answer{Pairs: pairs, KnownLeader: true} }
	consistent := func(epoch uint64, pairs ...Pair) Answer {
		return Answer{Pairs: pairs, KnownLeader: true, Consistent: true, Epoch: epoch}
	}
	for name, c := range map[string]struct {
		answers    []Answer // after start, which is epoch 1
		allowEmpty bool
		want       map[config.ShardID]string // the leader's host
		changed    []config.ShardID          // by the last answer
		doubt      bool
		problem    string
	}{
		"unchanged":                    {answers: []Answer{watched(start...)}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}},
		"newer value":                  {answers: []Answer{watched(p(s1, 12, "c"), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"new shard":                    {answers: []Answer{watched(start[0], start[1], p("lictor/routes/other/x", 12, "d"))}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b", "other/x": "d"}, changed: []config.ShardID{"other/x"}},
		"no known leader":              {answers: []Answer{{Pairs: []Pair{p(s1, 12, "c")}}}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}},
		"older value is doubted":       {answers: []Answer{watched(p(s1, 9, "c"), start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, doubt: true},
		"older value, confirmed":       {answers: []Answer{consistent(1, p(s1, 9, "c"), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"older value, read too early":  {answers: []Answer{watched(p(s1, 12, "c"), start[1]), consistent(1, start...)}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, doubt: true},
		"vanished is doubted":          {answers: []Answer{watched(start[0])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, doubt: true},
		"vanished, confirmed":          {answers: []Answer{consistent(1, start[0])}, want: map[config.ShardID]string{"service/s1": "a"}, changed: []config.ShardID{"service/s2"}},
		"vanished, read too early":     {answers: []Answer{watched(start...), consistent(1, start[0])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, doubt: true},
		"all vanished":                 {answers: []Answer{consistent(1)}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "vanished"},
		"all vanished, still":          {answers: []Answer{consistent(1), watched()}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "vanished"},
		"all vanished, allowed":        {answers: []Answer{consistent(1)}, allowEmpty: true, want: map[config.ShardID]string{}, changed: []config.ShardID{"service/s1", "service/s2"}},
		"all vanished, some back":      {answers: []Answer{consistent(1), consistent(2, p(s1, 20, "c"))}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}, problem: "service/s2"},
		"all vanished, made anew":      {answers: []Answer{consistent(1), watched(testPair(t, s1, 20, foreign))}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}, problem: "service/s2"},
		"malformed keeps the last":     {answers: []Answer{watched(Pair{s1, []byte("{"), 12, 0}, p(s2, 13, "c"))}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "c"}, changed: []config.ShardID{"service/s2"}, problem: "malformed"},
		"malformed is no deletion":     {answers: []Answer{consistent(1, Pair{s1, nil, 12, 0}, start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "malformed"},
		"control characters":           {answers: []Answer{watched(testPair(t, s1, 12, poisoned), start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "must consist of letters"},
		"control character in the key": {answers: []Answer{watched(start[0], start[1], p("lictor/routes/service/s3\nuser=x", 12, "e"))}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "must consist of letters"},
		"foreign is refused":           {answers: []Answer{watched(testPair(t, s1, 12, foreign), start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "another PostgreSQL cluster"},
		"foreign after a deletion":     {answers: []Answer{consistent(1, start[1]), watched(testPair(t, s1, 12, foreign), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"announced":                    {answers: []Answer{watched(upgraded("c", 2, cluster.RouteDown, known), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"announced, then open":         {answers: []Answer{watched(upgraded("c", 2, cluster.RouteDown, known), start[1]), watched(upgraded("d", 3, cluster.RouteOpen, known), start[1])}, want: map[config.ShardID]string{"service/s1": "d", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"announced while it was away":  {answers: []Answer{watched(upgraded("c", 2, cluster.RouteOpen, older, known), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"another one's successor":      {answers: []Answer{watched(upgraded("c", 2, cluster.RouteOpen, older), start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "another PostgreSQL cluster"},
		"announced, same timeline":     {answers: []Answer{watched(upgraded("c", 1, cluster.RouteOpen, known), start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "on timeline 1, known is 1"},
		"announced, malformed":         {answers: []Answer{watched(upgraded("c", 2, cluster.RouteOpen, known, known), start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "is there twice"},
		"the old one comes back":       {answers: []Answer{watched(upgraded("c", 2, cluster.RouteDown, known), start[1]), watched(p(s1, 20, "a"), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "another PostgreSQL cluster"},
		"a snapshot from before it":    {answers: []Answer{watched(upgraded("c", 2, cluster.RouteOpen, known), start[1]), consistent(2, start...)}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "another PostgreSQL cluster"},
		"announced by a stale answer":  {answers: []Answer{watched(p(s1, 30, "e"), start[1]), watched(upgraded("c", 2, cluster.RouteOpen, known), start[1])}, want: map[config.ShardID]string{"service/s1": "e", "service/s2": "b"}, doubt: true},
		"older timeline":               {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(p(s1, 13, "a"), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "timeline 1, known is 3"},
		"a restored snapshot":          {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), consistent(2, start...)}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "timeline 1, known is 3"},
		"and then written anew":        {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), consistent(2, start...), watched(testPair(t, s1, 11, later), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, doubt: true, problem: "timeline 1, known is 3"},
		"promotion after a loss":       {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(testPair(t, s1, 13, promoting), start[1])}, want: map[config.ShardID]string{"service/s1": "d", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"older after a promotion":      {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(testPair(t, s1, 13, promoting), start[1]), watched(p(s1, 14, "a"), start[1])}, want: map[config.ShardID]string{"service/s1": "d", "service/s2": "b"}, problem: "timeline 1, known is 3"},
		"older, down, of 1":            {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(inState(cluster.RouteDown, 1), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "timeline 1, known is 3"},
		"older, down, of 2":            {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(inState(cluster.RouteDown, 2), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "timeline 2, known is 3"},
		"older, handover, of 1":        {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(inState(cluster.RouteHandover, 1), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "timeline 1, known is 3"},
		"older, handover, of 2":        {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(inState(cluster.RouteHandover, 2), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "timeline 2, known is 3"},
		"older, promoting":             {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(inState(cluster.RoutePromoting, 1), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, problem: "timeline 1, known is 3"},
		"down where it was promoted":   {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(testPair(t, s1, 13, promoting), start[1]), watched(inState(cluster.RouteDown, 2), start[1])}, want: map[config.ShardID]string{"service/s1": "e", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"older than a promotion, down": {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(testPair(t, s1, 13, promoting), start[1]), watched(inState(cluster.RouteDown, 1), start[1])}, want: map[config.ShardID]string{"service/s1": "d", "service/s2": "b"}, problem: "timeline 1, known is 3"},
		"down, the same timeline":      {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), watched(inState(cluster.RouteDown, 3), start[1])}, want: map[config.ShardID]string{"service/s1": "e", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"older after a deletion":       {answers: []Answer{watched(testPair(t, s1, 12, later), start[1]), consistent(2, start[1]), watched(p(s1, 13, "a"), start[1])}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
		"a key that is no route":       {answers: []Answer{watched(start[0], start[1], Pair{"lictor/routes/x", nil, 12, 0})}, want: map[config.ShardID]string{"service/s1": "a", "service/s2": "b"}, problem: "is not lictor/routes/NAMESPACE/SCOPE"},
		"solved":                       {answers: []Answer{watched(Pair{s1, []byte("{"), 12, 0}, start[1]), watched(p(s1, 13, "c"), start[1])}, want: map[config.ShardID]string{"service/s1": "c", "service/s2": "b"}, changed: []config.ShardID{"service/s1"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewTable(config.Config{AllowEmpty: c.allowEmpty})
			if out := b.Merge(watched(start...)); !slices.Equal(out.Changed, []config.ShardID{"service/s1", "service/s2"}) {
				t.Fatalf("start changed %v", out.Changed)
			}
			var out outcome
			for _, a := range c.answers {
				out = b.Merge(a)
			}
			got := map[config.ShardID]string{}
			for id, k := range knownTo(b) {
				got[id] = k.Route.Leader.Host
			}
			if !maps.Equal(got, c.want) {
				t.Errorf("known: %v, want %v", got, c.want)
			}
			if !slices.Equal(out.Changed, c.changed) {
				t.Errorf("changed: %v, want %v", out.Changed, c.changed)
			}
			if out.Doubt != c.doubt {
				t.Errorf("doubt: %v, want %v", out.Doubt, c.doubt)
			}
			var problems []string
			for _, err := range b.Trouble() {
				problems = append(problems, err.Error())
			}
			if text := strings.Join(problems, "\n"); c.problem == "" && text != "" || !strings.Contains(text, c.problem) {
				t.Errorf("problems: %q, want %q", text, c.problem)
			}
		})
	}
}

func TestTableReportsOnce(t *testing.T) {
	b := NewTable(config.Config{})
	bad := Answer{Pairs: []Pair{{"lictor/routes/service/s1", []byte("{"), 1, 0}}, KnownLeader: true}
	if out := b.Merge(bad); len(out.News) != 1 || len(out.Solved) != 0 {
		t.Fatalf("first: %+v", out)
	}
	if out := b.Merge(bad); len(out.News) != 0 || len(out.Solved) != 0 {
		t.Fatalf("second: %+v", out)
	}
	good := Answer{Pairs: []Pair{testPair(t, "lictor/routes/service/s1", 2, testRoute("a"))}, KnownLeader: true}
	if out := b.Merge(good); len(out.News) != 0 || len(out.Solved) != 1 {
		t.Fatalf("solved: %+v", out)
	}
	later := testRoute("a")
	later.Timeline = 3
	b.Merge(Answer{Pairs: []Pair{testPair(t, "lictor/routes/service/s1", 12, later)}, KnownLeader: true})
	restored := []Pair{testPair(t, "lictor/routes/service/s1", 9, testRoute("a"))}
	if out := b.Merge(Answer{Pairs: restored, KnownLeader: true, Consistent: true, Epoch: b.now()}); len(out.News) != 1 || !errors.Is(out.News[0].Err, errOlder) {
		t.Fatalf("of a snapshot: %+v", out)
	}
	if out := b.Merge(Answer{Pairs: restored, KnownLeader: true, Index: 9}); !out.Doubt || out.isNews() {
		t.Fatalf("in doubt, which changes nothing: %+v", out)
	}
	if out := b.mergeOne("service/s1", restored[0]); !out.Doubt || out.isNews() {
		t.Fatalf("in doubt, by itself: %+v", out)
	}
	foreign := testRoute("b")
	foreign.SystemIdentifier = otherSystem
	out := b.Merge(Answer{Pairs: []Pair{testPair(t, "lictor/routes/service/s1", 13, foreign)}, KnownLeader: true})
	if len(out.News) != 1 || !errors.Is(out.News[0].Err, errForeign) {
		t.Fatalf("foreign: %+v", out)
	}
}

func TestTableServesConfiguredShardsOnly(t *testing.T) {
	b := NewTable(config.Config{Shards: []config.Shard{{Scope: "s1", Namespace: "service"}}})
	b.Merge(Answer{KnownLeader: true, Pairs: []Pair{
		testPair(t, "lictor/routes/service/s1", 1, testRoute("a")), testPair(t, "lictor/routes/service/s2", 1, testRoute("b")),
		{"lictor/routes/service/s3", []byte("{"), 1, 0},
	}})
	if known := knownTo(b); len(known) != 1 || len(b.Trouble()) != 0 {
		t.Fatalf("known %v, problems %v", known, b.Trouble())
	}
}

// A list that was begun before a route was read by itself is no reason for doubt, one of a Consul
// that was set back is.
func TestListsBehindSingleReads(t *testing.T) {
	const s1, s2 = "lictor/routes/service/s1", "lictor/routes/service/s2"
	p := func(key string, index uint64, host string) Pair { return testPair(t, key, index, testRoute(host)) }
	list := func(index uint64, pairs ...Pair) Answer { return Answer{Pairs: pairs, KnownLeader: true, Index: index} }
	b := NewTable(config.Config{RoutesPrefix: "lictor"})
	b.Merge(list(11, p(s1, 10, "a"), p(s2, 11, "b")))
	b.mergeOne("service/s1", p(s1, 20, "c"))
	leader := func() string { return knownTo(b)["service/s1"].Route.Leader.Host }
	if out := b.Merge(list(15, p(s1, 10, "a"), p(s2, 15, "d"))); out.Doubt || leader() != "c" || len(out.Changed) != 1 {
		t.Errorf("a list from before: %+v, s1 is at %s", out, leader())
	}
	if out := b.Merge(list(21, p(s1, 10, "a"), p(s2, 21, "d"))); !out.Doubt || leader() != "c" {
		t.Errorf("a list from after, with the route of before: %+v, s1 is at %s", out, leader())
	}
	b.mergeOne("service/s1", p(s1, 30, "e"))
	if out := b.Merge(list(22, p(s1, 20, "c"), p(s2, 21, "d"))); out.Doubt {
		t.Errorf("another list from before: %+v", out)
	}
	if out := b.Merge(list(12, p(s1, 12, "f"), p(s2, 11, "b"))); !out.Doubt {
		t.Errorf("Consul was set back: %+v", out)
	}
	if out := b.Merge(list(13, p(s1, 12, "f"), p(s2, 11, "b"))); !out.Doubt {
		t.Errorf("and goes on from there: %+v", out)
	}
}

// While many routes are read the table can be asked: the pass that brings PgBouncer to the ones
// before them would wait else.
func TestTableCanBeAskedMeanwhile(t *testing.T) {
	b := NewTable(config.Config{RoutesPrefix: "lictor"})
	long := testRoute("a")
	for i := range 200_000 {
		long.Replicas = append(long.Replicas, cluster.RouteMember{Name: fmt.Sprintf("m%d", i), Host: "b", Port: 5432})
	}
	pair := testPair(t, "lictor/routes/service/s1", 1, long)
	merged := make(chan time.Duration)
	go func() {
		begun := time.Now()
		b.Merge(Answer{Pairs: []Pair{pair}, KnownLeader: true})
		merged <- time.Since(begun)
	}()
	for asked := 0; ; asked++ {
		select {
		case took := <-merged:
			if asked < 10 {
				t.Errorf("it was asked %d times in %v", asked, took)
			}
			return
		case <-time.After(time.Millisecond):
			b.Version()
		}
	}
}

// Of many routes at once each is what its own value says.
func TestManyRoutesAtOnce(t *testing.T) {
	var pairs []Pair
	for i := range 500 {
		one := testPair(t, fmt.Sprintf("lictor/routes/service/s%03d", i), uint64(i+1), testRoute(fmt.Sprintf("h%d", i)))
		if i%7 == 0 {
			one.Value = []byte("{")
		}
		pairs = append(pairs, one)
	}
	b := NewTable(config.Config{RoutesPrefix: "lictor"})
	out := b.Merge(Answer{Pairs: pairs, KnownLeader: true})
	known := knownTo(b)
	for i := range 500 {
		id := config.ShardID(fmt.Sprintf("service/s%03d", i))
		if k, found := known[id]; found != (i%7 != 0) || found && k.Route.Leader.Host != fmt.Sprintf("h%d", i) {
			t.Errorf("%s: %v %+v", id, found, k)
		}
	}
	if len(out.News) != 72 || len(out.Changed) != 428 {
		t.Errorf("%d problems, %d changes", len(out.News), len(out.Changed))
	}
}

// A shard does not leave because the token may not read its route any more; it does when the key
// is gone for all to see.
func TestRouteThatAnACLHides(t *testing.T) {
	const s1, s2 = "lictor/routes/service/s1", "lictor/routes/service/s2"
	p := func(key string, index uint64, host string) Pair { return testPair(t, key, index, testRoute(host)) }
	b := NewTable(config.Config{RoutesPrefix: "lictor"})
	b.Merge(Answer{Pairs: []Pair{p(s1, 10, "a"), p(s2, 11, "b")}, KnownLeader: true, Index: 11})
	for _, consistent := range []bool{false, true} {
		out := b.Merge(Answer{Pairs: []Pair{p(s1, 12, "c")}, KnownLeader: true, Filtered: true, Consistent: consistent, Epoch: b.now()})
		if known := knownTo(b); known["service/s2"].Route.Leader.Host != "b" || known["service/s1"].Route.Leader.Host != "c" || out.Doubt {
			t.Errorf("consistent %v: %+v, known are %+v", consistent, out, known)
		}
	}
	if said := b.Trouble()[""]; said == nil || !strings.Contains(said.Error(), "[service/s2] are not among those that the token may read") {
		t.Errorf("said is %v", said)
	}
	out := b.Merge(Answer{Pairs: []Pair{p(s1, 12, "c")}, KnownLeader: true, Consistent: true, Epoch: b.now()})
	if _, stays := knownTo(b)["service/s2"]; stays || len(out.Solved) != 1 {
		t.Errorf("when the key is gone: %+v", out)
	}
}

// One shard's route names any number of hosts: no more than a few are looked up for it.
func TestHostsOfOneShardAreBounded(t *testing.T) {
	many := testRoute("h0")
	for i := range cluster.MaxReplicas {
		many.Replicas = append(many.Replicas, cluster.RouteMember{Name: fmt.Sprintf("m%d", i+1), Host: fmt.Sprintf("h%d", i+1), Port: 5432})
	}
	b := NewTable(config.Config{})
	b.Merge(Answer{KnownLeader: true, Pairs: []Pair{
		testPair(t, "lictor/routes/service/many", 1, many), testPair(t, "lictor/routes/service/s1", 1, testRoute("good")), testPair(t, "lictor/routes/service/s2", 1, testRoute("h0")),
	}})
	if hosts := b.Hosts(); len(hosts) != mostHosts+1 || !slices.Contains(hosts, "good") || !slices.Contains(hosts, "h0") {
		t.Errorf("%d hosts: %v", len(hosts), hosts)
	}
}
