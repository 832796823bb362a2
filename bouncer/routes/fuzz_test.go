package routes

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Whatever stands in a key of a handover: it holds clients only if it is whole, and
// never longer than it may.
func FuzzHandover(f *testing.F) {
	good, err := json.Marshal(cluster.Handover{ID: "x", Leader: "db1", DeadlineMS: 1000, State: cluster.HandoverAnnounced})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("service/s1", good, "session")
	f.Add("service/s1", []byte(`{"id":"x","leader":"a","deadline_ms":1e99,"state":"announced"}`), "session")
	f.Add("s1", good, "")
	f.Add("a/b/c/", []byte(`[]`), "s")
	f.Fuzz(func(t *testing.T, id string, value []byte, session string) {
		now := time.Unix(1000, 0)
		h := NewHandovers(cluster.NewKeys("", "", ""), func(config.ShardID) bool { return true })
		h.clock = func() time.Time { return now }
		_, _, problems := h.merge(api.KVPairs{{Key: "lictor/handovers/" + id, Value: value, ModifyIndex: 5, Session: session}}, 5)
		route := cluster.Route{State: cluster.RouteOpen, Leader: cluster.RouteMember{Name: "db1"}}
		held := h.Holds(config.ShardID(id), route, 1)
		parsed, err := cluster.ParseHandover(value)
		if held != nil && (err != nil || session == "" || parsed.State != cluster.HandoverAnnounced || len(problems) > 0) {
			t.Fatalf("it holds: %+v, %v, %v", held, err, problems)
		}
		now = now.Add(cluster.MaxHandoverDeadline)
		if h.Holds(config.ShardID(id), route, 1) != nil {
			t.Fatal("it holds for ever")
		}
	})
}

// Whatever Patroni's keys hold: what comes of them is a route or an error.
func FuzzPatroniKeys(f *testing.F) {
	f.Add("7", "a", `{"conn_url":"postgres://10.0.0.1:5433/postgres","role":"master","state":"running","timeline":3}`, `{"optime":1}`)
	f.Add("7", "a", `{"conn_url":"postgres://h:99999/","role":"replica","timeline":-1}`, `1`)
	f.Add("", "b", `{"conn_url":"postgres://%zz"}`, ``)
	f.Add("7", "a", `{"conn_url":"postgres://a b:1/","role":"primary","state":"running"}`, `{}`)
	c := config.Config{Shards: []config.Shard{{Scope: "s1", Namespace: "service"}}, RoutesPrefix: "lictor"}
	f.Fuzz(func(t *testing.T, initialize, leader, member, status string) {
		s := patroniKVs(func(v map[string]string) {
			v["initialize"], v["leader"], v["status"] = initialize, leader, status
			v["members/a"] = member
			v["members/c"] = strings.Replace(member, "master", "replica", 1)
		})
		route, index, err := patroniRoute(s, nil, 1000, time.Unix(1000, 0))
		if err != nil {
			return
		}
		b := NewTable(c)
		if _, err := b.followed("service/s1", route, index); err != nil {
			if _, found := b.Get("service/s1"); found {
				t.Fatalf("refused, and taken: %v", err)
			}
			return
		}
		k, found := b.Get("service/s1")
		if !found || k.Route.Validate() != nil || checkShard("service/s1") != nil {
			t.Fatalf("%+v", k)
		}
	})
}
