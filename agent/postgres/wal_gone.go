package postgres

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/pg"
)

// oldestWALSQL asks which cluster this is, and which is the first of the segments that it has, of
// whatever timeline: those that wait to be used again have names that lie ahead.
const oldestWALSQL = `SELECT (SELECT system_identifier::text FROM pg_control_system()), pg_size_bytes(current_setting('wal_segment_size')),
	coalesce((SELECT min(right(name, 16)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'), '')`

// WALGone reports whether a member, the leader, has no WAL from a replica's position on any more.
// It is asked in SQL, which nobody sees among its standbys; and where it says so, it must refuse
// the replica, too, as it refuses its WAL receiver: on the replica's timeline, which has to be one
// of its history. Another cluster than the shard's says nothing, nor one that does not prove whose it is.
func (p *upstreams) WALGone(ctx context.Context, u Upstream, systemIdentifier string, timeline int, lsn int64) (bool, error) {
	oldest, err := p.oldestWAL(ctx, u, systemIdentifier)
	if err != nil || oldest <= lsn {
		return false, err
	}
	conn, err := p.replicationConnAs(ctx, u, proving(u.Host, p.local.Load().Authentication.Replication), agentName)
	if err != nil {
		return false, err
	}
	defer hangUpOn(conn)
	id, _, _, err := identifySystem(ctx, conn)
	if err == nil && id != systemIdentifier {
		err = otherCluster(u, id, systemIdentifier)
	}
	if err != nil {
		return false, fmt.Errorf("asking %s who it is: %w", u.Name, err)
	}
	gone, err := startReplication(ctx, conn, fmt.Sprintf("START_REPLICATION PHYSICAL %s TIMELINE %d", pg.FormatLSN(lsn), timeline))
	if err != nil {
		return false, fmt.Errorf("asking %s for WAL from %s on timeline %d: %w", u.Name, pg.FormatLSN(lsn), timeline, err)
	}
	return gone, nil
}

// oldestWAL is where the WAL that a member has begins.
func (p *upstreams) oldestWAL(ctx context.Context, u Upstream, systemIdentifier string) (int64, error) {
	conn, err := p.connect(ctx, u.Host, u.Port, proving(u.Host, p.local.Load().Authentication.Superuser), p.database(), agentName)
	if err != nil {
		return 0, err
	}
	defer hangUpOn(conn)
	var id, segment string
	var size int64
	if err := conn.QueryRow(ctx, oldestWALSQL).Scan(&id, &size, &segment); err != nil {
		return 0, fmt.Errorf("asking %s for its oldest WAL: %w", u.Name, err)
	}
	if id != systemIdentifier {
		return 0, otherCluster(u, id, systemIdentifier)
	}
	if len(segment) != 16 {
		return 0, fmt.Errorf("asking %s for its oldest WAL: it has none", u.Name)
	}
	high, err := strconv.ParseInt(segment[:8], 16, 64)
	if err != nil {
		return 0, fmt.Errorf("asking %s for its oldest WAL: segment %q: %w", u.Name, segment, err)
	}
	low, err := strconv.ParseInt(segment[8:], 16, 64)
	if err != nil {
		return 0, fmt.Errorf("asking %s for its oldest WAL: segment %q: %w", u.Name, segment, err)
	}
	return high<<32 + low*size, nil
}

// otherCluster is the error of an address at which another cluster than the shard's answers.
func otherCluster(u Upstream, id, shard string) error {
	return fmt.Errorf("%s answers with the system identifier %s, that of the shard is %s: another cluster is at its address", u.Name, id, shard)
}

// startReplication reports whether the first that comes of a stream is that its segment is gone:
// PostgreSQL says that it "has already been removed" (src/backend/replication/walsender.c).
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
