package postgres

import (
	"context"
	"fmt"
	"time"
)

// writePoll is how often is looked whether a transaction has written.
const writePoll = 25 * time.Millisecond

// AwaitFirstWrite waits until a transaction that wrote has ended since PostgreSQL
// left recovery, or until ctx ends. It may be called before the promotion.
//
// The upper end of a snapshot is one more than the highest transaction that has
// ended (https://www.postgresql.org/docs/current/functions-info.html, pg_snapshot
// components); transactions that only read have no number.
func (p *session) AwaitFirstWrite(ctx context.Context) error {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	tick := time.NewTicker(writePoll)
	defer tick.Stop()
	var first int64
	for {
		var recovering bool
		var next int64
		row := conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), txid_snapshot_xmax(txid_current_snapshot())")
		if err := row.Scan(&recovering, &next); err != nil {
			return fmt.Errorf("looking for the first write: %w", err)
		}
		switch {
		case recovering:
		case first == 0:
			first = next
		case next > first:
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("looking for the first write: %w", ctx.Err())
		}
	}
}
