package api

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	start := time.Now()
	p := pace{interval: 50 * time.Millisecond}
	for _, step := range []struct{ at, want time.Duration }{
		{0, 0},
		{time.Millisecond, 50 * time.Millisecond},      // soon after: the next moment
		{20 * time.Millisecond, 50 * time.Millisecond}, // shared
		{50 * time.Millisecond, 50 * time.Millisecond},
		{51 * time.Millisecond, 100 * time.Millisecond},
		{time.Second, time.Second}, // long after: at once
	} {
		if got := p.moment(start.Add(step.at)).Sub(start); got != step.want {
			t.Errorf("asked at %s: %s, want %s", step.at, got, step.want)
		}
	}
}

// Many who ask at once have PostgreSQL looked at a few times, and each of them sees a
// look that began after he had asked.
func TestObservingIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		looks := map[time.Time]bool{}
		node := &pacedNode{pace: pace{interval: observePace}, Node: &fakeNode{observe: func(context.Context) {
			mu.Lock()
			defer mu.Unlock()
			looks[time.Now()] = true
		}}}
		began := time.Now()
		var asking sync.WaitGroup
		for i := range 1000 {
			asking.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				asked := time.Now()
				node.Observe(t.Context())
				if waited := time.Since(asked); waited > observePace {
					t.Errorf("waited %s", waited)
				}
			})
		}
		asking.Wait()
		if most := int(time.Since(began)/observePace) + 1; len(looks) > most {
			t.Errorf("%d looks, at most %d", len(looks), most)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := node.pace.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a client that is gone: %v", err)
		}
	})
}
