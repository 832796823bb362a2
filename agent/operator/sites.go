package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is a shard at two sites (design 5.27): one of them is a primary's, the other one follows it.

// DemoteOptions say whom a shard is to follow.
type DemoteOptions struct {
	// Host and Port are where the other site's PostgreSQL is, RestoreCommand and PrimarySlotName as in
	// standby_cluster.
	Host                            string
	Port                            int
	RestoreCommand, PrimarySlotName string
	// Force asks nothing.
	Force bool
}

// section is the setting standby_cluster.
func (o DemoteOptions) section() map[string]any {
	section := map[string]any{}
	for key, value := range map[string]string{"host": o.Host, "restore_command": o.RestoreCommand, "primary_slot_name": o.PrimarySlotName} {
		if value != "" {
			section[key] = value
		}
	}
	if o.Port > 0 {
		section["port"] = o.Port
	}
	return section
}

// DemoteCluster makes a shard with a primary the standby of the other site, which gets all of its WAL first.
func DemoteCluster(ctx context.Context, c *Console, s *Shard, o DemoteOptions) error {
	if o.Host == "" && o.RestoreCommand == "" {
		return usagef("name the other site: --host, or --restore-command where its archive alone is to be followed")
	}
	if o.Port < 0 || o.Port > 65535 {
		return usagef("--port: %d, must be from 1 to 65535", o.Port)
	}
	snapshot, dynamic, err := s.readSite(ctx)
	if err != nil {
		return err
	}
	if dynamic.StandbyCluster.On() {
		return refusedf("shard %s is a standby already: it follows the %s", s.Scope, dynamic.StandbyCluster.Upstream())
	}
	if err := snapshot.CheckSite(o.Host, cmp.Or(o.Port, 5432)); err != nil { // the agent knows it by other names, too
		return refusedf("nothing has changed: --host names the other site's members, and %w", err)
	}
	if !o.Force {
		if err := c.Show(listTable(s.Scope, snapshot, ListOptions{})); err != nil {
			return err
		}
		question := fmt.Sprintf("The poolers hold the clients of %s while %s stops, and go on holding those that write: nobody accepts commits here any more. "+
			"A standby at the other site gets all WAL before. If there is a primary, what %s has beyond that one is lost. Go on?", s.Scope, snapshot.LeaderName(), s.Scope)
		if err := c.Confirm(question); err != nil {
			return err
		}
	}
	patch := map[string]any{"standby_cluster": o.section()}
	if o.Host != "" {
		patch["other_site"] = map[string]any{"host": o.Host, "port": cmp.Or(o.Port, 5432), "ignore": nil}
	}
	former, err := formerSite(snapshot)
	if err != nil {
		return err
	}
	if err := s.patchSite(ctx, snapshot, patch); err != nil {
		return err
	}
	// One that was succeeded is no primary already, and has to be rewound.
	succeeded := snapshot.Status.Value.Lictor != nil && snapshot.Status.Value.Lictor.Succeeded > 0
	leader, took, err := s.awaitRole(ctx, dynamic, cluster.RoleStandbyLeader, succeeded)
	if err != nil {
		// Also where whoever asked has gone away.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeLimit)
		defer cancel()
		if back := s.patchSite(ctx, snapshot, former); back != nil {
			return unknownf("%s is not a standby yet: %w; standby_cluster could not be removed again: %w", s.Scope, err, back)
		}
		return rolledBack(fmt.Errorf("%s was not demoted, and standby_cluster is removed again: %w", s.Scope, err))
	}
	c.Say("%s is demoted after %s: %s is its standby leader", s.Scope, Duration(took), leader.Name)
	if succeeded {
		return nil
	}
	if at, err := s.replayed(ctx, leader); err != nil {
		c.Warn("warning: how far its WAL goes is not known: %v", err)
	} else {
		c.Say("All of its WAL is before %s. At the other site: lictor promote-cluster --lsn %s", at, at)
	}
	return nil
}

