package agent

import (
	"context"
	randtext "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/consul"
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
		Clock: clocks{a.runner, a.clock}, Later: clocks{a.runner, a.clock}, Consul: inConsul{a.runner, a.store},
		Postgres: inPostgres{a.board, a.pg, a.data, a.cfg.Bootstrap, a.cfg.Lictor.Backup.InForce(), a.cfg.Lictor.UpgradeBinDir, a.log}, Guard: &guarded{runner: a.runner, guardSupervisor: a.guard},
		Watchdog: watchdogPort{a.runner, a.watchdog}, Peers: toPeers{a.runner, a.peers, a.cfg.Name, connURL(a.cfg, a.cfg.Postgres.ConnectAddress), apiURL(a.cfg), a.log},
		Watches: watches{a.kickSession, a.kickPostgres}, Bouncers: toBouncers{a.runner, a.bouncers},
	}
}

// clocks are member.Clock and member.Later.
type clocks struct {
	*runner
	clock fence.Clock
}

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
type inConsul struct {
	*runner
	store *consul.Store
}

func (c inConsul) Beat(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	call(c.runner, limit, func(ctx context.Context) (uint64, error) { return c.store.Beat(ctx, session, index, status) }, done)
}

func (c inConsul) Announce(limit time.Duration, a cluster.Announcement, done func(cluster.Indexes, error)) {
	call(c.runner, limit, func(ctx context.Context) (cluster.Indexes, error) { return c.store.AnnounceUpgrade(ctx, a) }, done)
}

func (c inConsul) TakeOver(limit time.Duration, t cluster.TakeOver, done func(cluster.Indexes, error)) {
	call(c.runner, limit, func(ctx context.Context) (cluster.Indexes, error) { return c.store.TakeOver(ctx, t) }, done)
}

func (c inConsul) Release(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	call(c.runner, limit, func(ctx context.Context) (uint64, error) { return c.store.Release(ctx, session, index, status) }, done)
}

func (c inConsul) Read(limit time.Duration, done func(cluster.Snapshot, error)) {
	call(c.runner, limit, c.store.Read, done)
}

func (c inConsul) WriteAsLeader(limit time.Duration, session, key string, index uint64, value any, done func(uint64, error)) {
	call(c.runner, limit, func(ctx context.Context) (uint64, error) {
		return c.store.WriteAsLeader(ctx, session, key, index, value)
	}, done)
}

func (c inConsul) Touch(limit time.Duration, session string, index uint64, value cluster.Member, done func(uint64, error)) {
	call(c.runner, limit, func(ctx context.Context) (uint64, error) { return c.store.Touch(ctx, session, index, value) }, done)
}

func (c inConsul) BeginBootstrap(w *member.Work, limit time.Duration, session string, done func(error)) {
	work(c.runner, w, limit, func(ctx context.Context) error { return c.store.BeginBootstrap(ctx, session) }, done)
}

func (c inConsul) EndBootstrap(limit time.Duration, session string, done func(error)) {
	order(c.runner, limit, func(ctx context.Context) error { return c.store.EndBootstrap(ctx, session) }, done)
}

func (c inConsul) BeginRebuild(limit time.Duration, session, name, host string, done func(error)) {
	order(c.runner, limit, func(ctx context.Context) error { return c.store.BeginRebuild(ctx, session, name, host) }, done)
}

func (c inConsul) EndRebuild(limit time.Duration, session, host string, hostOnly bool, done func(error)) {
	order(c.runner, limit, func(ctx context.Context) error { return c.store.EndRebuild(ctx, session, host, hostOnly) }, done)
}

func (c inConsul) EndSession(limit time.Duration, session, name string, done func(error)) {
	order(c.runner, limit, func(ctx context.Context) error {
		if found, err := c.store.SessionName(ctx, session); err != nil || found != name {
			return err
		}
		return c.store.DestroySession(ctx, session)
	}, done)
}

// toPeers is member.Peers.
type toPeers struct {
	*runner
	peers                 *api.Client
	name, connURL, apiURL string
	log                   zerolog.Logger
}

