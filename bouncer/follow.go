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
	// watchWait is how long one blocking query lasts when nothing changes. A
	// Consul agent that hangs is found out sooner, by the sentinel and by the
	// presence's renewals.
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

// blocking asks one blocking query after the other, perSecond times a second at
// most, until ctx is done. query is given the index to wait for something newer
// than, 0 for an answer at once, and returns the index of the answer. It is no
// answer when the index goes back, as it may when the newest key is deleted or
// Consul was restored: what it then says of changes is of no use.
func blocking(ctx context.Context, perSecond int, query func(index uint64) (next uint64, err error)) {
	var index uint64
	pause := watchBackoffLeast
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
			pause = min(2*pause, watchBackoffMost)
		case next < index:
			index = 0
		default:
			index, pause = max(next, 1), watchBackoffLeast
		}
	}
}

// follow keeps one blocking query on prefix open until ctx is done, and hands
// each answer and its index to take, each failure to failed.
func (w *watcher) follow(ctx context.Context, prefix string, failed func(error), take func(pairs api.KVPairs, index uint64)) {
	blocking(ctx, watchRate, func(index uint64) (uint64, error) {
		var pairs api.KVPairs
		next, number, err := w.query(ctx, index, func(inUse int, options *api.QueryOptions) (meta *api.QueryMeta, err error) {
			pairs, meta, err = w.pool.client(inUse).KV().List(prefix, options)
			return meta, err
		})
		var reached uint64
		switch {
		case ctx.Err() != nil:
		case err != nil:
			failed(fmt.Errorf("watching %s: %w", prefix, err))
			if noAnswer(err) {
				w.pool.fail(number)
			}
		case next >= index:
			take(pairs, next)
			reached = next
		}
		w.reached.set(prefix, reached)
		return next, err
	})
}

// query asks once, and tells which Consul address was in use. It is cut short when
// somebody finds that address not to answer.
func (w *watcher) query(
	parent context.Context, index uint64, ask func(inUse int, options *api.QueryOptions) (*api.QueryMeta, error),
) (next uint64, inUse int, err error) {
	ctx, _, inUse, end := w.pool.use(parent)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, watchWait+watchGrace)
	defer cancel()
	meta, err := ask(inUse, (&api.QueryOptions{WaitIndex: index, WaitTime: watchWait}).WithContext(ctx))
	if err = led(meta, err); err != nil {
		return 0, inUse, err
	}
	return meta.LastIndex, inUse, nil
}
