package routes

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// patroniKVs are the keys of a cluster of three that Patroni runs: a leads.
func patroniKVs(change func(map[string]string)) cluster.Snapshot {
	values := map[string]string{
		"initialize": "7000000000000000001", "leader": "a", "status": `{"optime":100000000,"slots":{}}`,
		"members/a": `{"conn_url":"postgres://10.0.0.1:5433/postgres","role":"master","state":"running","timeline":3,"xlog_location":100000000}`,
		"members/b": `{"conn_url":"postgres://10.0.0.2/postgres","role":"replica","state":"running","timeline":3,"xlog_location":100000000,"tags":{"noloadbalance":true}}`,
		"members/c": `{"conn_url":"postgres://[fd00::3]:5434/postgres","role":"replica","state":"running","timeline":3,"xlog_location":100000000}`,
	}
	if change != nil {
		change(values)
	}
	keys := cluster.NewKeys("", "s1", "")
	var kvs []cluster.KV
	for name, value := range values {
		kv := cluster.KV{Key: keys.Prefix() + name, Value: []byte(value), ModifyIndex: 7}
		if name == "leader" {
			kv.Session, kv.ModifyIndex = "session", 9
		}
		kvs = append(kvs, kv)
	}
	return cluster.ParseSnapshot(keys, kvs, 12)
}

func TestPatroniRoute(t *testing.T) {
	now := time.Unix(1000, 0)
	first, index, err := patroniRoute(patroniKVs(nil), nil, 1000, now)
	if err != nil || index != 9 || first.Validate() != nil {
		t.Fatalf("%+v %d %v %v", first, index, err, first.Validate())
	}
	if first.State != cluster.RouteOpen || first.Timeline != 3 || first.Leader.Host != "10.0.0.1" || first.Leader.Port != 5433 || !first.Since.Equal(now) {
		t.Fatalf("%+v", first)
	}
	hosts := func(r cluster.Route) string {
		var all []string
		for _, m := range r.Replicas {
			all = append(all, m.Host+"/"+strconv.Itoa(m.Port))
		}
		return strings.Join(all, " ")
	}
	// A replica that says noloadbalance is a member nevertheless; readers are
	// chosen later.
	if got := hosts(first); got != "10.0.0.2/5432 fd00::3/5434" {
		t.Fatalf("replicas are %s", got)
	}
	without := first
	without.Replicas = nil
	role := func(member, from, to string) func(map[string]string) {
		return func(v map[string]string) { v["members/"+member] = strings.Replace(v["members/"+member], from, to, 1) }
	}
	for name, test := range map[string]struct {
		change   func(map[string]string)
		before   *cluster.Route
		state    cluster.RouteState // empty: an error
		replicas string
	}{
		"Patroni 4's word": {role("a", "master", "primary"), &first, cluster.RouteOpen, "10.0.0.2/5432 fd00::3/5434"},
		"being promoted":   {role("a", "master", "promoted"), &first, cluster.RoutePromoting, "10.0.0.2/5432 fd00::3/5434"},
		"still a replica":  {role("a", "master", "replica"), &first, cluster.RoutePromoting, "10.0.0.2/5432 fd00::3/5434"},
		"not running":      {role("a", "running", "stopping"), &first, cluster.RouteDown, "10.0.0.2/5432 fd00::3/5434"},
		"no leader":        {func(v map[string]string) { delete(v, "leader") }, &first, cluster.RouteDown, "10.0.0.2/5432 fd00::3/5434"},
		"never had one":    {func(v map[string]string) { delete(v, "leader") }, nil, "", ""},
		"a stranger leads": {func(v map[string]string) { v["leader"] = "z" }, &first, "", ""},
		"bad address":      {role("a", "10.0.0.1", ""), &first, "", ""},
		"bad member":       {func(v map[string]string) { v["members/c"] = "{" }, &first, cluster.RouteOpen, "10.0.0.2/5432"},
		"replica starts":   {role("c", "running", "starting"), &first, cluster.RouteOpen, "10.0.0.2/5432"},
		"replica lags":     {role("c", "n\":100000000", "n\":99998999"), &first, cluster.RouteOpen, "10.0.0.2/5432"},
		"it may lag":       {role("c", "n\":100000000", "n\":99999000"), &first, cluster.RouteOpen, "10.0.0.2/5432 fd00::3/5434"},
		"not back yet":     {role("c", "n\":100000000", "n\":99999000"), &without, cluster.RouteOpen, "10.0.0.2/5432"},
		"back":             {role("c", "n\":100000000", "n\":99999500"), &without, cluster.RouteOpen, "10.0.0.2/5432 fd00::3/5434"},
	} {
		got, _, err := patroniRoute(patroniKVs(test.change), test.before, 1000, now.Add(time.Hour))
		switch {
		case test.state == "":
			if err == nil {
				t.Errorf("%s: no error but %+v", name, got)
			}
		case err != nil || got.State != test.state || hosts(got) != test.replicas || !got.Since.Equal(now):
			t.Errorf("%s: %v %+v", name, err, got)
		}
	}
}

