package member

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file makes the shard's data those of a later major version (design 5.31).

// Upgrades are major upgrades of this member's data, and of what is made anew after one.
type Upgrades struct {
	*Member

	// unfit: the programs are not those of the version that the data are of, or will be.
	unfit bool
}

// Upgraded is the cluster that a major upgrade has made.
type Upgraded struct {
	From, To string // system identifiers
	Timeline int    // it is on
}

// announcement is a major upgrade that the next beat announces.
type announcement struct {
	Upgraded
	index uint64 // of the status that it replaces
	noted bool   // that is noted beside the data
	ended bool
	err   error
}

func (a *announcement) end(err error) { a.ended, a.err = true, err }

// errUpgradeUnfinished: what is in the place of the data may not be the shard's.
var errUpgradeUnfinished = refused("a major upgrade has not ended, and is taken back first")

// upgradeUnfinished reports whether a major upgrade has neither come to its end nor been taken back.
func (l *Local) upgradeUnfinished() bool { return l.Upgrade != nil || l.Data.State == ha.DataUpgrading }

// BeginsAnew reports whether the agent has to begin anew, with the programs of the version that the data are of.
func (m *Upgrades) BeginsAnew() bool {
	return m.task == nil && (m.unfit || m.Upgrade.Announced(m.Snapshot.Initialize.Value) && !m.Upgrade.Fits)
}

// superseded is the major version to which the shard was upgraded since this member's data were the shard's; zero: they
// are. An error says why it is not known.
func (m *Upgrades) superseded(leader string) (version int, err error) {
	r, shard, own := m.Snapshot.Route, m.Snapshot.Initialize.Value, m.Data.SystemIdentifier
	announced := r.OK() && own != "" && r.Value.Announces(own)
	switch {
	case own == "" || shard == "" || shard == own && !announced:
		return 0, nil
	case !r.OK() || r.Value.SystemIdentifier != shard: // they are read one after the other
		return 0, refused("the route and the key initialize name different clusters: try again")
	case !announced: // the last copy of a cluster, for all that is known
		return 0, refused("the data directory has the data of another cluster (system identifier %s, that of the shard is %s): "+
			"if nobody needs them move them away by hand, and a copy is made", own, shard)
	}
	l, found := m.Snapshot.Member(leader)
	if !found || !l.OK() || l.Value.Lictor == nil || l.Value.Lictor.Postgres == 0 || l.Value.Role != m.PrimaryWord && l.Value.Role != cluster.RolePrimary {
		return 0, refused("%s has been upgraded to another major version, and does not say to which, or does not serve yet", leader)
	}
	return l.Value.Lictor.Postgres, nil
}

// undo takes an upgrade back. An agent that has begun anew with the new version's programs has to do so again. Where it cannot
// be taken back this leader serves nobody, and others may lead: that is what the limits of any leader are for.
func (m *Upgrades) undo() {
	fits := m.Upgrade != nil && m.Upgrade.Fits
	m.startTask(ha.TaskUpgrade, m.Postgres.UndoUpgrade, func(err error) {
		m.unfit = m.unfit || err == nil && fits
		if err == nil {
			m.restoreUndone(nil)
		}
	})
}

// May says why the shard cannot be upgraded by this member now.
func (m *Upgrades) May() error {
	if err := m.MayRestore(); err != nil {
		return err
	}
	if m.Dynamic.StandbyCluster.On() || m.site.Known {
		return refused("physical replication to or from another site cannot cross major versions")
	}
	for _, other := range m.Snapshot.Members {
		if !other.Value.Lictor.Succession {
			return refused("the agent of %s is of a version that knows nothing of major upgrades", other.Value.Name)
		}
	}
	return nil
}

// To makes the shard's data those of a later major version. Until that is announced, every error takes it back.
func (m *Upgrades) To(to int, done func(error)) {
	if err := m.May(); err != nil {
		done(err)
		return
	}
	above := max(m.PG.Observed.Timeline, m.Timeline())
	m.Log.Warn().Int("to", to).Msg("upgrading PostgreSQL to another major version")
	stop, made, clients := m.restopped(), Upgraded{}, m.handovers.toItself()
	m.startTask(ha.TaskUpgrade, func(w *Work, next func(error)) {
		inOrder(func(w *Work, next func(error)) {
			m.Postgres.BeginUpgrade(w, to, above, next)
		}, m.Postgres.Checkpoint, clients.within(handoverLimit, clients.hold, m.hold, stop), func(w *Work, next func(error)) {
			m.stoppedOnPurpose()
			m.PG.Observed, m.hidden = pg.State{}, true
			m.Postgres.UpgradeData(w, next)
		}, func(w *Work, next func(error)) {
			m.Postgres.PlaceUpgraded(w, func(u Upgraded, err error) {
				made = u
				next(err)
			})
		}, func(w *Work, next func(error)) {
			m.announceNext(w, made, next)
		})(w, func(err error) {
			m.held, m.hidden = false, false
			if clients.announcing {
				m.handovers.announced = clients.plan
			}
			done(err)
			next(err)
		})
	}, m.restoreUndone)
}

// hold has the route say that clients are to wait: the bouncers' own holds end before the new cluster serves.
func (m *Upgrades) hold(w *Work, next func(error)) {
	m.held = true
	m.waiters.await(w, m.Dynamic.RetryTimeout, func() bool {
		m.route.write()
		r := m.Snapshot.Route
		return !r.Exists() || r.OK() && r.Value.State == cluster.RouteDown
	}, func(written bool) {
		switch {
		case w.Broken() != nil:
			next(w.Broken())
		case !written:
			next(errNotHeld)
		default:
			next(nil)
		}
	})
}

