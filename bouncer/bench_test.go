package bouncer

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// cpu is the CPU time of all that this process has done: beside other work the time that has passed says little.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// reportCPU reports how much CPU time a round took.
func reportCPU(b *testing.B, used time.Duration) {
	b.Helper()
	b.ReportMetric(float64(used.Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// BenchmarkMerge takes in a list of which one route, and of which all have changed.
func BenchmarkMerge(b *testing.B) {
	for name, changed := range map[string]int{"one": 1, "all": benchShards} {
		b.Run(name, func(b *testing.B) {
			config := benchConfig()
			book, pairs := routes.NewTable(config), benchPairs(b, config)
			book.Merge(routes.Answer{Pairs: pairs, KnownLeader: true})
			begun := cpu(b)
			for i := 0; b.Loop(); i++ {
				for n := range changed {
					pairs[(i+n)%benchShards].ModifyIndex = uint64(benchShards + 1 + i)
				}
				book.Merge(routes.Answer{Pairs: pairs, KnownLeader: true})
			}
			reportCPU(b, cpu(b)-begun)
		})
	}
}

// BenchmarkRender takes what is known of a thousand shards to a checked text, when one of
// them has changed, and when all have.
func BenchmarkRender(b *testing.B) {
	c := benchConfig()
	table := routes.NewTable(c)
	table.Merge(routes.Answer{Pairs: benchPairs(b, c), KnownLeader: true})
	shards, _ := routesOf(table)
	for name, changed := range map[string]int{"one": 1, "all": benchShards} {
		b.Run(name, func(b *testing.B) {
			r := render.NewRenderer(c, nil, "")
			defer r.Close()
			source, err := r.Template()
			if err != nil {
				b.Fatal(err)
			}
			viewer, checker := render.NewViewer(c), render.NewChecker(c)
			begun := cpu(b)
			for i := uint64(1); b.Loop(); i++ {
				for n := range changed {
					id := config.ShardID(fmt.Sprintf("service/shard%04d", n))
					one := shards[id]
					one.Revision = i << 32
					one.Route.Leader.Port = 5000 + int(i%100)
					shards[id] = one
				}
				views, _ := viewer.View(shards, pgbouncer.Version{})
				text, err := r.Render(source, views, pgbouncer.Version{1, 18})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := checker.Check(text, views, pgbouncer.Version{}); err != nil {
					b.Fatal(err)
				}
			}
			reportCPU(b, cpu(b)-begun)
		})
	}
}
