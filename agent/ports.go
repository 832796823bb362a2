package agent

import (
	"context"
	randtext "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// This file is how the state machine (package member) reaches the world: each call runs in
// a goroutine of its own, within its limit, and hands its answer to the loop.

// ports are the agent's.
func (a *Agent) ports() member.Ports {
	return member.Ports{
		Clock: clocks{a}, Later: clocks{a}, Consul: inConsul{a}, Postgres: inPostgres{a}, Guard: guarded{a}, Watchdog: watchdogPort{a},
		Peers: toPeers{a}, Watches: watches{a}, Bouncers: toBouncers{a},
	}
}

// call runs work in the background; done hears what it returns on the loop.
func call[T any](a *Agent, limit time.Duration, work func(context.Context) (T, error), done func(T, error)) {
	ctx, cancel := context.WithTimeout(a.ctx, limit)
	a.goDo(func(context.Context) {
		defer cancel()
		value, err := work(ctx)
		a.post(func() { done(value, err) })
	})
}

// order is a call that returns nothing.
func order(a *Agent, limit time.Duration, work func(context.Context) error, done func(error)) {
	call(a, limit, func(ctx context.Context) (struct{}, error) { return struct{}{}, work(ctx) }, func(_ struct{}, err error) { done(err) })
}

// effect runs work in the background and hands what it returns to the loop.
func (a *Agent) effect(ctx context.Context, cancel context.CancelFunc, work func(context.Context) func()) {
	a.goDo(func(context.Context) {
		defer cancel()
		a.post(work(ctx))
	})
}

// afterwards runs f on the loop after d.
func (a *Agent) afterwards(d time.Duration, f func()) {
	a.goDo(func(ctx context.Context) {
		pause(ctx, d)
		a.post(f)
	})
}

// retryAfter is how soon a request that certainly failed is tried again, with jitter so
// that many members do not knock together.
func retryAfter() time.Duration { return 200*time.Millisecond + rand.N(200*time.Millisecond) }

// clocks are member.Clock and member.Later.
type clocks struct{ *Agent }

func (c clocks) Now() cluster.Instant            { return c.clock() }
func (c clocks) Wall() time.Time                 { return time.Now() }
func (c clocks) After(d time.Duration, f func()) { c.afterwards(d, f) }

func (c clocks) ID() string { return randtext.Text() }

func (c clocks) Jitter(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + rand.N(high-low)
}

// inConsul is member.Consul.
type inConsul struct{ *Agent }

func (c inConsul) Beat(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	call(c.Agent, limit, func(ctx context.Context) (uint64, error) { return c.store.Beat(ctx, session, index, status) }, done)
}

func (c inConsul) TakeOver(limit time.Duration, t cluster.TakeOver, done func(cluster.Indexes, error)) {
	call(c.Agent, limit, func(ctx context.Context) (cluster.Indexes, error) { return c.store.TakeOver(ctx, t) }, done)
}

func (c inConsul) Release(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	call(c.Agent, limit, func(ctx context.Context) (uint64, error) { return c.store.Release(ctx, session, index, status) }, done)
}

func (c inConsul) Read(limit time.Duration, done func(cluster.Snapshot, error)) {
	call(c.Agent, limit, c.store.Read, done)
}

func (c inConsul) WriteAsLeader(limit time.Duration, session, key string, index uint64, value any, done func(uint64, error)) {
	call(c.Agent, limit, func(ctx context.Context) (uint64, error) {
		return c.store.WriteAsLeader(ctx, session, key, index, value)
	}, done)
}

func (c inConsul) Touch(limit time.Duration, session string, index uint64, value cluster.Member, done func(uint64, error)) {
	call(c.Agent, limit, func(ctx context.Context) (uint64, error) { return c.store.Touch(ctx, session, index, value) }, done)
}

func (c inConsul) BeginBootstrap(w *member.Work, limit time.Duration, session string, done func(error)) {
	inPostgres(c).work(w, limit, func(ctx context.Context) error { return c.store.BeginBootstrap(ctx, session) }, done)
}

func (c inConsul) EndBootstrap(limit time.Duration, session string, done func(error)) {
	order(c.Agent, limit, func(ctx context.Context) error { return c.store.EndBootstrap(ctx, session) }, done)
}

func (c inConsul) EndSession(limit time.Duration, session, name string, done func(error)) {
	order(c.Agent, limit, func(ctx context.Context) error {
		if found, err := c.store.SessionName(ctx, session); err != nil || found != name {
			return err
		}
		return c.store.DestroySession(ctx, session)
	}, done)
}

// toPeers is member.Peers.
type toPeers struct{ *Agent }

func (p toPeers) Failsafe(limit time.Duration, to ha.FailsafeMember, patroni bool, lease time.Duration, index uint64, done func(error)) {
	request := api.FailsafeRequest{
		Name: p.cfg.Name, ConnURL: p.m.ConnURL, APIURL: p.m.APIURL,
		Lictor: &api.FailsafeLease{LeaseMS: lease.Milliseconds(), Index: index},
	}
	order(p.Agent, limit, func(ctx context.Context) error {
		return p.peers.Failsafe(ctx, api.Peer{Name: to.Name, APIURL: to.URL, Patroni: patroni}, request)
	}, done)
}

func (p toPeers) Part(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	order(p.Agent, limit, func(ctx context.Context) error {
		known, err := p.peers.Part(ctx, api.PeerOf(to), api.Parting{Candidate: p.cfg.Name, Index: index})
		if err == nil && !known {
			p.log.Debug().Str("member", to.Name).Msg("cannot part from the old leader: it runs Patroni")
		}
		return err
	}, done)
}

func (p toPeers) Observe(limit time.Duration, to cluster.Member, done func(member.Seen, error)) {
	call(p.Agent, limit, func(ctx context.Context) (member.Seen, error) {
		status, err := p.peers.Observe(ctx, api.PeerOf(to))
		if err != nil {
			return member.Seen{}, err
		}
		seen := member.Seen{Peer: peerOf(to.Name, status)}
		if l := status.Lictor; l != nil {
			seen.Lictor, seen.Parted, seen.Age = true, l.Parted, l.ObservedAge
		}
		return seen, nil
	}, done)
}

func (p toPeers) Depose(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	order(p.Agent, limit, func(ctx context.Context) error {
		return p.peers.Depose(ctx, api.PeerOf(to), api.Deposition{Leader: p.cfg.Name, Index: index})
	}, done)
}

// watches is member.Watches.
type watches struct{ *Agent }

func (w watches) KickSession()  { kick(w.kickSession) }
func (w watches) KickPostgres() { kick(w.kickPostgres) }

// toBouncers is member.Bouncers.
type toBouncers struct{ *Agent }

func (b toBouncers) Poke(route cluster.Route, index uint64) { b.poke(route, index) }

// EndHandover tells them as well; those that do not hear it read it in Consul.
func (b toBouncers) EndHandover(limit time.Duration, session string, plan cluster.Handover, done func(error)) {
	order(b.Agent, limit, func(ctx context.Context) error {
		err := b.store.EndHandover(ctx, session)
		if bouncers, listed := b.bouncers(ctx); listed == nil {
			b.tellBouncers(ctx, bouncers, plan, 0)
		}
		return err
	}, done)
}

func (b toBouncers) Hold(w *member.Work, session string, plan cluster.Handover, onBusy string, done func(error)) {
	inPostgres(b).work(w, 0, func(ctx context.Context) error { return b.holdClients(ctx, session, plan, onBusy) }, done)
}

// shell is member.Shell.
type shell struct{ *Agent }

func (s shell) InitialConfig() []byte            { return s.initialConfig() }
func (s shell) Accepted(c cluster.Snapshot)      { s.applyConfig(c) }
func (s shell) Problems() []string               { return s.problems() }
func (s shell) ScheduledRestart() map[string]any { return s.m.planned.value() }

// inPostgres is member.Postgres.
type inPostgres struct{ *Agent }

// bound is a context that ends when the work is broken off, or after limit, if that is not
// zero.
func (a *Agent) bound(w *member.Work, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(a.ctx)
	cancel := func() { end(nil) }
	if w != nil {
		w.OnBreak(func() {
			if errors.Is(w.Broken(), member.ErrTooLong) {
				end(context.DeadlineExceeded) // what was shut down by then is ended (postgres.StopWhen)
				return
			}
			end(w.Broken())
		})
	}
	if limit == 0 {
		return ctx, cancel
	}
	limited, over := context.WithTimeout(ctx, limit)
	return limited, func() { over(); cancel() }
}

// work runs a part of a task in the background; done hears on the loop how it has ended.
func (p inPostgres) work(w *member.Work, limit time.Duration, work func(context.Context) error, done func(error)) {
	ctx, cancel := p.bound(w, limit)
	p.goDo(func(context.Context) {
		defer cancel()
		err := work(ctx)
		p.post(func() { done(brokenOff(w, err)) })
	})
}

// brokenOff says of an error that it is why the work was broken off, in the state
// machine's words.
func brokenOff(w *member.Work, err error) error {
	switch {
	case err == nil:
		return nil
	case w != nil && w.Broken() != nil && errors.Is(err, context.Canceled):
		return w.Broken()
	case errors.Is(err, fence.ErrLingering):
		return fmt.Errorf("%w: %w", member.ErrLingering, err)
	case errors.Is(err, postgres.ErrDiverged):
		return fmt.Errorf("%w: %w", member.ErrDiverged, err)
	}
	return err
}

func (p inPostgres) Running() bool             { return p.pg.Running() }
func (p inPostgres) PID() int                  { return p.pg.PID() }
func (p inPostgres) Upstream() string          { return p.pg.Upstream() }
func (p inPostgres) ClonesWithoutLeader() bool { return p.pg.ClonesWithoutLeader() }
func (p inPostgres) SynchronousCommit() string { return p.pg.SynchronousCommit() }

func (p inPostgres) StartedAs() (primary, known bool) {
	role := p.pg.StartedAs()
	return role == postgres.Primary, role != ""
}

// Kill goes on even when the agent is told to end meanwhile.
func (p inPostgres) Kill(w *member.Work, limit time.Duration, done func(error)) {
	p.goDo(func(context.Context) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), limit)
		defer cancel()
		err := p.pg.Kill(ctx)
		p.post(func() { done(brokenOff(w, err)) })
	})
}

