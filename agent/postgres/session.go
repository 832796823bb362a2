package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// session is what is asked of the local PostgreSQL in SQL.
type session struct {
	*installation
	process process                // the postmaster, whom it talks to
	private atomic.Pointer[string] // the directory of the only socket, while a bootstrap is at work

	// sql holds the kept connection, or nil, while nobody uses it: who takes it
	// out is its only user, and waits no longer than its own context.
	sql chan *pgx.Conn

	// answered is when the postmaster last answered a new connection.
	answered atomic.Int64

	// ownCommit: the kept connection was given a synchronous_commit of its role's, its database's or of everybody's
	// (ALTER ROLE, ALTER DATABASE), and does not show the server's. Who has it taken out may touch this.
	ownCommit bool
}

// dedicated opens a connection of the superuser; the caller closes it.
func (p *session) dedicated(ctx context.Context) (*pgx.Conn, error) {
	return p.connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, p.database(), agentName)
}

// take takes the kept connection, made anew when it is broken. Who takes it
// gives it back.
func (p *session) take(ctx context.Context) (*pgx.Conn, error) {
	var conn *pgx.Conn
	select {
	case conn = <-p.sql:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the connection to PostgreSQL: %w", ctx.Err())
	}
	if conn != nil && !conn.IsClosed() {
		return conn, nil
	}
	// What others are shown for synchronous_commit stays visible below a value that is set in the session, not at its start.
	params := sessionParams(agentName, p.major)
	commit := params[synchronousCommit]
	delete(params, synchronousCommit)
	conn, err := p.connectAs(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, p.database(), params)
	if err != nil {
		p.give(nil)
		return nil, err
	}
	// PostgreSQL 14 and later may end sessions that are idle, which this one mostly is. Where the values came from is read before.
	if err := conn.QueryRow(ctx, `SELECT bool_or(name = $1 AND source IN ('global', 'database', 'user', 'database user'))
		FROM (SELECT name, source, set_config(name, CASE name WHEN $1 THEN $2 ELSE '0' END, false) AS now FROM pg_settings WHERE name IN ($1, 'idle_session_timeout')) AS own
		WHERE now IS NOT NULL`, synchronousCommit, commit).Scan(&p.ownCommit); err != nil {
		hangUpOn(conn)
		p.give(nil)
		return nil, fmt.Errorf("connecting to PostgreSQL: %w", err)
	}
	return conn, nil
}

func (p *session) give(conn *pgx.Conn) { p.sql <- conn }

// hangUp closes the kept connection, which has no use when PostgreSQL ends.
func (p *session) hangUp() {
	select {
	case conn := <-p.sql:
		if conn != nil {
			hangUpOn(conn)
		}
		p.give(nil)
	default: // it is in use, and breaks with the server
	}
}

// hangUpOn closes a connection without waiting for a server that hangs.
func hangUpOn(conn interface{ Close(context.Context) error }) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is left to be done about it
}

// errElsewhere: PostgreSQL works in another directory than the one that it is to.
var errElsewhere = errors.New("its data directory is not the one that is configured")

// worksHere compares the data directory that PostgreSQL says it works in with the one
// that is configured, which all else is about: control file, rewind, disk probe.
func (p *session) worksHere(says string) error {
	if filepath.Clean(says) == p.dataDir {
		return nil
	}
	its, err := p.disk.Stat(says)
	if err != nil {
		return fmt.Errorf("%w: it works in %s, not in %s: %w", errElsewhere, says, p.dataDir, err)
	}
	here, err := p.disk.Stat(p.dataDir)
	if err != nil {
		return fmt.Errorf("%w: it works in %s, not in %s: %w", errElsewhere, says, p.dataDir, err)
	}
	if !os.SameFile(its, here) {
		return fmt.Errorf("%w: it works in %s, not in %s; remove data_directory from its settings", errElsewhere, says, p.dataDir)
	}
	return nil
}

// checkDataDir asks a running PostgreSQL where it works. Only errElsewhere says that
// it is not here.
func (p *session) checkDataDir(ctx context.Context, conn *pgx.Conn) error {
	var dir string
	if err := conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&dir); err != nil {
		return fmt.Errorf("asking PostgreSQL for its data directory: %w", err)
	}
	return p.worksHere(dir)
}

// Checkpoint makes a checkpoint.
func (p *session) Checkpoint(ctx context.Context) error {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// Clients is how many clients have a connection to PostgreSQL, besides its agent.
func (p *session) Clients(ctx context.Context) (int, error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return 0, err
	}
	defer hangUpOn(conn)
	var n int
	err = conn.QueryRow(ctx, `SELECT count(*) FROM pg_catalog.pg_stat_activity
		WHERE backend_type = 'client backend' AND NOT (application_name = $1 AND usename = current_user)`, agentName).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting the clients of PostgreSQL: %w", err)
	}
	return n, nil
}

// LongTransactions counts the transactions of clients that have run for longer than
// least.
func (p *session) LongTransactions(ctx context.Context, least time.Duration) (n int, err error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return 0, err
	}
	defer hangUpOn(conn)
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"+
		" AND xact_start < clock_timestamp() - $1 * interval '1 millisecond'", least.Milliseconds()).Scan(&n); err != nil {
		return 0, fmt.Errorf("looking for long transactions: %w", err)
	}
	return n, nil
}