var (
	errNotHeld      = errors.New("the route could not be written in time, so clients are not held")
	errNotAnnounced = errors.New("the upgrade was not announced in time")
)

// announceNext has the next beat announce the new cluster. The note says first which status it replaces, and there is
// no other beat meanwhile: with another status it cannot come any more, however late.
func (m *Upgrades) announceNext(w *Work, made Upgraded, next func(error)) {
	a := &announcement{Upgraded: made}
	inOrder(func(w *Work, next func(error)) {
		m.waiters.await(w, m.Dynamic.TTL, func() bool { return !m.LeaseState.Writing() }, m.inTime(w, next))
	}, func(w *Work, next func(error)) {
		m.announcing, a.index = a, m.Snapshot.Status.ModifyIndex
		m.Postgres.NoteAnnouncement(w, a.index, next)
	}, func(w *Work, next func(error)) {
		a.noted = true
		m.LeaseState.BeatSoon()
		m.waiters.await(w, m.Dynamic.TTL, func() bool { return a.ended }, m.inTime(w, next))
	})(w, func(err error) {
		if !a.ended {
			m.takeBack() // what was not sent is not sent any more
		}
		m.announcing = nil
		next(cmp.Or(err, a.err))
	})
}

// inTime is what follows on a wait.
func (m *Upgrades) inTime(w *Work, next func(error)) func(bool) {
	return func(held bool) {
		switch {
		case w.Broken() != nil:
			next(w.Broken())
		case !held:
			next(errNotAnnounced)
		default:
			next(nil)
		}
	}
}

// announce is the beat that tells Consul, and with it everybody, of the new cluster.
func (l *leadership) announce(a *announcement) {
	if !a.noted {
		return
	}
	l.announcing = nil // once
	known := l.Snapshot
	switch {
	case known.Initialize.Value != a.From:
		a.end(fmt.Errorf("the key initialize names %s, and the data that were upgraded are those of %s", known.Initialize.Value, a.From))
		return
	case known.Status.ModifyIndex != a.index:
		a.end(errNotAnnounced)
		return
	}
	discarded, before := l.Discarded()
	if discarded < a.Timeline-1 {
		discarded, before = a.Timeline-1, discarded
	}
	request := cluster.Announcement{
		Session: l.Session, Status: l.nextStatus(), StatusIndex: a.index,
		From: a.From, To: a.To, InitializeIndex: known.Initialize.ModifyIndex,
		Sync: cluster.Sync{Leader: l.Name}, SyncIndex: known.Sync.ModifyIndex,
		Route: l.succeedingRoute(a), RouteIndex: known.Route.ModifyIndex,
	}
	beat := request.Status.Lictor
	beat.Timeline, beat.Discarded, beat.DiscardedBefore = max(beat.Timeline, a.Timeline), discarded, before
	request.Status.OpTime, request.Status.Slots, request.Status.RetainSlots = 0, nil, nil // nobody is there yet
	t0, ttl := l.Now(), l.Dynamic.TTL
	l.LeaseState.BeginBeat(t0, ttl)
	l.LeaseState.BeginConsent(false)
	l.ArmGuard()
	failed := func(err error) {
		l.unsent = nil
		l.writeFailed("announcing the upgrade", err)
		a.end(err)
	}
	takenBack := false
	l.unsent = func() {
		takenBack = true
		l.LeaseState.WriteFailed(ha.NoEffect, l.Now(), l.Dynamic.BeatInterval())
		a.end(errNotAnnounced)
	}
	l.whenTold(t0, ttl, l.leaseLimit(), func(left time.Duration) {
		if takenBack {
			return
		}
		l.unsent = nil
		l.consul.Announce(left, request, func(written cluster.Indexes, err error) {
			if err != nil {
				failed(err)
				return
			}
			l.announced(request, written)
			if err := l.LeaseState.BeatSucceeded(l.Now(), t0, ttl); err != nil {
				l.Log.Error().Err(err).Msg("the beat succeeded too late")
			} else {
				l.ArmGuard()
			}
			a.end(nil)
		})
	}, func(err error) {
		if !takenBack {
			failed(err)
		}
	})
}

// announced takes in what an announcement has written.
func (l *leadership) announced(a cluster.Announcement, written cluster.Indexes) {
	l.WroteStatus(l.Now(), a.Status, written[l.Keys.Status()])
	l.Snapshot.Initialize = cluster.Entry[string]{Value: a.To, ModifyIndex: written[l.Keys.Initialize()]}
	l.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: a.Sync, ModifyIndex: written[l.Keys.Sync()]}
	l.Snapshot.Route = cluster.Entry[cluster.Route]{Value: a.Route, ModifyIndex: written[l.Keys.Route()]}
	l.Log.Warn().Str("system_identifier", a.To).Str("succeeds", a.From).Msg("a major upgrade was announced: the new data are the shard's")
}

// succeedingRoute is the route of the new cluster, which serves nobody yet.
func (l *leadership) succeedingRoute(a *announcement) cluster.Route {
	r := l.Snapshot.Route.Value
	r.Succeeds = append([]string{a.From}, slices.DeleteFunc(slices.Clone(r.Succeeds), func(id string) bool { return id == a.From || id == a.To })...)
	r.Succeeds = r.Succeeds[:min(len(r.Succeeds), cluster.MaxSucceeds)]
	r.Version, r.SystemIdentifier, r.State, r.Timeline = cluster.RouteVersion, a.To, cluster.RouteDown, a.Timeline
	r.Leader, r.Replicas = cluster.RouteMember{Name: l.Name, Host: l.Host, Port: l.Port, Tags: PublishedTags(l.Tags)}, []cluster.RouteMember{}
	return r
}