func (p inPostgres) Stop(w *member.Work, limit time.Duration, quick bool, done func(error)) {
	var served func(context.Context, int64) error
	if quick {
		served = func(context.Context, int64) error { return nil }
	}
	p.work(w, 0, func(ctx context.Context) error { return p.pg.StopWithin(ctx, limit, served) }, done)
}

func (p inPostgres) StopFor(w *member.Work, served func(int64, func(error)), done func(error)) {
	p.work(w, 0, func(ctx context.Context) error {
		if served == nil {
			return p.pg.Stop(ctx, postgres.Fast)
		}
		return p.pg.StopWhen(ctx, postgres.Fast, func(ctx context.Context, checkpoint int64) error {
			return p.hear(ctx, func(done func(error)) { served(checkpoint, done) })
		})
	}, done)
}

func (p inPostgres) EndShutDown(w *member.Work, limit time.Duration, done func(error)) {
	p.work(w, limit, p.pg.EndShutDown, done)
}

func (p inPostgres) Start(w *member.Work, limit time.Duration, as member.StartAs, done func(error)) {
	how := postgres.StartAs{Role: postgres.Replica, Upstream: as.Upstream}
	if as.Primary {
		how.Role = postgres.Primary
	}
	if as.Sync != nil {
		how.Sync = &postgres.SyncSetting{Names: as.Sync.Standbys, Any: as.Sync.Any}
	}
	p.work(w, limit, func(ctx context.Context) error { return p.pg.Start(ctx, how) }, done)
}