func (p toPeers) Failsafe(limit time.Duration, to ha.FailsafeMember, patroni bool, r ha.FailsafeRequest, done func(error)) {
	request := api.FailsafeRequest{
		Name: p.name, ConnURL: p.connURL, APIURL: p.apiURL, Slots: r.Slots,
		Lictor: &api.FailsafeLease{LeaseMS: r.Lease.Milliseconds(), Index: r.Index, Round: r.Round, Agreed: r.Agreed},
	}
	order(p.runner, limit, func(ctx context.Context) error {
		return p.peers.Failsafe(ctx, api.Peer{Name: to.Name, APIURL: to.URL, Patroni: patroni}, request)
	}, done)
}

func (p toPeers) Detach(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	order(p.runner, limit, func(ctx context.Context) error {
		known, err := p.peers.Detach(ctx, api.PeerOf(to), api.DetachRequest{Candidate: p.name, Index: index})
		if err == nil && !known {
			p.log.Debug().Str("member", to.Name).Msg("cannot part from the old leader: it runs Patroni")
		}
		return err
	}, done)
}

func (p toPeers) Probe(limit time.Duration, to cluster.Member, done func(bool)) {
	call(p.runner, limit, func(ctx context.Context) (bool, error) { return isThere(ctx, p.peers, to), nil }, func(answered bool, _ error) { done(answered) })
}

func (p toPeers) Misses(limit time.Duration, to cluster.Member, index uint64, done func(bool, error)) {
	order(p.runner, limit, func(ctx context.Context) error {
		return p.peers.AskOfSilence(ctx, api.PeerOf(to), api.DetachRequest{Candidate: p.name, Index: index, Ask: api.AskMisses})
	}, func(err error) { done(err == nil, err) })
}

func (p toPeers) DetachFor(limit time.Duration, to cluster.Member, index uint64, attempt string, done func(error)) {
	order(p.runner, limit, func(ctx context.Context) error {
		return p.peers.AskOfSilence(ctx, api.PeerOf(to), api.DetachRequest{Candidate: p.name, Index: index, Attempt: attempt})
	}, done)
}

func (p toPeers) Succeed(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	order(p.runner, limit, func(ctx context.Context) error {
		return p.peers.AskOfSilence(ctx, api.PeerOf(to), api.DetachRequest{Candidate: p.name, Index: index, Ask: api.AskSucceed})
	}, done)
}

func (p toPeers) LookUp(limit time.Duration, host string, done func([]string, error)) {
	call(p.runner, limit, func(ctx context.Context) ([]string, error) { return net.DefaultResolver.LookupHost(ctx, host) }, done)
}

func (p toPeers) Observe(limit time.Duration, to cluster.Member, done func(member.Seen, error)) {
	call(p.runner, limit, func(ctx context.Context) (member.Seen, error) {
		status, err := p.peers.Observe(ctx, api.PeerOf(to))
		if err != nil {
			return member.Seen{}, err
		}
		seen := member.Seen{Peer: peerOf(to.Name, status)}
		if l := status.Lictor; l != nil {
			seen.Lictor, seen.Detached, seen.Age = true, l.Detached, l.ObservedAge
			seen.Attempts = l.Attempts
		}
		return seen, nil
	}, done)
}

func (p toPeers) Depose(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	order(p.runner, limit, func(ctx context.Context) error {
		return p.peers.Depose(ctx, api.PeerOf(to), api.Deposition{Leader: p.name, Index: index})
	}, done)
}

// watches is member.Watches.
type watches struct{ session, postgres chan struct{} }

func (w watches) KickSession()  { kick(w.session) }
func (w watches) KickPostgres() { kick(w.postgres) }

// toBouncers is member.Bouncers.
type toBouncers struct {
	*runner
	*bouncers
}

func (b toBouncers) Poke(route cluster.Route, index uint64) {
	b.goDo(func(ctx context.Context) {
		limited, cancel := context.WithTimeout(ctx, 2*pokeLimit)
		defer cancel()
		b.poke(limited, route, index)
	})
}

