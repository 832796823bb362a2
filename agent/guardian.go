package agent

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// guardian keeps the guard's deadline in step with the lease. The loop leaves
// the latest deadline with it and goes on; tasks that must be sure wait.
type guardian struct {
	client *fence.GuardClient
	log    zerolog.Logger
	post   chan struct{} // a deadline was left

	// order makes what tasks ask for and what the loop left reach the guard one
	// after another, so that an old deadline never arms it after a disarm.
	order sync.Mutex

	mu      sync.Mutex
	until   cluster.Instant // left by the loop, not yet sent
	isGrant bool
	known   cluster.Instant // what the guard has
	broken  string
}

func newGuardian(cfg config.Config, o Options) *guardian {
	dataDir := filepath.Clean(cfg.Postgres.DataDir)
	dir := cfg.Lictor.StateDir
	if dir == "" {
		dir = filepath.Dir(dataDir)
	}
	prefix := filepath.Join(dir, "."+filepath.Base(dataDir)+".lictor-guard")
	return &guardian{
		client: fence.NewGuardClient(o.GuardCommand, fence.GuardOptions{Socket: prefix + ".sock", DataDir: dataDir}, prefix+".log"),
		log:    o.Log, post: make(chan struct{}, 1),
	}
}

// Start makes the guard the postmaster's parent (postgres.Launcher).
func (g *guardian) Start(ctx context.Context, c postgres.Command) (int, error) {
	return g.client.Start(ctx, fence.GuardStart{
		Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir, Credential: c.Credential, LogFile: c.LogFile,
	})
}

// arm leaves a new deadline of the present lease for the guard.
func (g *guardian) arm(until cluster.Instant) { g.leave(until, false) }

// grant leaves the deadline of a new lease for the guard.
func (g *guardian) grant(until cluster.Instant) { g.leave(until, true) }

func (g *guardian) leave(until cluster.Instant, grant bool) {
	if until.IsZero() {
		return
	}
	g.mu.Lock()
	g.until, g.isGrant = until, grant || g.isGrant && !g.until.IsZero()
	g.mu.Unlock()
	kick(g.post)
}

// armNow sets the deadline of a new lease and waits until the guard has it.
func (g *guardian) armNow(ctx context.Context, until cluster.Instant) error {
	g.order.Lock()
	defer g.order.Unlock()
	err := g.client.Grant(ctx, until)
	g.note(until, err)
	return err
}

// disarm takes the deadline away and waits until it is.
func (g *guardian) disarm(ctx context.Context) error {
	g.order.Lock()
	defer g.order.Unlock()
	g.mu.Lock()
	g.until, g.isGrant = 0, false
	g.mu.Unlock()
	err := g.client.Disarm(ctx)
	g.note(0, err)
	return err
}

// send passes on what the loop left last.
func (g *guardian) send(ctx context.Context) {
	g.order.Lock()
	defer g.order.Unlock()
	g.mu.Lock()
	until, grant := g.until, g.isGrant
	g.until, g.isGrant = 0, false
	g.mu.Unlock()
	if until.IsZero() {
		return
	}
	ask := g.client.Arm
	if grant {
		ask = g.client.Grant
	}
	g.note(until, ask(ctx, until))
}

// note remembers what the guard has, and says once when it cannot be told.
func (g *guardian) note(until cluster.Instant, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		g.known = until
		if g.broken != "" {
			g.log.Info().Msg("the guard is told again")
		}
		g.broken = ""
		return
	}
	if g.broken == "" {
		g.log.Error().Err(err).Msg("the guard cannot be told the deadline; it keeps the one it has")
	}
	g.broken = err.Error()
}

// shown is the guard's state for the API.
func (g *guardian) shown(now cluster.Instant) (running bool, armedFor time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.known.IsZero() {
		armedFor = max(0, g.known.Sub(now))
	}
	return g.broken == "", armedFor
}

// watchGuard passes on the deadlines that the loop leaves. A guard that was
// killed is started again by the next one: it then has no parent-death signal
// on a PostgreSQL that runs already, but it has the deadline.
func (a *Agent) watchGuard(ctx context.Context) {
	defer a.guard.client.Close()
	for {
		select {
		case <-a.guard.post:
			limit, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
			a.guard.send(limit)
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

// dismissGuard ends the guard of an agent that has stopped its PostgreSQL.
func (a *Agent) dismissGuard() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), time.Second)
	defer cancel()
	if err := a.guard.client.Quit(ctx); err != nil {
		a.log.Debug().Err(err).Msg("the guard stays")
	}
}
