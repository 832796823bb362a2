package agent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// This file is how the state machine (package member) reaches the world: each call runs in
// a goroutine of its own, within its limit, and hands its answer to the loop.

// ports are the agent's.
func (a *Agent) ports() member.Ports {
	return member.Ports{
		Clock: clocks{a}, Later: clocks{a}, Consul: inConsul{a}, Guard: guarded{a}, Peers: toPeers{a}, Watches: watches{a}, Bouncers: toBouncers{a},
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
	mine := p.memberValue()
	request := api.FailsafeRequest{
		Name: p.cfg.Name, ConnURL: mine.ConnURL, APIURL: mine.APIURL,
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

func (w watches) KickSession() { kick(w.kickSession) }

// toBouncers is member.Bouncers.
type toBouncers struct{ *Agent }

func (b toBouncers) Poke(route cluster.Route, index uint64) { b.poke(route, index) }

// shell is member.Shell.
type shell struct{ *Agent }

func (s shell) View() ha.View                { return s.view() }
func (s shell) Busy() bool                   { return s.m.task.kind != ha.TaskNone }
func (s shell) Reason() string               { return s.m.reason }
func (s shell) Begin(action ha.Action)       { s.begin(action) }
func (s shell) InitialConfig() []byte        { return s.initialConfig() }
func (s shell) Route() (cluster.Route, bool) { return s.routeToWrite() }
func (s shell) Accepted(c cluster.Snapshot)  { s.applyConfig(c) }

// TookOver has the history written again: replicas believe what was written under this lock.
func (s shell) TookOver() { s.m.published.history = 0 }

func (s shell) WAL() member.WAL {
	o := s.m.pg.observed
	return member.WAL{LSN: o.LSN(), Timeline: o.Timeline, Replaying: o.Replaying, Primary: s.m.pg.primary()}
}

func (s shell) Data() member.Data {
	d := s.m.data
	return member.Data{
		State: d.State, SystemIdentifier: d.SystemIdentifier, CheckpointLSN: d.checkpointLSN,
		Running: s.m.pg.running, Upstream: s.m.upstream,
	}
}
