package bouncer

import (
	"os"
	"slices"

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

// keepMissing adds to a text the databases of shards that cannot be followed.
func (c *reconciler) keepMissing(text []byte, file pgbouncer.File, missing []string, version pgbouncer.Version) ([]byte, pgbouncer.File, error) {
	installed, err := os.ReadFile(c.config.PgBouncer.Config)
	if err != nil {
		installed = nil // the first one
	}
	return render.WithMissing(text, file, installed, c.standing, missing, version)
}
