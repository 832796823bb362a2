package routes

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/bouncer/consul"
)

const (
	// watchWait is how long one blocking query lasts when nothing changes. A
	// Consul agent that hangs is found out sooner, by the hedged watch and by the
	// presence's renewals.
	watchWait = time.Minute
	// watchGrace: Consul adds up to a sixteenth to the wait.
	watchGrace = watchWait/16 + 3*time.Second
	// watchRate is how many times a second a blocking query may return.
	watchRate = 20
)

// follow keeps one blocking query on prefix open until ctx is done, and hands
// each answer and its index to take, each failure to failed.
func (w *Watcher) follow(ctx context.Context, prefix string, failed func(error), take func(pairs api.KVPairs, index uint64)) {
	consul.Blocking(ctx, watchRate, func(index uint64) (uint64, error) { return w.ask(ctx, prefix, index, failed, take) })
}

// ask makes one query of follow.
func (w *Watcher) ask(
	ctx context.Context, prefix string, index uint64, failed func(error), take func(pairs api.KVPairs, index uint64),
) (uint64, error) {
	var pairs api.KVPairs
	next, number, err := w.query(ctx, index, func(inUse int, options *api.QueryOptions) (meta *api.QueryMeta, err error) {
		pairs, meta, err = w.pool.Client(inUse).KV().List(prefix, options)
		return meta, err
	})
	var reached uint64
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.lost(prefix, number, err, failed)
	case next >= index:
		take(pairs, next)
		reached = next
	}
	w.reached.set(prefix, reached)
	return next, err
}

// lost tells of a query that has failed, and goes on with the next address where that may help.
func (w *Watcher) lost(prefix string, number int, err error, failed func(error)) {
	failed(fmt.Errorf("watching %s: %w", prefix, err))
	if consul.NoAnswer(err) {
		w.pool.Fail(number)
	}
}

// query asks once, and tells which Consul address was in use. It is cut short when
// somebody finds that address not to answer.
func (w *Watcher) query(
	parent context.Context, index uint64, ask func(inUse int, options *api.QueryOptions) (*api.QueryMeta, error),
) (next uint64, inUse int, err error) {
	ctx, _, inUse, end := w.pool.Use(parent)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, watchWait+watchGrace)
	defer cancel()
	meta, err := ask(inUse, (&api.QueryOptions{WaitIndex: index, WaitTime: watchWait}).WithContext(ctx))
	if err = consul.Led(meta, err); err != nil {
		return 0, inUse, err
	}
	return meta.LastIndex, inUse, nil
}
