package agent

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// This file calls the operator's scripts when something has happened to the local
// PostgreSQL. What is told follows from what the loop sees, not from what was
// tried; the scripts run one after another in a goroutine of their own, so that
// nothing ever waits for them.
//
//	last told          now                              script
//	nothing            runs                             on_start ROLE
//	ROLE               runs in another role             on_role_change ROLE
//	ROLE, started t    runs, started later              on_start ROLE; by a restart of the agent's: on_restart ROLE
//	stopped            runs                             on_start ROLE
//	ROLE, started t    the same, its files were reread  on_reload ROLE
//	ROLE, started t    down, the agent is to stop       on_stop ROLE
//	primary            down, demoted without a lease    on_role_change demoted
//
// What happens while a task is under way is told when it has ended.

// callback is a script to be run.
type callback struct {
	action, role, command string
	told                  postgres.Told // true once it was run
}

// situation is what decides about callbacks.
type situation struct {
	up       bool // accepts connections
	down     bool // no postmaster
	started  time.Time
	role     string // in the words of the Patroni that is spoken
	primary  bool   // the role told last is a primary's
	task     ha.TaskKind
	stopping bool
	leads    bool
	reloaded bool
}

// teller knows what was told last.
type teller struct {
	told postgres.Told
	task ha.TaskKind // the last one that was under way
}

// next is what is to be told now, an empty action when nothing is.
func (t *teller) next(s situation) (action, role string) {
	t.saw(s.task)
	if s.task != ha.TaskNone {
		return "", ""
	}
	before := t.told
	started := func(action string) (string, string) {
		t.told, t.task = postgres.Told{Role: s.role, Started: s.started}, ha.TaskNone
		return action, s.role
	}
	switch {
	case s.up && before.Role == "":
		return started("on_start")
	case s.up && before.Started.IsZero() && before.Role != cluster.RoleDemoted:
		return started("on_start")
	case s.up && before.Role != s.role:
		return started("on_role_change")
	case s.up && !before.Started.Equal(s.started) && t.task == ha.TaskRestart:
		return started("on_restart")
	case s.up && !before.Started.Equal(s.started):
		return started("on_start")
	case s.up && s.reloaded:
		return started("on_reload")
	case !s.down || before.Started.IsZero():
	case s.stopping:
		t.told.Started = time.Time{}
		return "on_stop", before.Role
	case s.primary && !s.leads && t.task == ha.TaskDemote:
		t.told = postgres.Told{Role: cluster.RoleDemoted}
		return "on_role_change", cluster.RoleDemoted
	}
	return "", ""
}

// saw remembers the task that changes something.
func (t *teller) saw(task ha.TaskKind) {
	if task != ha.TaskNone {
		t.task = task
	}
}

// callBack has the scripts told what has changed. It runs before every decision,
// which may begin the next task.
func (a *Agent) callBack() {
	m := &a.m
	if m.Stopping && m.stopBy.IsZero() {
		m.stopBy = a.clock().Add(member.StopLimit)
	}
	o := m.PG.Observed
	s := situation{
		up: m.PG.Running && o.Accepting && m.Data.State == ha.DataValid, down: !m.PG.Running && !a.pg.Running(), started: o.StartTime, role: a.m.RoleName(),
		primary: cluster.IsPrimary(m.teller.told.Role),
		task:    m.TaskKind(), stopping: m.Stopping, leads: m.Tenure.Held(a.clock()),
		reloaded: m.reloadAsked && !m.rewriting && !m.rewrite,
	}
	action, role := m.teller.next(s)
	if s.up && s.reloaded && m.TaskKind() == ha.TaskNone || s.down {
		m.reloadAsked = false
	}
	if action == "" {
		return
	}
	if command := commandFor(a.cfg.Postgres.Callbacks, action); a.cfg.Postgres.Callbacks != (config.Callbacks{}) {
		a.callbacks.add(callback{action: action, role: role, command: command, told: m.teller.told})
	}
}

func commandFor(c config.Callbacks, action string) string {
	return map[string]string{
		"on_start": c.OnStart, "on_stop": c.OnStop, "on_restart": c.OnRestart, "on_reload": c.OnReload, "on_role_change": c.OnRoleChange,
	}[action]
}

// recallTold makes an agent that starts anew go on where the one before it was.
func (a *Agent) recallTold() {
	if a.cfg.Postgres.Callbacks == (config.Callbacks{}) {
		return
	}
	told, err := a.pg.RecallTold()
	if err != nil {
		a.log.Warn().Err(err).Msg("it is not known what the callbacks were told last: they are told that PostgreSQL was started")
		return
	}
	a.m.teller.told = told
}

// callbacks runs scripts in their order, one at a time.
type callbacks struct {
	// run runs one within its limit.
	run  func(ctx context.Context, action, role, command string) error
	keep func(postgres.Told) error
	log  zerolog.Logger
	wake chan struct{}
	// ended is told whenever nothing is left to be run.
	ended func()

	mu    sync.Mutex
	queue []callback
	busy  bool
	empty chan struct{} // closed when nothing is left, for who waits
}

func newCallbacks(log zerolog.Logger) *callbacks {
	return &callbacks{log: log, wake: make(chan struct{}, 1), ended: func() {}}
}

func (c *callbacks) add(cb callback) {
	c.mu.Lock()
	c.queue = append(c.queue, cb)
	c.mu.Unlock()
	kick(c.wake)
}

// idle tells whether nothing runs or waits to be run.
func (c *callbacks) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) == 0 && !c.busy
}

// work runs what was added, until ctx ends, which ends the script that runs.
func (c *callbacks) work(ctx context.Context) {
	for {
		cb, ok, last := c.take()
		if last {
			c.ended()
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
func (c *callbacks) take() (cb callback, ok, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		last = c.busy
		c.busy = false
		if c.empty != nil {
			close(c.empty)
			c.empty = nil
		}
		return callback{}, false, last
	}
	c.busy = true
	cb = c.queue[0]
	c.queue = c.queue[1:]
	return cb, true, false
}

// call runs one script. It counts as told from its beginning on: one that was cut
// short is not run again.
func (c *callbacks) call(ctx context.Context, cb callback) {
	if err := c.keep(cb.told); err != nil {
		c.log.Warn().Err(err).Str("callback", cb.action).Msg("an agent that is started anew may call this once more")
	}
	if cb.command == "" {
		return
	}
	began := time.Now()
	if err := c.run(ctx, cb.action, cb.role, cb.command); err != nil {
		c.log.Error().Err(err).Str("callback", cb.action).Str("role", cb.role).Dur("took", time.Since(began)).Msg("a callback failed")
		return
	}
	c.log.Info().Str("callback", cb.action).Str("role", cb.role).Dur("took", time.Since(began)).Msg("callback called")
}

// finish waits until everything was run, at most for limit: what is left then is
// ended with the agent.
func (c *callbacks) finish(limit time.Duration) {
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
	kick(c.wake)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
		c.log.Error().Dur("limit", limit).Msg("callbacks still run and are ended with the agent")
	}
}

// finishCallbacks waits for the scripts that an orderly stop has called, as long
// as the stop may take.
func (a *Agent) finishCallbacks() {
	if !a.m.stopBy.IsZero() {
		a.callbacks.finish(max(a.m.stopBy.Sub(a.clock()), time.Second))
	}
}
