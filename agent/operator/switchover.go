package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/events"
)

// ChangeOptions say which member is to lead, when, and what is asked before.
type ChangeOptions struct {
	// Leader, when set, must be the present leader.
	Leader string
	// Candidate is the member that is to lead; empty: the best.
	Candidate string
	// Scheduled is when, as ParseWhen reads it; empty: now.
	Scheduled string
	// OnBusy is what to do with transactions that still run: cancel, wait, refuse.
	OnBusy string
	// OutsideWindow takes a switchover at a time that the shard's maintenance windows leave out.
	OutsideWindow bool
	// Force asks nothing. A failover of a shard that nobody leads then overrides
	// the failsafe list and the last leader's lease, too.
	Force bool
}

// act is a switchover or a failover.
type act struct {
	name string // as in the path
	// planned says that a leader hands over.
	planned bool
	// outside says that the shard's maintenance windows do not count.
	outside bool
}

// switchover is the act of that name; outside says that the shard's maintenance windows do not count.
func switchover(outside bool) act { return act{name: "switchover", planned: true, outside: outside} }

// Switchover hands a shard over from its leader to another member, and tells the
// truth about how that ended.
func Switchover(ctx context.Context, c *Console, s *Shard, o ChangeOptions) error {
	return s.change(ctx, c, switchover(o.OutsideWindow), o)
}

// Failover makes a named member lead, whether there is a leader or not.
func Failover(ctx context.Context, c *Console, s *Shard, o ChangeOptions) error {
	return s.change(ctx, c, act{name: "failover"}, o)
}

