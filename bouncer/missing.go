package bouncer

import (
	"os"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
)

// missing are the configured shards of which no route is known.
func (c *reconciler) missing() (list []config.Shard) {
	for _, s := range c.config.Shards {
		if _, found := c.table.Get(s.ID()); !found {
			list = append(list, s)
		}
	}
	return list
}

// keepMissing adds to a text the databases of shards whose route is not known.
func (c *reconciler) keepMissing(text []byte, file pgbouncer.File, missing []config.Shard, version pgbouncer.Version) ([]byte, pgbouncer.File, error) {
	installed, err := os.ReadFile(c.config.PgBouncer.Config)
	if err != nil {
		installed = nil // the first one
	}
	return render.WithMissing(text, file, installed, c.standing, missing, c.config, version)
}
