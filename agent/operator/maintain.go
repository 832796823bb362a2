package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Reload has members read their configuration file again.
func Reload(ctx context.Context, c *Console, s *Shard, names []string, role string, force bool) error {
	if err := checkRole(role); err != nil {
		return err
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	members, err := s.members(snapshot, names, role)
	if err != nil {
		return err
	}
	if !force {
		if err := c.Confirm(fmt.Sprintf("The configuration files of %s will be read again. Go on?", namesOf(members))); err != nil {
			return err
		}
	}
	return forEach(members, func(m cluster.Member) error {
		answer, err := s.do(ctx, m, http.MethodPost, "/reload", nil)
		if err != nil {
			return s.unanswered("reload of "+m.Name, err)
		}
		if !answer.OK() {
			return fmt.Errorf("reload of %s: %s (status %d)", m.Name, s.words(answer), answer.Status)
		}
		c.Say("Reload request received for member %s", m.Name)
		return nil
	})
}

func namesOf(members []cluster.Member) string {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Name
	}
	return strings.Join(names, ", ")
}

// words are what a member said, and what helps where it did not know who asks.
func (s *Shard) words(a api.Answer) string {
	said := a.Text
	if a.Reason != "" {
		said += ": " + a.Reason
	}
	_, held := s.secret.Secret()
	switch {
	case a.Status != http.StatusUnauthorized:
	case held && !s.site.PasswordToPatroni: // all others prove their answers
		said += "; its key says that it runs Patroni, which takes no proof: --password-to-patroni sends it restapi.authentication or ctl.authentication of the configuration file"
	default:
		said += "; restapi.authentication or ctl.authentication of the configuration file must be the members'"
	}
	if s.noSecret != nil && (a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden) {
		said += fmt.Sprintf("; or a token that may read %s: %v", s.Keys.Secret(), s.noSecret)
	}
	return printable.Text(strings.Join(strings.Fields(said), " ")) // libpq's errors have several lines
}

// forEach does something with every member, whatever became of the others, and
// returns all errors. They say "refused" only where nothing was done.
func forEach(members []cluster.Member, do func(cluster.Member) error) error {
	var errs []error
	for _, m := range members {
		if err := do(m); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	all, code := errors.Join(errs...), ExitCode(errs[0])
	for _, err := range errs[1:] {
		switch is := ExitCode(err); {
		case is == code || code == ExitUnknown:
		case is == ExitUnknown:
			code = is
		default:
			code = ExitFailed
		}
	}
	return afterSome(len(members)-len(errs), len(members), &failure{code, all})
}

// do sends a short request to a member.
func (s *Shard) do(ctx context.Context, m cluster.Member, method, path string, body any) (api.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	switch method {
	case http.MethodPost:
		return s.client.Post(ctx, api.PeerOf(m), path, body)
	case http.MethodPatch:
		return s.client.Patch(ctx, api.PeerOf(m), path, body)
	case http.MethodDelete:
		return s.client.Delete(ctx, api.PeerOf(m), path)
	}
	return s.client.Ask(ctx, api.PeerOf(m), path)
}

// ReinitOptions say how replicas get their data anew.
type ReinitOptions struct {
	Members []string
	// Force breaks off what the member is doing, and asks nothing.
	Force bool
	// FromLeader clones from the leader, not from a replica with the tag clonefrom.
	FromLeader bool
	// Wait waits until the members replicate again, and shows how they fare.
	Wait bool
}

// Reinit replaces replicas' data directories by new copies of the leader's.
func Reinit(ctx context.Context, c *Console, s *Shard, o ReinitOptions) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	if len(o.Members) == 0 {
		return usagef("name the members of %s that are to be cloned anew; they are %s", s.Scope, strings.Join(memberNames(snapshot), ", "))
	}
	members, err := s.members(snapshot, o.Members, "")
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Name == snapshot.LeaderName() {
			return refusedf("%s leads %s: its data is the one that counts. Switch over first", m.Name, s.Scope)
		}
	}
	if !o.Force {
		question := fmt.Sprintf("All data of PostgreSQL on %s will be deleted and copied anew from the shard, which %s leads. Go on?", namesOf(members), orNobody(snapshot.LeaderName()))
		if err := c.Confirm(question); err != nil {
			return err
		}
	}
	return forEach(members, func(m cluster.Member) error { return s.reinitOne(ctx, c, m, o) })
}

