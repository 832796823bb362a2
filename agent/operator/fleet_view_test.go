package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
)

// manyKeys are the keys of n healthy shards with a session for each, their routes, and a bouncer.
func manyKeys(tb testing.TB, n int) (shards, routes, bouncers consulapi.KVPairs) {
	tb.Helper()
	pair := func(key string, value any) *consulapi.KVPair {
		text, err := json.Marshal(value)
		if err != nil {
			tb.Fatal(err)
		}
		return &consulapi.KVPair{Key: key, Value: text, Session: "s", ModifyIndex: 7}
	}
	applied := map[string]cluster.BouncerShard{}
	now := time.Now()
	for i := range n {
		keys := cluster.NewKeys("service", fmt.Sprintf("s%04d", i), "")
		const position = 5 << 30
		route := cluster.Route{Version: cluster.RouteVersion, SystemIdentifier: "7", State: cluster.RouteOpen, Timeline: 2, Since: now}
		for j := range 3 {
			name := fmt.Sprintf("s%04d-db%d", i, j)
			m := cluster.Member{ConnURL: fmt.Sprintf("postgres://10.0.%d.%d:5432/postgres", j, i%256), APIURL: "http://10.0.0.1:8008/patroni", State: cluster.StateRunning, Role: cluster.RoleReplica, Version: "0.1.0", XLogLocation: position, Timeline: 2, ReplicationState: "streaming", Tags: map[string]any{"zone": fmt.Sprint("z", j)}}
			at := cluster.RouteMember{Name: name, Host: "10.0.0.1", Port: 5432 + j}
			if j == 0 {
				m.Role, route.Leader = cluster.RolePrimary, at
				shards = append(shards, &consulapi.KVPair{Key: keys.Leader(), Value: []byte(name), Session: "s", ModifyIndex: 7})
				applied["service/"+keys.Scope()] = cluster.BouncerShard{Leader: name, Timeline: 2, State: cluster.RouteOpen, VerifiedAt: &now}
			} else {
				route.Replicas = append(route.Replicas, at)
			}
			shards = append(shards, pair(keys.Member(name), m))
		}
		shards = append(shards, &consulapi.KVPair{Key: keys.Initialize(), Value: []byte("7"), ModifyIndex: 7},
			pair(keys.Config(), map[string]any{"ttl": 8, "synchronous_mode": true, "postgresql": map[string]any{"parameters": map[string]any{"work_mem": "16MB"}}}),
			pair(keys.Status(), cluster.Status{OpTime: position, Lictor: &cluster.Beat{LeaseMS: 8000, Number: 1, Owner: "x"}}),
			pair(keys.Sync(), cluster.NewSync(fmt.Sprintf("s%04d-db0", i), []string{fmt.Sprintf("s%04d-db1", i)})))
		routes = append(routes, pair(keys.Route(), route))
	}
	keys := cluster.NewKeys("service", "x", "")
	for i := range 10 {
		name := fmt.Sprint("pooler", i)
		bouncers = append(bouncers, pair(keys.Bouncers()+name, cluster.Bouncer{Name: name, URL: "http://10.0.0.9:8009", All: true}), pair(keys.BouncersApplied()+name, cluster.BouncerApplied{Applied: applied}))
	}
	return shards, routes, bouncers
}

func watchOf(tb testing.TB, n int) *FleetWatch {
	tb.Helper()
	w, err := WatchFleet(&Site{Settings: Settings{Namespace: "service"}}, DefaultZoneTag)
	if err != nil {
		tb.Fatal(err)
	}
	shards, routes, bouncers := manyKeys(tb, n)
	prefixes := w.prefixes()
	for i, pairs := range []consulapi.KVPairs{shards, routes, bouncers} {
		w.answers[prefixes[i]] = answer{pairs: pairs, at: time.Now(), index: 7}
	}
	return w
}

