package bouncer

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

const benchShards = 1000

func benchConfig() config.Config {
	return config.Config{
		Name: "pooler1", RoutesPrefix: "lictor",
		PgBouncer: config.PgBouncer{Config: "/etc/pgbouncer/pgbouncer.ini", Admin: "/run/postgresql:6432", User: "pooler"},
	}
}

func benchPairs(b *testing.B, config config.Config) []routes.Pair {
	b.Helper()
	var pairs []routes.Pair
	for i := range benchShards {
		r := someRoute(fmt.Sprintf("10.0.%d.%d", i/250, i%250+1))
		for m := range 2 {
			r.Replicas = append(r.Replicas, cluster.RouteMember{Name: fmt.Sprintf("db%d", m), Host: fmt.Sprintf("10.%d.%d.%d", m+1, i/250, i%250+1), Port: 5432})
		}
		value, err := json.Marshal(r)
		if err != nil {
			b.Fatal(err)
		}
		key := cluster.NewKeys("", fmt.Sprintf("shard%04d", i), config.RoutesPrefix).Route()
		pairs = append(pairs, routes.Pair{Key: key, Value: value, ModifyIndex: uint64(i + 1)})
	}
	return pairs
}

// One route of a thousand has changed.
func BenchmarkMerge(b *testing.B) {
	config := benchConfig()
	book, pairs := routes.NewTable(config), benchPairs(b, config)
	book.Merge(routes.Answer{Pairs: pairs, KnownLeader: true})
	for i := 0; b.Loop(); i++ {
		pairs[i%benchShards].ModifyIndex = uint64(benchShards + 1 + i)
		book.Merge(routes.Answer{Pairs: pairs, KnownLeader: true})
	}
}

func BenchmarkRender(b *testing.B) {
	config := benchConfig()
	book := routes.NewTable(config)
	book.Merge(routes.Answer{Pairs: benchPairs(b, config), KnownLeader: true})
	shards, _ := routesOf(book)
	r := render.NewRenderer(config, nil, "")
	defer r.Close()
	source, err := r.Template()
	if err != nil {
		b.Fatal(err)
	}
	viewer := render.NewViewer(config)
	for i := uint64(1); b.Loop(); i++ {
		one := shards["service/shard0007"] // of a thousand it is the one that has changed
		one.Revision = i << 32
		shards["service/shard0007"] = one
		views, _ := viewer.View(shards, pgbouncer.Version{})
		text, err := r.Render(source, views, pgbouncer.Version{1, 18})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := render.Check(text, views, config, pgbouncer.Version{}); err != nil {
			b.Fatal(err)
		}
	}
}