func (s *Shard) reinitOne(ctx context.Context, c *Console, m cluster.Member, o ReinitOptions) error {
	before, err := s.status(ctx, m)
	if err != nil {
		return fmt.Errorf("reinitialize of %s: %w", m.Name, err)
	}
	request := map[string]any{"force": o.Force, "from_leader": o.FromLeader}
	answer, err := s.do(ctx, m, http.MethodPost, "/reinitialize", request)
	if err == nil && !answer.OK() && !o.Force && strings.HasSuffix(s.words(answer), "already in progress") {
		if err := c.Confirm(fmt.Sprintf("%s: %s. Break it off and clone anew?", m.Name, s.words(answer))); err != nil {
			return err
		}
		request["force"] = true
		answer, err = s.do(ctx, m, http.MethodPost, "/reinitialize", request)
	}
	switch {
	case err != nil:
		return s.unanswered("reinitialize of "+m.Name, err)
	case !answer.OK():
		return refusedf("reinitialize of %s: %s (status %d)", m.Name, s.words(answer), answer.Status)
	}
	c.Say("Success: reinitialize for member %s", m.Name)
	if !o.Wait {
		return nil
	}
	began, told := time.Now(), ""
	err = await(ctx, func(ctx context.Context) error {
		now, err := s.status(ctx, m)
		if err != nil {
			return err
		}
		if now.State == cluster.StateRunning && now.Started != before.Started && now.ReplicationState != "" {
			return nil
		}
		what := cloning(now)
		if what != told {
			told = what
			c.Say("%8s  %s is %s", Duration(time.Since(began)), m.Name, what)
		}
		return errors.New(m.Name + " is " + what)
	})
	if err != nil {
		return unknownf("reinitialize of %s: %w", m.Name, err)
	}
	c.Say("Reinitialize is completed on %s in %s", m.Name, Duration(time.Since(began)))
	return nil
}

// cloning says how far a member is that is made anew, in steps of ten percent.
func cloning(now memberStatus) string {
	var own lictorStatus
	if now.Lictor != nil {
		own = *now.Lictor
	}
	task := own.Task
	switch {
	case now.State == cluster.StateRunning:
		return "running, " + cmp.Or(now.ReplicationState, "not streaming yet")
	case task == nil && now.State != cluster.StateCreating && own.Reason != "":
		return now.State + ": " + own.Reason
	case task == nil || task.From == "":
		return now.State
	case task.TotalBytes <= 0:
		return now.State + " from " + task.From
	}
	return fmt.Sprintf("%s from %s: %d %% of %s", now.State, task.From, min(100, task.Bytes*100/task.TotalBytes/10*10), size(task.TotalBytes))
}

// Pause switches maintenance mode on or off: in pause nobody is promoted, demoted
// or started on his own. With wait it returns when every member says so.
func Pause(ctx context.Context, c *Console, s *Shard, on, wait bool) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	if err != nil {
		return fmt.Errorf("the key %s: %w", s.Keys.Config(), err)
	}
	if dynamic.Pause == on {
		return refusedf("Cluster is %s paused", map[bool]string{true: "already", false: "not"}[on])
	}
	var value any
	if on {
		value = true
	}
	answer, err := s.anyMember(ctx, snapshot, http.MethodPatch, "/config", map[string]any{"pause": value})
	if err != nil {
		return err
	}
	if !answer.OK() {
		return fmt.Errorf("%s: %s (status %d)", pauseWord(on), s.words(answer), answer.Status)
	}
	if wait {
		limit, cancel := context.WithTimeout(ctx, dynamic.TTL+2*dynamic.LoopWait+changeLimit)
		defer cancel()
		c.Say("'%s' request sent, waiting until it is recognized by all nodes", pauseWord(on))
		if err := await(limit, func(ctx context.Context) error { return s.allPaused(ctx, on) }); err != nil {
			return unknownf("%s is in Consul, but not all members have taken it in: %w", pauseWord(on), err)
		}
	}
	c.Say("Success: cluster management is %sd", pauseWord(on))
	return nil
}

func pauseWord(on bool) string { return map[bool]string{true: "pause", false: "resume"}[on] }

func (s *Shard) allPaused(ctx context.Context, on bool) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	for _, m := range snapshot.Members {
		if !m.Value.SaysPaused(on, snapshot.Config.ModifyIndex) {
			return errors.New(m.Value.Name + " does not say so yet")
		}
	}
	return nil
}

