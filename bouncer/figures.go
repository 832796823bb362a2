package bouncer

import (
	"context"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// poolerFigures are the answers of one look at PgBouncer, by what was shown.
type poolerFigures struct {
	version pgbouncer.Version
	shown   map[string][]pgbouncer.Figures
}

// askPooler asks PgBouncer for all of its figures, on a connection of its own.
func askPooler(ctx context.Context, config config.Config) (poolerFigures, error) {
	conn, err := dialAdmin(ctx, config)
	if err != nil {
		return poolerFigures{}, err
	}
	defer conn.Close()
	version, err := bounded(ctx, conn.Version)
	if err != nil {
		return poolerFigures{}, err
	}
	figures := poolerFigures{version: version, shown: map[string][]pgbouncer.Figures{}}
	for _, what := range []string{"LISTS", "CONFIG", "DATABASES", "POOLS", "STATS_TOTALS"} {
		rows, err := bounded(ctx, func(ctx context.Context) ([]pgbouncer.Figures, error) { return conn.Show(ctx, what) })
		if err != nil {
			return poolerFigures{}, err
		}
		figures.shown[what] = rows
	}
	return figures, nil
}
