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
	// watchGrace is how much later than after its wait an answer may come. Consul itself adds up to
	// a sixteenth.
	watchGrace = 3 * time.Second
	// listBound is how long a list may take that is due at once: megabytes, of a slow link.
	listBound = 10 * time.Second
	// watchRate is how many times a second a blocking query may return.
	watchRate = 20
)

// follow keeps one blocking query on prefix open until ctx is done, and hands
// each answer and its index to take, each failure to failed.
func (w *Watcher) follow(ctx context.Context, prefix string, failed func(error), take func(api.KVPairs, *api.QueryMeta)) {
	var pairs api.KVPairs
	consul.Blocking(ctx, watchRate, func(index uint64) (uint64, error) {
		return w.ask(ctx, prefix, index, 0, failed, func(c *api.Client, options *api.QueryOptions) (meta *api.QueryMeta, err error) {
			pairs, meta, err = c.KV().List(prefix, options)
			return meta, err
		}, func(meta *api.QueryMeta) { take(pairs, meta) })
	})
}

// ask makes one query for a list, and hands the answer to take. Where reached is not 0, a server that knows of that index may
// answer by itself, which saves two of them the reading and writing of a long list.
func (w *Watcher) ask(
	ctx context.Context, prefix string, index, reached uint64, failed func(error),
	list func(*api.Client, *api.QueryOptions) (*api.QueryMeta, error), take func(*api.QueryMeta),
) (uint64, error) {
	var meta *api.QueryMeta
	next, number, err := w.query(ctx, index, watchWait, func(inUse int, options *api.QueryOptions) (_ *api.QueryMeta, err error) {
		if options.AllowStale = reached > 0; options.AllowStale {
			meta, err = list(w.pool.Client(inUse), options)
			if err != nil || meta.LastIndex >= reached {
				return meta, err
			}
			options.AllowStale = false
		}
		meta, err = list(w.pool.Client(inUse), options)
		return meta, err
	})
	var at uint64
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.lost(prefix, number, err, failed)
	case next >= index:
		take(meta)
		at = next
	}
	w.reached.set(prefix, at)
	return next, err
}

// lost tells of a query that has failed, and goes on with the next address where that may help.
func (w *Watcher) lost(prefix string, number int, err error, failed func(error)) {
	failed(fmt.Errorf("watching %s: %w", prefix, err))
	if consul.NoAnswer(err) {
		w.pool.Fail(number)
	}
}

// query asks once, waiting so long for something newer than index, and tells which Consul address
// was in use. It is cut short when somebody finds that address not to answer.
func (w *Watcher) query(
	parent context.Context, index uint64, wait time.Duration, ask func(inUse int, options *api.QueryOptions) (*api.QueryMeta, error),
) (next uint64, inUse int, err error) {
	ctx, _, inUse, end := w.pool.Use(parent)
	defer end()
	limit := wait + wait/16
	if index == 0 { // it is answered at once: what has changed waits for it
		limit = min(limit, listBound)
	}
	ctx, cancel := context.WithTimeout(ctx, limit+watchGrace)
	defer cancel()
	meta, err := ask(inUse, (&api.QueryOptions{WaitIndex: index, WaitTime: wait}).WithContext(ctx))
	if err = consul.Led(meta, err); err != nil {
		return 0, inUse, err
	}
	return meta.LastIndex, inUse, nil
}
