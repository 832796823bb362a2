package agent

import (
	"context"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
)

// This file is the memory of the shard: what the loop has seen happen, told to
// Consul by the leader, beside its beats and never in their way.

// journal is what is recorded, and how far Consul knows it.
type journal struct {
	events.Recorder
	writing  bool
	notUntil cluster.Instant // spaces out writes

	watching bool // for the first write after a promotion
	wrote    cluster.Instant
}

const (
	// eventsEvery is how often the key of events is written at most.
	eventsEvery = time.Second
	// eventsRetry is when it is tried again after that has failed.
	eventsRetry = 10 * time.Second
	// firstWritePatience is how long the first write after a promotion is looked
	// for.
	firstWritePatience = 30 * time.Second
)

// record shows the loop's state to the recorder, and has written what it makes of
// it.
func (a *Agent) record(reason string) {
	now, m, j := a.clock(), &a.m, &a.m.journal
	leader := m.Snapshot.LeaderName()
	v := events.View{
		Now: now, Wall: time.Now(), Self: a.cfg.Name,
		Leads: m.Tenure.Held(now), Leader: leader, Gone: leader == "",
		Beat: m.Snapshot.Status.Value.Lictor, BeatSeen: m.StatusSeen,
		Request: m.Snapshot.Failover.Value, Refused: m.Refused, Reason: reason,
		Primary: m.PG.Running && m.PG.Observed.Accepting && m.PG.Primary(), Down: !m.PGDown.IsZero(),
		Timeline: m.PG.Observed.Timeline, Wrote: j.wrote,
		Paused: m.Dynamic.Pause, Failsafe: m.Tenure.OnFailsafe(), Config: m.Dynamic.Raw, ConfigIndex: m.configIndex,
		WatchersLost: m.watchersLost,
	}
	if b := v.Beat; b != nil && b.Owner != a.cfg.Name {
		v.Gone = v.Gone || b.Released || !now.Before(m.StatusSeen.Add(b.Lease()))
	}
	route := m.Snapshot.Route
	v.Routed = route.OK() && route.Value.State == cluster.RouteOpen && route.Value.Leader.Name == a.cfg.Name && !m.Writing(a.keys.Route())
	for _, other := range m.Snapshot.Members {
		if other.OK() && other.Value.Name != a.cfg.Name && other.Value.State == cluster.StateRunning {
			v.Others = append(v.Others, other.Value.Name)
		}
	}
	if !v.Leads {
		j.wrote = 0
	}
	j.Observe(v)
	if j.Watching() && m.PG.Observed.Accepting && !j.watching && j.wrote.IsZero() {
		a.watchFirstWrite()
	}
	a.writeEvents(v.Leads, now)
}

// watchFirstWrite finds out when clients write again: the end of an outage as they
// see it. It has a connection of its own and ends with the leadership's first
// write.
func (a *Agent) watchFirstWrite() {
	a.m.journal.watching = true
	ctx, cancel := context.WithTimeout(a.ctx, firstWritePatience)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		err := a.pg.AwaitFirstWrite(ctx)
		at := a.clock()
		return func() {
			j := &a.m.journal
			if err == nil {
				j.watching, j.wrote = false, at
				return
			}
			// Without clients there is none; it is looked for as long as the recorder
			// waits for it.
			a.log.Debug().Err(err).Msg("no first write was seen after the promotion")
			a.afterwards(eventsEvery, func() { j.watching = false })
		}
	})
}

// writeEvents adds what is pending to the key of events.
func (a *Agent) writeEvents(leads bool, now cluster.Instant) {
	j := &a.m.journal
	pending := j.Pending()
	a.meter.SawEvents(pending)
	if len(pending) == 0 || !leads || j.writing || now.Before(j.notUntil) || a.m.Session == "" || a.m.Tenure.OnFailsafe() {
		return
	}
	j.Writing()
	j.writing, j.notUntil = true, now.Add(eventsEvery)
	session, key := a.m.Session, a.keys.Events()
	ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		err := a.addEvents(ctx, session, key, pending)
		return func() {
			j.writing = false
			after := eventsEvery
			if err != nil {
				j.Failed()
				a.m.Once("events", "what happened could not be written to Consul; it is kept until it can", err.Error())
				after = eventsRetry
				j.notUntil = a.clock().Add(after)
			} else {
				a.m.ClearOnce("events")
			}
			if len(j.Pending()) > 0 {
				a.afterwards(after, func() {})
			}
		}
	})
}

func (a *Agent) addEvents(ctx context.Context, session, key string, pending []events.Event) error {
	value, index, err := a.store.Get(ctx, key)
	if err != nil {
		return err
	}
	known, err := events.Parse(value)
	if err != nil {
		a.log.Warn().Err(err).Str("key", key).Msg("what is recorded of the shard is not understood and begins anew")
	}
	_, err = a.store.WriteAsLeader(ctx, session, key, index, known.Merge(pending))
	return err
}
