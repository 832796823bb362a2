package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/environ"
)

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
func (p *Instance) StartedAs() Role { return p.getRuns().role }

// acceptWithin is how long Start waits for SQL to be answered. A PostgreSQL that
// needs longer (crash recovery) is watched by Observe.
const acceptWithin = 5 * time.Second

// Start starts PostgreSQL in a role. What an earlier postmaster left behind is
// killed first. When it returns without an error the postmaster lives, and
// mostly accepts connections.
func (p *Instance) Start(ctx context.Context, s StartAs) error {
	if p.Running() {
		return errors.New("PostgreSQL runs already")
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
	if err := p.unskipTimelines(); err != nil {
		return fmt.Errorf("not started: %w", err)
	}
	a := as{role: s.Role, upstream: s.Upstream}
	switch {
	case s.Role == Replica:
		// First: data that are a primary's must not forget whom their commits wait for.
		if err := p.setSignalFile(Replica); err != nil {
			return err
		}
		if err := p.syncDir(p.dataDir); err != nil {
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
func (p *Instance) launch(ctx context.Context, a as, args []string, leased bool) error {
	path, err := p.program("postgres")
	if err != nil {
		return err
	}
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

func (p *Instance) fileSize(path string) int64 {
	info, err := p.disk.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

func (p *Instance) logTail(path string, offset int64) string {
	f, err := p.disk.Open(path)
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		offset = max(offset, info.Size()-lookedAtOfLog) // the reason is at its end
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return "its log cannot be read: " + err.Error()
	}
	content, err := io.ReadAll(io.LimitReader(f, lookedAtOfLog))
	if err != nil || len(content) == 0 {
		return "it wrote nothing to its log " + path
	}
	return whyEnded(string(content))
}

// lookedAtOfLog is how many bytes of a log's end are looked at.
const lookedAtOfLog = 1 << 20

// whyEnded is the end of a log without what PostgreSQL has told clients that came while it
// started, and begins with what it has died of: whoever shows the first words of an error
// shows that. (A log in another language stays as it is.)
func whyEnded(log string) string {
	var lines []string
	reason, refused := "", false
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\n")
		if refused && strings.Contains(line, "DETAIL:  ") {
			continue
		}
		if refused = strings.Contains(line, "FATAL:  the database system is "); refused {
			continue
		}
		lines = append(lines, line)
		for _, level := range []string{"FATAL:  ", "PANIC:  "} {
			if _, said, found := strings.Cut(line, level); found {
				reason = said
			}
		}
	}
	text := tail(strings.Join(lines, "\n"), 1500)
	if reason == "" || strings.HasSuffix(text, reason) {
		return text
	}
	return reason + "; its log: " + text
}

// Promote makes the running replica a primary, on a timeline with a number above
// one that may be taken, and waits until it is one.
func (p *Instance) Promote(ctx context.Context, above int) error {
	return p.PromoteAfter(ctx, above, func(context.Context) error { return nil })
}

// PromoteAfter is Promote with something to be done when nothing is left but to ask
// PostgreSQL; its error ends the promotion.
func (p *Instance) PromoteAfter(ctx context.Context, above int, last func(context.Context) error) error {
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
	for {
		var recovering bool
		if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering); err != nil {
			return fmt.Errorf("promoting: %w", err)
		}
		if !recovering {
			p.setRuns(as{role: Primary})
			return nil
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("promoting: %w", ctx.Err())
		}
	}
}

// promoteUnasked promotes where no connection is to be had, those of WAL senders taken,
// too: by the file and the signal that pg_ctl promote makes. The control file says when
// it is done.
func (p *Instance) promoteUnasked(ctx context.Context, above int, last func(context.Context) error) error {
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
	for {
		if c, err = p.control(ctx); err == nil && c.State == "in production" {
			p.setRuns(as{role: Primary})
			return nil
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("promoting: %w", ctx.Err())
		}
	}
}

// Rewrite writes the configuration files anew and makes PostgreSQL read them. It
// tells whether they have changed.
func (p *Instance) Rewrite(ctx context.Context) (changed bool, err error) {
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
func (p *Instance) configuration() string {
	var all strings.Builder
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
		content, err := p.disk.ReadFile(p.inData(name))
		fmt.Fprintf(&all, "%s\n%v\n%s\n", name, err, content)
	}
	return all.String()
}

// Checkpoint makes a checkpoint.
func (p *Instance) Checkpoint(ctx context.Context) error {
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
func (p *Instance) Clients(ctx context.Context) (int, error) {
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
func (p *Instance) LongTransactions(ctx context.Context, least time.Duration) (n int, err error) {
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
