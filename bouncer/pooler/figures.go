package pooler

import (
	"context"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Figures are the answers of one look at PgBouncer, by what was shown.
type Figures struct {
	Version pgbouncer.Version
	Shown   map[string][]pgbouncer.Figures
}

// AskFigures asks PgBouncer for all of its figures, on a connection of its own.
func AskFigures(ctx context.Context, config config.Config) (Figures, error) {
	conn, err := dialAdmin(ctx, config)
	if err != nil {
		return Figures{}, err
	}
	defer conn.Close()
	version, err := bounded(ctx, conn.Version)
	if err != nil {
		return Figures{}, err
	}
	figures := Figures{Version: version, Shown: map[string][]pgbouncer.Figures{}}
	for _, what := range []string{"LISTS", "CONFIG", "DATABASES", "POOLS", "STATS_TOTALS"} {
		rows, err := bounded(ctx, func(ctx context.Context) ([]pgbouncer.Figures, error) { return conn.Show(ctx, what) })
		if err != nil {
			return Figures{}, err
		}
		figures.Shown[what] = rows
	}
	return figures, nil
}
