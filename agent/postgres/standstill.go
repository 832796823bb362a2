package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// standstill says why replay stands still, in words, and whether it does because this
// standby runs with less of something than its primary. That is told by the WAL, and
// then by pg_control (xlog_redo in src/backend/access/transam/xlog.c):
//
//	12, 13  PostgreSQL ends; the next start takes what pg_control asks for
//	14-18   replay pauses, as by pg_wal_replay_pause(), and a promotion waits with it;
//	        only a restart helps
func (p *observer) standstill(ctx context.Context, conn *pgx.Conn, paused bool, applyDelay string) (why string, undersized bool, err error) {
	if !paused {
		if applyDelay != "" {
			return "delayed by recovery_min_apply_delay, " + applyDelay, false, nil
		}
		return "", false, nil
	}
	control, err := p.control(ctx)
	if err != nil {
		return "", false, err
	}
	rows, err := conn.Query(ctx, "SELECT name, setting::int FROM pg_settings WHERE name IN ('max_connections', 'max_worker_processes', "+
		"'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')")
	if err != nil {
		return "", false, fmt.Errorf("why replay stands still: %w", err)
	}
	type setting struct {
		Name string
		Now  int
	}
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[setting])
	if err != nil {
		return "", false, fmt.Errorf("why replay stands still: %w", err)
	}
	var lacks []string
	for _, s := range settings {
		if least := control.Minima[s.Name]; s.Now < least {
			lacks = append(lacks, fmt.Sprintf("%s is %d here, %d on the primary", s.Name, s.Now, least))
		}
	}
	if len(lacks) == 0 {
		return "paused by pg_wal_replay_pause()", false, nil
	}
	slices.Sort(lacks)
	return "paused until a restart: " + strings.Join(lacks, ", "), true, nil
}
