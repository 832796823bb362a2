package operator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// RestartOptions say which members are restarted, and on what condition.
type RestartOptions struct {
	Members []string // none: the whole shard
	Role    string
	Any     bool // one of them, by chance
	// Pending restarts only members with parameters that wait for a restart.
	Pending bool
	// Below restarts only members whose PostgreSQL is older, 15.3 for instance.
	Below string
	// Scheduled is when, as ParseWhen reads it; empty: now.
	Scheduled string
	// Timeout is how long a restart may take; 0: the agent's own limit.
	Timeout time.Duration
	// InPlace restarts the primary where it is, instead of by a handover.
	InPlace bool
	// OutsideWindow restarts at a time that the shard's maintenance windows leave out.
	OutsideWindow bool
	Force         bool
}

// restartLimit bounds the restart of one member.
const restartLimit = 10 * time.Minute

// Restart restarts PostgreSQL on members of a shard. Of a whole shard the replicas
// go first, one after another; then the primary hands over to one of them, which
// restarts it as a replica while the poolers hold the clients. Members that are
// named are restarted in place.
func Restart(ctx context.Context, c *Console, s *Shard, o RestartOptions) error {
	if err := checkRole(o.Role); err != nil {
		return err
	}
	if _, problem := api.ParseVersion(o.Below); o.Below != "" && problem != "" {
		return usagef("--pg-version: %q: must be a version of PostgreSQL with its minor release, 15.3 for instance", o.Below)
	}
	when, err := ParseWhen(o.Scheduled, time.Now())
	if err != nil {
		return usagef("--scheduled: %w", err)
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	members, err := o.pick(s, snapshot)
	if err != nil {
		return err
	}
	if len(members) == 0 {
		c.Say("No member of %s waits for a restart", s.Scope)
		return nil
	}
	plan := o.plan(snapshot, members, when)
	if err := plan.feasible(s, snapshot); err != nil {
		return err
	}
	if lowered := plan.lowered(snapshot); lowered != "" {
		c.Warn("warning: %s: replicas may not have less than their primary has had, so it takes effect only when the primary is restarted in place first "+
			"(lictor restart %s %s; its clients lose their connections), and the replicas after it (lictor restart --pending)",
			lowered, s.Scope, snapshot.LeaderName())
	}
	if !o.OutsideWindow {
		if o.OutsideWindow, err = plan.leaveWindows(c, s, snapshot, when, o.Force); err != nil {
			return err
		}
	}
	if !o.Force {
		if err := c.Show(listTable(s.Scope, snapshot, ListOptions{})); err != nil {
			return err
		}
		if err := c.Confirm(plan.question(when)); err != nil {
			return err
		}
	}
	all := len(plan.inPlace)
	if plan.handover != "" {
		all++
	}
	for done, m := range plan.inPlace {
		if err := s.restartOne(ctx, c, m, o, when); err != nil {
			return afterSome(done, all, err)
		}
		if when == nil && len(plan.inPlace) > 1 {
			if err := s.awaitMember(ctx, m.Name); err != nil {
				return fmt.Errorf("%s was restarted and is not back: %w; the other members were left alone", m.Name, err)
			}
		}
	}
	if plan.handover != "" {
		if err := s.restartByHandover(ctx, c, plan.handover, o.OutsideWindow); err != nil {
			return afterSome(len(plan.inPlace), all, err)
		}
	}
	if when == nil {
		s.tellPending(ctx, c, members)
	}
	return nil
}

// tellPending says which members wait for a restart all the same.
func (s *Shard) tellPending(ctx context.Context, c *Console, members []cluster.Member) {
	for _, m := range members {
		// One that does not answer now has said before that it was restarted.
		if now, err := s.status(ctx, m); err == nil && now.PendingRestart {
			var names []string
			for name, change := range now.PendingReason {
				names = append(names, fmt.Sprintf("%s %s->%s", name, change.OldValue, change.NewValue))
			}
			slices.Sort(names)
			c.Warn("warning: %s was restarted and waits for another restart: %s", m.Name, strings.Join(names, ", "))
		}
	}
}

// lowered names the settings that are to become less than replicas must have, when a
// plan does not restart the primary alone and in place: they would not take effect.
func (p restartPlan) lowered(snapshot cluster.Snapshot) string {
	if p.leader != "" && len(p.inPlace) == 1 {
		return ""
	}
	leader, _ := snapshot.Member(snapshot.LeaderName())
	var all []string
	for name, change := range leader.Value.PendingRestartReason {
		before, errB := strconv.Atoi(change.OldValue)
		after, errA := strconv.Atoi(change.NewValue)
		if errA == nil && errB == nil && after < before && postgres.BindsStandbys(name) {
			all = append(all, fmt.Sprintf("%s is to be lowered from %d to %d", name, before, after))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// pick are the members that are meant.
func (o RestartOptions) pick(s *Shard, snapshot cluster.Snapshot) ([]cluster.Member, error) {
	members, err := s.members(snapshot, o.Members, o.Role)
	if err != nil {
		return nil, err
	}
	if o.Pending {
		members = slices.DeleteFunc(members, func(m cluster.Member) bool { return !m.PendingRestart })
	}
	if o.Any && len(members) > 1 {
		members = []cluster.Member{members[rand.N(len(members))]}
	}
	return members, nil
}

// restartPlan is what will be done, in this order.
type restartPlan struct {
	inPlace  []cluster.Member
	handover string // the leader that hands over at the end; empty: none
	leader   string // the leader, if it is restarted in place
}

func (o RestartOptions) plan(snapshot cluster.Snapshot, members []cluster.Member, when *time.Time) restartPlan {
	var plan restartPlan
	whole := len(o.Members) == 0 && !o.Any && when == nil && !o.InPlace && o.Below == ""
	for _, m := range members {
		switch {
		case m.Name != snapshot.LeaderName():
			plan.inPlace = append(plan.inPlace, m)
		case whole && hasSuccessor(snapshot):
			plan.handover = m.Name
		default:
			plan.leader = m.Name
		}
	}
	if plan.leader != "" {
		m, _ := snapshot.Member(plan.leader)
		plan.inPlace = append(plan.inPlace, m.Value)
	}
	return plan
}

// feasible returns why the last step of a plan could not be done, before the first one is.
func (p restartPlan) feasible(s *Shard, snapshot cluster.Snapshot) error {
	if p.handover == "" {
		return nil
	}
	if _, _, err := taken().ParseJSON(snapshot.Config.Value); err != nil {
		return refusedf("nothing was restarted, as %s could not hand over in the end: the key %s: %w; put it right with lictor edit-config --replace, or restart in place (--in-place)",
			p.handover, s.Keys.Config(), err)
	}
	return nil
}

// leaveWindows is leaveWindow for what a plan does.
func (p restartPlan) leaveWindows(c *Console, s *Shard, snapshot cluster.Snapshot, when *time.Time, force bool) (outside bool, err error) {
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	if err != nil {
		return false, nil //nolint:nilerr // the members know what they have taken, and refuse it
	}
	var what []cluster.Maintenance
	if len(p.inPlace) > 0 {
		what = append(what, cluster.MaintenanceRestart)
	}
	if p.handover != "" {
		what = append(what, cluster.MaintenanceHandover)
	}
	for _, d := range what {
		if outside, err = s.leaveWindow(c, dynamic, d, when, force); outside || err != nil {
			return outside, err
		}
	}
	return false, nil
}

// hasSuccessor reports whether some other member may lead.
func hasSuccessor(snapshot cluster.Snapshot) bool {
	return slices.ContainsFunc(snapshot.Members, func(m cluster.Entry[cluster.Member]) bool {
		return m.OK() && m.Value.Name != snapshot.LeaderName() && m.Value.State == cluster.StateRunning && !cluster.NoFailover(m.Value.Tags)
	})
}

func (p restartPlan) question(when *time.Time) string {
	names := namesOf(p.inPlace)
	if when != nil {
		return fmt.Sprintf("At %s PostgreSQL will be restarted on %s. Schedule it?", when.Local().Format(time.RFC3339), names)
	}
	var steps []string
	if names != "" {
		step := "PostgreSQL will be restarted on " + names
		if len(p.inPlace) > 1 {
			step += ", one after another"
		}
		steps = append(steps, step)
	}
	if p.leader != "" {
		steps = append(steps, p.leader+" is the primary: its clients lose their connections and wait or fail while it restarts")
	}
	if p.handover != "" {
		steps = append(steps, fmt.Sprintf("then %s hands over to one of the replicas, while the poolers hold the clients, and comes back restarted, as a replica", p.handover))
	}
	return strings.Join(steps, "; ") + ". Go on?"
}

func (s *Shard) restartOne(ctx context.Context, c *Console, m cluster.Member, o RestartOptions, when *time.Time) error {
	body := map[string]any{}
	if when != nil {
		body["schedule"] = when.Format(time.RFC3339)
	}
	if o.Pending {
		body["restart_pending"] = true
	}
	if o.OutsideWindow {
		body["outside_window"] = true
	}
	if o.Below != "" {
		body["postgres_version"] = o.Below
	}
	limit := restartLimit
	if o.Timeout > 0 {
		body["timeout"] = fmt.Sprintf("%dms", o.Timeout.Milliseconds())
		limit = o.Timeout + changeLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	answer, err := s.client.Post(ctx, api.PeerOf(m), "/restart", body)
	switch {
	case err != nil:
		return s.unanswered("restart of "+m.Name, err)
	case answer.Status == http.StatusOK:
		c.Say("Success: restart on member %s (%s)", m.Name, Duration(time.Since(began)))
		return nil
	case answer.OK():
		c.Say("Success: restart scheduled on member %s", m.Name)
		return nil
	}
	said := s.words(answer)
	failed := fmt.Errorf("restart of %s: %s (status %d)", m.Name, said, answer.Status)
	if answer.Status == http.StatusBadRequest || answer.Status == http.StatusConflict || answer.Status == http.StatusUnprocessableEntity || answer.Status == http.StatusPreconditionFailed ||
		strings.Contains(said, "conditions are not satisfied") || strings.HasSuffix(said, "already in progress") {
		return &failure{ExitRefused, failed}
	}
	return failed
}

// awaitMember waits until a member runs and, as a replica, streams; in synchronous
// mode also until the leader has a synchronous standby, so that nothing holds a
// handover up.
func (s *Shard) awaitMember(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, restartLimit)
	defer cancel()
	return await(ctx, func(ctx context.Context) error {
		snapshot, err := s.Read(ctx)
		if err != nil {
			return err
		}
		m, found := snapshot.Member(name)
		if !found {
			return fmt.Errorf("%s is not in Consul", name)
		}
		status, err := s.status(ctx, m.Value)
		switch {
		case err != nil:
			return err
		case status.State != cluster.StateRunning:
			return fmt.Errorf("%s is %s", name, status.State)
		case !status.primary() && status.ReplicationState != "streaming" && status.ReplicationState != "in archive recovery":
			return fmt.Errorf("%s does not stream yet", name)
		case snapshot.Sync.OK() && snapshot.Sync.Exists() && len(snapshot.Sync.Value.Standbys()) == 0 && len(snapshot.Members) > 1:
			return errors.New("there is no synchronous standby yet")
		}
		return nil
	})
}

// restartByHandover lets the leader hand over: it comes back as a replica, with a
// PostgreSQL that was started anew.
func (s *Shard) restartByHandover(ctx context.Context, c *Console, leader string, outside bool) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	if now := snapshot.LeaderName(); now != leader {
		return refusedf("%s leads %s by now, not %s: the last step, its restart, was left out", orNobody(now), s.Scope, leader)
	}
	m, _ := snapshot.Member(leader)
	before, err := s.status(ctx, m.Value)
	if err != nil {
		return fmt.Errorf("the handover from %s: %w", leader, err)
	}
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	if err != nil {
		return fmt.Errorf("the key %s: %w", s.Keys.Config(), err)
	}
	said, err := s.ask(ctx, snapshot, dynamic, switchover(outside), cluster.Failover{Leader: leader})
	if err != nil {
		return fmt.Errorf("all others were restarted, %s was not: %w", leader, err)
	}
	c.Say("%s", said)
	if err := s.awaitMember(ctx, leader); err != nil {
		return fmt.Errorf("%s handed over and is not back as a replica: %w", leader, err)
	}
	after, err := s.status(ctx, m.Value)
	if err != nil {
		return fmt.Errorf("%s after the handover: %w", leader, err)
	}
	if after.Started == before.Started {
		return fmt.Errorf("%s handed over, but its PostgreSQL still runs since %s", leader, after.Started)
	}
	c.Say("Success: restart on member %s", leader)
	return nil
}
