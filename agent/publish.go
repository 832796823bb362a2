package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// published remembers what was told to others, so that nothing is written
// twice.
type published struct {
	member   []byte // the member key's value
	value    cluster.Member
	touched  cluster.Instant
	session  string // the session that it is bound to
	index    uint64 // that Consul gave it then
	touching bool
	slots    string // the members that slots were made for, and when
	slotsAt  cluster.Instant
	slotting bool
	history  int // the timeline whose history was written
	// readingHistory: it is being read, or cannot be for now.
	readingHistory bool
	// checkpointed is the timeline whose first checkpoint was made.
	checkpointed  int
	checkpointing bool
	promotedTo    int
	// holding: clients are held for the handover under way. The route says so only
	// then: nobody is to wait for the checkpoint before it.
	holding bool
	readers readers
}

// publish tells others what has changed. It runs after every decision.
func (a *Agent) publish() {
	if a.m.Read.IsZero() || a.m.Exit {
		return
	}
	a.touch()
	a.endHandover()
	leads := a.m.Tenure.Held(a.clock()) && a.m.LockIsOurs()
	if leads {
		a.writeRoute()
		a.writeHistory()
		a.checkpointAfterPromotion()
	}
	if !leads { // what only a leader finds is no problem of this member's any more
		delete(a.m.told, "events")
		delete(a.m.told, "route of another cluster")
	}
	if leads != a.m.pg.observed.InRecovery {
		a.keepSlots()
	}
}

// memberValue is what this member says of itself under its own key.
func (a *Agent) memberValue() cluster.Member {
	o := a.m.pg.observed
	m := cluster.Member{
		Name:    a.cfg.Name,
		ConnURL: "postgres://" + a.cfg.Postgres.ConnectAddress + "/postgres",
		APIURL:  a.apiScheme() + "://" + a.cfg.RestAPI.ConnectAddress + "/patroni",
		State:   a.pgStateName(),
		Role:    a.roleName(),
		Version: publicVersion(a.version),
		Tags:    publishedTags(a.tags()),
		// Not before the guard stands down: whoever sees it may end the agent.
		Pause:    a.m.PauseInForce() && a.m.Guardian.StandsDown(),
		Timeline: 0,
		// Always there: without it the others believe who answers at this address, unproved.
		Lictor: &cluster.MemberLictor{Problems: len(a.problems())},
	}
	if a.m.leavingSync {
		m.Tags = withNosync(m.Tags)
	}
	m.ScheduledRestart = a.m.planned.value()
	if a.cfg.Postgres.ProxyAddress != "" {
		m.ProxyURL = "postgres://" + a.cfg.Postgres.ProxyAddress + "/postgres"
	}
	if o.Accepting {
		m.XLogLocation, m.Timeline = o.LSN(), o.Timeline
		if o.InRecovery {
			m.ReceiveLSN, m.ReplayLSN = o.ReceivedLSN, o.ReplayedLSN
			m.ReplicationState, m.ReplayStandsStill = o.ReplicationState, o.Standstill
			m.Lictor.LeaderLSN = a.m.leaderLSN()
		} else if a.m.published.promotedTo == o.Timeline && a.m.published.checkpointed != o.Timeline {
			done := false
			m.CheckpointAfterPromote = &done
		}
		if len(o.PendingRestart) > 0 {
			m.PendingRestart, m.PendingRestartReason = true, o.PendingRestart
		}
	}
	return m
}

func (a *Agent) apiScheme() string {
	if a.cfg.RestAPI.CertFile != "" {
		return "https"
	}
	return "http"
}

// roleName is the role as Patroni names it.
func (a *Agent) roleName() string {
	primaryWord := cluster.RolePrimary
	if a.cfg.Lictor.Speaks() == "patroni-3" {
		primaryWord = cluster.RoleMaster
	}
	switch {
	case a.m.data.State != ha.DataValid:
		return cluster.RoleUninitialized
	case a.m.pg.running && a.m.pg.primary():
		return primaryWord
	default:
		return cluster.RoleReplica
	}
}

