package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/pg"
)

// undefinedFile is what PostgreSQL answers where a segment "has already been removed"
// (src/backend/replication/walsender.c).
const undefinedFile = "58P01"

// WALGone reports whether an upstream has no WAL from a position on any more. It is asked as a
// standby's WAL receiver asks, but without a slot. One that has all of it, and nothing beyond,
// says nothing until the context ends.
func (p *upstreams) WALGone(ctx context.Context, u Upstream, timeline int, lsn int64) (bool, error) {
	conn, err := p.replicationConn(ctx, u)
	if err != nil {
		return false, err
	}
	defer hangUpOn(conn)
	gone, err := startReplication(ctx, conn, fmt.Sprintf("START_REPLICATION PHYSICAL %s TIMELINE %d", pg.FormatLSN(lsn), timeline))
	if err != nil {
		return false, fmt.Errorf("asking %s for WAL from %s on timeline %d: %w", u.Name, pg.FormatLSN(lsn), timeline, err)
	}
	return gone, nil
}

// startReplication reports whether the first that comes of a stream is that its segment is gone.
func startReplication(ctx context.Context, conn *pgconn.PgConn, command string) (gone bool, err error) {
	conn.Frontend().Send(&pgproto3.Query{String: command})
	if err := conn.Frontend().Flush(); err != nil {
		return false, err
	}
	for {
		message, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return false, err
		}
		switch m := message.(type) {
		case *pgproto3.ErrorResponse:
			if m.Code == undefinedFile {
				return true, nil
			}
			return false, pgconn.ErrorResponseToPgError(m)
		case *pgproto3.CopyData, *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
			return false, nil
		}
	}
}
