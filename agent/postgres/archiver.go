package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
)

// archiverSQL has PostgreSQL read a directory, which no observation waits for: see Archiver.
const archiverSQL = `
SELECT current_setting('archive_mode') = 'always' OR current_setting('archive_mode') = 'on' AND NOT pg_is_in_recovery(),
  a.archived_count, COALESCE(a.last_archived_wal, ''), a.last_archived_time, a.failed_count, COALESCE(a.last_failed_wal, ''), a.last_failed_time,
  w.files, w.since,
  (SELECT sum(setting::bigint * CASE name WHEN 'wal_keep_segments' THEN 16 ELSE 1 END)::bigint << 20 FROM pg_settings
    WHERE name IN ('max_wal_size', 'wal_keep_size', 'wal_keep_segments'))
FROM pg_stat_archiver a, (SELECT count(*) AS files, min(modification) AS since FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') w`

// Archiver looks at PostgreSQL's archiver, over a connection of its own: with a disk that
// hangs it waits for as long as ctx allows or PostgreSQL lives, and holds up no observation.
// So whoever calls it gives no limit, and does not call it again before it has returned:
// otherwise backends that hang would pile up.
func (p *session) Archiver(ctx context.Context) (pg.Archiver, error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return pg.Archiver{}, fmt.Errorf("looking at the archiver: %w", err)
	}
	defer hangUpOn(conn)
	var (
		a                         pg.Archiver
		archived, failed, waiting *time.Time
	)
	if err := conn.QueryRow(ctx, archiverSQL).Scan(&a.On, &a.Archived, &a.LastArchived, &archived, &a.Failed, &a.LastFailed, &failed, &a.Waiting, &waiting, &a.Keeps); err != nil {
		return pg.Archiver{}, fmt.Errorf("looking at the archiver: %w", err)
	}
	for from, to := range map[*time.Time]*time.Time{archived: &a.ArchivedAt, failed: &a.FailedAt, waiting: &a.WaitingSince} {
		if from != nil {
			*to = *from
		}
	}
	return a, nil
}

// WALRoom is how many bytes pg_wal holds, and how many its file system has left.
func (p *walDir) WALRoom() (bytes, free int64, err error) {
	dir := p.inData("pg_wal")
	if free, err = p.disk.Room(dir); err != nil {
		return 0, 0, fmt.Errorf("room for WAL: %w", err)
	}
	entries, err := p.disk.ReadDir(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("room for WAL: %w", err)
	}
	for _, e := range entries {
		// Files come and go while they are counted.
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			bytes += info.Size()
		}
	}
	return bytes, free, nil
}
