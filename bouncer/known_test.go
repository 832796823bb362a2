package bouncer

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

func someRoute(host string) cluster.Route {
	return cluster.Route{
		Version: 1, SystemIdentifier: "7000000000000000001", State: cluster.RouteOpen, Timeline: 1,
		Leader: cluster.RouteMember{Name: "m-" + host, Host: host, Port: 5432}, Since: time.Unix(1000, 0).UTC(),
	}
}

func knownIn(b *book) map[config.ShardID]known {
	shards, _ := b.known()
	return shards
}

func somePair(t *testing.T, key string, index uint64, r cluster.Route) pair {
	t.Helper()
	value, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return pair{Key: key, Value: value, ModifyIndex: index}
}
