package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// repackTableState is a table that was chosen, and how much of it is empty.
type repackTableState struct {
	name  string // quoted, with its schema
	oid   uint32
	file  uint32 // the number of its file, which a repack changes
	total int64  // with its indexes and what is kept out of line
	// empty are bytes that are dead or free: in the table, and in its B-tree indexes.
	empty, emptyIndexes int64
	space               string // the directory of its tablespace; empty: in the data directory
}

// lockNotAvailable is PostgreSQL's code for a lock that was not had in time.
const lockNotAvailable = "55P03"

// smallest is what is never repacked: there is nothing to be won.
const smallest = 1 << 20

func (t repackTableState) bloat() int {
	if t.total == 0 {
		return 0
	}
	return int(100 * (t.empty + t.emptyIndexes) / t.total)
}

func (t repackTableState) needs(least int) bool {
	return t.bloat() >= least && t.empty+t.emptyIndexes >= smallest
}

func repackTable(tables []repackTableState) Table {
	out := Table{Columns: []Column{{Name: "Table"}, {Name: "Size"}, {Name: "Empty"}, {Name: "Empty in indexes"}, {Name: "Bloat %"}}}
	for _, t := range tables {
		out.Rows = append(out.Rows, []Cell{
			text(t.name),
			{Text: size(t.total), Value: t.total},
			{Text: size(t.empty), Value: t.empty},
			{Text: size(t.emptyIndexes), Value: t.emptyIndexes},
			{Text: strconv.Itoa(t.bloat()), Value: t.bloat()},
		})
	}
	return out
}

// observe asks the leader's PostgreSQL what may stop a repack.
func (r *repacking) observe(ctx context.Context) (look repackLooks, err error) {
	const ask = `SELECT
  coalesce((SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint FROM pg_stat_replication WHERE state = 'streaming' ORDER BY replay_lsn LIMIT 1), 0),
  coalesce((SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' ORDER BY replay_lsn LIMIT 1), ''),
  coalesce((SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver), false) AND current_setting('archive_mode') <> 'off',
  CASE WHEN current_setting('archive_mode') = 'off' THEN 0 ELSE (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') END`
	if err = r.conn.QueryRow(ctx, ask).Scan(&look.lag, &look.lags, &look.failing, &look.waiting); err != nil {
		return look, err
	}
	// An autovacuum gives way, and pg_repack's own copy takes as long as it takes.
	const old = `SELECT seconds, whose FROM (
  SELECT extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds, format('pid %s, %s', pid, coalesce(nullif(application_name, ''), usename, backend_type)) AS whose
    FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type IN ('client backend', 'background worker', 'parallel worker')
      AND application_name <> 'pg_repack'
  UNION ALL
  SELECT extract(epoch FROM clock_timestamp() - prepared)::bigint, format('prepared transaction %s', gid) FROM pg_prepared_xacts) t
  ORDER BY seconds DESC LIMIT 1`
	var seconds int64
	err = r.conn.QueryRow(ctx, old).Scan(&seconds, &look.whose)
	look.transaction = time.Duration(seconds) * time.Second
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return look, err
}

// measure measures the chosen tables. An extension that is not there is there for this transaction only.
func (r *repacking) measure(ctx context.Context) ([]repackTableState, error) {
	tables := make([]repackTableState, len(r.Tables))
	for i, name := range r.Tables {
		var err error
		if tables[i], err = r.measureOne(ctx, name); err != nil {
			return nil, err
		}
	}
	return tables, nil
}

