package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// UpgradeOptions say to which major version a shard is to be upgraded.
type UpgradeOptions struct {
	To int
	// Check looks whether that can be done, and changes nothing.
	Check   bool
	Members []string // whom to ask; none: all
	Force   bool     // ask nothing
}

// upgradeCheckLimit bounds the check of one member; its agent has a limit of its own.
const upgradeCheckLimit = 31 * time.Minute

// upgradedWithin bounds the wait for the new version to serve, once it was announced.
const upgradedWithin = 2 * time.Minute

// Upgrade upgrades a shard to another major version (design 5.31). First it is checked whether that can be done: each
// member tries it, one after another, the replicas first, and each agent and bouncer must know announced identifiers.
func Upgrade(ctx context.Context, c *Console, s *Shard, o UpgradeOptions) error {
	switch {
	case !o.Check && len(o.Members) > 0:
		return Usage(errors.New("--member: a shard is upgraded as a whole; it goes with --check"))
	case o.To < 1:
		return Usage(errors.New("--to: say to which major version of PostgreSQL, 17 for instance"))
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	members, err := s.members(snapshot, o.Members, "")
	if err != nil {
		return err
	}
	leader := snapshot.LeaderName()
	if i := slices.IndexFunc(members, func(m cluster.Member) bool { return m.Name == leader }); i >= 0 { // what replicas show needs no look at the leader
		members = append(slices.Delete(slices.Clone(members), i, i+1), members[i])
	}
	d := diagnosis{area: "upgrade"}
	if leader == "" {
		d.add(Wrong, s.Scope, "see lictor list", "nobody leads the shard")
	}
	if len(o.Members) == 0 {
		bouncers, err := s.site.list(ctx, s.Keys.Bouncers())
		if err != nil {
			return err
		}
		d.judgeBouncers(s.Scope, s.site.Namespace, s.site.parseBouncers(bouncers, nil))
	}
	d.judgeAgents(s.Scope, members)
	for _, m := range members {
		if c.Format == Pretty {
			c.Warn("%s tries it", m.Name)
		}
		began := time.Now()
		found, err := s.checkUpgrade(ctx, m, o.To)
		d.judgeUpgrade(s.Scope+"/"+m.Name, o.To, time.Since(began), found, err)
		if ctx.Err() != nil {
			return err
		}
	}
	if err := report(c, d.findings, DoctorOptions{All: true}); err != nil || o.Check {
		return err
	}
	return s.upgrade(ctx, c, snapshot, members, o)
}

// upgrade carries an upgrade out that was checked: the leader's data first, then the other members', one after another.
func (s *Shard) upgrade(ctx context.Context, c *Console, snapshot cluster.Snapshot, members []cluster.Member, o UpgradeOptions) error {
	leader, err := s.leader(snapshot)
	if err != nil {
		return err
	}
	before, err := s.status(ctx, leader)
	if err != nil {
		return err
	}
	c.Say("%s becomes PostgreSQL %d (it is %d):", s.Scope, o.To, before.ServerVersion/perMajor)
	c.Say("  on          %s first, by pg_upgrade --link; its data directory is moved aside to DATADIR.before-upgrade.TIME, and is of no use from then on", leader.Name)
	c.Say("  clients     are held by the poolers meanwhile")
	c.Say("  the others  are copied anew from %s, one after another; their data directories are moved aside, and are the last copies of the old cluster", leader.Name)
	c.Say("  back        by itself, until the new version begins to serve; not from then on")
	if !o.Force {
		if err := c.Confirm("Upgrade " + s.Scope + "?"); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := s.upgradeLeader(ctx, leader, o.To); err != nil {
		return err
	}
	c.Say("%8s  PostgreSQL %d serves on %s", Duration(time.Since(began)), o.To, leader.Name)
	statistics, err := s.client.Post(ctx, api.PeerOf(leader), "/analyze", nil)
	if err == nil && !statistics.OK() {
		err = errors.New(s.words(statistics) + ": " + statistics.Reason)
	}
	if err != nil {
		c.Warn("statistics: %s; on %s: vacuumdb --all --analyze-in-stages", Explain(err), leader.Name)
	} else {
		c.Say("%8s  statistics are there", Duration(time.Since(began)))
	}
	for _, m := range members {
		if m.Name == leader.Name {
			continue
		}
		if err := s.reinitOne(ctx, c, m, ReinitOptions{Wait: true, FromLeader: true}); err != nil {
			return unknownf("PostgreSQL %d serves, and %s is not made anew: lictor reinit %s %s, then the members that are left: %w", o.To, m.Name, s.Scope, m.Name, err)
		}
	}
	c.Say("upgraded in %s. Set postgresql.bin_dir to version %d in each member's file, take a full backup, and when nobody needs the old data any more,\n"+
		"remove DATADIR.before-upgrade.* on each host", Duration(time.Since(began)), o.To)
	return nil
}

// perMajor is server_version_num of the first release of version 1.
const perMajor = 10000

// upgradeLeader has the leader's data upgraded, and waits until they serve.
func (s *Shard) upgradeLeader(ctx context.Context, leader cluster.Member, to int) error {
	answer, err := s.client.Post(ctx, api.PeerOf(leader), "/upgrade", map[string]any{"to": to})
	switch {
	case err != nil && neverSent(err):
		return fmt.Errorf("%s cannot be reached, nothing was done: %w", leader.Name, err)
	case err != nil: // its agent begins anew when it is done
	case answer.Status == http.StatusNotImplemented:
		return refusedf("the agent of %s is of a version without upgrades: upgrade Lictor first", leader.Name)
	case answer.Status == http.StatusPreconditionFailed, answer.Status == http.StatusBadRequest:
		return refusedf("%s", s.words(answer))
	case !answer.OK():
		return rolledBack(fmt.Errorf("%s: %s", s.words(answer), answer.Reason))
	}
	limit, cancel := context.WithTimeout(ctx, upgradedWithin)
	defer cancel()
	if err := await(limit, func(ctx context.Context) error {
		now, err := s.status(ctx, leader)
		if err == nil && (now.State != cluster.StateRunning || now.ServerVersion/perMajor != to) {
			err = fmt.Errorf("PostgreSQL %d does not serve on %s yet", to, leader.Name)
		}
		return err
	}); err != nil {
		return unknownf("the upgrade of %s: %w; lictor list %s shows what it is", leader.Name, err, s.Scope)
	}
	return nil
}

// judgeBouncers tells which bouncers of a shard would refuse the route of the new cluster: their clients
// would be led nowhere.
func (d *diagnosis) judgeBouncers(scope, namespace string, bouncers []cluster.Bouncer) {
	for _, b := range bouncers {
		if b.Serves(namespace, scope) && !b.Succession {
			d.add(Wrong, scope+"/"+b.Name, "upgrade Lictor on the bouncer's host, and check again",
				"the bouncer is of version %s, which refuses a new system identifier also when an upgrade announces it", cmp.Or(b.Version, "?"))
		}
	}
}

// judgeAgents tells which members' agents know of no major upgrade: they would write the route without what it
// succeeds, or lead with the old data.
func (d *diagnosis) judgeAgents(scope string, members []cluster.Member) {
	for _, m := range members {
		if m.Lictor != nil && !m.Lictor.Succession { // of Patroni's tells the check itself
			d.add(Wrong, scope+"/"+m.Name, "upgrade Lictor on the member's host, and check again",
				"the agent is of a version that knows nothing of major upgrades: as the leader it would hide them from bouncers")
		}
	}
}

// judgeUpgrade makes findings of what a member has answered.
func (d *diagnosis) judgeUpgrade(subject string, to int, took time.Duration, found pg.UpgradeCheck, err error) {
	const do = "put it right, and check again; nothing was changed"
	for _, problem := range found.Problems {
		d.add(Wrong, subject, do, "%s", problem)
	}
	for _, warning := range found.Warnings {
		d.add(Worth, subject, "", "%s", warning)
	}
	switch {
	case err != nil:
		d.add(Wrong, subject, do, "%s", Explain(err))
	case len(found.Problems) == 0:
		d.fine(subject, "PostgreSQL %d could become PostgreSQL %d (tried in %s)", found.From, to, Duration(took))
	}
}

// checkUpgrade has one member try it.
func (s *Shard) checkUpgrade(ctx context.Context, m cluster.Member, to int) (found pg.UpgradeCheck, err error) {
	if m.Lictor == nil {
		return found, fmt.Errorf("%s runs Patroni, which has no such check", m.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, upgradeCheckLimit)
	defer cancel()
	answer, err := s.client.Post(ctx, api.PeerOf(m), "/upgrade_check", map[string]any{"to": to})
	switch {
	case err != nil:
		return found, s.unanswered("the check on "+m.Name, err)
	case answer.Status == http.StatusNotImplemented:
		return found, fmt.Errorf("the agent of %s is of a version without this check: upgrade Lictor first", m.Name)
	case !answer.OK():
		return found, fmt.Errorf("%s: %s (status %d)", m.Name, s.words(answer), answer.Status)
	}
	if err := json.Unmarshal([]byte(answer.Text), &found); err != nil {
		return found, fmt.Errorf("%s: the answer is not understood: %w", m.Name, err)
	}
	return found, nil
}