func (s *Shard) change(ctx context.Context, c *Console, a act, o ChangeOptions) error {
	when, err := ParseWhen(o.Scheduled, time.Now())
	if err != nil {
		return usagef("--scheduled: %w", err)
	}
	if err := checkOnBusy(o.OnBusy); err != nil {
		return err
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	if err != nil {
		c.Warn("warning: the dynamic configuration is not understood: %v", err)
	}
	candidates, err := s.mayChange(snapshot, dynamic, a, o, when == nil)
	if err != nil {
		return err
	}
	if !o.Force {
		if err := c.Show(listTable(s.Scope, snapshot, ListOptions{})); err != nil {
			return err
		}
	}
	if o.Candidate == "" && !o.Force {
		if o.Candidate, err = c.Ask(a.whichCandidate(candidates)); err != nil {
			return fmt.Errorf("%w; where nobody can answer, say --force", err)
		}
		if o.Candidate == "" && !a.planned {
			return usagef("a failover needs a candidate: nothing was done")
		}
	}
	if o.Candidate != "" && !slices.Contains(candidates, o.Candidate) {
		return refusedf("%s cannot lead %s: %s; candidates are: %s", o.Candidate, s.Scope, whyNot(snapshot, o.Candidate), abridged(candidates, 10))
	}
	costs := mayCost(snapshot, dynamic, a, o.Candidate)
	for _, warning := range costs {
		c.Warn("warning: %s", warning)
	}
	if a.planned && !a.outside {
		if a.outside, err = s.leaveWindow(c, dynamic, cluster.MaintenanceHandover, when, o.Force); err != nil {
			return err
		}
	}
	if !o.Force {
		if err := c.Confirm(s.intention(snapshot, a, o, when)); err != nil {
			return err
		}
	}
	request := cluster.Failover{Leader: snapshot.LeaderName(), Candidate: o.Candidate, ScheduledAt: when, OnBusy: o.OnBusy}
	if !a.planned {
		request.Leader = ""
	}
	said, err := s.carryOut(ctx, c, snapshot, dynamic, a, request, o.Force)
	if err != nil {
		return err
	}
	c.Say("%s", said)
	return nil
}

// leaveWindow asks whether maintenance may be done at a time, nil for now, that the shard's windows leave
// out, and reports whether that is so. Where nobody can be asked it is refused.
func (s *Shard) leaveWindow(c *Console, d cluster.Dynamic, what cluster.Maintenance, when *time.Time, force bool) (outside bool, err error) {
	at := time.Now()
	if when != nil {
		at = *when
	}
	why := d.MaintenanceWindows.Refusal(what, at)
	switch {
	case why == "":
		return false, nil
	case force:
		return false, refusedf("%s: that is %s (--outside-window does it all the same)", s.Scope, why)
	}
	return true, c.Confirm(fmt.Sprintf("That is %s. Do it all the same?", why))
}

// checkOnBusy checks what is to be done with transactions that still run.
func checkOnBusy(word string) error {
	if busy := []string{"", cluster.OnBusyCancel, cluster.OnBusyWait, cluster.OnBusyRefuse}; !slices.Contains(busy, word) {
		return usagef("--on-busy: %q, must be one of %s", word, strings.Join(busy[1:], ", "))
	}
	return nil
}

// carryOut has a request done, and says how that ended.
func (s *Shard) carryOut(ctx context.Context, c *Console, snapshot cluster.Snapshot, d cluster.Dynamic, a act, request cluster.Failover, force bool) (string, error) {
	began, overridden := time.Now(), false
	if !a.planned && force {
		var err error
		if overridden, err = s.override(ctx, c, snapshot, request); err != nil {
			return "", err
		}
	}
	if !overridden {
		return s.ask(ctx, snapshot, d, a, request)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*d.TTL+time.Minute)
	defer cancel()
	return s.outcome(ctx, snapshot, request, began, nil)
}

// whichCandidate asks for the candidate. A failover's must be named.
func (a act) whichCandidate(candidates []string) string {
	among := abridged(candidates, 10)
	if a.planned {
		return fmt.Sprintf("Candidate, of %s [the best]: ", among)
	}
	return fmt.Sprintf("Candidate, of %s: ", among)
}

// whyNot says why a member is no candidate.
func whyNot(snapshot cluster.Snapshot, name string) string {
	m, found := snapshot.Member(name)
	switch {
	case !found:
		return "it is not a member"
	case name == snapshot.LeaderName():
		return "it leads already"
	case cluster.NoFailover(m.Value.Tags):
		return "it is tagged nofailover"
	}
	return "it is no synchronous standby, so it may lack acknowledged commits"
}

// mayChange lists who may lead instead, or says why nobody may. Who may do so later is
// seen then.
func (s *Shard) mayChange(snapshot cluster.Snapshot, d cluster.Dynamic, a act, o ChangeOptions, now bool) ([]string, error) {
	leader := snapshot.LeaderName()
	switch {
	case a.planned && leader == "":
		return nil, refusedf("shard %s has no leader: nothing can be switched over; lictor failover makes a named member lead", s.Scope)
	case o.Leader != "" && o.Leader != leader:
		return nil, refusedf("shard %s is led by %s, not by %s", s.Scope, orNobody(leader), o.Leader)
	case !a.planned && o.Candidate == "" && o.Force:
		return nil, usagef("a failover needs --candidate")
	}
	// A planned change loses nothing: only who holds all acknowledged commits may lead.
	synchronous := a.planned && now && d.Synchronous()
	var candidates []string
	lacking := 0
	for _, m := range snapshot.Members {
		switch {
		case !m.OK() || m.Value.Name == leader || cluster.NoFailover(m.Value.Tags):
		case synchronous && !snapshot.Sync.Value.Has(m.Value.Name):
			lacking++
		default:
			candidates = append(candidates, m.Value.Name)
		}
	}
	switch {
	case len(candidates) > 0:
		return candidates, nil
	case lacking > 0:
		return nil, refusedf("No candidates found to %s to: there is no synchronous standby now, so nobody else holds all acknowledged commits", a.name)
	}
	return nil, refusedf("No candidates found to %s to", a.name)
}

func orNobody(name string) string { return cmp.Or(name, "nobody") }

// intention says what will happen, as a question.
func (s *Shard) intention(snapshot cluster.Snapshot, a act, o ChangeOptions, when *time.Time) string {
	to := o.Candidate
	if to == "" {
		to = "the best candidate"
	}
	leader := snapshot.LeaderName()
	var what string
	switch {
	case leader == "":
		what = fmt.Sprintf("Nobody leads %s. %s will be promoted", s.Scope, to)
	case a.planned:
		what = fmt.Sprintf("The poolers hold the clients of %s while %s stops and hands over to %s, which has all of its WAL by then; %s comes back as a replica",
			s.Scope, leader, to, leader)
	default:
		what = fmt.Sprintf("%s leads %s and will be demoted; %s will be promoted", leader, s.Scope, to)
	}
	if when != nil {
		return fmt.Sprintf("At %s: %s. Schedule it?", when.Local().Format(time.RFC3339), what)
	}
	return what + ". Go on?"
}

// mayCost says what a change of leader to candidate may lose.
func mayCost(snapshot cluster.Snapshot, d cluster.Dynamic, a act, candidate string) []string {
	m, found := snapshot.Member(candidate)
	if a.planned || !found {
		return nil
	}
	var costs []string
	if behind := snapshot.Status.Value.OpTime - m.Value.XLogLocation; m.Value.XLogLocation > 0 && behind > 0 && snapshot.LeaderName() == "" {
		costs = append(costs, fmt.Sprintf("%s is up to %d bytes of WAL behind the last known position: what it lacks is lost", candidate, behind))
	}
	if d.Synchronous() && snapshot.Sync.Exists() && !snapshot.Sync.Value.Has(candidate) {
		costs = append(costs, candidate+" is no synchronous standby: commits that were acknowledged and have not reached it are lost")
	}
	if b := snapshot.Status.Value.Lictor; b != nil && !b.Released && snapshot.LeaderName() == "" {
		costs = append(costs, fmt.Sprintf("%s led last and has not released its lease: it may still run as a primary, for %.0f s at most after its last beat unless it is paused or in failsafe mode; "+
			"what clients write there is lost", b.Owner, b.Lease().Seconds()))
	}
	if discarded(snapshot, candidate) && snapshot.LeaderName() == "" {
		costs = append(costs, candidate+" has WAL that a restore has discarded, or was about to: --force undoes the restore, and what was committed since on the restored shard is lost")
	}
	if notListed(snapshot, candidate) {
		costs = append(costs, candidate+" is not in the failsafe list: a leader that goes on without Consul, on the word of the listed members, does not know of it; "+
			"both may take writes, and one's are lost")
	}
	return costs
}

// ask asks the leader (or, without one, the candidate) and judges its answer. A
// member that cannot be reached is asked by way of the key failover.
func (s *Shard) ask(ctx context.Context, snapshot cluster.Snapshot, d cluster.Dynamic, a act, request cluster.Failover) (string, error) {
	target := snapshot.LeaderName()
	if target == "" {
		target = request.Candidate
	}
	m, found := snapshot.Member(target)
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 2*d.TTL+time.Minute)
	defer cancel()
	var answer api.Answer
	err := errUnreachable
	if found && m.Value.APIURL != "" {
		body := map[string]any{"leader": request.Leader, "candidate": request.Candidate, "on_busy": request.OnBusy}
		if a.outside {
			body["outside_window"] = true
		}
		if request.ScheduledAt != nil {
			body["scheduled_at"] = request.ScheduledAt.Format(time.RFC3339)
		}
		for key, value := range body {
			if value == "" {
				delete(body, key)
			}
		}
		answer, err = s.client.Post(ctx, api.PeerOf(m.Value), "/"+a.name, body)
	}
	if err == nil {
		return verdict(answer, s.words(answer), a)
	}
	if neverSent(err) {
		if failed := s.leave(ctx, snapshot, request); failed != nil && !errors.Is(failed, consul.ErrUncertain) {
			return "", fmt.Errorf("%s cannot be reached (%w), and the request could not be left in Consul: %w", orNobody(target), err, failed)
		}
		if request.ScheduledAt != nil {
			return fmt.Sprintf("%s cannot be reached; the request waits in Consul", orNobody(target)), nil
		}
	}
	if unproved(err) { // nothing is waited for: whoever did it has answered
		ctx, cancel = context.WithTimeout(ctx, askLimit)
		defer cancel()
		err = s.unanswered(target, err)
	}
	return s.outcome(ctx, snapshot, request, began, err)
}

