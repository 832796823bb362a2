package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Mode is how PostgreSQL is stopped.
type Mode syscall.Signal

// The ways to stop.
const (
	Fast      = Mode(syscall.SIGINT)  // transactions are aborted, standbys get all WAL
	Immediate = Mode(syscall.SIGQUIT) // as a crash
)

const (
	// archiverPatience is how long an archive_command may go on when PostgreSQL is shut
	// down but for it and whoever has to have the WAL has it. What it has not archived by
	// then is archived after the next start; a command that was cut off is repeated.
	archiverPatience = 2 * time.Second
	// reapLimit bounds ending the processes of a PostgreSQL that is shut down when the
	// time for stopping it is over.
	reapLimit = 2 * time.Second
)

// Stop stops PostgreSQL and waits until all of its processes have ended. Its standbys
// get all WAL, for as long as ctx allows.
func (p *server) Stop(ctx context.Context, mode Mode) error {
	return p.StopWhen(ctx, mode, func(ctx context.Context, _ int64) error { return p.awaitSenders(ctx) })
}

// StopWithin stops PostgreSQL as StopWhen does, with served, or as Stop does, without it.
// What has not stopped within limit is killed: a process that does not react keeps the
// others waiting for ever.
func (p *server) StopWithin(ctx context.Context, limit time.Duration, served func(ctx context.Context, checkpoint int64) error) error {
	if served == nil {
		served = func(ctx context.Context, _ int64) error { return p.awaitSenders(ctx) }
	}
	stop, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := p.StopWhen(stop, Fast, served)
	if err == nil || ctx.Err() != nil {
		return err
	}
	p.log.Error().Err(err).Dur("limit", limit).Msg("PostgreSQL does not stop in time; it is killed")
	kill, cancel := context.WithTimeout(ctx, reapLimit)
	defer cancel()
	return p.Kill(kill)
}

// StopWhen stops PostgreSQL as Stop does, and lets served say when the standbys have
// what they must have. It is called once the control file says that PostgreSQL is shut
// down, with the position of its last checkpoint; it returns nil when they have, and
// its context ends when PostgreSQL has. What is left by then, an archive_command that
// hangs or a WAL sender whose standby does not answer, is ended: nothing that was
// acknowledged depends on it. So it is when the deadline of ctx passes.
func (p *server) StopWhen(ctx context.Context, mode Mode, served func(ctx context.Context, checkpoint int64) error) error {
	written := int64(0)
	if mode == Fast {
		written = p.writtenBeforeStop(ctx)
	}
	p.hangUp()
	if err := p.signal(syscall.Signal(mode)); err != nil {
		return err
	}
	checkpoint, err := p.awaitShutdown(ctx, written)
	if err == nil && checkpoint > 0 {
		err = p.awaitServed(ctx, checkpoint, served)
	}
	switch {
	case err == nil:
		return p.Kill(ctx)
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded) && checkpoint > 0:
		// It cannot be told to go on, and serves nobody as it is.
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), reapLimit)
		defer cancel()
		return errors.Join(err, p.Kill(limit))
	}
	return err
}

// awaitShutdown waits until the postmaster has ended, or, with the position of its
// shutdown checkpoint, until nothing is left for it but to pass WAL on.
// WAL senders (written: endStuckSenders) and an archive_cleanup_command that keep it from
// that are ended.
func (p *server) awaitShutdown(ctx context.Context, written int64) (checkpoint int64, err error) {
	gone := p.process.done()
	if gone == nil {
		return 0, nil
	}
	looking, cancel := context.WithCancel(ctx)
	defer cancel()
	// Both end within a look at the processes after this call.
	go p.endStuckSenders(looking, written)
	go p.endCleanup(looking)
	found := make(chan int64, 1)
	// It ends with this call, or with the one look that a disk which hangs keeps: whoever
	// is to be fenced must not wait for that.
	go func() {
		for looking.Err() == nil {
			if c, err := p.control(looking); err == nil && c.IsShutDown() {
				found <- c.CheckpointLSN
				return
			}
			select {
			case <-time.After(pollEvery):
			case <-looking.Done():
			}
		}
	}()
	select {
	case checkpoint = <-found:
		return checkpoint, nil
	case <-gone:
		return 0, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("the postmaster has not ended: %w", ctx.Err())
	}
}

// awaitServed waits until the postmaster has ended, or, a while after the standbys
// have been served, no more.
func (p *server) awaitServed(ctx context.Context, checkpoint int64, served func(context.Context, int64) error) error {
	gone := p.process.done()
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	var err error
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		err = served(serving, checkpoint)
	}()
	select {
	case <-gone:
		cancel()
		<-answered
		return nil
	case <-answered:
	}
	if err != nil {
		if err := p.awaitExit(ctx); err == nil {
			return nil
		}
		return fmt.Errorf("PostgreSQL is shut down, but its processes do not end: %w", err)
	}
	timer := time.NewTimer(archiverPatience)
	defer timer.Stop()
	select {
	case <-gone:
	case <-ctx.Done():
	case <-timer.C:
		p.log.Warn().Msg("PostgreSQL is shut down, but its processes do not end (an archive_command, or a standby that does not answer); they are ended")
	}
	return nil
}

// IsShutDown reports whether the control file says that PostgreSQL has made its
// shutdown checkpoint, as a primary or as a standby.
func (c Control) IsShutDown() bool { return strings.HasPrefix(c.State, "shut down") }

// EndShutDown ends what is left of a PostgreSQL that is shut down. One that is not is
// left alone.
func (p *server) EndShutDown(ctx context.Context) error {
	if c, err := p.control(ctx); err != nil || !c.IsShutDown() || !p.isStopping() {
		return err
	}
	return p.Kill(ctx)
}
