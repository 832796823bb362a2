package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// replication is whom PostgreSQL follows, and who follows it: upstreams, slots, synchronous
// standbys.
type replication struct {
	*installation
	*confFiles
	*session
	*processes
	*server
	// detaching is held while the note of a detachment is written or dropped: one that is written meanwhile must not be dropped for the one before.
	detaching sync.Mutex
}

// Follow points the running replica at another upstream.
func (p *replication) Follow(ctx context.Context, u Upstream) error {
	a := as{role: Replica, upstream: &u}
	if err := p.writeConfigToRun(a); err != nil {
		return err
	}
	if p.major >= reloadableConninfo {
		return p.signal(syscall.SIGHUP)
	}
	if err := p.Stop(ctx, Fast); err != nil {
		return err
	}
	return p.Start(ctx, StartAs{Role: Replica, Upstream: &u})
}

// Unfollow makes the running replica follow nobody. When it returns without an error,
// the replica receives and acknowledges nothing any more: its position stays where it
// is, but for what it has yet to replay.
//
// That a WAL receiver ends with the setting cannot be relied on: the startup process
// looks after it only when it has replayed all there is. So it is ended here, after
// the startup process was told of the setting.
func (p *replication) Unfollow(ctx context.Context) error {
	a := as{role: Replica}
	if err := p.writeConfigToRun(a); err != nil {
		return err
	}
	if p.major < reloadableConninfo {
		if err := p.Stop(ctx, Fast); err != nil {
			return err
		}
		return p.Start(ctx, StartAs{Role: Replica})
	}
	if err := p.signal(syscall.SIGHUP); err != nil {
		return err
	}
	told := false
	for {
		receiver, err := p.walReceiver(ctx, &told)
		switch {
		case err != nil && !p.Running():
			return fmt.Errorf("following nobody: %w", err)
		case err == nil && told && receiver == 0:
			return nil
		case err == nil && told:
			// One that has ended meanwhile is as good.
			if err := unix.Kill(receiver, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("ending the WAL receiver: %w", err)
			}
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("clearing primary_conninfo did not take effect: %w", errors.Join(err, ctx.Err()))
		}
	}
}

// walReceiver is the process id of the WAL receiver, also of one that is not
// connected yet; zero: there is none. told becomes true when a new session has the
// setting that nobody is followed: the postmaster is then done with passing the
// signal on to the startup process, as it does one thing at a time.
func (p *session) walReceiver(ctx context.Context, told *bool) (pid int, err error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return 0, err
	}
	defer hangUpOn(conn)
	err = conn.QueryRow(ctx, `SELECT current_setting('primary_conninfo') = '',
		COALESCE((SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver' LIMIT 1), 0)`).Scan(told, &pid)
	return pid, err
}

// Upstream is the name of whom the replica that runs is set up to follow; of one that
// was found running its address; empty: nobody.
func (p *confFiles) Upstream() string {
	if a := p.getRuns(); a.upstream != nil {
		return a.upstream.Name
	}
	return ""
}

// wakePostmaster makes the postmaster look after what it was asked for. The startup
// process asks for a new WAL receiver as soon as the old one has told it that it ends,
// which the postmaster may learn after the request. It keeps the request then, but up to
// version 15 it may go to sleep on it: when it hears of the end between its look at
// requests and its select(). What wakes it is a new session, a signal, or the end of its
// minute; else the startup process asks again after 15 s, as it looks every 5 s whether
// more than 10 have passed (ServerLoop in src/backend/postmaster/postmaster.c,
// WALRCV_STARTUP_TIMEOUT). Nothing of this is in a log.
//
// SIGUSR1 without a request means nothing to a postmaster that answers SQL: it looks
// what there is to do, as it does for pg_ctl promote.
func (p *replication) wakePostmaster() error { return p.signal(syscall.SIGUSR1) }
