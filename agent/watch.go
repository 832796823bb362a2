package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/ha"
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
			a.post(func() { a.consulFailed(err) })
			index = 0 // Consul may come back with other data, whose index is lower
			pause(ctx, retryAfter())
		default:
			a.post(func() { a.accept(snapshot, false) })
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
			a.post(func() { a.sawRoute(route) })
		}
	}
}

// sawRoute takes in the route unless what is known is newer.
func (a *Agent) sawRoute(route cluster.Entry[cluster.Route]) {
	if route.ModifyIndex > a.m.Snapshot.Route.ModifyIndex {
		a.m.Snapshot.Route = route
		a.noteProblems(a.m.Snapshot)
	} else if !route.Exists() && a.m.Snapshot.Route.Exists() {
		a.reread() // deleted, or read before it was written
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
			a.post(func() { a.consulFailed(err) })
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
			a.post(func() { a.m.session = renewed })
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
	a.post(func() { a.m.session = created })
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
		edge := a.taskEdge.Load()
		began := a.clock()
		limit, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
		state, err := a.pg.Observe(limit)
		cancel()
		replica = state.InRecovery
		var data *dataState
		stray := false
		if !state.Running {
			look, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
			if now, seen := a.lookAtData(look); seen {
				data, stray = &now.data, now.stray
			}
			cancel()
		}
		a.post(func() {
			if a.taskEdge.Load() != edge {
				return
			}
			a.sawPostgres(state, data, err)
			if err == nil {
				a.m.sawPostgresAt(began)
			}
			if stray {
				a.adoptStray()
			}
		})
		select {
		case <-exited(a.pg):
			a.post(func() { a.postmasterGone() })
		case <-a.kickPostgres:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// peerPatience is how long a silent member holds up a round of questions.
const peerPatience = time.Second

// askPeers asks every other member how it fares, all at once; if part is not zero,
// they are asked first to part from the old leader, whose last status has that index.
// The loop hears of each answer as it comes.
func (a *Agent) askPeers(part uint64) {
	if a.m.asking {
		return
	}
	a.m.asked, a.m.askedToPart, a.m.answers, a.m.asking = a.clock(), part, nil, true
	a.m.askedLSN = a.m.pg.observed.LSN()
	round := a.m.asked
	var others []cluster.Member
	for _, m := range a.m.Snapshot.Members {
		if m.OK() && m.Value.Name != a.cfg.Name {
			others = append(others, m.Value)
		}
	}
	a.goDo(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, peerPatience)
		defer cancel()
		var asking sync.WaitGroup
		for _, m := range others {
			asking.Go(func() {
				peer := a.askPeer(ctx, api.PeerOf(m), part)
				a.post(func() {
					if a.m.asked == round {
						a.m.answers = append(a.m.answers, peer)
					}
				})
			})
		}
		asking.Wait()
		a.post(func() { a.m.asking = false })
	})
}

func (a *Agent) askPeer(ctx context.Context, to api.Peer, part uint64) ha.Peer {
	parted := a.askToPart(ctx, to, part)
	asked := a.clock()
	status, err := a.peers.Observe(ctx, to)
	if err != nil {
		a.log.Debug().Err(err).Str("member", to.Name).Msg("does not answer")
		return ha.Peer{Name: to.Name}
	}
	peer := peerOf(to.Name, status)
	peer.Parted = parted
	if l := status.Lictor; l != nil {
		peer.Parted = min(parted, l.Parted) // it may have looked before it parted
		peer.Observed = 1                   // never
		if l.ObservedAge >= 0 {
			peer.Observed = asked.Add(-l.ObservedAge - time.Millisecond) // the age is cut to whole ones
		}
	}
	return peer
}

// askToPart asks a member to part from the old leader and returns the status under
// which it has. A member of Patroni's knows nothing of that: what it answers must do.
func (a *Agent) askToPart(ctx context.Context, to api.Peer, part uint64) uint64 {
	if part == 0 {
		return 0
	}
	known, err := a.peers.Part(ctx, to, api.Parting{Candidate: a.cfg.Name, Index: part})
	if err != nil {
		a.log.Debug().Err(err).Str("member", to.Name).Msg("does not part from the old leader")
		return 0
	}
	if !known {
		a.log.Debug().Str("member", to.Name).Msg("cannot part from the old leader: it runs Patroni")
	}
	return part
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