// measureOne measures a table: pgstattuple reads what the visibility map does not say, and all of the indexes.
func (r *repacking) measureOne(ctx context.Context, name string) (t repackTableState, err error) {
	if t, err = r.describe(ctx, name); err != nil {
		return t, err
	}
	tx, err := r.conn.Begin(ctx)
	if err != nil {
		return t, fmt.Errorf("measuring %s: %w", t.name, err)
	}
	defer func() {
		if end := tx.Rollback(context.WithoutCancel(ctx)); end != nil && err == nil && !r.conn.IsClosed() {
			err = fmt.Errorf("measuring %s: %w", t.name, end)
		}
	}()
	schema := ""
	err = tx.QueryRow(ctx, "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'pgstattuple'").Scan(&schema)
	if errors.Is(err, pgx.ErrNoRows) {
		schema = "lictor_measures"
		_, err = tx.Exec(ctx, "CREATE SCHEMA lictor_measures; CREATE EXTENSION pgstattuple SCHEMA lictor_measures")
	}
	if err != nil {
		return t, fmt.Errorf("measuring %s needs the extension pgstattuple (package postgresql-contrib): %w", t.name, err)
	}
	// What fillfactor keeps free is no bloat.
	ask := fmt.Sprintf(`SELECT coalesce(sum(greatest(0, s.dead_tuple_len + s.approx_free_space - s.table_len * (100 - fill) / 100))::bigint, 0) FROM (
  SELECT c.oid, coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'fillfactor'), 100) AS fill
  FROM pg_class c WHERE (c.oid = $1::oid OR c.oid = (SELECT reltoastrelid FROM pg_class WHERE oid = $1::oid)) AND pg_relation_size(c.oid) > 0) c, %s.pgstattuple_approx(c.oid) s`, schema)
	if err = tx.QueryRow(ctx, ask, t.oid).Scan(&t.empty); err != nil {
		return t, fmt.Errorf("measuring %s: %w", t.name, err)
	}
	// A new index is full to its fillfactor, 90 where it is not set.
	ask = fmt.Sprintf(`SELECT coalesce(sum(greatest(0, s.index_size * (1 - least(1, CASE WHEN s.leaf_pages > 0 THEN s.avg_leaf_density ELSE fill END / fill))))::bigint, 0) FROM (
  SELECT i.indexrelid, coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'fillfactor'), 90) AS fill
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
  WHERE i.indrelid = $1::oid AND i.indisvalid AND a.amname = 'btree' AND c.relkind = 'i') c, %s.pgstatindex(c.indexrelid) s`, schema)
	if err = tx.QueryRow(ctx, ask, t.oid).Scan(&t.emptyIndexes); err != nil {
		return t, fmt.Errorf("measuring the indexes of %s: %w", t.name, err)
	}
	return t, nil
}

// describe finds a table, and refuses what pg_repack cannot do.
func (r *repacking) describe(ctx context.Context, name string) (t repackTableState, err error) {
	const ask = `SELECT format('%I.%I', n.nspname, c.relname), c.oid, c.relfilenode, c.relkind::text, c.relpersistence::text, n.nspname, pg_total_relation_size(c.oid),
  coalesce(pg_tablespace_location(coalesce(nullif(c.reltablespace, 0), d.dattablespace)), ''),
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
    AND NOT EXISTS (SELECT FROM unnest(i.indkey) k JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k WHERE NOT a.attnotnull))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_database d WHERE c.oid = to_regclass($1) AND d.datname = current_database()`
	var kind, persistence, schema string
	var keyed bool
	var own *pgconn.PgError
	err = r.conn.QueryRow(ctx, ask, name).Scan(&t.name, &t.oid, &t.file, &kind, &persistence, &schema, &t.total, &t.space, &keyed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return t, usagef("--table %s: there is no such table in the database %s (schema.table)", name, r.conn.Config().Database)
	case errors.As(err, &own) && strings.HasPrefix(own.Code, "42"): // a name that is none
		return t, usagef("--table %s: %w (schema.table)", name, own)
	case err != nil:
		return t, fmt.Errorf("looking at %s: %w", name, err)
	case kind == "p":
		return t, usagef("--table %s: is partitioned: name its partitions", t.name)
	case kind != "r" || persistence == "t" || schema == "pg_catalog" || schema == "information_schema" || schema == "repack":
		return t, usagef("--table %s: is no table that can be repacked", t.name)
	case !keyed:
		return t, usagef("--table %s: has no primary key, nor a unique index on columns that are NOT NULL, which pg_repack needs", t.name)
	}
	return t, nil
}

