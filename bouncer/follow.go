package bouncer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"
)

const (
	// watchWait is how long one blocking query lasts when nothing changes. It
	// also limits for how long a Consul agent that hangs goes unnoticed by the
	// watch; the presence's renewals notice it sooner.
	watchWait = time.Minute
	// watchGrace: Consul adds up to a sixteenth to the wait.
	watchGrace = watchWait/16 + 3*time.Second
	// watchBackoffLeast and -Most limit the pause after an error.
	watchBackoffLeast = 200 * time.Millisecond
	watchBackoffMost  = 10 * time.Second
	// watchRate is how many times a second a blocking query may return.
	watchRate = 20
)

// errNoLeader: the answer came from a Consul that has no leader.
var errNoLeader = errors.New("consul has no leader")

// led makes an answer without a leader an error.
func led(meta *api.QueryMeta, err error) error {
	if err == nil && !meta.KnownLeader {
		return errNoLeader
	}
	return err
}

// follow keeps one blocking query on prefix open until ctx is done, and hands
// each answer and its index to take, each failure to failed.
func (w *watcher) follow(ctx context.Context, prefix string, failed func(error), take func(pairs api.KVPairs, index uint64)) {
	var index uint64
	pause := watchBackoffLeast
	restarts := rate.NewLimiter(watchRate, watchRate)
	for restarts.Wait(ctx) == nil {
		pairs, next, number, err := w.query(ctx, prefix, index)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && next < index:
			// The index may go back when the newest key is deleted or Consul was
			// restored: what it then says of changes is of no use.
			index = 0
			w.reached.set(prefix, 0)
		case err == nil:
			take(pairs, next)
			index, pause = max(next, 1), watchBackoffLeast
			w.reached.set(prefix, next)
		default:
			index = 0
			w.reached.set(prefix, 0)
			failed(err)
			if noAnswer(err) {
				w.pool.fail(number)
			}
			select {
			case <-time.After(pause/2 + rand.N(pause)):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, watchBackoffMost)
		}
	}
}

// query asks once. It is cut short when somebody finds the Consul address not to
// answer.
func (w *watcher) query(parent context.Context, prefix string, index uint64) (pairs api.KVPairs, next uint64, number int, err error) {
	ctx, client, number, end := w.pool.use(parent)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, watchWait+watchGrace)
	defer cancel()
	options := &api.QueryOptions{WaitIndex: index, WaitTime: watchWait}
	pairs, meta, err := client.KV().List(prefix, options.WithContext(ctx))
	if err = led(meta, err); err != nil {
		return nil, 0, number, fmt.Errorf("watching %s: %w", prefix, err)
	}
	return pairs, meta.LastIndex, number, nil
}
