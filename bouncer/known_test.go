package bouncer

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

func someRoute(host string) cluster.Route {
	return cluster.Route{
		Version: 1, SystemIdentifier: "7000000000000000001", State: cluster.RouteOpen, Timeline: 1,
		Leader: cluster.RouteMember{Name: "m-" + host, Host: host, Port: 5432}, Since: time.Unix(1000, 0).UTC(),
	}
}

func knownIn(b *routes.Table) map[config.ShardID]routes.Known {
	shards, _ := b.Known()
	return shards
}

func somePair(t *testing.T, key string, index uint64, r cluster.Route) routes.Pair {
	t.Helper()
	value, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return routes.Pair{Key: key, Value: value, ModifyIndex: index}
}