// pgStateName is the state of PostgreSQL in Patroni's words.
func (a *Agent) pgStateName() string {
	switch a.m.task.kind {
	case ha.TaskBootstrap:
		return cluster.StateInitializing
	case ha.TaskClone, ha.TaskReinit:
		return cluster.StateCreating
	case ha.TaskRestart:
		return cluster.StateRestarting
	case ha.TaskDemote, ha.TaskHandover:
		if a.m.pg.running {
			return cluster.StateStopping
		}
	}
	switch {
	case a.m.pg.running && a.m.pg.observed.Accepting:
		return cluster.StateRunning
	case a.m.pg.running && a.m.pg.observed.Stopping:
		return cluster.StateStopping
	case a.m.pg.running:
		return cluster.StateStarting
	case a.m.attempt.Kind == ha.TaskStart && a.m.attempt.Failures > 0:
		return cluster.StateStartFailed
	case !a.m.pgDown.IsZero():
		return cluster.StateCrashed
	default:
		return cluster.StateStopped
	}
}

// publishedTags leaves out what Patroni leaves out: its boolean tags when they
// are not true.
func publishedTags(tags map[string]any) map[string]any {
	out := map[string]any{}
	for name, value := range tags {
		switch name {
		case "nofailover", "clonefrom", "noloadbalance", "nosync", "nostream":
			_, byPriority := tags[map[string]string{"nofailover": "failover_priority", "nosync": "sync_priority"}[name]]
			if !(cluster.Member{Tags: tags}).Tag(name) && !byPriority {
				continue
			}
		}
		out[name] = value
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// touch writes the member key when it has changed, or when it is not bound to
// our session.
func (a *Agent) touch() {
	p := &a.m.published
	if p.touching || a.m.Session == "" {
		return
	}
	value := a.memberValue()
	encoded, err := json.Marshal(value)
	if err != nil {
		a.log.Error().Err(err).Msg("member key")
		return
	}
	entry, exists := a.m.Snapshot.Member(a.cfg.Name)
	ours := exists && entry.Session == a.m.Session
	bound := p.session == a.m.Session && (ours || !a.settled())
	if a.settled() && ours && entry.ModifyIndex > p.index {
		bound = false // an earlier write of ours has landed late
	}
	if bound && (bytes.Equal(encoded, p.member) || !a.worthWriting(value)) {
		return
	}
	index := uint64(0)
	if exists && entry.Session != a.m.Session && p.session != a.m.Session {
		index = entry.ModifyIndex
	}
	p.touching = true
	session := a.m.Session
	ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		written, err := a.store.Touch(ctx, session, index, value)
		return func() {
			p.touching = false
			if err == nil {
				p.member, p.value, p.session, p.touched = encoded, value, session, a.clock()
				p.index = written
				return
			}
			a.log.Debug().Err(err).Msg("writing the member key failed")
			p.session = ""
			p.touching = true
			a.m.Reread()
			a.afterwards(retryAfter(), func() { p.touching = false })
		}
	})
}

// worthWriting keeps mere progress in the WAL from being written more often than
// once a loop_wait.
func (a *Agent) worthWriting(value cluster.Member) bool {
	before := a.m.published.value
	for _, m := range []*cluster.Member{&before, &value} {
		m.XLogLocation, m.ReceiveLSN, m.ReplayLSN = 0, 0, 0
		if m.Lictor != nil {
			m.Lictor = &cluster.MemberLictor{Problems: m.Lictor.Problems}
		}
	}
	return !reflect.DeepEqual(before, value) || a.clock().Sub(a.m.published.touched) >= a.m.Dynamic.LoopWait
}

// settled tells whether Consul's answers must by now show our last member key.
func (a *Agent) settled() bool {
	return a.m.Read.Sub(a.m.published.touched) > time.Second
}

// routeToWrite is the route as this member would have it as the leader. It is
// not ok when there is nothing to say, or when the route in Consul belongs to
// another PostgreSQL cluster and must not be touched.
func (a *Agent) routeToWrite() (cluster.Route, bool) {
	known := a.m.Snapshot.Route
	id := a.m.data.SystemIdentifier
	if id == "" {
		return cluster.Route{}, false
	}
	if known.OK() && known.Value.SystemIdentifier != id {
		a.once("route of another cluster", "the route in Consul has another system identifier and is left alone: "+
			"two shards share namespace and scope, or the key must be deleted", known.Value.SystemIdentifier)
		return cluster.Route{}, false
	}
	a.clearOnce("route of another cluster")
	host, port := splitAddress(a.cfg.Postgres.ConnectAddress)
	r := cluster.Route{
		Version: cluster.RouteVersion, SystemIdentifier: id,
		State: a.routeState(), Timeline: a.m.pg.observed.Timeline,
		Leader:   cluster.RouteMember{Name: a.cfg.Name, Host: host, Port: port, Tags: publishedTags(a.cfg.Tags)},
		Replicas: a.routeReplicas(),
	}
	if known.OK() {
		if r.Timeline == 0 {
			r.Timeline = known.Value.Timeline
		}
		if known.Value.Leader.Name == r.Leader.Name {
			r.Since = known.Value.Since
		}
	}
	r.Timeline = max(r.Timeline, 1)
	if r.Since.IsZero() {
		r.Since = time.Now().UTC().Truncate(time.Millisecond)
	}
	return r, true
}

