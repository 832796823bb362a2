package bouncer

import (
	"maps"
	"os"
	"slices"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
)

// missing are the databases of shards that cannot be followed: of configured ones no route is
// known, of others bouncer.yml says nothing that can be followed.
func (c *reconciler) missing() []string {
	names := slices.Clone(c.config.Unfollowed())
	for _, s := range c.config.Shards {
		if _, found := c.table.Get(s.ID()); !found {
			names = append(names, c.config.Names(s)...)
		}
	}
	return names
}

// keepUnconfirmed has shards that Consul has not confirmed since the start stay where the installed
// file and PgBouncer have them: what was restored may be older. What was decided when PgBouncer could be
// asked stands until Consul says something of the shard.
func (c *reconciler) keepUnconfirmed() map[config.ShardID]render.ShardRoute {
	if c.confirmed {
		return c.known
	}
	var installed *render.Installed
	known := maps.Clone(c.known)
	c.confirmed, c.undecided = true, false
	for id, k := range c.known {
		if k.Confirmed {
			delete(c.kept, id)
			continue
		}
		c.confirmed = false
		if before, have := c.kept[id]; have && before.of == k.Revision {
			known[id] = before.ShardRoute
			continue
		}
		if installed == nil {
			text, err := os.ReadFile(c.config.PgBouncer.Config)
			if err != nil {
				text = nil // the first one
			}
			i := render.ParseInstalled(text)
			installed = &i
		}
		one, kept := c.viewer.Keep(id, k, *installed, c.standing)
		if kept {
			known[id] = one
			c.log.Warn().Str("shard", string(id)).Str("known", k.Route.Leader.Host).Str("kept", one.Route.Leader.Host).
				Msg("the state file leads elsewhere than PgBouncer; PgBouncer's place stays until Consul confirms")
		}
		if c.standing == nil {
			c.undecided = true
			continue
		}
		if c.kept == nil {
			c.kept = map[config.ShardID]keptRoute{}
		}
		c.kept[id] = keptRoute{one, k.Revision}
	}
	return known
}

// keptRoute is what keepUnconfirmed has decided of a route of that revision.
type keptRoute struct {
	render.ShardRoute
	of uint64
}

// keepMissing adds to a text the databases of shards that cannot be followed.
func (c *reconciler) keepMissing(text []byte, file pgbouncer.File, missing []string, version pgbouncer.Version) ([]byte, pgbouncer.File, error) {
	installed, err := os.ReadFile(c.config.PgBouncer.Config)
	if err != nil {
		installed = nil // the first one
	}
	return render.WithMissing(text, file, installed, c.standing, missing, version)
}
