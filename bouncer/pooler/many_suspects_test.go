package pooler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Many primaries that are silent keep nobody from finding out about another one, whether they fall
// silent with it or have been for long; and each of them is asked again, an address once for all its shards.
func TestSilentPrimariesStarveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		h := NewHealthProber(config.Config{}, zerolog.Nop(), nil)
		h.Notify = func() {}
		p := newProber(h)
		defer p.running.Wait()
		defer cancel()
		var mu sync.Mutex
		asked := map[string]int{}
		p.try = func(ctx context.Context, one suspect) (bool, error) {
			mu.Lock()
			asked[one.Leader.Host]++
			mu.Unlock()
			if one.Leader.Host == "refused" || one.Leader.Host == "refused later" {
				return false, errors.New("connection refused")
			}
			bound := probeBound
			if p.Unhealthy(one.ID, one.Leader) {
				bound = unhealthyBound
			}
			select {
			case <-time.After(bound):
			case <-ctx.Done():
			}
			return false, errors.New("timeout")
		}
		of := func(id, host string) suspect {
			return suspect{Primary: &Primary{ID: config.ShardID(id), Leader: cluster.RouteMember{Name: host, Host: host, Port: 5432}}, working: true}
		}
		const silent = 2 * probeAtOnce
		list := []suspect{of("x/refused", "refused")}
		for i := range 300 {
			list = append(list, of(fmt.Sprint("x/", i), fmt.Sprint("silent", i)))
		}
		held := func(one suspect) bool { return p.Unhealthy(one.ID, one.Leader) }
		look := func(lasts time.Duration) {
			for begun := time.Now(); time.Since(begun) < lasts; time.Sleep(unhealthyPace) {
				p.start(ctx, list)
				synctest.Wait()
			}
		}
		look(time.Second)
		if !held(list[0]) {
			t.Error("one that refuses connections is not found beside 300 silent ones")
		}
		for i := 300; i < silent; i++ {
			list = append(list, of(fmt.Sprint("x/", i), fmt.Sprint("silent", i)))
		}
		list = append(list, of("y/0", "silent0"), of("z/0", "silent0"))
		look(5 * time.Second)
		for _, one := range list {
			if !held(one) {
				t.Fatalf("%s is not found in 5 s", one.ID)
			}
		}
		later := of("x/later", "refused later")
		list = append(list, later)
		if look(time.Millisecond); !held(later) {
			t.Errorf("one more is not found at once beside %d that have been silent for long", silent)
		}
		clear(asked)
		look(4 * unhealthyBound)
		for i := range silent {
			if n := asked[fmt.Sprint("silent", i)]; n < 1 || n > 4 {
				t.Fatalf("silent%d was asked %d times again", i, n)
			}
		}
	})
}