func (a *Agent) routeState() cluster.RouteState {
	switch {
	case a.m.task.kind == ha.TaskHandover && a.m.task.successor != "" && a.m.published.holding:
		return cluster.RouteHandover
	case a.m.pg.running && a.m.pg.observed.Accepting && a.m.pg.primary() && a.m.task.kind != ha.TaskDemote:
		return cluster.RouteOpen
	case a.m.pg.running && !a.m.pg.primary():
		return cluster.RoutePromoting
	default:
		return cluster.RouteDown
	}
}

// routeReplicas lists the members that may serve reads (readers.go).
func (a *Agent) routeReplicas() []cluster.RouteMember {
	replicas, now := []cluster.RouteMember{}, a.clock()
	before := readers{lagging: a.m.published.readers.lagging, silent: a.m.published.readers.silent}
	r := readers{passed: a.m.published.readers.passed, lagging: map[string]bool{}, silent: map[string]cluster.Instant{}}
	r.saw(now, a.m.pg.observed)
	for _, m := range a.m.Snapshot.Members {
		if !m.OK() || m.Value.Name == a.cfg.Name || m.Value.State != cluster.StateRunning || m.Value.Role != cluster.RoleReplica ||
			m.Value.Tag("noloadbalance") {
			continue
		}
		host, port, err := m.Value.Address()
		if err != nil {
			continue
		}
		name := m.Value.Name
		r.lagging[name] = before.lagging[name]
		if since, silent := before.silent[name]; silent {
			r.silent[name] = since
		}
		had := slices.ContainsFunc(a.m.Snapshot.Route.Value.Replicas, func(m cluster.RouteMember) bool { return m.Name == name })
		if !r.serve(now, a.m.pg.observed, m.Value, had, a.m.Dynamic) {
			continue
		}
		replicas = append(replicas, cluster.RouteMember{Name: m.Value.Name, Host: host, Port: port, Tags: m.Value.Tags})
	}
	a.m.published.readers = r // who is no replica any more is forgotten
	return replicas
}

func splitAddress(address string) (host string, port int) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return address, 5432
	}
	port, err = strconv.Atoi(p)
	if err != nil {
		return host, 0
	}
	return host, port
}

// writeRoute writes the route when the topology has changed. Beats never touch
// it: bouncers read it with one blocking query for all shards.
func (a *Agent) writeRoute() {
	known := a.m.Snapshot.Route
	r, ok := a.routeToWrite()
	if !ok || known.OK() && known.Value.SameTopology(r) {
		return
	}
	a.m.WriteAsLeader("route", a.keys.Route(), known.ModifyIndex, r, func(index uint64) {
		a.m.Snapshot.Route = cluster.Entry[cluster.Route]{Value: r, ModifyIndex: index}
		if !known.OK() || known.Value.State != r.State || known.Value.Leader.Name != r.Leader.Name || known.Value.Timeline != r.Timeline {
			a.poke(r, index)
		}
		a.log.Info().Str("state", string(r.State)).Int("timeline", r.Timeline).Int("replicas", len(r.Replicas)).Msg("route written")
	})
}

// writeHistory publishes how the timelines before ours ended.
func (a *Agent) writeHistory() {
	p, o := &a.m.published, a.m.pg.observed
	if !o.Accepting || o.InRecovery || o.Timeline <= 1 || p.history == o.Timeline || p.readingHistory || a.m.Writing(a.keys.History()) {
		return
	}
	p.readingHistory = true
	ctx, cancel := context.WithCancel(a.ctx)
	a.effect(ctx, cancel, func(context.Context) func() {
		lines, err := a.pg.TimelineHistory(o.Timeline)
		return func() {
			if err != nil {
				a.once("timeline history", "the history of the timelines cannot be read", err.Error())
				a.afterwards(retryAfter(), func() { p.readingHistory = false })
				return
			}
			p.readingHistory = false
			a.clearOnce("timeline history")
			if a.m.Tenure.Held(a.clock()) && a.m.LockIsOurs() && a.m.pg.observed.Timeline == o.Timeline {
				a.putHistory(o.Timeline, lines)
			}
		}
	})
}

