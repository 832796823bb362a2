package agent

import (
	"time"

	"github.com/lictor-ha/lictor/agent/callbacks"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// callBack has the scripts told what has changed. It runs before every decision,
// which may begin the next task.
func (a *Agent) callBack() {
	m := &a.m
	if m.Stopping && m.stopBy.IsZero() {
		m.stopBy = a.clock().Add(member.StopLimit)
	}
	o := m.PG.Observed
	s := callbacks.Situation{
		Up: m.PG.Running && o.Accepting && m.Data.State == ha.DataValid, Down: !m.PG.Running && !a.pg.Running(), Started: o.StartTime, Role: a.m.RoleName(),
		Primary: cluster.IsPrimary(m.callbackState.LastNotified.Role),
		Task:    m.TaskKind(), Stopping: m.Stopping, Leads: m.LeaseState.Held(a.clock()),
		Reloaded: a.conf.reloadAsked && !a.conf.rewriting && !a.conf.rewrite,
	}
	action, role := m.callbackState.Next(s)
	if s.Up && s.Reloaded && m.TaskKind() == ha.TaskNone || s.Down {
		a.conf.reloadAsked = false
	}
	if action == "" {
		return
	}
	if command := commandFor(a.cfg.Postgres.Callbacks, action); a.cfg.Postgres.Callbacks != (config.Callbacks{}) {
		a.callbacks.Add(callbacks.Callback{Action: action, Role: role, Command: command, LastNotified: m.callbackState.LastNotified})
	}
}

func commandFor(c config.Callbacks, action string) string {
	return map[string]string{
		"on_start": c.OnStart, "on_stop": c.OnStop, "on_restart": c.OnRestart, "on_reload": c.OnReload, "on_role_change": c.OnRoleChange,
	}[action]
}

// recallCallbackState makes an agent that starts anew go on where the one before it was.
func (a *Agent) recallCallbackState() {
	if a.cfg.Postgres.Callbacks == (config.Callbacks{}) {
		return
	}
	told, err := a.pg.RecallCallbackState()
	if err != nil {
		a.log.Warn().Err(err).Msg("it is not known what the callbacks were told last: they are told that PostgreSQL was started")
		return
	}
	a.m.callbackState.LastNotified = told
}

// finishCallbacks waits for the scripts that an orderly stop has called, as long
// as the stop may take.
func (a *Agent) finishCallbacks() {
	if !a.m.stopBy.IsZero() {
		a.callbacks.Finish(max(a.m.stopBy.Sub(a.clock()), time.Second))
	}
}
