package agent

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/metrics"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/printable"
)

// This file is the memory of the shard: what the loop has seen happen, told to
// Consul by the leader, beside its beats and never in their way.

// eventLog is what is recorded, and how far Consul knows it. Its methods run on the loop, but
// for add.
type eventLog struct {
	*runner
	m       *member.Member
	name    string
	key     string
	store   *consul.Store
	pg      *postgres.Instance
	metrics *metrics.Metrics
	clock   fence.Clock
	log     zerolog.Logger

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
func (j *eventLog) record(reason string, configIndex uint64, watchersLost int, archiveTrouble, backupTrouble string) {
	now, m := j.clock(), j.m
	if m.Read.IsZero() {
		return // what Consul shows first is nothing new
	}
	leader := m.Snapshot.LeaderName()
	standby := m.Dynamic.StandbyCluster.On() // its leader serves without being a primary
	v := events.View{
		Now: now, Wall: time.Now(), Self: j.name,
		Leads: m.LeaseState.Held(now), Leader: leader, Gone: leader == "",
		Beat: m.Snapshot.Status.Value.Lictor, BeatSeen: m.StatusSeen,
		Request: m.Snapshot.Failover.Value, Refused: m.Refused, Reason: reason,
		Primary: m.PG.Running && m.PG.Observed.Accepting && (m.PG.Primary() || standby), Down: !m.PGDown.IsZero(),
		Timeline: m.PG.Observed.Timeline, Wrote: j.wrote,
		Paused: m.Dynamic.Pause, Failsafe: m.LeaseState.OnFailsafe(), Config: m.Dynamic.Raw, ConfigIndex: configIndex,
		WatchersLost: watchersLost, ArchiveTrouble: archiveTrouble, BackupTrouble: backupTrouble,
	}
	if b := v.Beat; b != nil && b.Owner != j.name {
		v.Gone = v.Gone || b.Released || !now.Before(m.StatusSeen.Add(b.Lease()))
	}
	route := m.Snapshot.Route
	open := route.Value.State == cluster.RouteOpen || standby && route.Value.State == cluster.RouteDown
	v.Routed = route.OK() && open && route.Value.Leader.Name == j.name && !m.Writing(m.Keys.Route())
	for _, other := range m.Snapshot.Members {
		if other.OK() && other.Value.Name != j.name && other.Value.State == cluster.StateRunning {
			v.Others = append(v.Others, other.Value.Name)
		}
		if other.OK() && other.Value.Name != j.name && other.Value.Lictor != nil && other.Value.Lictor.Made != "" {
			if v.Made == nil {
				v.Made = map[string]string{}
			}
			v.Made[other.Value.Name] = printable.Text(other.Value.Lictor.Made)
		}
		if other.OK() && other.Value.Name != j.name && other.Value.Stranded() {
			if v.Stranded == nil {
				v.Stranded = map[string]string{}
			}
			v.Stranded[other.Value.Name] = printable.Text(other.Value.Lictor.Stranded)
		}
	}
	if !v.Leads {
		j.wrote = 0
	}
	j.Observe(v)
	if j.Watching() && m.PG.Observed.Accepting && !j.watching && j.wrote.IsZero() {
		j.watchFirstWrite()
	}
	j.write(v.Leads, now)
}

// watchFirstWrite finds out when clients write again: the end of an outage as they
// see it. It has a connection of its own and ends with the leadership's first
// write.
func (j *eventLog) watchFirstWrite() {
	j.watching = true
	call(j.runner, firstWritePatience, func(ctx context.Context) (cluster.Instant, error) {
		err := j.pg.AwaitFirstWrite(ctx)
		return j.clock(), err
	}, func(at cluster.Instant, err error) {
		if err == nil {
			j.watching, j.wrote = false, at
			return
		}
		// Without clients there is none; it is looked for as long as the recorder
		// waits for it.
		j.log.Debug().Err(err).Msg("no first write was seen after the promotion")
		j.afterwards(eventsEvery, func() { j.watching = false })
	})
}

// write adds what is pending to the key of events.
func (j *eventLog) write(leads bool, now cluster.Instant) {
	pending, session := j.Pending(), j.m.Session
	j.metrics.SawEvents(pending)
	if len(pending) == 0 || !leads || j.writing || now.Before(j.notUntil) || session == "" || j.m.LeaseState.OnFailsafe() {
		return
	}
	j.Writing()
	j.writing, j.notUntil = true, now.Add(eventsEvery)
	order(j.runner, j.m.Dynamic.RetryTimeout, func(ctx context.Context) error { return j.add(ctx, session, pending) }, func(err error) {
		j.writing = false
		j.m.Failure("events", "what happened could not be written to Consul; it is kept until it can", err)
		after := eventsEvery
		if err != nil {
			j.Failed()
			after = eventsRetry
			j.notUntil = j.clock().Add(after)
		}
		if len(j.Pending()) > 0 {
			j.afterwards(after, func() {})
		}
	})
}

func (j *eventLog) add(ctx context.Context, session string, pending []events.Event) error {
	value, index, err := j.store.Get(ctx, j.key)
	if err != nil {
		return err
	}
	known, err := events.Parse(value)
	if err != nil {
		j.log.Warn().Err(err).Str("key", j.key).Msg("what is recorded of the shard is not understood and begins anew")
	}
	_, err = j.store.WriteAsLeader(ctx, session, j.key, index, known.Merge(pending))
	return err
}