// EndHandover tells them as well; those that do not hear it read it in Consul.
func (b toBouncers) EndHandover(limit time.Duration, session string, plan cluster.Handover, done func(error)) {
	order(b.runner, limit, func(ctx context.Context) error {
		err := b.store.EndHandover(ctx, session)
		if all, listed := b.list(ctx); listed == nil {
			b.tell(ctx, all, plan, 0)
		}
		return err
	}, done)
}

func (b toBouncers) Misses(limit time.Duration, leader string, notOn []string, silent time.Duration, done func(string, error)) {
	call(b.runner, limit, func(ctx context.Context) (string, error) { return b.misses(ctx, leader, notOn, silent) }, done)
}

func (b toBouncers) Hold(w *member.Work, session string, plan cluster.Handover, onBusy string, done func(error)) {
	work(b.runner, w, 0, func(ctx context.Context) error { return b.hold(ctx, session, plan, onBusy) }, done)
}

// shell is member.Shell.
type shell struct{ *Agent }

func (s shell) InitialConfig() []byte            { return s.conf.initial() }
func (s shell) Accepted(c cluster.Snapshot)      { s.conf.apply(c) }
func (s shell) Problems() []string               { return s.problems() }
func (s shell) Copying() (now, made string)      { return s.board.Copying(s.m.TaskSince()) }
func (s shell) ScheduledRestart() map[string]any { return s.m.planned.value() }

// inPostgres is member.Postgres.
type inPostgres struct {
	*board
	pg        *postgres.Instance
	data      *dataLooker
	bootstrap config.Bootstrap
	backup    config.Backup
	// upgradeBinDir is lictor.upgrade_bin_dir.
	upgradeBinDir string
	log           zerolog.Logger
}

// bound is a context that ends when the work is broken off, or after limit, if that is not
// zero.
func (r *runner) bound(w *member.Work, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(r.ctx)
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

// answered runs a part of a task in the background; done hears on the loop how it has ended.
func answered[T any](r *runner, w *member.Work, limit time.Duration, work func(context.Context) (T, error), done func(T, error)) {
	ctx, cancel := r.bound(w, limit)
	r.goDo(func(context.Context) {
		defer cancel()
		value, err := work(ctx)
		r.post(func() { done(value, brokenOff(w, err)) })
	})
}

// work is a part of a task that returns nothing.
func work(r *runner, w *member.Work, limit time.Duration, do func(context.Context) error, done func(error)) {
	answered(r, w, limit, func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) }, func(_ struct{}, err error) { done(err) })
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
	case errors.Is(err, postgres.ErrBeyondRewind):
		return fmt.Errorf("%w: %w", member.ErrBeyondRewind, err)
	case errors.Is(err, postgres.ErrDiverged):
		return fmt.Errorf("%w: %w", member.ErrDiverged, err)
	case errors.Is(err, postgres.ErrUnproved):
		return fmt.Errorf("%w: %w", member.ErrUnproved, err)
	}
	return err
}

func (p inPostgres) Running() bool             { return p.pg.Running() }
func (p inPostgres) PID() int                  { return p.pg.PID() }
func (p inPostgres) Major() int                { return p.pg.Major() }
func (p inPostgres) Upstream() string          { return p.pg.Upstream() }
func (p inPostgres) ClonesWithoutLeader() bool { return p.pg.ClonesWithoutLeader() }
func (p inPostgres) KeepsData() bool           { return p.pg.KeepsData() }
func (p inPostgres) SynchronousCommit() string { return p.pg.SynchronousCommit() }
func (p inPostgres) Fsync() bool               { return p.pg.Fsync() }
func (p inPostgres) HoldCommits(hold bool)     { p.pg.HoldCommits(hold) }

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
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.StopWithin(ctx, limit, served) }, done)
}

func (p inPostgres) StopFor(w *member.Work, served func(int64, func(error)), done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error {
		if served == nil {
			return p.pg.Stop(ctx, postgres.Fast)
		}
		return p.pg.StopWhen(ctx, postgres.Fast, func(ctx context.Context, checkpoint int64) error {
			return p.hear(ctx, func(done func(error)) { served(checkpoint, done) })
		})
	}, done)
}

func (p inPostgres) EndShutDown(w *member.Work, limit time.Duration, done func(error)) {
	work(p.runner, w, limit, p.pg.EndShutDown, done)
}