// formerSite is the patch that makes the settings of the two sites again what they are now in a shard
// that is no standby.
func formerSite(snapshot cluster.Snapshot) (map[string]any, error) {
	var config struct {
		OtherSite map[string]any `json:"other_site"`
	}
	if err := json.Unmarshal(snapshot.Config.Value, &config); err != nil {
		return nil, fmt.Errorf("the dynamic configuration: %w", err)
	}
	patch := map[string]any{"standby_cluster": nil, "other_site": nil}
	if config.OtherSite != nil {
		site := map[string]any{"host": nil, "port": nil, "ignore": nil}
		maps.Copy(site, config.OtherSite)
		patch["other_site"] = site
	}
	return patch, nil
}

// PromoteOptions say how a standby shard becomes one with a primary.
type PromoteOptions struct {
	// LSN is a position, as PostgreSQL writes it, that is replayed before.
	LSN string
	// IgnoreOtherSite promotes it whatever the other site says, which is not asked from then on.
	IgnoreOtherSite bool
	// Force asks nothing.
	Force bool
}

// lsnLimit bounds the wait for a position.
const lsnLimit = time.Minute

// PromoteCluster gives a standby shard a primary of its own.
func PromoteCluster(ctx context.Context, c *Console, s *Shard, o PromoteOptions) error {
	var until int64
	if o.LSN != "" {
		var err error
		if until, err = pg.ParseLSN(o.LSN); err != nil {
			return usagef("--lsn: %w", err)
		}
	}
	snapshot, dynamic, err := s.readSite(ctx)
	if err != nil {
		return err
	}
	beat := snapshot.Status.Value.Lictor
	if succeeded := beat != nil && beat.Succeeded > 0; !dynamic.StandbyCluster.On() && (!succeeded || !o.IgnoreOtherSite) {
		why := "it is no standby"
		if succeeded {
			why = fmt.Sprintf("the other site has taken over, on timeline %d: demote-cluster has it follow that one, and --ignore-other-site makes two shards of them", beat.Succeeded)
		}
		return refusedf("shard %s cannot be promoted: %s", s.Scope, why)
	}
	if !o.Force {
		if err := c.Show(listTable(s.Scope, snapshot, ListOptions{})); err != nil {
			return err
		}
		if err := c.Confirm(promotionQuestion(s.Scope, snapshot.LeaderName(), o)); err != nil {
			return err
		}
	}
	if until > 0 {
		if err := s.awaitLSN(ctx, snapshot, until); err != nil {
			return err
		}
	}
	if err := s.patchSite(ctx, snapshot, promotionPatch(snapshot, dynamic, o)); err != nil {
		return err
	}
	leader, took, err := s.awaitRole(ctx, dynamic, cluster.RolePrimary, false)
	if err != nil {
		return unknownf("standby_cluster is removed, and %s has no primary yet: %w; see lictor list and lictor doctor", s.Scope, err)
	}
	c.Say("%s is promoted after %s: %s is its primary, on timeline %d", s.Scope, Duration(took), leader.Name, leader.Timeline)
	return nil
}

func promotionQuestion(scope, leader string, o PromoteOptions) string {
	what := "It is refused while the other site has a primary that answers. A site that does not answer may live all the same, and accept commits: make sure that it does not"
	if o.IgnoreOtherSite {
		what = "The other site is not asked: if it accepts commits, there are two shards of one name from now on"
	}
	return fmt.Sprintf("%s becomes the primary of %s, on a new timeline. %s. Go on?", leader, scope, what)
}

// promotionPatch changes the dynamic configuration. Who was followed is asked from now on: it may come back. A
// member of this shard is nobody to be asked.
func promotionPatch(snapshot cluster.Snapshot, d cluster.Dynamic, o PromoteOptions) map[string]any {
	patch := map[string]any{"standby_cluster": nil}
	host, port := snapshot.Strangers(d.StandbyCluster.Host, d.StandbyCluster.Port), d.StandbyCluster.Port
	if host == "" {
		host, port = snapshot.Strangers(d.OtherSite.Host, d.OtherSite.Port), d.OtherSite.Port
	}
	site := map[string]any{"host": nil, "port": nil, "ignore": nil}
	if host != "" {
		site["host"], site["port"] = host, port
	}
	if o.IgnoreOtherSite {
		site["ignore"] = true
	}
	switch {
	case host != "" || o.IgnoreOtherSite:
		patch["other_site"] = site
	case d.OtherSite.Host != "":
		patch["other_site"] = nil
	}
	return patch
}

