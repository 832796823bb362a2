package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// checkOwn returns an error if a change of the configuration has the shard follow one of its own members, or
// take one for the other site, whatever name or address that is called by: nobody would be a primary then.
func (c *dynamicConfig) checkOwn(ctx context.Context, known cluster.Snapshot, old, next cluster.Dynamic) error {
	ctx, cancel := context.WithTimeout(ctx, next.RetryTimeout)
	defer cancel()
	standby, site := next.StandbyCluster, next.OtherSite
	if standby.Host != "" && standby.Upstream() != old.StandbyCluster.Upstream() {
		if err := c.pg.OwnMember(ctx, remoteHosts(standby.Host, standby.Port), membersOf(known)); err != nil {
			return fmt.Errorf("standby_cluster: a shard does not follow itself: %w", err)
		}
	}
	if site.Known() && site != old.OtherSite && (site.Host != standby.Host || site.Port != standby.Port) {
		if err := c.pg.OwnMember(ctx, remoteHosts(site.Host, site.Port), membersOf(known)); err != nil {
			return fmt.Errorf("other_site: a shard is not its own other site: %w", err)
		}
	}
	return nil
}

// membersOf is where the members' PostgreSQL is.
func membersOf(known cluster.Snapshot) []postgres.Upstream {
	var members []postgres.Upstream
	for _, m := range known.Members {
		if host, port, err := m.Value.Address(); m.OK() && err == nil {
			members = append(members, postgres.Upstream{Name: m.Value.Name, Host: host, Port: port})
		}
	}
	return members
}

// remoteHosts are another site's.
func remoteHosts(host string, port int) postgres.Upstream {
	return postgres.Upstream{Name: "other site " + cluster.SiteAddress(host, port), Host: host, Port: port, Remote: true}
}

// checkSites says why the other site forbids a change of the configuration (design 5.27): a promotion beside
// its primary, and a demotion for a site that could not take over. state tells of this member.
func (c *dynamicConfig) checkSites(ctx context.Context, state func() api.State, old, next cluster.Dynamic) error {
	was, becomes := old.StandbyCluster, next.StandbyCluster
	if was.On() == becomes.On() {
		return nil
	}
	seen := state()
	pg := seen.Postgres
	primary := seen.Leader && pg.Accepting && !pg.InRecovery
	var host string
	var port int
	switch {
	case becomes.On() && primary:
		host, port = becomes.Host, becomes.Port
	case was.On() && !primary && !next.OtherSite.Ignore:
		if host, port = next.OtherSite.Host, next.OtherSite.Port; host == "" {
			host, port = was.Host, was.Port
		}
	}
	if host == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, next.RetryTimeout)
	defer cancel()
	site, err := c.pg.AskSite(ctx, remoteHosts(host, port), pg.Timeline)
	switch {
	case becomes.On() && err == nil:
		err = site.CanTakeOver(pg.Timeline, pg.LSN, next.MaximumLagOnFailover)
		fallthrough
	case becomes.On():
		if err != nil {
			return fmt.Errorf("standby_cluster: the primary here is not stopped for it: %w", err)
		}
	case err == nil:
		timeline := pg.Timeline
		if !seen.Leader { // the one that is promoted may have more
			timeline = 0
		}
		if why := (ha.SiteView{Answered: true, Site: site}).Refusal(timeline, pg.LSN); why != "" {
			return errors.New("standby_cluster: " + why)
		}
	}
	return nil
}
