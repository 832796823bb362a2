package bouncer

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestScratch(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("SHARDS"))
	if n == 0 {
		t.Skip()
	}
	w := newWorld(t, nil)
	key := func(i int) string { return cluster.NewKeys("", "s"+strconv.Itoa(i), w.config.RoutesPrefix).Route() }
	for i := 1; i <= n; i++ {
		w.put(key(i), w.route(0, cluster.RouteOpen))
	}
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	admin := w.admin()
	var took []time.Duration
	for i := range 20 {
		m := (i + 1) % 2
		begin := time.Now()
		w.put(w.keys.Route(), w.route(m, cluster.RouteOpen))
		for {
			all, err := admin.Databases(w.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if all["s1"].Port == w.site.members[m].Port {
				break
			}
		}
		took = append(took, time.Since(begin))
		w.awaitLeader(m)
		time.Sleep(100 * time.Millisecond)
	}
	slices.Sort(took)
	fmt.Println("shards", n, "p50", took[10], "max", took[19])
	c := cpu()
	time.Sleep(10 * time.Second)
	fmt.Println("idle cpu in 10 s", cpu()-c)
	begin := time.Now()
	for i := 1; i <= n; i++ {
		w.put(key(i), w.route(1, cluster.RoutePromoting))
	}
	fmt.Println("puts", time.Since(begin))
	for i := 1; i <= n; i++ {
		w.put(key(i), w.route(1, cluster.RouteOpen))
	}
	fmt.Println("puts 2", time.Since(begin))
	w.await("all", func() error {
		s, err := w.status()
		if err != nil {
			return err
		}
		for id, sh := range s.Shards {
			if sh.Leader != "db2" || sh.VerifiedAt == nil || sh.Held {
				return fmt.Errorf("%s %+v", id, sh)
			}
		}
		return nil
	})
	fmt.Println("storm", time.Since(begin))
	all, _ := admin.Databases(w.ctx)
	for _, d := range all {
		if d.Paused {
			t.Error("paused", d)
		}
	}
}
