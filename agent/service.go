package agent

import (
	"context"
	"fmt"
	"time"
)

// tellSystemd passes messages on to systemd, on a goroutine of its own. It outlives the loop, so that the
// last ones are told, too.
func (a *Agent) tellSystemd(ctx context.Context) {
	if err := a.systemd.Run(ctx); err != nil {
		a.log.Error().Err(err).Msg("systemd does not hear of the agent; it may think that the agent hangs, and restart it (WatchdogSec)")
	}
}

// keepAlive, on a goroutine of its own, asks the loop to come round and has it say so: a loop that hangs sends
// systemd nothing more, and the unit's WatchdogSec ends the agent. Its guard ends
// PostgreSQL with the lease in any case.
func (a *Agent) keepAlive(ctx context.Context) {
	every := a.systemd.KeepAliveEvery()
	if every == 0 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.post(a.systemd.Alive)
		case <-ctx.Done():
			return
		}
	}
}

// showStatus is the line of `systemctl status`.
func (a *Agent) showStatus(reason string) {
	if a.systemd == nil {
		return
	}
	a.systemd.Status(fmt.Sprintf("shard %s, member %s: %s, %s; %s", a.cfg.Scope, a.cfg.Name, a.m.RoleName(), a.m.StateName(), reason))
}