// leave leaves a request in the key failover, unless the key has changed since.
func (s *Shard) leave(ctx context.Context, snapshot cluster.Snapshot, request cluster.Failover) error {
	value, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("the request: %w", err)
	}
	return s.store.Write(ctx, s.Keys.Failover(), snapshot.Failover.ModifyIndex, value)
}

var errUnreachable = errors.New("it publishes no REST API")

// verdict judges what a member answered.
func verdict(answer api.Answer, said string, a act) (string, error) {
	switch {
	case answer.Status == http.StatusOK:
		if answer.Took > 0 {
			said += " in " + Duration(answer.Took)
		}
		return said, nil
	case answer.OK():
		return said, nil
	case answer.Status == http.StatusBadRequest, answer.Status == http.StatusConflict, answer.Status == http.StatusPreconditionFailed,
		answer.Status == http.StatusUnprocessableEntity, strings.HasPrefix(answer.Text, "failed to write"):
		return "", refusedf("%s", said)
	case strings.HasSuffix(answer.Text, "status unknown"):
		return "", unknownf("%s; see lictor list and lictor events", said)
	}
	switch outcome, cause := events.Conclude(answer.Reason); outcome {
	case events.Refused:
		return "", refusedf("the %s is refused: %s", a.name, cause)
	case events.RolledBack:
		return "", rolledBack(fmt.Errorf("the %s was rolled back: %s", a.name, cause))
	case events.Done, events.UnderWay:
	}
	return "", fmt.Errorf("%s (status %d)", said, answer.Status)
}