// anyMember sends a request to the leader and, where that cannot be reached, or somebody
// answers there who does not prove to be it, to the other members.
func (s *Shard) anyMember(ctx context.Context, snapshot cluster.Snapshot, method, path string, body any) (api.Answer, error) {
	var errs []error
	for _, m := range leaderFirst(snapshot) {
		answer, err := s.do(ctx, m, method, path, body)
		if err == nil {
			return answer, nil
		}
		if !unproved(err) && !neverSent(err) {
			return api.Answer{}, s.unanswered(m.Name, err)
		}
		errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
	}
	if len(errs) == 0 {
		return api.Answer{}, refusedf("shard %s has no members", s.Scope)
	}
	err := errors.Join(errs...)
	if unproved(err) {
		return api.Answer{}, s.unanswered("no member of "+s.Scope+" answers", err)
	}
	return api.Answer{}, fmt.Errorf("no member of %s can be reached: %w", s.Scope, err)
}

func leaderFirst(snapshot cluster.Snapshot) []cluster.Member {
	var out []cluster.Member
	for _, m := range snapshot.Members {
		switch {
		case !m.OK():
		case m.Value.Name == snapshot.LeaderName():
			out = slices.Insert(out, 0, m.Value)
		default:
			out = append(out, m.Value)
		}
	}
	return out
}

// Flush drops what was scheduled: restarts of members, or the switchover.
func Flush(ctx context.Context, c *Console, s *Shard, what string, names []string, role string, force bool) error {
	if err := checkRole(role); err != nil {
		return err
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	switch what {
	case "switchover":
		answer, err := s.anyMember(ctx, snapshot, http.MethodDelete, "/switchover", nil)
		if err != nil {
			return err
		}
		if !answer.OK() {
			return refusedf("flush switchover: %s (status %d)", s.words(answer), answer.Status)
		}
		c.Say("Success: %s", s.words(answer))
		return nil
	case "restart":
	default:
		return usagef("flush %s: must be restart or switchover", what)
	}
	members, err := s.members(snapshot, names, role)
	if err != nil {
		return err
	}
	if !force {
		if err := c.Confirm(fmt.Sprintf("The scheduled restarts of %s will be dropped. Go on?", namesOf(members))); err != nil {
			return err
		}
	}
	return forEach(members, func(m cluster.Member) error {
		if len(m.ScheduledRestart) == 0 {
			c.Say("No scheduled restart for member %s", m.Name)
			return nil
		}
		answer, err := s.do(ctx, m, http.MethodDelete, "/restart", nil)
		if err != nil {
			return s.unanswered("flush restart of "+m.Name, err)
		}
		if !answer.OK() {
			return refusedf("flush restart of %s: %s (status %d)", m.Name, s.words(answer), answer.Status)
		}
		c.Say("Success: flush scheduled restart for member %s", m.Name)
		return nil
	})
}

// removeWords are what must be typed before a shard is removed; patronictl asks for
// the same.
const removeWords = "Yes I am aware"

// Remove deletes all that Consul knows of a shard, and asks three times before.
// Members that run make their keys again.
func Remove(ctx context.Context, c *Console, s *Shard) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	if err := c.Show(listTable(s.Scope, snapshot, ListOptions{})); err != nil {
		return err
	}
	name, err := c.Ask("Please confirm the cluster name to remove: ")
	if err != nil {
		return err
	}
	if name != s.Scope {
		return refusedf("nothing was removed: the cluster is %s, not %s", s.Scope, name)
	}
	question := fmt.Sprintf("All that Consul knows of %s will be deleted: members, configuration, history, route. The data of PostgreSQL stays, "+
		"the poolers lose the shard, and a leader that still runs is demoted.\nTo go on, type %q: ", s.Scope, removeWords)
	answer, err := c.Ask(question)
	if err != nil {
		return err
	}
	if answer != removeWords {
		return refusedf("nothing was removed: you did not type %q", removeWords)
	}
	if leader := snapshot.LeaderName(); leader != "" {
		answer, err := c.Ask("This cluster currently is healthy. Please specify the leader name to continue: ")
		if err != nil {
			return err
		}
		if answer != leader {
			return refusedf("nothing was removed: %s is not the leader", answer)
		}
	}
	return s.site.query(ctx, func(ctx context.Context, client *consulapi.Client) error {
		o := (&consulapi.WriteOptions{}).WithContext(ctx)
		for _, key := range []string{s.Keys.Route(), s.Keys.Handover(), s.Keys.Events(), s.Keys.Secret()} {
			if _, err := client.KV().Delete(key, o); err != nil {
				return err
			}
		}
		if _, err := client.KV().DeleteTree(s.Keys.Prefix(), o); err != nil {
			return err
		}
		c.Say("%s is removed from Consul", s.Scope)
		return nil
	})
}