// putHistory writes the key history: what is known of a timeline's end stays.
func (a *Agent) putHistory(timeline int, lines cluster.History) {
	known := a.m.Snapshot.History
	merged := make(cluster.History, 0, len(lines))
	for _, line := range lines {
		i := slices.IndexFunc(known.Value, func(h cluster.TimelineSwitch) bool {
			return h.Timeline == line.Timeline && h.LSN == line.LSN
		})
		switch {
		case i >= 0:
			line = known.Value[i]
		case line.Timeline == timeline-1:
			line.Time = time.Now().Format("2006-01-02T15:04:05.000000-07:00")
			line.NewLeader = a.cfg.Name
		}
		merged = append(merged, line)
	}
	if n := a.m.Dynamic.MaxTimelinesHistory; n > 0 && len(merged) > n {
		merged = merged[len(merged)-n:]
	}
	a.m.WriteAsLeader("history", a.keys.History(), known.ModifyIndex, merged, func(index uint64) {
		a.m.published.history = timeline
		a.m.Snapshot.History = cluster.Entry[cluster.History]{Value: merged, ModifyIndex: index}
	})
}

// keepSlots keeps a replication slot for every member that streams from this one, so
// that one that is away for a while finds its WAL. A replica does, too, for those that
// replicate from it; and what it kept as a primary it drops, as that holds WAL back for
// ever.
func (a *Agent) keepSlots() {
	p := &a.m.published
	if p.slotting || !a.m.pg.observed.Accepting || a.m.Dynamic.Pause || !a.pg.UseSlots() {
		return
	}
	names := slotsFor(a.m.Snapshot, a.cfg.Name, !a.m.pg.observed.InRecovery)
	key := strings.Join(names, ",")
	if a.m.pg.observed.InRecovery {
		key = "replica," + key
	}
	if key == p.slots && a.clock().Sub(p.slotsAt) < slotsEvery {
		return
	}
	p.slotting = true
	dynamic := a.m.Dynamic
	ctx, cancel := context.WithTimeout(a.ctx, slotsEvery)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		err := a.pg.SyncSlots(ctx, names, keepSlot(dynamic))
		return func() {
			p.slotting = false
			p.slotsAt = a.clock()
			if err != nil {
				a.once("slots", "replication slots could not be brought up to date", err.Error())
				return
			}
			a.clearOnce("slots")
			p.slots = key
		}
	})
}

// slotsFor are the members that stream from a member, as each decides (ha.View): from the
// one that it is to replicate from if that runs, else from the primary.
func slotsFor(s cluster.Snapshot, name string, primary bool) []string {
	var names []string
	for _, m := range s.Members {
		if !m.OK() || m.Value.Name == name || cluster.NoStream(m.Value.Tags) || !primary && m.Value.Name == s.LeaderName() {
			continue
		}
		from, _ := m.Value.Tags["replicatefrom"].(string)
		other, found := s.Member(from)
		if from == name || primary && (!found || !other.OK() || other.Value.State != cluster.StateRunning) {
			names = append(names, m.Value.Name)
		}
	}
	return names
}

// slotsEvery is how often slots are looked at when the members stay the same.
const slotsEvery = 10 * time.Second

// checkpointAfterPromotion makes the new timeline's first checkpoint, before
// which nobody can rewind to it.
func (a *Agent) checkpointAfterPromotion() {
	p := &a.m.published
	o := a.m.pg.observed
	if p.checkpointing || !o.Accepting || o.InRecovery || p.promotedTo != o.Timeline || p.checkpointed == o.Timeline {
		return
	}
	p.checkpointing = true
	timeline := o.Timeline
	ctx, cancel := context.WithCancel(a.ctx)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		err := a.pg.Checkpoint(ctx)
		return func() {
			p.checkpointing = false
			if err != nil {
				a.log.Warn().Err(err).Msg("the checkpoint after the promotion failed")
				return
			}
			p.checkpointed = timeline
		}
	})
}