// file is the number of a table's file.
func (r *repacking) file(ctx context.Context, name string) (file uint32, err error) {
	if err = r.conn.QueryRow(ctx, "SELECT relfilenode FROM pg_class WHERE oid = to_regclass($1)", name).Scan(&file); err != nil {
		return 0, fmt.Errorf("looking at %s: %w", name, err)
	}
	return file, nil
}

// repackLeftover is something that pg_repack has made and not removed, and how it is removed.
type repackLeftover struct{ what, drop string }

func (l repackLeftover) String() string { return l.what }

// leftovers are what a run that did not end well has left in the database. It is an error if one is under way, or if there is
// something in pg_repack's schema that it did not make.
func (r *repacking) leftovers(ctx context.Context) (left []repackLeftover, err error) {
	if r.conn.IsClosed() {
		if r.conn, err = r.site.connect(ctx, r.leader, QueryOptions{Database: r.Database}); err != nil {
			return nil, err
		}
	}
	// classid is by what pg_repack locks tables.
	const running = `SELECT coalesce(string_agg(DISTINCT pid::text, ', '), '') FROM (
  SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_repack' AND datname = current_database() UNION ALL
  SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 16185446 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) t`
	var pids string
	if err := r.conn.QueryRow(ctx, running).Scan(&pids); err != nil {
		return nil, fmt.Errorf("looking for another pg_repack: %w", err)
	}
	if pids != "" {
		return nil, refusedf("another pg_repack is at work in the database %s (pid %s): wait until it has ended", r.conn.Config().Database, pids)
	}
	// The triggers come first, as they write to the logs; then tables, then the types of their columns.
	const made = `SELECT 'trigger', '', format('the trigger %I of %s', t.tgname, t.tgrelid::regclass), format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass)
  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname = 'repack' AND p.proname = 'repack_trigger'
UNION ALL
SELECT c.relkind::text, c.relname, format('repack.%I', c.relname), format('DROP %s repack.%I', CASE c.relkind WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_extension e ON e.extname = 'pg_repack'
  WHERE n.nspname = 'repack' AND c.relkind IN ('r', 'c', 'v', 'm', 'p', 'f')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refobjid = e.oid AND d.deptype = 'e')`
	rows, err := r.conn.Query(ctx, made)
	if err != nil {
		return nil, fmt.Errorf("looking for what pg_repack has left: %w", err)
	}
	// So it calls the log of a table's changes, the copy, and the type of the key.
	itsName := regexp.MustCompile(`^(log|table|pk)_[0-9]+$`)
	var triggers, tables, types []repackLeftover
	for rows.Next() {
		var kind, name string
		var one repackLeftover
		if err := rows.Scan(&kind, &name, &one.what, &one.drop); err != nil {
			rows.Close()
			return nil, fmt.Errorf("looking for what pg_repack has left: %w", err)
		}
		switch {
		case kind == "trigger":
			triggers = append(triggers, one)
		case !itsName.MatchString(name) || kind != "r" && kind != "c":
			err = errors.Join(err, refusedf("%s is in the schema of pg_repack, which did not make it: move it elsewhere", one.what))
		case kind == "r":
			tables = append(tables, one)
		default:
			types = append(types, one)
		}
	}
	if failed := rows.Err(); failed != nil {
		return nil, fmt.Errorf("looking for what pg_repack has left: %w", failed)
	}
	return append(append(triggers, tables...), types...), err
}

