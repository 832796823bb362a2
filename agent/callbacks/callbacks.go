// Package callbacks calls the operator's scripts when something has happened to the local
// PostgreSQL. What is told follows from what the loop sees, not from what was
// tried; the scripts run one after another in a goroutine of their own, so that
// nothing ever waits for them.
//
//	last told          now                              script
//	nothing            runs                             on_start ROLE
//	ROLE               runs in another role             on_role_change ROLE
//	ROLE, started t    runs, started later              on_start ROLE; by a restart of the agent's: on_restart ROLE
//	stopped            runs                             on_start ROLE
//	anything else      starts as the standby leader     on_start replica; then on_role_change standby_leader
//	ROLE, started t    the same, its files were reread  on_reload ROLE
//	ROLE, started t    down, the agent is to stop       on_stop ROLE
//	primary            down, demoted without a lease    on_role_change demoted
//
// What happens while a task is under way is told when it has ended.
package callbacks

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// Callback is a script to be run.
type Callback struct {
	Action, Role, Command string
	LastNotified          postgres.CallbackState // true once it was run
}

// Situation is what decides about callbacks.
type Situation struct {
	Up       bool // accepts connections
	Down     bool // no postmaster
	Started  time.Time
	Role     string // in the words of the Patroni that is spoken
	Primary  bool   // the role told last is a primary's
	Task     ha.TaskKind
	Stopping bool
	Leads    bool
	Reloaded bool
}

// CallbackState knows what was told last.
type CallbackState struct {
	LastNotified postgres.CallbackState
	task         ha.TaskKind // the last one that was under way
}

// Next is what is to be told now, an empty action when nothing is.
func (t *CallbackState) Next(s Situation) (action, role string) {
	t.Saw(s.Task)
	if s.Task != ha.TaskNone {
		return "", ""
	}
	before := t.LastNotified
	started := func(action string) (string, string) {
		role := s.Role
		if action == "on_start" && role == cluster.RoleStandbyLeader {
			role = cluster.RoleReplica // as Patroni's users know it: whatever leads has begun as a replica
		}
		t.LastNotified, t.task = postgres.CallbackState{Role: role, Started: s.Started}, ha.TaskNone
		return action, role
	}
	switch {
	case s.Up && before.Role == "":
		return started("on_start")
	case s.Up && before.Started.IsZero() && before.Role != cluster.RoleDemoted:
		return started("on_start")
	case s.Up && before.Role != s.Role:
		return started("on_role_change")
	case s.Up && !before.Started.Equal(s.Started) && t.task == ha.TaskRestart:
		return started("on_restart")
	case s.Up && !before.Started.Equal(s.Started):
		return started("on_start")
	case s.Up && s.Reloaded:
		return started("on_reload")
	case !s.Down || before.Started.IsZero():
	case s.Stopping:
		t.LastNotified.Started = time.Time{}
		return "on_stop", before.Role
	case s.Primary && !s.Leads && t.task == ha.TaskDemote:
		t.LastNotified = postgres.CallbackState{Role: cluster.RoleDemoted}
		return "on_role_change", cluster.RoleDemoted
	}
	return "", ""
}

// Saw remembers the task that changes something.
func (t *CallbackState) Saw(task ha.TaskKind) {
	if task != ha.TaskNone {
		t.task = task
	}
}

// Runner runs scripts in their order, one at a time.
type Runner struct {
	// Run runs one within its limit.
	Run func(ctx context.Context, action, role, command string) error
	// Keep keeps what was told last, for an agent that is started anew.
	Keep func(postgres.CallbackState) error
	log  zerolog.Logger
	wake chan struct{}
	// Ended is told whenever nothing is left to be run.
	Ended func()

	mu    sync.Mutex
	queue []Callback
	busy  bool
	empty chan struct{} // closed when nothing is left, for who waits
}

// New makes a runner that has nothing to run yet.
func New(log zerolog.Logger) *Runner {
	return &Runner{log: log, wake: make(chan struct{}, 1), Ended: func() {}}
}

func (c *Runner) Add(cb Callback) {
	c.mu.Lock()
	c.queue = append(c.queue, cb)
	c.mu.Unlock()
	c.kick()
}

// Idle reports whether nothing runs or waits to be run.
func (c *Runner) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) == 0 && !c.busy
}

// Work runs what was added, until ctx ends, which ends the script that runs.
func (c *Runner) Work(ctx context.Context) {
	for {
		cb, ok, last := c.take()
		if last {
			c.Ended()
		}
		if !ok {
			select {
			case <-c.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		c.call(ctx, cb)
		if ctx.Err() != nil {
			return
		}
	}
}

// take takes the next one out of the queue; last says that there is none any more.
func (c *Runner) take() (cb Callback, ok, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		last = c.busy
		c.busy = false
		if c.empty != nil {
			close(c.empty)
			c.empty = nil
		}
		return Callback{}, false, last
	}
	c.busy = true
	cb = c.queue[0]
	c.queue = c.queue[1:]
	return cb, true, false
}

// call runs one script. It counts as told from its beginning on: one that was cut
// short is not run again.
func (c *Runner) call(ctx context.Context, cb Callback) {
	if err := c.Keep(cb.LastNotified); err != nil {
		c.log.Warn().Err(err).Str("callback", cb.Action).Msg("an agent that is started anew may call this once more")
	}
	if cb.Command == "" {
		return
	}
	began := time.Now()
	if err := c.Run(ctx, cb.Action, cb.Role, cb.Command); err != nil {
		c.log.Error().Err(err).Str("callback", cb.Action).Str("role", cb.Role).Dur("took", time.Since(began)).Msg("a callback failed")
		return
	}
	c.log.Info().Str("callback", cb.Action).Str("role", cb.Role).Dur("took", time.Since(began)).Msg("callback called")
}

// Finish waits until everything was run, at most for limit: what is left then is
// ended with the agent.
func (c *Runner) Finish(limit time.Duration) {
	c.mu.Lock()
	if len(c.queue) == 0 && !c.busy {
		c.mu.Unlock()
		return
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	empty := c.empty
	c.mu.Unlock()
	c.kick()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
		c.log.Error().Dur("limit", limit).Msg("callbacks still run and are ended with the agent")
	}
}

func (c *Runner) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