func BenchmarkRebuild(b *testing.B) {
	w := watchOf(b, 1000)
	b.ReportAllocs()
	for b.Loop() {
		w.rebuild()
	}
}

func TestWorstFirst(t *testing.T) {
	shard := func(scope string, edit func(*cluster.Snapshot)) *builtShard {
		b := &builtShard{shard: fleetShard{scope: scope, snapshot: shardOf(edit), dynamic: cluster.Dynamic{MaximumLagOnFailover: 1 << 20}}}
		b.show(DefaultZoneTag)
		return b
	}
	built := map[string]*builtShard{}
	for _, b := range []*builtShard{
		shard("a-well", nil),
		shard("b-restart", func(s *cluster.Snapshot) { s.Members[0].Value.PendingRestart = true }),
		shard("c-two", func(s *cluster.Snapshot) {
			s.Members[1].Value.Role, s.Members[1].ModifyIndex = cluster.RolePrimary, s.Leader.ModifyIndex+1
		}),
		shard("d-stopped", func(s *cluster.Snapshot) { s.Members[1].Value.State = cluster.StateStopped }),
		shard("e-leaderless", func(s *cluster.Snapshot) { s.Leader = cluster.Entry[string]{} }),
		shard("f-both", func(s *cluster.Snapshot) {
			s.Members[1].Value.State, s.Members[2].Value.State = cluster.StateStopped, cluster.StateStopped
		}),
		shard("a-well-too", nil),
	} {
		built[b.shard.scope] = b
	}
	var got []string
	for _, row := range fleetView(built, nil).Shards {
		got = append(got, row.Name+" "+row.Level)
		if len(row.Cells) != len(fleetTable().Columns) {
			t.Errorf("%s has %d cells", row.Name, len(row.Cells))
		}
	}
	want := []string{"c-two problem", "e-leaderless problem", "f-both problem", "d-stopped problem", "b-restart warning", "a-well ok", "a-well-too ok"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWatchBuildsWhatHasChanged(t *testing.T) {
	w := watchOf(t, 3)
	w.rebuild()
	state, changed := w.State()
	if len(state.View.Shards) != 3 || state.Number != 1 || state.View.Shards[0].Level != "ok" || len(state.View.Poolers.Rows) != 10 {
		t.Fatalf("%d shards, number %d, %+v", len(state.View.Shards), state.Number, state.View)
	}
	before := w.built
	shards := w.prefixes()[0]
	a := w.answers[shards]
	a.pairs = slices.Clone(a.pairs)
	i := slices.IndexFunc(a.pairs, func(p *consulapi.KVPair) bool { return p.Key == "service/s0001/members/s0001-db2" })
	a.pairs[i] = &consulapi.KVPair{Key: a.pairs[i].Key, ModifyIndex: 8, Session: "s", Value: bytes.Replace(a.pairs[i].Value, []byte(`"running"`), []byte(`"stopped"`), 1)}
	w.answers[shards] = a
	w.rebuild()
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
	state, _ = w.State()
	if first := state.View.Shards[0]; first.Name != "s0001" || first.Level != "problem" || !slices.Equal(first.Kinds, []string{"member not running"}) {
		t.Errorf("the first: %+v", first)
	}
	if w.built["s0000"] != before["s0000"] || w.built["s0001"] == before["s0001"] {
		t.Error("what has not changed was read again, or what has was not")
	}
	// Consul's data are made anew: the same number is of another value.
	a.pairs = slices.Clone(a.pairs)
	a.pairs[i] = &consulapi.KVPair{Key: a.pairs[i].Key, ModifyIndex: 8, Session: "s", Value: bytes.Replace(a.pairs[i].Value, []byte(`"stopped"`), []byte(`"running"`), 1)}
	w.answers[shards] = a
	w.rebuild()
	if state, _ = w.State(); state.View.Shards[0].Level != "ok" {
		t.Errorf("what was before is shown: %+v", state.View.Shards[0])
	}
	a.pairs = slices.Clone(a.pairs)
	a.pairs[i] = &consulapi.KVPair{Key: a.pairs[i].Key, ModifyIndex: 9, Session: "s", Value: bytes.Replace(a.pairs[i].Value, []byte(`"running"`), []byte(`"stopped"`), 1)}
	w.answers[shards] = a
	// What a leader says is its shard's alone, and another leader's is not.
	w.words = map[string]leaderWords{"s0002/s0002-db0": {backups: "there is no good backup"}, "s0000/another": {backups: "there is none"}}
	w.rebuild()
	state, _ = w.State()
	if state.View.Shards[1].Name != "s0002" || state.View.Shards[2].Level != "ok" {
		t.Errorf("with the leaders' words: %+v", state.View.Shards)
	}
}

// The age is that of what was read longest ago, and a failure does not make it younger.
func TestStateTellsItsAge(t *testing.T) {
	w := watchOf(t, 1)
	old := time.Now().Add(-time.Minute)
	routes := w.prefixes()[1]
	a := w.answers[routes]
	a.at, a.err = old, fmt.Errorf("asking Consul: %w", errNoConsulLeader)
	w.answers[routes] = a
	w.rebuild()
	state, _ := w.State()
	if !state.At.Equal(old) || !strings.Contains(state.Problem, "no leader") || len(state.View.Shards) != 1 {
		t.Errorf("at %v: %q", state.At, state.Problem)
	}
}

// A token that may read nothing is told, and is no fleet without shards.
func TestStateTellsThatNothingMayBeRead(t *testing.T) {
	w := watchOf(t, 0)
	shards := w.prefixes()[0]
	for filtered, want := range map[bool]string{false: "", true: "its token may not read the keys below service/"} {
		w.answers[shards] = answer{at: time.Now(), index: 7, filtered: filtered}
		if state, _ := w.State(); (want == "") != (state.Problem == "") || !strings.Contains(state.Problem, want) {
			t.Errorf("filtered: %v: %q", filtered, state.Problem)
		}
	}
}

// While Consul hangs a shard is shown all the same, before the server's limit for an answer.
func TestShardIsShownWithoutItsEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchOf(t, 2)
		defer w.client.Close()
		w.rebuild()
		w.turn <- struct{}{} // who reads the shards' keys gets no answer
		began := time.Now()
		view, found := w.Shard(t.Context(), "s0001")
		if took := time.Since(began); !found || len(view.Sheets) == 0 || view.Unread == "" || took >= httpserver.DefaultLimits().Answer {
			t.Errorf("after %v: %v, %q, %d sheets", took, found, view.Unread, len(view.Sheets))
		}
		// One whom the answer does not reach any more leaves no failure for the others.
		<-w.turn
		gone, leave := context.WithCancel(t.Context())
		leave()
		_, _ = w.Shard(gone, "s0001")
		if r, remembered := w.events["s0001"]; remembered {
			t.Errorf("%v", r.err)
		}
	})
}

