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
}

// upgradeCheckLimit bounds the check of one member; its agent has a limit of its own.
const upgradeCheckLimit = 31 * time.Minute

// Upgrade checks whether a shard can be upgraded to another major version (design 5.31): each
// member tries it, one after another, the replicas first, and each agent and bouncer must know announced identifiers.
func Upgrade(ctx context.Context, c *Console, s *Shard, o UpgradeOptions) error {
	switch {
	case !o.Check:
		return Usage(errors.New("only --check is there yet: lictor does not upgrade a shard by itself"))
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
	return report(c, d.findings, DoctorOptions{All: true})
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