func (p inPostgres) Start(w *member.Work, limit time.Duration, as member.StartAs, done func(error)) {
	how := postgres.StartAs{Role: postgres.Replica, Upstream: as.Upstream}
	if as.Primary {
		how.Role = postgres.Primary
	}
	if as.Sync != nil {
		how.Sync = &postgres.SyncSetting{Names: as.Sync.Standbys, Any: as.Sync.Any}
	}
	work(p.runner, w, limit, func(ctx context.Context) error { return p.pg.Start(ctx, how) }, done)
}

func (p inPostgres) Adopt(w *member.Work, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error {
		_, err := p.pg.Adopt(ctx)
		return err
	}, done)
}

func (p inPostgres) TryStart(w *member.Work, done func(string, error)) {
	answered(p.runner, w, 0, func(ctx context.Context) (string, error) { return p.pg.TryStart(ctx, postgres.Changed{}) }, done)
}

func (p inPostgres) Observe(w *member.Work, done func(pg.State, error)) {
	answered(p.runner, w, 0, p.pg.Observe, done)
}

func (p inPostgres) Look(w *member.Work, limit time.Duration, done func(member.Found, bool)) {
	answered(p.runner, w, limit, func(ctx context.Context) (member.Found, error) {
		found, seen := p.data.look(ctx)
		if !seen {
			return found, errNotSeen
		}
		return found, nil
	}, func(found member.Found, err error) { done(found, err == nil) })
}

// fetchLimit is how long a primary may take to show its logical slots.
const fetchLimit = 10 * time.Second

// errNotSeen: a look at the data directory has not ended.
var errNotSeen = errors.New("not seen")

func (p inPostgres) Follow(w *member.Work, limit time.Duration, up pg.Upstream, done func(error)) {
	work(p.runner, w, limit, func(ctx context.Context) error { return p.pg.Follow(ctx, up) }, done)
}

func (p inPostgres) Unfollow(w *member.Work, limit time.Duration, done func(error)) {
	work(p.runner, w, limit, p.pg.Unfollow, done)
}

func (p inPostgres) Promote(w *member.Work, above int, last func(func(error)), done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error {
		return p.pg.PromoteAfter(ctx, above, func(ctx context.Context) error { return p.hear(ctx, last) })
	}, done)
}

func (p inPostgres) SetSynchronous(limit time.Duration, s ha.SetSync, done func(pg.SyncInForce, error)) {
	call(p.runner, limit, func(ctx context.Context) (pg.SyncInForce, error) {
		return p.pg.SetSynchronous(ctx, postgres.SyncSetting{Names: s.Standbys, Any: s.Any})
	}, done)
}

func (p inPostgres) Checkpoint(w *member.Work, done func(error)) {
	work(p.runner, w, 0, p.pg.Checkpoint, done)
}

func (p inPostgres) TimelineHistory(timeline int, done func(cluster.History, error)) {
	answered(p.runner, nil, 0, func(context.Context) (cluster.History, error) { return p.pg.TimelineHistory(timeline) }, done)
}

func (p inPostgres) UseSlots() bool { return p.pg.UseSlots() }

func (p inPostgres) SyncsSlots() bool { return p.pg.SyncsSlots() }

func (p inPostgres) SyncSlots(limit time.Duration, o pg.SlotOrders, done func(error)) {
	order(p.runner, limit, func(ctx context.Context) error { return p.pg.SyncSlots(ctx, o) }, done)
}

func (p inPostgres) AdvanceLogical(limit time.Duration, timeline int, slots []pg.WantedSlot, done func(error)) {
	order(p.runner, limit, func(ctx context.Context) error { return p.pg.AdvanceLogical(ctx, timeline, slots) }, done)
}

func (p inPostgres) FetchSlots(w *member.Work, from pg.Upstream, slots []cluster.Slot, done func([]pg.SlotFile, error)) {
	answered(p.runner, w, fetchLimit, func(ctx context.Context) ([]pg.SlotFile, error) { return p.pg.FetchSlots(ctx, from, slots) }, done)
}

func (p inPostgres) PlaceSlots(w *member.Work, files []pg.SlotFile, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.PlaceSlots(ctx, files) }, done)
}