// outcome waits in Consul for how a request ends whose answer did not come.
func (s *Shard) outcome(ctx context.Context, before cluster.Snapshot, request cluster.Failover, began time.Time, why error) (string, error) {
	old := before.LeaderName()
	var said string
	err := await(ctx, func(ctx context.Context) error {
		now, err := s.Read(ctx)
		if err != nil {
			return err
		}
		leader := now.LeaderName()
		m, _ := now.Member(leader)
		switch {
		case leader != "" && leader != old && m.Value.State == cluster.StateRunning && m.Value.Role != cluster.RoleReplica:
			said = fmt.Sprintf("%s leads %s now, after %s", leader, s.Scope, Duration(time.Since(began)))
			return nil
		case leader == old && leader != "" && now.Failover.ModifyIndex > before.Failover.ModifyIndex && now.Failover.Value.Empty():
			said = ""
			return nil
		}
		return fmt.Errorf("%s leads, a request to %s waits", orNobody(leader), orNobody(request.Candidate))
	})
	switch {
	case err != nil && why != nil:
		return "", unknownf("the outcome is unknown: %w (the member did not answer: %w); see lictor list and lictor events", err, why)
	case err != nil:
		return "", unknownf("the outcome is unknown: %w; see lictor list and lictor events", err)
	case said == "":
		return "", refusedf("%s still leads %s and has dropped the request; lictor events %s says why", old, s.Scope, s.Scope)
	}
	return said, nil
}

// ParseWhen reads a time for something scheduled: empty or now (nil), a time in
// ISO 8601 (without a zone: the local one), or +DURATION from now.
func ParseWhen(written string, now time.Time) (*time.Time, error) {
	written = strings.TrimSpace(written)
	if written == "" || strings.EqualFold(written, "now") {
		return nil, nil //nolint:nilnil // no time is what was asked for
	}
	if in, relative := strings.CutPrefix(written, "+"); relative {
		d, err := time.ParseDuration(in)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("%q: must be like +10m", written)
		}
		at := now.Add(d)
		return &at, nil
	}
	iso := written
	if len(iso) > 10 && iso[10] == ' ' {
		iso = iso[:10] + "T" + iso[11:]
	}
	iso = strings.ReplaceAll(iso, " ", "")
	for _, clock := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04"} {
		for _, zone := range []string{"", "Z07:00", "Z0700", "Z07"} {
			at, err := time.ParseInLocation(clock+zone, iso, now.Location())
			if err != nil {
				continue
			}
			if at.Before(now) {
				return nil, fmt.Errorf("%s is in the past", written)
			}
			return &at, nil
		}
	}
	return nil, fmt.Errorf("%q: must be now, +10m, or like 2026-11-21T22:00+01:00", written)
}