// However many shards somebody opens, and how often: their events are read at a pace, one shard's at a
// time, and the page's own reading of all shards waits for one of them at the most.
func TestEventsAreReadAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const shards = 100
		w := watchOf(t, shards)
		defer w.client.Close()
		w.rebuild()
		w.turn <- struct{}{}
		var asking sync.WaitGroup
		var unread atomic.Int64
		for i := range shards {
			asking.Go(func() {
				view, found := w.Shard(t.Context(), fmt.Sprintf("s%04d", i))
				if !found || len(view.Sheets) == 0 {
					t.Errorf("%d: %v", i, found)
				}
				// The last one's time may be over while it waits for its turn.
				if strings.Contains(view.Unread, "too many ask") || strings.Contains(view.Unread, "waiting for Consul") {
					unread.Add(1)
				}
			})
		}
		synctest.Wait()
		own := make(chan int)
		go func() {
			take(t.Context(), w.turn)
			w.mu.Lock()
			defer w.mu.Unlock()
			own <- len(w.events)
		}()
		synctest.Wait()
		<-w.turn
		if before := <-own; before > 1 {
			t.Errorf("%d reads of events went before the page's own", before)
		}
		<-w.turn
		asking.Wait()
		most := eventsRate + int(eventsLimit.Seconds()*eventsRate)
		// The last turn and the end of patience are at the same moment: one may meet with either.
		if n := len(w.events); n < most-1 || n > most || int(unread.Load()) < shards-n-1 {
			t.Errorf("the events of %d shards were read, of %d not; want %d at the most", n, unread.Load(), most)
		}
	})
}