func (p inPostgres) Bootstrap(w *member.Work, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error {
		_, err := p.pg.Bootstrap(ctx, p.bootstrap)
		return err
	}, done)
}

func (p inPostgres) FinishBootstrap(w *member.Work, done func(error)) {
	work(p.runner, w, 0, func(context.Context) error { return p.pg.FinishBootstrap() }, done)
}

func (p inPostgres) DiscardIncomplete(w *member.Work, done func(error)) {
	work(p.runner, w, 0, p.pg.DiscardIncomplete, done)
}

func (p inPostgres) MakeReplica(w *member.Work, from *pg.Upstream, systemIdentifier string, done func(error)) {
	name := ""
	if from != nil {
		name = from.Name
	}
	work(p.runner, w, 0, func(ctx context.Context) error {
		err := p.pg.MakeReplica(ctx, from, systemIdentifier, p.cloneProgress(name, p.log))
		if err == nil {
			p.copyMade()
		}
		return err
	}, done)
}

func (p inPostgres) Rewind(w *member.Work, up pg.Upstream, allowed bool, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error {
		outcome, err := p.pg.Rewind(ctx, up, allowed)
		if err == nil {
			p.log.Info().Str("upstream", up.Name).Stringer("outcome", outcome).Msg("ready to follow")
		}
		return err
	}, done)
}

func (p inPostgres) RemoveForReinit(w *member.Work, allowed pg.Permission, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.RemoveForReinit(ctx, allowed) }, done)
}

// beginRestoreLimit is how long the beginning of a restore may take: what earlier ones have left is removed.
const beginRestoreLimit = 10 * time.Minute

func (p inPostgres) BeginRestore(w *member.Work, r pg.Restore, done func(error)) {
	work(p.runner, w, beginRestoreLimit, func(ctx context.Context) error { return p.pg.BeginRestore(ctx, r) }, done)
}

func (p inPostgres) SetAside(w *member.Work, done func(error)) {
	work(p.runner, w, 0, func(context.Context) error { return p.pg.SetAside() }, done)
}

func (p inPostgres) Restore(w *member.Work, r pg.Restore, done func(error)) {
	limit := p.backup.RestoreLimit()
	work(p.runner, w, limit, func(ctx context.Context) error {
		err := p.pg.Restore(ctx, p.backup, r)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = errors.Join(fmt.Errorf("the restore took longer than lictor.backup.max_restore, %s", limit), err)
		}
		return err
	}, done)
}

func (p inPostgres) PutBack(w *member.Work, done func(error)) {
	work(p.runner, w, 0, p.pg.PutBack, done)
}

func (p inPostgres) EndRestore(w *member.Work, done func(error)) {
	work(p.runner, w, 0, func(context.Context) error { return p.pg.EndRestore() }, done)
}

// What takes longer of a major upgrade is taken back: while it is begun PostgreSQL serves, and nothing else is done; then
// clients wait.
const (
	beginUpgradeLimit = 10 * time.Minute
	upgradeDataLimit  = 2 * time.Hour
)

func (p inPostgres) BeginUpgrade(w *member.Work, to, above int, done func(error)) {
	work(p.runner, w, beginUpgradeLimit, func(ctx context.Context) error { return p.pg.BeginUpgrade(ctx, to, p.upgradeBinDir, above) }, done)
}

func (p inPostgres) UpgradeData(w *member.Work, done func(error)) {
	work(p.runner, w, upgradeDataLimit, p.pg.UpgradeData, done)
}

func (p inPostgres) PlaceUpgraded(w *member.Work, done func(member.Upgraded, error)) {
	answered(p.runner, w, 0, func(context.Context) (made member.Upgraded, err error) {
		if err := p.pg.PlaceUpgraded(); err != nil {
			return made, err
		}
		note, err := p.pg.UpgradeNote()
		if err != nil || note == nil {
			return made, errors.Join(err, errors.New("the note of the major upgrade has gone"))
		}
		return member.Upgraded{From: note.SystemIdentifier, To: note.Upgraded, Timeline: note.Timeline}, nil
	}, done)
}