// readSite reads a shard that is to change its role.
func (s *Shard) readSite(ctx context.Context) (cluster.Snapshot, cluster.Dynamic, error) {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return snapshot, cluster.Dynamic{}, err
	}
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	switch {
	case err != nil:
		return snapshot, dynamic, fmt.Errorf("the key %s: %w", s.Keys.Config(), err)
	case snapshot.LeaderName() == "":
		return snapshot, dynamic, refusedf("shard %s has no leader", s.Scope)
	case dynamic.Pause:
		return snapshot, dynamic, refusedf("shard %s is paused: lictor resume first", s.Scope)
	}
	return snapshot, dynamic, nil
}

// patchSite changes the dynamic configuration. The leader asks the other site first, and may refuse.
func (s *Shard) patchSite(ctx context.Context, snapshot cluster.Snapshot, patch map[string]any) error {
	answer, err := s.anyMember(ctx, snapshot, http.MethodPatch, "/config", patch)
	switch {
	case err != nil:
		return err
	case answer.OK():
		return nil
	case answer.Status == http.StatusBadRequest, answer.Status == http.StatusConflict:
		return refusedf("nothing has changed: %s", s.words(answer))
	}
	return fmt.Errorf("the configuration was not changed: %s (status %d)", s.words(answer), answer.Status)
}

// awaitRole waits until a shard's leader runs in a role; receives: and gets WAL.
func (s *Shard) awaitRole(ctx context.Context, d cluster.Dynamic, role string, receives bool) (cluster.Member, time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 2*d.TTL+time.Minute)
	defer cancel()
	var leader cluster.Member
	err := await(ctx, func(ctx context.Context) error {
		now, err := s.Read(ctx)
		if err != nil {
			return err
		}
		m, found := now.Member(now.LeaderName())
		if !found || !m.OK() {
			return errors.New("nobody leads")
		}
		leader = m.Value
		is := leader.Role == role || role == cluster.RolePrimary && cluster.IsPrimary(leader.Role)
		if is && leader.State == cluster.StateRunning && (!receives || leader.ReplicationState != "") {
			return nil
		}
		why := fmt.Sprintf("%s leads, and is %s as a %s", leader.Name, cmp.Or(leader.State, "silent"), cmp.Or(leader.Role, "member"))
		if status, err := s.status(ctx, leader); err == nil && status.Lictor != nil {
			why += ": " + strings.Join(append([]string{status.Lictor.Reason}, status.Lictor.Problems...), "; ")
		}
		return errors.New(why)
	})
	return leader, time.Since(began), err
}

// replayed is how far a standby leader has replayed, as PostgreSQL writes it.
func (s *Shard) replayed(ctx context.Context, m cluster.Member) (string, error) {
	status, err := s.status(ctx, m)
	if err == nil && status.XLog.Replayed == 0 {
		err = errors.New(m.Name + " does not say so")
	}
	return pg.FormatLSN(status.XLog.Replayed), err
}

// awaitLSN waits until the standby leader has replayed a position.
func (s *Shard) awaitLSN(ctx context.Context, snapshot cluster.Snapshot, until int64) error {
	ctx, cancel := context.WithTimeout(ctx, lsnLimit)
	defer cancel()
	leader, _ := snapshot.Member(snapshot.LeaderName())
	err := await(ctx, func(ctx context.Context) error {
		status, err := s.status(ctx, leader.Value)
		if err == nil && status.XLog.Replayed < until {
			err = fmt.Errorf("%s has replayed up to %s", leader.Value.Name, pg.FormatLSN(status.XLog.Replayed))
		}
		return err
	})
	if err != nil {
		return refusedf("%s is not promoted, as it has not replayed %s: %w", s.Scope, pg.FormatLSN(until), err)
	}
	return nil
}
