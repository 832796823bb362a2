package bouncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/pgbouncer"
)

const (
	// pauseConns is the number of admin connections that may wait in PAUSE at
	// one time; further ones queue.
	pauseConns = 64
	// pauseIdle is how many finished ones are kept ready for the next PAUSE.
	pauseIdle = 4
	// pauseBound is how long PgBouncer may take to accept a PAUSE.
	pauseBound = 500 * time.Millisecond
	pausePace  = 3 * time.Millisecond
)

// hold says that the clients of a shard wait because it has no primary.
type hold struct {
	since, deadline time.Time
	// leader is the one that is awaited; another one gets a deadline of its own.
	leader string
	// expired: the dead man's timer has released the clients.
	expired bool
	// paused is when PAUSE was last asked for without notice, when logins had
	// failed maybe.
	paused time.Time
}

// pauser runs PAUSE commands. Each waits on a connection of its own, since it
// returns only when the last transaction of its database has ended; new queries
// wait from the moment PgBouncer accepts it.
type pauser struct {
	config Config
	log    zerolog.Logger
	// notify is called when a PAUSE has succeeded.
	notify func()

	slots   chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex
	idle   []*pgbouncer.Conn
	closed bool
	pauses map[string]*pause
}

// pause is one PAUSE command.
type pause struct {
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // after ended
}

func newPauser(c Config, log zerolog.Logger, notify func()) *pauser {
	return &pauser{
		config: c, log: log, notify: notify,
		slots: make(chan struct{}, pauseConns), pauses: map[string]*pause{},
	}
}

// errLogins says that PAUSE would have cut off logins.
var errLogins = errors.New("logins to the primary are under way")

// start begins to pause a database, unless that is under way. With careful it fails
// with errLogins instead of cutting off logins.
func (p *pauser) start(ctx context.Context, database string, careful bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pauses[database] != nil || p.closed {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	one := &pause{cancel: cancel, ended: make(chan struct{})}
	p.pauses[database] = one
	p.running.Go(func() {
		defer cancel()
		one.err = p.run(ctx, database, careful)
		close(one.ended)
		if one.err == nil {
			p.notify()
		}
	})
}

func (p *pauser) run(ctx context.Context, database string, careful bool) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// A kept connection may have died with its PgBouncer: then a new one.
	if conn := p.takeIdle(); conn != nil {
		if err := pauseBy(ctx, conn, database, careful); err == nil || ctx.Err() != nil || !conn.Closed() {
			p.giveBack(conn)
			return err
		}
		conn.Close()
	}
	conn, err := dialAdmin(ctx, p.config)
	if err != nil {
		return fmt.Errorf("holding the clients of %s: %w", database, err)
	}
	err = pauseBy(ctx, conn, database, careful)
	p.giveBack(conn)
	if err != nil {
		return fmt.Errorf("holding the clients of %s: %w", database, err)
	}
	return nil
}

// pauseBy pauses a database. With careful it looks for logins right before: the less
// time there is in between, the fewer can begin.
func pauseBy(ctx context.Context, conn *pgbouncer.Conn, database string, careful bool) error {
	if careful {
		pools, err := bounded(ctx, conn.Pools)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(pools, func(p pgbouncer.Pool) bool { return p.Database == database && p.ServersIn > 0 }) {
			return errLogins
		}
	}
	return conn.Pause(ctx, database)
}

func (p *pauser) takeIdle() *pgbouncer.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil
	}
	conn := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return conn
}

func (p *pauser) giveBack(conn *pgbouncer.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn.Closed() || p.closed || len(p.idle) >= pauseIdle {
		conn.Close()
		return
	}
	p.idle = append(p.idle, conn)
}

// warm makes one connection ready, so that the first PAUSE does not wait for a
// login.
func (p *pauser) warm(ctx context.Context) {
	p.mu.Lock()
	ready := len(p.idle) > 0
	p.mu.Unlock()
	if ready {
		return
	}
	if conn, err := dialAdmin(ctx, p.config); err == nil { // else: the PAUSE will tell
		p.giveBack(conn)
	}
}

// ended tells whether the PAUSE of a database is over and how it ended. The
// database may nevertheless still be paused, that is what a PAUSE is for.
func (p *pauser) ended(database string) (bool, error) {
	p.mu.Lock()
	one := p.pauses[database]
	p.mu.Unlock()
	if one == nil {
		return true, nil
	}
	select {
	case <-one.ended:
		return true, one.err
	default:
		return false, nil
	}
}

// stop abandons the PAUSE of a database: a RESUME alone would leave it hanging.
// What PgBouncer has accepted stays until RESUME.
func (p *pauser) stop(database string) {
	p.mu.Lock()
	one := p.pauses[database]
	delete(p.pauses, database)
	p.mu.Unlock()
	if one != nil {
		one.cancel()
		<-one.ended
	}
}

// forget drops what is known of earlier PAUSEs: PgBouncer was started anew.
func (p *pauser) forget() {
	p.mu.Lock()
	var names []string
	for name := range p.pauses {
		names = append(names, name)
	}
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, conn := range idle {
		conn.Close()
	}
	for _, name := range names {
		p.stop(name)
	}
}

// close abandons everything and waits.
func (p *pauser) close() {
	p.mu.Lock()
	p.closed = true
	for _, one := range p.pauses {
		one.cancel()
	}
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, conn := range idle {
		conn.Close()
	}
	p.running.Wait()
}