func (p inPostgres) NoteAnnouncement(w *member.Work, index uint64, done func(error)) {
	work(p.runner, w, 0, func(context.Context) error { return p.pg.NoteAnnouncement(index) }, done)
}

func (p inPostgres) EndUpgrade(w *member.Work, done func(error)) {
	work(p.runner, w, 0, p.pg.EndUpgrade, done)
}

func (p inPostgres) UndoUpgrade(w *member.Work, done func(error)) {
	work(p.runner, w, 0, p.pg.UndoUpgrade, done)
}

func (p inPostgres) Answers(w *member.Work, up pg.Upstream, primary bool, systemIdentifier string, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.Answers(ctx, up, primary, systemIdentifier) }, done)
}

func (p inPostgres) CheckRemote(w *member.Work, limit time.Duration, up pg.Upstream, stops bool, done func(bool, error)) {
	members := membersOf(p.State().Cluster)
	answered(p.runner, w, limit, func(ctx context.Context) (bool, error) {
		if up.Host != "" {
			if err := p.pg.OwnMember(ctx, up, members); err != nil {
				return false, err
			}
		}
		return p.pg.CheckRemote(ctx, up, stops)
	}, done)
}

func (p inPostgres) AskSite(w *member.Work, limit time.Duration, up pg.Upstream, timeline int, done func(cluster.Site, error)) {
	members := membersOf(p.State().Cluster)
	answered(p.runner, w, limit, func(ctx context.Context) (cluster.Site, error) {
		if w != nil { // much depends on the answer
			if err := p.pg.OwnMember(ctx, up, members); err != nil {
				return cluster.Site{}, err
			}
		}
		return p.pg.AskSite(ctx, up, timeline)
	}, done)
}

func (p inPostgres) ArchiveLast(w *member.Work, limit time.Duration, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.ArchiveLast(ctx, limit) }, done)
}

func (p inPostgres) WALGone(limit time.Duration, up pg.Upstream, systemIdentifier string, timeline int, lsn int64, done func(bool, error)) {
	answered(p.runner, nil, limit, func(ctx context.Context) (bool, error) {
		return p.pg.WALGone(ctx, up, systemIdentifier, timeline, lsn)
	}, done)
}

func (p inPostgres) AimAt(limit time.Duration, l pg.Loss, up pg.Upstream, done func(pg.Loss, error)) {
	call(p.runner, limit, func(ctx context.Context) (pg.Loss, error) {
		var err error
		if l.Timeline, l.LSN, err = p.pg.PositionOf(ctx, up); err == nil {
			err = p.pg.KeepLoss(l)
		}
		return l, err
	}, done)
}

func (p inPostgres) ForgetLoss(limit time.Duration, id string, done func(error)) {
	order(p.runner, limit, func(context.Context) error { return p.pg.ForgetLoss(id) }, done)
}

func (p inPostgres) KeepDetachment(w *member.Work, d pg.Detachment, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.KeepDetachment(ctx, d) }, done)
}

func (p inPostgres) DropDetachment(limit time.Duration, d pg.Detachment, done func(error)) {
	order(p.runner, limit, func(ctx context.Context) error { return p.pg.DropDetachment(ctx, d) }, done)
}

func (p inPostgres) BeforeStop(w *member.Work, limit time.Duration, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.BeforeStop(ctx, limit) }, done)
}

func (p inPostgres) PrePromote(w *member.Work, limit time.Duration, done func(error)) {
	work(p.runner, w, 0, func(ctx context.Context) error { return p.pg.PrePromote(ctx, limit) }, done)
}

// watchdogPort is member.Watchdog.
type watchdogPort struct {
	*runner
	*watchdog
}

func (d watchdogPort) OK() (bool, string) { return d.ok() }

func (d watchdogPort) Activate(w *member.Work, until cluster.Instant, ttl time.Duration, margins ha.FenceMargins, done func(error)) {
	timing := fence.WatchdogTiming{TTL: ttl, DemoteBefore: margins.DemoteBefore, KillBefore: margins.KillBefore}
	work(d.runner, w, 0, func(ctx context.Context) error { return d.activate(ctx, until, timing) }, done)
}
