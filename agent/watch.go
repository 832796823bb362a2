package agent

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/postgres"
)

const (
	// watchFor is how long one blocking query waits for a change.
	watchFor = 30 * time.Second
	// watchGrace is what Consul may take beyond that: it adds up to 1/16 of
	// jitter, and holds a request up to 7 s while it has no leader.
	watchGrace = watchFor/16 + 7*time.Second
	// watchBurst and watchEvery bound how often the watch may start anew when
	// the shard changes without a pause.
	watchBurst = 20
	watchEvery = 20 * time.Millisecond
)

// watcher listens to Consul and PostgreSQL, each on a goroutine of its own, and tells the
// loop.
type watcher struct {
	*board
	m     *member.Member
	store *consul.Store
	pg    *postgres.Instance
	data  *dataLooker
	clock fence.Clock
	log   zerolog.Logger

	node                      string   // that a session belongs to
	checks                    []string // that it rests on
	kickSession, kickPostgres chan struct{}
}

// consul keeps one blocking query open on the shard.
func (w *watcher) consul(ctx context.Context) {
	keepQuerying(ctx, w.store.Watch, func(s cluster.Snapshot) { w.post(func() { w.m.Accept(s, false) }) },
		func(err error) { w.post(func() { w.m.ConsulFailed(err) }) })
}

// route keeps one blocking query open on the shard's route, which lies
// under another prefix: whoever takes the lock writes it in the same transaction
// and must know its index, and a leader mends what somebody else wrote there.
func (w *watcher) route(ctx context.Context) {
	keepQuerying(ctx, w.store.WatchRoute, func(r cluster.Entry[cluster.Route]) { w.post(func() { w.m.SawRoute(r) }) },
		func(error) {}) // consul tells
}

// keepQuerying makes one blocking query after the other until ctx ends.
func keepQuerying[T any](ctx context.Context, query func(context.Context, uint64, time.Duration) (T, uint64, error), seen func(T), failed func(error)) {
	var index uint64
	limit := rate.NewLimiter(rate.Every(watchEvery), watchBurst)
	for limit.Wait(ctx) == nil {
		asked, cancel := context.WithTimeout(ctx, watchFor+watchGrace)
		value, next, err := query(asked, index, watchFor)
		cancel()
		index = next
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failed(err)
			index = 0 // Consul may come back with other data, whose index is lower
			pause(ctx, retryAfter())
		default:
			seen(value)
		}
	}
}

// session makes a session, or goes on with that of the agent's earlier run,
// renews it, and makes another one when it is lost. The session only backs the
// lock up; the lease does not depend on it.
func (w *watcher) session(ctx context.Context, earlier string) {
	id, ttl := earlier, w.dynamic.Load().TTL
	for ctx.Err() == nil {
		timing := w.dynamic.Load().Timing
		request, cancel := context.WithTimeout(ctx, max(timing.RetryTimeout, time.Second))
		err := w.renew(request, &id, &ttl, timing.TTL)
		cancel()
		wait := min(timing.LoopWait, consul.SessionTTL(timing.TTL)/3)
		if err != nil {
			w.post(func() { w.m.ConsulFailed(err) })
			wait = retryAfter()
		}
		pauseOr(ctx, wait, w.kickSession)
	}
}

func (w *watcher) renew(ctx context.Context, id *string, ttl *time.Duration, want time.Duration) error {
	if *id != "" && consul.SessionTTL(*ttl) == consul.SessionTTL(want) {
		err := w.store.RenewSession(ctx, *id)
		if err == nil {
			renewed := *id
			w.post(func() { w.m.SawSession(renewed) })
		}
		if !errors.Is(err, consul.ErrNoSession) {
			return err
		}
		w.log.Warn().Msg("the Consul session is gone; a new one is made")
	}
	created, err := w.store.CreateSession(ctx, consul.Session{Name: w.m.SessionName, TTL: want, Node: w.node, Checks: w.checks})
	if err != nil {
		return err
	}
	*id, *ttl = created, want
	w.post(func() { w.m.SawSession(created) })
	return nil
}

// exited is the end of the postmaster, nil when none runs.
func exited(pg *postgres.Instance) <-chan struct{} {
	if !pg.Running() {
		return nil
	}
	return pg.Exited()
}

// observeEvery is how often PostgreSQL is looked at when nothing happens: a share
// of loop_wait, so that whoever asks for a calm loop gets one. A replica whose WAL receiver
// cannot be watched is looked at more often: nobody else notices that it has none
// (postgres.State.NoReceiver), which commits may wait for.
func observeEvery(loopWait time.Duration, unwatched bool) time.Duration {
	most := 5 * time.Second
	if unwatched {
		most = time.Second
	}
	return min(max(loopWait/3, time.Second), most)
}

// soonest is how soon PostgreSQL is looked at again while it runs and lets nobody in, or follows
// nobody yet: its route and whoever awaits its answer wait for that. Nothing tells when it is ready.
const soonest = 25 * time.Millisecond

// isReady reports whether there is nothing that PostgreSQL would come to by itself in a moment.
func isReady(s pg.State) bool {
	return !s.Running || s.Accepting && (!s.InRecovery || s.ReplicationState == pg.Streaming)
}

// lookAgain is how long after a look the next one begins, if nothing happens. While PostgreSQL is
// not ready that is as long as it has been so, from soonest on.
func lookAgain(look member.Look, unready, loopWait time.Duration, watched bool) time.Duration {
	calm := observeEvery(loopWait, look.State.InRecovery && !watched)
	if isReady(look.State) {
		return calm
	}
	return min(max(unready, soonest), calm)
}

// postgres looks at PostgreSQL again and again and tells when its
// postmaster ends.
func (w *watcher) postgres(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	ready := w.clock() // when it last was, or did not run
	for ctx.Err() == nil {
		look := member.Look{Began: w.clock()}
		limit, cancel := context.WithTimeout(ctx, w.dynamic.Load().RetryTimeout)
		look.State, look.Err = w.pg.Observe(limit)
		cancel()
		if !look.State.Running {
			limit, cancel := context.WithTimeout(ctx, w.dynamic.Load().RetryTimeout)
			if found, seen := w.data.look(limit); seen {
				look.Found = &found
			}
			cancel()
		}
		w.post(func() { w.m.Saw(look) })
		if isReady(look.State) {
			ready = look.Began
		}
		receiverEnded := w.pg.ReceiverEnded()
		again := lookAgain(look, look.Began.Sub(ready), w.dynamic.Load().LoopWait, receiverEnded != nil)
		timer.Reset(max(0, again-w.clock().Sub(look.Began)))
		select {
		case <-exited(w.pg):
			w.post(w.m.PostmasterGone)
		case <-receiverEnded:
		case <-w.kickPostgres:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}