// clean removes what was left. It waits for its locks in short turns, so that nobody waits long behind it.
func (r *repacking) clean(ctx context.Context, left []repackLeftover) error {
	for _, one := range left {
		limit, cancel := context.WithTimeout(ctx, max(r.WaitTimeout, time.Second))
		var final error
		err := await(limit, func(context.Context) error { // a statement that is broken off costs the connection
			_, err := r.conn.Exec(ctx, "SET LOCAL lock_timeout = '1s'; "+one.drop)
			var own *pgconn.PgError
			if errors.As(err, &own) && own.Code == lockNotAvailable {
				return err
			}
			final = err
			return nil
		})
		cancel()
		if err := cmp.Or(err, final); err != nil {
			return fmt.Errorf("removing %s: %w", one.what, err)
		}
		r.console.Say("removed %s, which a broken run had left", one.what)
	}
	return nil
}

// extend makes the extension where there is none.
func (r *repacking) extend(ctx context.Context, version string) error {
	var have string
	err := r.conn.QueryRow(ctx, "SELECT extversion FROM pg_extension WHERE extname = 'pg_repack'").Scan(&have)
	switch {
	case err == nil && have != version:
		return refusedf("nothing was repacked: the extension pg_repack of the database %s is %s, the program is %s: DROP EXTENSION pg_repack there, and run this again",
			r.conn.Config().Database, have, version)
	case err == nil:
		return nil
	case !errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("looking for the extension pg_repack: %w", err)
	}
	if _, err := r.conn.Exec(ctx, "CREATE EXTENSION pg_repack"); err != nil {
		return fmt.Errorf("nothing was repacked: making the extension pg_repack on %s: %w; install the package postgresql-VERSION-repack there", r.leader.Name, err)
	}
	r.made = true
	return nil
}

// withdraw removes the extension that was made for this run, if nothing hangs on it.
func (r *repacking) withdraw(ctx context.Context) error {
	if !r.made {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, repackEnd)
	defer cancel()
	if _, err := r.conn.Exec(ctx, "SET LOCAL lock_timeout = '10s'; DROP EXTENSION pg_repack"); err != nil {
		return fmt.Errorf("the extension pg_repack, which was made for this run, stays in the database %s: %w", r.conn.Config().Database, err)
	}
	return nil
}

// repackDirs are where the leader writes.
type repackDirs struct{ data, wal string }

// directories finds the leader's data directory on this host, or returns that it is on another one.
func (r *repacking) directories(ctx context.Context) (repackDirs, error) {
	var data string
	var started int64
	err := r.conn.QueryRow(ctx, "SELECT current_setting('data_directory'), extract(epoch FROM pg_postmaster_start_time())::bigint").Scan(&data, &started)
	if err != nil {
		return repackDirs{}, fmt.Errorf("asking %s for its data directory: %w", r.leader.Name, err)
	}
	elsewhere := func(why error) error {
		return refusedf("how much room there is can be seen on the host of %s only (%s), as PostgreSQL's user: run it there: %w", r.leader.Name, r.address(), why)
	}
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return repackDirs{}, elsewhere(err)
	}
	const startLine = 2
	if lines := strings.Split(string(content), "\n"); len(lines) <= startLine {
		return repackDirs{}, elsewhere(errors.New("postmaster.pid is cut off"))
	} else if at, err := strconv.ParseInt(lines[startLine], 10, 64); err != nil || max(at, started)-min(at, started) > 1 {
		return repackDirs{}, elsewhere(fmt.Errorf("%s is of another PostgreSQL", data))
	}
	return repackDirs{data: data, wal: filepath.Join(data, "pg_wal")}, nil
}

// onFileSystem is what a directory is on.
type onFileSystem struct {
	dir        string
	device     uint64
	size, free int64
}

func fileSystem(dir string) (onFileSystem, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := cmp.Or(unix.Statfs(dir, &fs), unix.Stat(dir, &st)); err != nil {
		return onFileSystem{}, fmt.Errorf("%s: %w", dir, err)
	}
	return onFileSystem{dir: dir, device: st.Dev, size: int64(fs.Blocks) * fs.Bsize, free: int64(fs.Bavail) * fs.Bsize}, nil //nolint:gosec // no disk is that large
}
