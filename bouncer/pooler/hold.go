package pooler

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Pauser runs PAUSE commands, many at a time by one connection. Nobody waits for their
// answers, which come when the transactions of all paused databases have ended.
type Pauser struct {
	config config.Config
	// notify is called when an answer has come.
	notify func()

	mu sync.Mutex
	// ready is a connection for the next PAUSE, logged in already; nil: none is.
	ready  *pgbouncer.Conn
	closed bool
	// ignore gives up waiting for the answer to the last PAUSE; nil: none waits.
	ignore  context.CancelFunc
	waiting sync.WaitGroup
}

func NewPauser(c config.Config, notify func()) *Pauser { return &Pauser{config: c, notify: notify} }

// Warm makes a connection ready, so that the next PAUSE does not wait for a login.
func (p *Pauser) Warm(ctx context.Context) {
	conn := p.take()
	if conn == nil {
		var err error
		if conn, err = dialAdmin(ctx, p.config); err != nil {
			return // the PAUSE will tell
		}
	}
	p.keep(conn)
}

func (p *Pauser) take() *pgbouncer.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	conn := p.ready
	p.ready = nil
	return conn
}

func (p *Pauser) keep(conn *pgbouncer.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.ready != nil || conn.Closed() {
		conn.Close()
		return
	}
	p.ready = conn
}

// Pause makes new queries of the databases wait. After an error that is none of
// PgBouncer's own words (ErrRefused) some may be paused, now or in a moment.
func (p *Pauser) Pause(ctx context.Context, databases []string) error {
	bound, cancel := context.WithTimeout(ctx, CommandBound)
	defer cancel()
	conn := p.take()
	kept := conn != nil
	for {
		if conn == nil {
			var err error
			if conn, err = dialAdmin(bound, p.config); err != nil {
				return fmt.Errorf("holding clients: %w", err)
			}
		}
		unanswered, err := conn.StartPauses(bound, databases)
		switch {
		case err == nil || errors.Is(err, pgbouncer.ErrRefused):
			if unanswered > 0 {
				p.await(ctx, conn)
			} else {
				p.keep(conn)
			}
		case kept && bound.Err() == nil: // it may have died with its PgBouncer
			conn.Close()
			conn, kept = nil, false
			continue
		default:
			conn.Close()
		}
		if err != nil {
			return fmt.Errorf("holding clients: %w", err)
		}
		return nil
	}
}

// await waits for the answer to a PAUSE, in place of that to an earlier one: it comes
// when all paused databases are quiet.
func (p *Pauser) await(ctx context.Context, conn *pgbouncer.Conn) {
	p.Quit()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return
	}
	ctx, p.ignore = context.WithCancel(ctx)
	p.waiting.Go(func() {
		defer conn.Close()
		p.Warm(ctx)
		if conn.AwaitPaused(ctx) == nil {
			p.notify()
		}
	})
}

// Quit stops waiting for an answer, which never comes to those who are resumed before.
func (p *Pauser) Quit() {
	p.mu.Lock()
	ignore := p.ignore
	p.ignore = nil
	p.mu.Unlock()
	if ignore != nil {
		ignore()
		p.waiting.Wait()
	}
}

// Forget drops connections to a PgBouncer that may have ended.
func (p *Pauser) Forget() {
	p.Quit()
	if conn := p.take(); conn != nil {
		conn.Close()
	}
}

// Close drops everything.
func (p *Pauser) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Forget()
}