func (p inPostgres) Adopt(w *member.Work, done func(error)) {
	p.work(w, 0, func(ctx context.Context) error {
		_, err := p.pg.Adopt(ctx)
		return err
	}, done)
}

func (p inPostgres) TryStart(w *member.Work, done func(string, error)) {
	answered(p, w, 0, func(ctx context.Context) (string, error) { return p.pg.TryStart(ctx, postgres.Changed{}) }, done)
}

func (p inPostgres) Observe(w *member.Work, done func(pg.State, error)) {
	answered(p, w, 0, p.pg.Observe, done)
}

// answered is work that returns something.
func answered[T any](p inPostgres, w *member.Work, limit time.Duration, work func(context.Context) (T, error), done func(T, error)) {
	ctx, cancel := p.bound(w, limit)
	p.goDo(func(context.Context) {
		defer cancel()
		value, err := work(ctx)
		p.post(func() { done(value, brokenOff(w, err)) })
	})
}

func (p inPostgres) Look(w *member.Work, limit time.Duration, done func(member.Found, bool)) {
	answered(p, w, limit, func(ctx context.Context) (member.Found, error) {
		found, seen := p.lookAtData(ctx)
		if !seen {
			return found, errNotSeen
		}
		return found, nil
	}, func(found member.Found, err error) { done(found, err == nil) })
}

// errNotSeen: a look at the data directory has not ended.
var errNotSeen = errors.New("not seen")

func (p inPostgres) Follow(w *member.Work, limit time.Duration, up pg.Upstream, done func(error)) {
	p.work(w, limit, func(ctx context.Context) error { return p.pg.Follow(ctx, up) }, done)
}

func (p inPostgres) Unfollow(w *member.Work, limit time.Duration, done func(error)) {
	p.work(w, limit, p.pg.Unfollow, done)
}

func (p inPostgres) Promote(w *member.Work, above int, last func(func(error)), done func(error)) {
	p.work(w, 0, func(ctx context.Context) error {
		return p.pg.PromoteAfter(ctx, above, func(ctx context.Context) error { return p.hear(ctx, last) })
	}, done)
}

