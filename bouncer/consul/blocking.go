package consul

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"
)

const (
	// backoffLeast and backoffMost limit the pause after an error.
	backoffLeast = 200 * time.Millisecond
	backoffMost  = 10 * time.Second
)

// Blocking asks one blocking query after the other, perSecond times a second at
// most, until ctx is done. query is given the index to wait for something newer
// than, 0 for an answer at once, and returns the index of the answer. It is no
// answer when the index goes back, as it may when the newest key is deleted or
// Consul was restored: what it then says of changes is of no use.
func Blocking(ctx context.Context, perSecond int, query func(index uint64) (next uint64, err error)) {
	var index uint64
	pause := backoffLeast
	restarts := rate.NewLimiter(rate.Limit(perSecond), perSecond)
	for restarts.Wait(ctx) == nil {
		next, err := query(index)
		switch {
		case err != nil:
			index = 0
			select {
			case <-time.After(pause/2 + rand.N(pause)):
			case <-ctx.Done():
			}
			pause = min(2*pause, backoffMost)
		case next < index:
			index = 0
		default:
			index, pause = max(next, 1), backoffLeast
		}
	}
}
