package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/placement"
)

// This file says for the planner who could lead a shard, where, and why not: from what
// Consul tells, and then from what the members themselves answer.

const (
	// hostTag names the host of a member, where its address does not.
	hostTag = "host"
	// DefaultZoneTag names the zone of a member.
	DefaultZoneTag = "zone"
)

// hostOf is the host that a member runs on, in small letters: its tag host, else the host of its
// address.
func hostOf(m cluster.Member) string {
	if host := cluster.TextTag(m.Tags, hostTag); isHost(host) {
		return strings.ToLower(host)
	}
	host, _, err := m.Address()
	if err != nil { // it runs nowhere that anybody knows of
		return ""
	}
	return strings.ToLower(host)
}

// isHost reports whether a word may name a host: it becomes a part of a key in Consul.
func isHost(word string) bool {
	return cluster.CheckHost(word) == nil || cluster.CheckName(word) == nil
}

// host finds the host that is meant: by its name (tag host, or address), or by the name of
// the members there, if all shards have that name on one host.
func (f fleet) host(name string) (string, error) {
	found, all := map[string]bool{}, map[string]bool{}
	for _, s := range f.shards {
		for _, m := range s.snapshot.Members {
			host := hostOf(m.Value)
			if host == "" {
				continue
			}
			all[host] = true
			address, _, err := m.Value.Address()
			if strings.EqualFold(host, name) || err == nil && strings.EqualFold(address, name) || strings.EqualFold(m.Value.Name, name) {
				found[host] = true
			}
		}
	}
	switch len(found) {
	case 0:
		return "", refusedf("no member of any shard runs on %s; hosts are %s (a member's address, or its tag host)", name, abridged(sortedKeys(all), 20))
	case 1:
		return sortedKeys(found)[0], nil
	}
	return "", refusedf("%s may be any of the hosts %s: name one of them, or tag the members of one host alike (tags: {host: %s})", name, abridged(sortedKeys(found), 20), name)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// placed is a shard as the planner knows it.
func (s fleetShard) placed(zoneTag string) placement.Shard {
	p := placement.Shard{Name: s.scope, Stuck: s.stuck()}
	for _, m := range s.snapshot.Members {
		member := placement.Member{Name: m.Value.Name, Host: hostOf(m.Value), Zone: cluster.TextTag(m.Value.Tags, zoneTag), Priority: cluster.FailoverPriority(m.Value.Tags)}
		if m.Value.Name == s.snapshot.LeaderName() {
			p.Leader = member
			continue
		}
		member.Unfit = s.unfit(m)
		p.Others = append(p.Others, member)
	}
	return p
}

// stuck says why the leader cannot be handed over now, whoever might take over.
func (s fleetShard) stuck() placement.Problem {
	leader, found := s.snapshot.Member(s.snapshot.LeaderName())
	request := s.snapshot.Failover
	beat := s.snapshot.Status.Value.Lictor
	switch {
	case s.snapshot.LeaderName() == "":
		return placement.Problem{What: "it has no leader", Do: "see lictor list " + s.scope}
	case !found || !leader.OK():
		return placement.Problem{What: "its leader " + s.snapshot.LeaderName() + " has no readable member key", Do: "see its agent's log"}
	case s.problem != nil:
		return placement.Problem{What: fmt.Sprintf("its dynamic configuration is not valid: %v", s.problem), Do: "put it right with lictor edit-config " + s.scope}
	case s.dynamic.Pause:
		return placement.Problem{What: "it is paused", Do: "lictor resume " + s.scope + ", when its maintenance is over"}
	case request.Err != nil:
		return placement.Problem{What: "its key failover is not understood", Do: "see the leader's log"}
	case request.OK() && request.Value.ScheduledAt != nil:
		return placement.Problem{
			What: "a switchover is scheduled for " + request.Value.ScheduledAt.Local().Format(time.RFC3339),
			Do:   "lictor flush " + s.scope + " switchover, or wait until it is done",
		}
	case request.OK() && !request.Value.Empty():
		return placement.Problem{What: "a change of leader is asked for already", Do: "wait until it is done (lictor events " + s.scope + ")"}
	case leader.Value.State != cluster.StateRunning || !s.leads(leader.Value):
		return placement.Problem{What: fmt.Sprintf("its leader %s is %s, as a %s", leader.Value.Name, cmp.Or(leader.Value.State, "silent"), cmp.Or(leader.Value.Role, "member")), Do: "see lictor list " + s.scope}
	case beat != nil && beat.Owner != leader.Value.Name:
		return placement.Problem{What: leader.Value.Name + " has just taken the lock and does not lead yet", Do: "wait until it does"}
	}
	return placement.Problem{}
}

// leads reports whether the leader's role is the one that it is to have: of a standby shard it is no primary.
func (s fleetShard) leads(leader cluster.Member) bool {
	if s.dynamic.StandbyCluster.On() {
		return leader.Role == cluster.RoleStandbyLeader
	}
	return cluster.IsPrimary(leader.Role)
}

// unfit says why a member cannot take over from its leader now. It is what the leader
// itself would say, and what a look at Consul tells.
func (s fleetShard) unfit(m cluster.Entry[cluster.Member]) placement.Problem {
	v, name := m.Value, m.Value.Name
	leader, _ := s.snapshot.Member(s.snapshot.LeaderName())
	lag, known := s.snapshot.Lag(v, v.XLogLocation)
	limit := s.dynamic.MaximumLagOnFailover
	streams := s.snapshot.Status.Value.Lictor != nil // Patroni 3 does not say
	problem := func(do, format string, args ...any) placement.Problem {
		return placement.Problem{What: name + " " + fmt.Sprintf(format, args...), Do: do}
	}
	switch {
	case m.Err != nil:
		return problem("see its agent's log", "has no readable member key")
	case cluster.NoFailover(v.Tags):
		return problem("take the tag away, or add a member that may lead", "is tagged nofailover")
	case cluster.NoStream(v.Tags):
		return problem("switch over by hand: lictor failover", "is tagged nostream")
	case hostOf(v) == "":
		return problem("see postgresql.connect_address of its file", "has no address")
	case v.State != cluster.StateRunning:
		return problem("start it", "is %s", cmp.Or(v.State, "silent"))
	case cluster.IsPrimary(v.Role):
		return problem("see lictor list "+s.scope, "says that it is a primary")
	case v.Timeline > 0 && leader.Value.Timeline > 0 && v.Timeline != leader.Value.Timeline:
		return problem("wait until it follows, or lictor reinit", "is on timeline %d, the leader on %d", v.Timeline, leader.Value.Timeline)
	case streams && v.ReplicationState == "":
		return problem("see PostgreSQL's log there", "does not replicate")
	case s.dynamic.Synchronous() && !s.snapshot.Sync.Value.Has(name):
		return problem(s.untilSynchronous(), "is no synchronous standby now, so it may lack acknowledged commits")
	case known && limit > 0 && lag > limit:
		return problem("wait until it has caught up", "lags %s", size(lag))
	case notListed(s.snapshot, name):
		return problem("wait until its leader has written the list", "is not in the failsafe list")
	case discarded(s.snapshot, name):
		return problem("wait until it follows the restored shard", "has WAL that a restore has discarded")
	}
	return placement.Problem{}
}

// untilSynchronous says what makes another member a synchronous standby: where there are as many as are wanted,
// none takes the place of one that streams.
func (s fleetShard) untilSynchronous() string {
	if s.dynamic.SynchronousMode == cluster.SyncOn && len(s.snapshot.Sync.Value.Standbys()) >= s.dynamic.SynchronousNodeCount {
		return s.raiseSynchronous() + ", and lower it again afterwards"
	}
	return "wait until it is"
}

func (s fleetShard) raiseSynchronous() string {
	return fmt.Sprintf("lictor edit-config %s -s synchronous_node_count=%d", s.scope, s.dynamic.SynchronousNodeCount+1)
}

// survey is what the planner knows: shards by Consul, and what members have answered.
type survey struct {
	site   *Site
	fleet  fleet
	shards []placement.Shard
	asked  map[string]bool // SHARD/MEMBER
}

// newSurvey makes the planner's view of a fleet.
func newSurvey(site *Site, f fleet, o MoveOptions) *survey {
	v := &survey{site: site, fleet: f, asked: map[string]bool{}}
	for _, s := range f.shards {
		placed := s.placed(o.ZoneTag)
		if why := s.dynamic.MaintenanceWindows.Refusal(cluster.MaintenanceHandover, time.Now()); why != "" && !o.OutsideWindow && !placed.Stuck.Exists() {
			placed.Stuck = placement.Problem{What: "now is " + why, Do: "wait for it, or say --outside-window"}
		}
		v.shards = append(v.shards, placed)
	}
	return v
}

// surveyLimit bounds the answer of one member to whether it could change places now.
const surveyLimit = 5 * time.Second

// plan makes a plan, asks every member in it how it is, and makes another one without those
// that are not well, until all that are in it are.
func (v *survey) plan(ctx context.Context, planner func([]placement.Shard) placement.Plan) (placement.Plan, error) {
	client, err := v.site.memberClient()
	if err != nil {
		return placement.Plan{}, err
	}
	defer client.Close()
	v.fleet.learnSecrets(ctx, v.site)
	for {
		plan := planner(v.shards)
		if !v.ask(ctx, client, plan.Moves) {
			return plan, ctx.Err()
		}
	}
}

// ask asks the members of a plan that were not asked yet, and reports whether one of them is
// not well.
func (v *survey) ask(ctx context.Context, client *api.Client, moves []placement.Move) (news bool) {
	type answer struct {
		shard, member string
		leads         bool
		problem       placement.Problem
	}
	var asking []answer
	for _, m := range moves {
		for _, a := range []answer{{shard: m.Shard, member: m.From.Name, leads: true}, {shard: m.Shard, member: m.To.Name}} {
			if key := a.shard + "/" + a.member; !v.asked[key] {
				v.asked[key] = true
				asking = append(asking, a)
			}
		}
	}
	var waiting sync.WaitGroup
	turns := make(chan struct{}, leadersAtOnce)
	for i := range asking {
		a := &asking[i]
		turns <- struct{}{}
		waiting.Go(func() {
			defer func() { <-turns }()
			a.problem = v.look(ctx, client, a.shard, a.member, a.leads)
		})
	}
	waiting.Wait()
	for _, a := range asking {
		if !a.problem.Exists() {
			continue
		}
		news = true
		s := &v.shards[slices.IndexFunc(v.shards, func(s placement.Shard) bool { return s.Name == a.shard })]
		if a.leads {
			s.Stuck = a.problem
			continue
		}
		i := slices.IndexFunc(s.Others, func(m placement.Member) bool { return m.Name == a.member })
		s.Others[i].Unfit = a.problem
	}
	return news
}

// look asks one member how it is.
func (v *survey) look(ctx context.Context, client *api.Client, scope, name string, leads bool) placement.Problem {
	ctx, cancel := context.WithTimeout(ctx, surveyLimit)
	defer cancel()
	s := v.fleet.shards[slices.IndexFunc(v.fleet.shards, func(s fleetShard) bool { return s.scope == scope })]
	m, _ := s.snapshot.Member(name)
	peer := api.PeerOf(m.Value)
	if s.noSecret != nil && !peer.Patroni {
		return placement.Problem{
			What: fmt.Sprintf("whether it is %s that answers is not known: %v", name, s.noSecret),
			Do:   "use a token that may read the shard's secret (docs/placement.md)",
		}
	}
	status, err := askStatus(ctx, client.For(s.secret), peer)
	return inspect(m.Value, status, err, leads)
}

// inspect says what a member's answer has against it: as the leader that is to hand over,
// or as the one that is to take over.
func inspect(m cluster.Member, status memberStatus, err error, leads bool) placement.Problem {
	problem := func(do, format string, args ...any) placement.Problem {
		return placement.Problem{What: m.Name + " " + fmt.Sprintf(format, args...), Do: do}
	}
	var impostor *api.Unproved
	switch {
	case errors.As(err, &impostor):
		return placement.Problem{What: impostor.Who(), Do: ofTheImpostor}
	case errors.Is(err, context.DeadlineExceeded):
		return problem("see its agent's log", "does not answer in time")
	case err != nil:
		return problem("see that its agent runs and can be reached from here", "cannot be asked: %s", Explain(err))
	case status.State != cluster.StateRunning:
		return problem("see PostgreSQL's log there", "is %s", cmp.Or(status.State, "silent"))
	case status.Failsafe:
		return problem("see that Consul answers there", "goes on without Consul")
	case leads && !status.primary():
		return problem("see lictor list", "leads and is no primary")
	case leads:
		return placement.Problem{}
	case status.primary():
		return problem("see lictor list", "says that it is a primary")
	case status.Lictor != nil && status.ReplicationState != "streaming" && status.ReplicationState != "in archive recovery":
		return problem("see PostgreSQL's log there", "does not stream")
	case status.Lictor != nil && status.Lictor.Watchdog != nil && status.Lictor.Watchdog.Mode == "required" && !status.Lictor.Watchdog.Working:
		return problem("see lictor doctor", "needs its watchdog, which does not work")
	}
	return placement.Problem{}
}