func TestNothingIsShownOfHalfAFleet(t *testing.T) {
	w := watchOf(t, 1)
	delete(w.answers, w.prefixes()[2])
	w.rebuild()
	if state, _ := w.State(); state.Number != 0 || !state.At.IsZero() {
		t.Errorf("%+v", state)
	}
}

func TestCommandsToCopy(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"orders", "db1"}, "lictor reinit orders db1"},
		{[]string{"orders; rm -rf /"}, ""},
		{[]string{"orders", "$(id)"}, ""},
		{[]string{"orders", "--force"}, ""},
		{[]string{""}, ""},
	} {
		if got := commandLine("reinit", c.names...); got != c.want {
			t.Errorf("%q: %q, want %q", c.names, got, c.want)
		}
	}
	s := fleetShard{scope: "x; reboot", snapshot: shardOf(func(s *cluster.Snapshot) { s.Leader = cluster.Entry[string]{} })}
	view := s.detail(time.Now())
	if len(view.Look) != 0 || len(view.Steps) == 0 || view.Steps[0].Command != "" || view.Steps[0].Runbook != "no-leader" {
		t.Errorf("a shard whose name is none: %q, %+v", view.Look, view.Steps)
	}
}

func TestShardInDetail(t *testing.T) {
	verified := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	s := fleetShard{scope: "x", dynamic: cluster.Dynamic{SynchronousMode: cluster.SyncOn}, snapshot: shardOf(func(s *cluster.Snapshot) {
		s.Sync.Value, s.Sync.ModifyIndex = cluster.NewSync("a", []string{"b"}), 1
		s.Status.Value.Slots = map[string]int64{"b": 64 << 20, "gone": 60 << 20}
		s.Status.Value.RetainSlots = []string{"gone"}
		s.Members[1].Value.State = "stopped\u202e\x1b[31m"
		s.Sync.Value = cluster.NewSync("a", []string{"b", "b\u202e"})
		s.Route.Value.Leader.Host = "10.0.0.1\u202e"
	})}
	s.lease = lease{known: true, left: 6900 * time.Millisecond}
	s.repository = &api.PeerBackups{Age: time.Minute, Last: map[string]string{"full": "2026-11-29T02:00:00Z"}, Count: 3}
	s.servedBy("service", []cluster.Bouncer{{Name: "p", All: true, Applied: map[string]cluster.BouncerShard{"service/x": {Leader: "a", Timeline: 2, State: cluster.RouteOpen, VerifiedAt: &verified}}}})
	text, err := json.Marshal(s.detail(verified.Add(90 * time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"Lease","text":"6.9 s left when a was asked last; 8.0 s long, beat 3 of a"`, `"Synchronous","text":"b, b\\u202e"`, `"Last full backup","text":"2026-11-29T02:00:00Z"`,
		`"title":"Members"`, `{"text":"gone"},{"text":"4 MB"},{"text":"for a member that is away"}`, `since 2026-11-30 12:00:00 UTC, for 2 min`,
		`"command":"lictor list x","runbook":"replica-will-not-start"`, `"Route","text":"open, to a (10.0.0.1\\u202e:5432) on timeline 2`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	if strings.Contains(string(text), "\u202e") || strings.Contains(string(text), `\u001b`) {
		t.Errorf("what turns text around is shown: %s", text)
	}
}