func (p inPostgres) SetSynchronous(limit time.Duration, s ha.SetSync, done func(pg.SyncInForce, error)) {
	call(p.Agent, limit, func(ctx context.Context) (pg.SyncInForce, error) {
		return p.pg.SetSynchronous(ctx, postgres.SyncSetting{Names: s.Standbys, Any: s.Any})
	}, done)
}

func (p inPostgres) Checkpoint(w *member.Work, done func(error)) { p.work(w, 0, p.pg.Checkpoint, done) }

func (p inPostgres) TimelineHistory(timeline int, done func(cluster.History, error)) {
	answered(p, nil, 0, func(context.Context) (cluster.History, error) { return p.pg.TimelineHistory(timeline) }, done)
}

func (p inPostgres) UseSlots() bool { return p.pg.UseSlots() }

func (p inPostgres) SyncSlots(limit time.Duration, members []string, d cluster.Dynamic, done func(error)) {
	order(p.Agent, limit, func(ctx context.Context) error { return p.pg.SyncSlots(ctx, members, keepSlot(d)) }, done)
}

func (p inPostgres) Bootstrap(w *member.Work, done func(error)) {
	p.work(w, 0, func(ctx context.Context) error {
		_, err := p.pg.Bootstrap(ctx, p.cfg.Bootstrap)
		return err
	}, done)
}

func (p inPostgres) FinishBootstrap(w *member.Work, done func(error)) {
	p.work(w, 0, func(context.Context) error { return p.pg.FinishBootstrap() }, done)
}

func (p inPostgres) DiscardIncomplete(w *member.Work, done func(error)) {
	p.work(w, 0, p.pg.DiscardIncomplete, done)
}

func (p inPostgres) MakeReplica(w *member.Work, from *pg.Upstream, systemIdentifier string, done func(error)) {
	name := ""
	if from != nil {
		name = from.Name
	}
	p.work(w, 0, func(ctx context.Context) error {
		return p.pg.MakeReplica(ctx, from, systemIdentifier, p.cloneProgress(name))
	}, done)
}

func (p inPostgres) Rewind(w *member.Work, up pg.Upstream, allowed bool, done func(error)) {
	p.work(w, 0, func(ctx context.Context) error {
		outcome, err := p.pg.Rewind(ctx, up, allowed)
		if err == nil {
			p.log.Info().Str("upstream", up.Name).Stringer("outcome", outcome).Msg("ready to follow")
		}
		return err
	}, done)
}

func (p inPostgres) RemoveForReinit(w *member.Work, allowed pg.Permission, done func(error)) {
	p.work(w, 0, func(ctx context.Context) error { return p.pg.RemoveForReinit(ctx, allowed) }, done)
}

func (p inPostgres) Answers(w *member.Work, up pg.Upstream, primary bool, done func(bool)) {
	answered(p, w, 0, func(ctx context.Context) (bool, error) {
		if primary {
			return p.pg.Reachable(ctx, up), nil
		}
		return p.pg.Answers(ctx, up), nil
	}, func(answers bool, _ error) { done(answers) })
}

func (p inPostgres) AimAt(limit time.Duration, l pg.Loss, up pg.Upstream, done func(pg.Loss, error)) {
	call(p.Agent, limit, func(ctx context.Context) (pg.Loss, error) {
		var err error
		if l.Timeline, l.LSN, err = p.pg.PositionOf(ctx, up); err == nil {
			err = p.pg.KeepLoss(l)
		}
		return l, err
	}, done)
}

func (p inPostgres) ForgetLoss(limit time.Duration, id string, done func(error)) {
	order(p.Agent, limit, func(context.Context) error { return p.pg.ForgetLoss(id) }, done)
}

func (p inPostgres) BeforeStop(w *member.Work, limit time.Duration, done func(error)) {
	p.work(w, 0, func(ctx context.Context) error { return p.pg.BeforeStop(ctx, limit) }, done)
}

func (p inPostgres) PrePromote(w *member.Work, limit time.Duration, done func(error)) {
	p.work(w, 0, func(ctx context.Context) error { return p.pg.PrePromote(ctx, limit) }, done)
}

// watchdogPort is member.Watchdog.
type watchdogPort struct{ *Agent }

func (d watchdogPort) OK() (bool, string) { return d.watchdogOK() }

func (d watchdogPort) Activate(w *member.Work, until cluster.Instant, ttl time.Duration, margins ha.FenceMargins, done func(error)) {
	timing := fence.WatchdogTiming{TTL: ttl, DemoteBefore: margins.DemoteBefore, KillBefore: margins.KillBefore}
	inPostgres(d).work(w, 0, func(ctx context.Context) error { return d.activateWatchdog(ctx, until, timing) }, done)
}
