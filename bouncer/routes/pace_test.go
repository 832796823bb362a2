package routes

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/config"
)

// Of a shard that changes all the time the newest route is taken in once a second. Others are
// taken in as they come.
func TestFlappingShard(t *testing.T) {
	const s1, s2 = "lictor/routes/service/s1", "lictor/routes/service/s2"
	synctest.Test(t, func(t *testing.T) {
		b := NewTable(config.Config{RoutesPrefix: "lictor"})
		var changes atomic.Int32
		w := NewWatcher(zerolog.Nop(), nil, b, nil, func() { changes.Add(1) })
		ctx, stop := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer stop()
		go w.Pace(ctx)
		index := uint64(0)
		put := func(key, host string) Pair { index++; return testPair(t, key, index, testRoute(host)) }
		at := func(id config.ShardID) string { return knownTo(b)[id].Route.Leader.Host }
		one, other := put(s1, "a"), put(s2, "b")
		merge := func() outcome { return b.Merge(Answer{Pairs: []Pair{one, other}, KnownLeader: true}) }
		merge()
		changed, last := 0, ""
		for i := range 500 { // 5 s
			last = fmt.Sprintf("h%d", i)
			one = put(s1, last)
			before := changes.Load()
			if i%2 == 0 {
				changed += len(merge().Changed)
			} else {
				changed += len(b.mergeOne("service/s1", one).Changed)
			}
			if i%100 == 50 {
				other = put(s2, last)
				if out := merge(); len(out.Changed) != 1 || at("service/s2") != last {
					t.Errorf("another shard's change: %+v", out)
				}
			}
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			if changes.Load() != before && at("service/s1") != last {
				t.Errorf("caught up with %s, the newest is %s", at("service/s1"), last)
			}
			if !b.Has("service/s1", index) && i%100 != 50 {
				t.Error("what waits is read again")
			}
		}
		if changed < paceBurst-1 || changed > paceBurst {
			t.Errorf("%d changes were taken in as they came", changed)
		}
		if n := changes.Load(); n < 4 || n > 5 {
			t.Errorf("%d times caught up", n)
		}
		if err := b.Trouble()[s1]; err == nil || !strings.Contains(err.Error(), "changes too often") {
			t.Errorf("problem: %v", err)
		}
		time.Sleep(paceEvery)
		if at("service/s1") != last {
			t.Errorf("at rest it is %s, want %s", at("service/s1"), last)
		}
		time.Sleep(paceBurst * paceEvery)
		synctest.Wait()
		if trouble := b.Trouble(); len(trouble) != 0 || len(w.pokes) != 1 {
			t.Errorf("after a rest: %v, %d reads are asked for", trouble, len(w.pokes))
		}
		one = put(s1, "c")
		if out := merge(); len(out.Changed) != 1 || at("service/s1") != "c" {
			t.Errorf("after a rest: %+v", out)
		}
	})
}

// A key that comes and goes, and one that is right and wrong by turns, are no more than that.
func TestFlappingKeys(t *testing.T) {
	const s1, s2, s3 = "lictor/routes/service/s1", "lictor/routes/service/s2", "lictor/routes/service/s3"
	p := func(key string, index uint64, host string) Pair { return testPair(t, key, index, testRoute(host)) }
	final := func(b *Table, pairs ...Pair) outcome {
		return b.Merge(Answer{Pairs: pairs, KnownLeader: true, Consistent: true, Epoch: b.now()})
	}
	others := []Pair{p(s2, 1, "b"), p(s3, 2, "c")}
	for name, turn := range map[string]func(b *Table, index uint64) (changed, said int){
		"comes and goes": func(b *Table, index uint64) (int, int) {
			out, back := final(b, others...), final(b, p(s1, index, "a"), others[0], others[1])
			return len(out.Changed) + len(back.Changed), 0
		},
		"right and wrong": func(b *Table, index uint64) (int, int) {
			bad := final(b, Pair{Key: s1, Value: []byte("{"), ModifyIndex: index}, others[0], others[1])
			good := final(b, p(s1, index+1, "a"), others[0], others[1])
			return len(bad.Changed) + len(good.Changed), len(bad.News) + len(bad.Solved) + len(good.News) + len(good.Solved)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := NewTable(config.Config{RoutesPrefix: "lictor"})
				final(b, p(s1, 3, "a"), others[0], others[1])
				changed, said := 0, 0
				for i := range uint64(100) {
					c, s := turn(b, 10+2*i)
					changed, said = changed+c, said+s
				}
				if changed > 2*paceBurst+1 || said > paceBurst || changed+said == 0 {
					t.Errorf("changed %d times, %d words on it", changed, said)
				}
				if len(b.flapping()) != 1 {
					t.Error("it is not told")
				}
				time.Sleep(paceBurst * paceEvery)
				b.catchUp()
				final(b, p(s1, 1000, "z"), others[0], others[1])
				if host := knownTo(b)["service/s1"].Route.Leader.Host; host != "z" || len(b.Trouble()) != 0 {
					t.Errorf("at rest: %s, %v", host, b.Trouble())
				}
			})
		})
	}
}

// The newest route of a shard that changes all the time is taken in also when its key goes meanwhile: who follows
// the table hears of it.
func TestFlappingShardVanishes(t *testing.T) {
	const s1, s2 = "lictor/routes/service/s1", "lictor/routes/service/s2"
	const id = config.ShardID("service/s1")
	for _, patroni := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := NewTable(config.Config{RoutesPrefix: "lictor", Shards: []config.Shard{{Namespace: "service", Scope: "s1", Patroni: patroni}, {Namespace: "service", Scope: "s2"}}})
			var looking sync.Mutex // Pace looks, too
			var version uint64
			heard := "" // of whoever looks at the table as reconcilers do
			look := func() {
				looking.Lock()
				defer looking.Unlock()
				if now := b.Version(); now != version {
					version, heard = now, knownTo(b)[id].Route.Leader.Host
				}
			}
			w := NewWatcher(zerolog.Nop(), nil, b, nil, look)
			ctx, stop := context.WithCancel(t.Context())
			defer synctest.Wait()
			defer stop()
			go w.Pace(ctx)
			other, last := testPair(t, s2, 1, testRoute("b")), ""
			b.Merge(Answer{Pairs: []Pair{other}, KnownLeader: true})
			for i := range 2 * paceBurst {
				last = fmt.Sprintf("h%d", i)
				if patroni {
					if _, err := b.followed(id, testRoute(last), uint64(i+2)); err != nil {
						t.Fatal(err)
					}
				} else {
					b.mergeOne(id, testPair(t, s1, uint64(i+2), testRoute(last)))
				}
				look()
				if k, found := b.Heard(id); !found || k.Route.Leader.Host != last {
					t.Errorf("Consul has said %s, heard is %+v", last, k)
				}
			}
			if patroni {
				b.forgotten(id)
			}
			b.Merge(Answer{Pairs: []Pair{other}, KnownLeader: true, Consistent: true, Epoch: b.now()})
			look()
			time.Sleep(2 * paceEvery)
			synctest.Wait()
			looking.Lock()
			defer looking.Unlock()
			if k := knownTo(b)[id]; heard != last || !k.Gone {
				t.Errorf("Patroni %v: heard of %s, the newest is %s: %+v", patroni, heard, last, k)
			}
		})
	}
}