// Lictor's route takes over from Patroni's keys, and not the other way round.
func TestPatroniYieldsToRoute(t *testing.T) {
	b := NewTable(config.Config{Shards: []config.Shard{{Scope: "s1", Namespace: "service"}, {Scope: "s2", Namespace: "service", Patroni: true}}, RoutesPrefix: "lictor"})
	patroni, _, err := patroniRoute(patroniKVs(nil), nil, 1000, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	changed, err := b.followed("service/s1", patroni, 500)
	if err != nil || !changed || b.routed("service/s1") {
		t.Fatalf("%v %v", changed, err)
	}
	if changed, err = b.followed("service/s1", patroni, 501); err != nil || changed {
		t.Fatalf("the same again: %v %v", changed, err)
	}
	// Routes come and go; what is Patroni's stays.
	out := b.Merge(Answer{KnownLeader: true, Consistent: true, Epoch: b.now()})
	if k, found := b.Get("service/s1"); !found || k.Gone || len(out.News) > 0 {
		t.Fatalf("%+v %+v", k, out)
	}
	route := patroni
	route.Leader.Name = "lictor"
	value, err := json.Marshal(route)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"s1", "s2"} {
		b.Merge(Answer{KnownLeader: true, Pairs: []Pair{{Key: "lictor/routes/service/" + id, Value: value, ModifyIndex: 3}}})
	}
	if k, _ := b.Get("service/s1"); k.Route.Leader.Name != "lictor" || !b.routed("service/s1") {
		t.Fatalf("%+v", k)
	}
	if changed, err = b.followed("service/s1", patroni, 900); err != nil || changed {
		t.Fatalf("over a route: %v %v", changed, err)
	}
	if _, found := b.Get("service/s2"); found {
		t.Fatal("a route was followed though patroni is set")
	}
	foreign := patroni
	foreign.SystemIdentifier = "8"
	if _, err = b.followed("service/s2", patroni, 1); err != nil {
		t.Fatal(err)
	}
	if _, err = b.followed("service/s2", foreign, 2); !errors.Is(err, errForeign) {
		t.Fatalf("a foreign cluster: %v", err)
	}
}

// A shard of Patroni's whose key initialize was not there, or was made anew, may be another cluster, or the
// same one set back; one whose key stands may not.
func TestPatroniShardMadeAnew(t *testing.T) {
	const id = config.ShardID("service/s1")
	c := config.Config{Shards: []config.Shard{{Namespace: "service", Scope: "s1", Patroni: true}}}
	route := func(system string, timeline int, state cluster.RouteState) cluster.Route {
		r := testRoute("a")
		r.SystemIdentifier, r.Timeline, r.State = system, timeline, state
		return r
	}
	for name, next := range map[string]cluster.Route{
		"upgraded": route(otherSystem, 1, cluster.RouteOpen), "set back": route(ownSystem, 1, cluster.RouteOpen),
	} {
		b := NewTable(c)
		follow := func(r cluster.Route) (bool, error) { return b.followed(id, r, 10) }
		if _, err := follow(route(ownSystem, 5, cluster.RouteOpen)); err != nil {
			t.Fatal(err)
		}
		if _, err := follow(next); err == nil || !strings.Contains(err.Error(), "delete its key initialize") {
			t.Errorf("%s: %v", name, err)
		}
		b.forgotten(id)
		if changed, err := follow(route(ownSystem, 5, cluster.RouteDown)); err != nil || !changed {
			t.Errorf("%s, without a leader: %v %v", name, changed, err)
		}
		if changed, err := follow(route(ownSystem, 5, cluster.RouteDown)); err != nil || changed {
			t.Errorf("%s, without a leader still: %v %v", name, changed, err)
		}
		if changed, err := follow(next); err != nil || !changed {
			t.Errorf("%s, after the key was away: %v %v", name, changed, err)
		}
		if k, _ := b.Get(id); k.Gone || k.Route.SystemIdentifier != next.SystemIdentifier || k.served() != 1 {
			t.Errorf("%s: known is %+v", name, k)
		}
	}
	// The timeline of another cluster's leader of the same name says nothing.
	before := route("7000000000000000009", 9, cluster.RouteOpen)
	before.Leader.Name = "a"
	if r, _, err := patroniRoute(patroniKVs(nil), &before, 1000, time.Unix(2000, 0)); err != nil || r.Timeline != 3 {
		t.Errorf("%+v %v", r, err)
	}
}
