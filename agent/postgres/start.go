package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/environ"
)

// server is PostgreSQL as it is started, promoted and stopped.
type server struct {
	*installation
	*confFiles
	*dataDirectory
	*walDir
	*session
	*processes
	*checker
}

// Role is primary or replica.
type Role string

// The two roles.
const (
	Primary Role = "primary"
	Replica Role = "replica"
)

// StartAs says how to start.
type StartAs struct {
	Role Role
	// Upstream is whom a replica follows; nil: nobody.
	Upstream *Upstream
	// Sync is whom a primary's commits wait for from the first one on; nil: for whom
	// its configuration file says.
	Sync *SyncSetting
}

// StartedAs is the role that the running PostgreSQL was started in, or promoted
// to; empty when it was found running.
func (p *confFiles) StartedAs() Role { return p.getRuns().role }

// acceptWithin is how long Start waits for SQL to be answered. A PostgreSQL that
// needs longer (crash recovery) is watched by Observe.
const acceptWithin = 5 * time.Second

// Start starts PostgreSQL in a role. What an earlier postmaster left behind is
// killed first. When it returns without an error the postmaster lives, and
// mostly accepts connections.
func (p *server) Start(ctx context.Context, s StartAs) error {
	if p.Running() {
		return errors.New("PostgreSQL runs already")
	}
	if err := p.refuseUpgrading(); err != nil {
		return fmt.Errorf("not started: %w", err)
	}
	d, err := p.DataDir(ctx)
	switch {
	case err != nil:
		return err
	case d.State == Foreign:
		return fmt.Errorf("not started: %s", d.Problem)
	case d.State != Valid:
		return fmt.Errorf("not started: the data directory is %s", d.State)
	}
	if cut, err := p.rewindCutShort(); err != nil {
		return err
	} else if cut {
		return fmt.Errorf("not started: a rewind of the data directory was cut short (%s): it is half-written and must be cloned anew (reinit)", p.stateFile("rewinding"))
	}
	if err := p.killLeftovers(ctx); err != nil {
		return err
	}
	if err := p.refuseShared(); err != nil {
		return fmt.Errorf("not started: %w", err)
	}
	if err := p.unskipTimelines(); err != nil {
		return fmt.Errorf("not started: %w", err)
	}
	a := as{role: s.Role, upstream: s.Upstream}
	switch {
	case s.Role == Replica:
		// First: data that are a primary's must not forget whom their commits wait for.
		if err := p.makeStandby(); err != nil {
			return err
		}
		p.setSyncNames("")
		if err := p.removePartialSegment(ctx, d.Control); err != nil {
			return fmt.Errorf("not started: %w", err)
		}
	case s.Sync != nil:
		p.setSyncNames(s.Sync.value())
	}
	p.judge(ctx)
	if err := p.writeConfigToRun(a); err != nil {
		return err
	}
	if err := p.checkPlace(); err != nil {
		return fmt.Errorf("not started: %w", err)
	}
	if err := p.setSignalFile(s.Role); err != nil {
		return err
	}
	p.tellRaised(a.role, d.Control)
	return p.launch(ctx, a, p.arguments(a, d.Control), s.Role == Primary)
}

