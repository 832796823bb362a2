package pooler

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const (
	// CommandBound bounds a connection attempt and every simple command.
	CommandBound = 3 * time.Second
	// linkPing is how often PgBouncer is asked whether it still answers. Its
	// end needs no question: the connection ends with it.
	linkPing = 2 * time.Second
	// linkRetry is the pause between attempts to reach a PgBouncer that is not
	// there; it is local and starts when it likes.
	linkRetry = 100 * time.Millisecond
	// knockPace is how often a PgBouncer on another host that has no clients is asked whether it
	// takes any: its log has a line of each.
	knockPace = 10 * time.Second
)

// Link watches whether PgBouncer is there. It holds one connection to the admin
// console whose end says at once that PgBouncer has ended.
type Link struct {
	config config.Config
	log    zerolog.Logger
	notify func()
	// knocked is when a PgBouncer on another host was last asked whether it takes connections; of
	// the goroutine of Run alone.
	knocked time.Time

	mu    sync.Mutex
	state LinkState
	// door is the port of the PgBouncer that is up, nil: it cannot be seen.
	door *door
}

// doorClosed reports whether PgBouncer takes clients no more, for sure.
func (l *Link) doorClosed() bool {
	l.mu.Lock()
	d := l.door
	l.mu.Unlock()
	return d.closed()
}

// LinkState is what is known of PgBouncer.
type LinkState struct {
	Up      bool
	Version pgbouncer.Version
	// Generation counts the times that it came up: each may be a new process.
	Generation int
	Since      time.Time
	Err        error
	// Absent: no client can come to it, as nobody listens at its unix socket, or as it ends.
	Absent bool
	// Open is where the console lets everybody in, empty: nowhere that is known; OpenTo is as whom.
	Open, OpenTo string
}

func NewLink(c config.Config, log zerolog.Logger, notify func()) *Link {
	return &Link{config: c, log: log, notify: notify}
}

// Now is what is known of PgBouncer.
func (l *Link) Now() LinkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Run watches until ctx is done.
func (l *Link) Run(ctx context.Context) {
	for ctx.Err() == nil {
		err := l.hold(ctx)
		if ctx.Err() != nil {
			return
		}
		l.down(err)
		for again := true; again && ctx.Err() == nil; again = l.isEnding() {
			select {
			case <-ctx.Done():
			case <-time.After(linkRetry):
			}
		}
	}
}

// isEnding reports whether PgBouncer was let go because it ends, and has not ended yet: it
// would wait for another connection, too.
func (l *Link) isEnding() bool { return errors.Is(l.Now().Err, errDone) && l.doorClosed() }

// isAbsent reports whether an error of connecting to a unix socket says that nobody listens
// there. One whose file was removed, or replaced, listens all the same, and PgBouncer's port
// with it.
func isAbsent(err error, path string) bool {
	return (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)) && !listensAt(path, socketTable)
}

// isAbsent reports whether an error says that nobody listens at the console's unix socket.
func (l *Link) isAbsent(err error) bool {
	options, e := l.config.Admin()
	return e == nil && options.Address.IsUnix() && isAbsent(err, socketPath(options.Address))
}

// hold connects and returns when the connection has ended or no answer comes.
func (l *Link) hold(ctx context.Context) error {
	conn, err := dialAdmin(ctx, l.config)
	if err != nil {
		return err
	}
	defer conn.Close()
	version, err := bounded(ctx, conn.Version)
	if err != nil {
		return err
	}
	l.up(version, doorOf(l.config, conn))
	l.lookAtConsole(ctx, conn)
	for {
		wait, cancel := context.WithTimeout(ctx, linkPing)
		err := conn.AwaitEnd(wait)
		cancel()
		if err == nil && ctx.Err() == nil {
			_, err = bounded(ctx, conn.Version)
		}
		if err == nil && l.Now().Open != "" {
			l.lookAtConsole(ctx, conn) // until it is closed
		}
		if err == nil && ctx.Err() == nil && l.isDone(ctx, conn, version) {
			return errDone
		}
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// lookAtConsole notes where the console lets everybody in.
func (l *Link) lookAtConsole(ctx context.Context, conn *pgbouncer.Conn) {
	open, user := openConsole(ctx, l.config, conn)
	l.mu.Lock()
	changed := l.state.Open != open || l.state.OpenTo != user
	l.state.Open, l.state.OpenTo = open, user
	l.mu.Unlock()
	switch {
	case changed && open != "":
		l.log.Error().Bool("alarm", true).Str("address", open).Str("user", user).Str("auth_file", l.config.Setting("auth_file")).
			Msg("PgBouncer's console lets everybody in with an empty password; give that user one in auth_file, and RELOAD")
	case changed:
		l.log.Info().Msg("PgBouncer's console lets nobody in any more without a password")
	}
}

// errDone says that PgBouncer ends, and waits for nobody but this bouncer.
var errDone = errors.New("PgBouncer was told to end when its clients have gone, and they have")

// isDone reports whether PgBouncer takes no more clients and has none left. From 1.23 on it
// ends by SIGTERM only when all have gone, connections to its console included; until
// then its clients follow the routes as ever.
func (l *Link) isDone(ctx context.Context, conn *pgbouncer.Conn, version pgbouncer.Version) bool {
	beside := l.config.IsBeside()
	if !version.AtLeast(1, 23) || beside && isListening(l.config, socketTable) && !l.doorClosed() {
		return false
	}
	pools, err := bounded(ctx, conn.Pools)
	if err != nil || slices.ContainsFunc(pools, func(p pgbouncer.Pool) bool { return p.ClientsActive+p.ClientsWaiting > 0 }) {
		return false
	}
	if beside {
		return true
	}
	if time.Since(l.knocked) < knockPace {
		return false
	}
	l.knocked = time.Now()
	return isRefused(ctx, l.config)
}

// isRefused reports whether PgBouncer's host takes no connection at the port of the console.
func isRefused(ctx context.Context, c config.Config) bool {
	options, err := c.Admin()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, CommandBound)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(options.Address.Host, strconv.Itoa(options.Address.Port)))
	if err == nil {
		_ = conn.Close() // it takes connections, which is all that was asked
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

func (l *Link) up(v pgbouncer.Version, d *door) {
	l.mu.Lock()
	l.door = d
	l.state = LinkState{Up: true, Version: v, Generation: l.state.Generation + 1, Since: time.Now()}
	l.mu.Unlock()
	l.log.Info().Stringer("version", v).Str("admin", l.config.PgBouncer.Admin).Msg("PgBouncer answers")
	l.notify()
}

// down notes a failure; it is logged once until PgBouncer was there again or
// fails in another way.
func (l *Link) down(err error) {
	l.mu.Lock()
	known := !l.state.Up && l.state.Err != nil && err != nil && l.state.Err.Error() == err.Error()
	was := l.state.Up
	if !errors.Is(err, errDone) {
		l.door = nil
	}
	l.state.Open, l.state.OpenTo = "", ""
	l.state.Up, l.state.Err, l.state.Absent = false, err, l.isAbsent(err) || errors.Is(err, errDone)
	if was {
		l.state.Since = time.Now()
	}
	l.mu.Unlock()
	if !known {
		l.log.Warn().Err(err).Msg("PgBouncer cannot be reached; its configuration file is kept right meanwhile")
		l.notify()
	}
}
