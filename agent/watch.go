package agent

import (
	"context"
	"errors"
	"time"

	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/member"
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

// watchConsul keeps one blocking query open on the shard.
func (a *Agent) watchConsul(ctx context.Context) {
	var index uint64
	limit := rate.NewLimiter(rate.Every(watchEvery), watchBurst)
	for limit.Wait(ctx) == nil {
		query, cancel := context.WithTimeout(ctx, watchFor+watchGrace)
		snapshot, next, err := a.store.Watch(query, index, watchFor)
		cancel()
		index = next
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.post(func() { a.m.ConsulFailed(err) })
			index = 0 // Consul may come back with other data, whose index is lower
			pause(ctx, retryAfter())
		default:
			a.post(func() { a.m.Accept(snapshot, false) })
		}
	}
}

// watchRoute keeps one blocking query open on the shard's route, which lies
// under another prefix: whoever takes the lock writes it in the same transaction
// and must know its index, and a leader mends what somebody else wrote there.
func (a *Agent) watchRoute(ctx context.Context) {
	var index uint64
	limit := rate.NewLimiter(rate.Every(watchEvery), watchBurst)
	for limit.Wait(ctx) == nil {
		query, cancel := context.WithTimeout(ctx, watchFor+watchGrace)
		route, next, err := a.store.WatchRoute(query, index, watchFor)
		cancel()
		index = next
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			index = 0
			pause(ctx, retryAfter()) // watchConsul tells
		default:
			a.post(func() { a.m.SawRoute(route) })
		}
	}
}

// sessionName is Patroni's form of a session's name.
func (a *Agent) sessionName() string { return a.cfg.Scope + "-" + a.cfg.Name }

// keepSession makes a session, or goes on with that of the agent's earlier run,
// renews it, and makes another one when it is lost. The session only backs the
// lock up; the lease does not depend on it.
func (a *Agent) keepSession(ctx context.Context, earlier string) {
	id, ttl := earlier, a.dynamic.Load().TTL
	for ctx.Err() == nil {
		timing := a.dynamic.Load().Timing
		request, cancel := context.WithTimeout(ctx, max(timing.RetryTimeout, time.Second))
		err := a.renewSession(request, &id, &ttl, timing.TTL)
		cancel()
		wait := min(timing.LoopWait, consul.SessionTTL(timing.TTL)/3)
		if err != nil {
			a.post(func() { a.m.ConsulFailed(err) })
			wait = retryAfter()
		}
		pauseOr(ctx, wait, a.kickSession)
	}
}

func (a *Agent) renewSession(ctx context.Context, id *string, ttl *time.Duration, want time.Duration) error {
	if *id != "" && consul.SessionTTL(*ttl) == consul.SessionTTL(want) {
		err := a.store.RenewSession(ctx, *id)
		if err == nil {
			renewed := *id
			a.post(func() { a.m.Session = renewed })
		}
		if !errors.Is(err, consul.ErrNoSession) {
			return err
		}
		a.log.Warn().Msg("the Consul session is gone; a new one is made")
	}
	created, err := a.store.CreateSession(ctx, a.sessionName(), want, a.cfg.Consul.Checks)
	if err != nil {
		return err
	}
	*id, *ttl = created, want
	a.post(func() { a.m.Session = created })
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
// of loop_wait, so that whoever asks for a calm loop gets one. A replica is looked at
// more often: nobody else notices that it has lost its WAL receiver (postgres.State.NoReceiver),
// which commits may wait for.
func observeEvery(loopWait time.Duration, replica bool) time.Duration {
	most := 5 * time.Second
	if replica {
		most = time.Second
	}
	return min(max(loopWait/3, time.Second), most)
}

// watchPostgres looks at PostgreSQL again and again and tells when its
// postmaster ends.
func (a *Agent) watchPostgres(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	replica := false
	for ctx.Err() == nil {
		timer.Reset(observeEvery(a.dynamic.Load().LoopWait, replica))
		look := member.Look{Began: a.clock()}
		limit, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
		look.State, look.Err = a.pg.Observe(limit)
		cancel()
		replica = look.State.InRecovery
		if !look.State.Running {
			limit, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
			if found, seen := a.lookAtData(limit); seen {
				look.Found = &found
			}
			cancel()
		}
		a.post(func() { a.m.Saw(look) })
		select {
		case <-exited(a.pg):
			a.post(a.m.PostmasterGone)
		case <-a.kickPostgres:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) { pauseOr(ctx, d, nil) }

// pauseOr waits for d, a kick or the end of ctx.
func pauseOr(ctx context.Context, d time.Duration, kicked <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-kicked:
	case <-ctx.Done():
	}
}