// launch starts the postmaster and waits until it accepts connections. With leased
// it is a primary under a lease.
func (p *server) launch(ctx context.Context, a as, args []string, leased bool) error {
	path, err := p.program("postgres")
	if err != nil {
		return err
	}
	p.hangUp() // on the server of before, which would not be waited for then
	logFile := p.stateFile("postgres.log")
	offset := p.fileSize(logFile)
	pid, err := p.launcher.Start(ctx, Command{
		Path: path, Args: args, Env: environ.For(p.pass), Dir: p.dataDir, Credential: p.credential, LogFile: logFile, Primary: leased,
	})
	if err != nil {
		return err
	}
	p.setRuns(a)
	if err := p.hold(pid); err != nil {
		return fmt.Errorf("PostgreSQL ended at once: %s: %w", p.logTail(logFile, offset), err)
	}
	gone := p.process.done()
	limit, cancel := context.WithTimeout(ctx, acceptWithin)
	defer cancel()
	for {
		attempt, cancel := context.WithTimeout(limit, time.Second)
		conn, err := p.take(attempt)
		cancel()
		if err == nil {
			err = p.checkDataDir(limit, conn)
			p.give(conn)
			if errors.Is(err, errElsewhere) {
				return errors.Join(fmt.Errorf("PostgreSQL is stopped again: %w", err), p.Kill(ctx))
			}
			return nil
		}
		if refused := new(pgconn.PgError); errors.As(err, &refused) && refused.Code != startingUp {
			return nil // it runs, and says why it lets nobody in: Observe reports it
		}
		select {
		case <-gone:
			return fmt.Errorf("PostgreSQL did not start: %s", p.logTail(logFile, offset))
		case <-limit.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// startingUp is the SQLSTATE cannot_connect_now.
const startingUp = "57P03"

// Promote makes the running replica a primary, on a timeline with a number above
// one that may be taken, and waits until it is one.
func (p *server) Promote(ctx context.Context, above int) error {
	return p.PromoteAfter(ctx, above, func(context.Context) error { return nil })
}

// PromoteAfter is Promote with something to be done when nothing is left but to ask
// PostgreSQL; its error ends the promotion.
func (p *server) PromoteAfter(ctx context.Context, above int, last func(context.Context) error) error {
	conn, err := p.dedicated(ctx)
	if noSlot(err) {
		return p.promoteUnasked(ctx, above, last)
	}
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	var own int
	const query = "SELECT greatest(timeline_id, (SELECT min_recovery_end_timeline FROM pg_control_recovery())) FROM pg_control_checkpoint()"
	if err := conn.QueryRow(ctx, query).Scan(&own); err != nil {
		return fmt.Errorf("promoting: asking for the timeline: %w", err)
	}
	if err := p.skipTimelines(own, above); err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	if err := last(ctx); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_promote(false)"); err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	commands := p.hurry()
	for {
		var recovering bool
		var replayed int64
		const query = "SELECT pg_is_in_recovery(), COALESCE(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, 0)"
		if err := conn.QueryRow(ctx, query).Scan(&recovering, &replayed); err != nil {
			return fmt.Errorf("promoting: %w", err)
		}
		if !recovering {
			p.promoted()
			p.tellArchive(ctx, conn)
			return nil
		}
		commands.look(replayed)
		if commands.standsStill() {
			commands.endReaders(ctx, conn)
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("promoting: %w", ctx.Err())
		}
	}
}

// tellArchive has the new primary archive the histories of timelines that it has passed over. What fails keeps nobody
// from being promoted.
func (p *server) tellArchive(ctx context.Context, conn *pgx.Conn) {
	var archives bool
	err := conn.QueryRow(ctx, "SELECT current_setting('archive_mode') <> 'off'").Scan(&archives)
	if err == nil && archives {
		err = p.archiveSkipped()
	}
	if err != nil {
		p.log.Warn().Err(err).Msg("standbys that follow by the archive alone may not find the new timeline")
	}
}

// promoteUnasked promotes where no connection is to be had, those of WAL senders taken,
// too: by the file and the signal that pg_ctl promote makes. The control file says when
// it is done.
func (p *server) promoteUnasked(ctx context.Context, above int, last func(context.Context) error) error {
	p.log.Warn().Msg("no connection slot is free, not even a WAL sender's: promoting by a signal")
	c, err := p.control(ctx)
	if err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	if err := p.skipTimelines(max(c.Timeline, c.MinRecoveryTimeline), above); err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	if err := last(ctx); err != nil {
		return err
	}
	if err := p.writeFile(p.inData("promote"), ""); err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	if err := p.signal(syscall.SIGUSR1); err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	commands := p.hurry()
	for {
		if c, err = p.control(ctx); err == nil && c.State == "in production" {
			p.promoted()
			return nil
		}
		commands.look(0) // how far it has come nobody says
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("promoting: %w", ctx.Err())
		}
	}
}

// promoted notes that PostgreSQL is a primary.
func (p *server) promoted() {
	// What they had acknowledged before, if it had to be got again, they have from now on by definition: an agent
	// that is killed now must not find them in need of it.
	if err := p.endLoss(); err != nil {
		p.log.Warn().Err(err).Msg("it could not be noted that this member has all data again")
	}
	p.setRuns(as{role: Primary})
	p.endReplicasCleanup()
}

// Rewrite writes the configuration files anew and makes PostgreSQL read them. It
// tells whether they have changed.
func (p *server) Rewrite(ctx context.Context) (changed bool, err error) {
	if !p.Running() {
		return false, nil // the next start writes them
	}
	p.judge(ctx)
	before := p.configuration()
	if err := p.rewriteConfig(); err != nil {
		return false, err
	}
	return p.configuration() != before, p.signal(syscall.SIGHUP)
}

// configuration is what the configuration files say.
func (p *server) configuration() string {
	var all strings.Builder
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
		content, err := p.disk.ReadFile(p.inConf(name))
		fmt.Fprintf(&all, "%s\n%v\n%s\n", name, err, content)
	}
	return all.String()
}
