package agent

import (
	"context"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/osuser"
)

func newWatchdog(cfg config.Config, files osuser.User) *fence.Watchdog {
	w := cfg.Watchdog
	return fence.NewWatchdog(fence.WatchdogOptions{
		Mode: w.Mode, Driver: w.Driver, Device: w.Device, SafetyMargin: w.SafetyMargin,
		MarkFile: statePrefix(cfg) + "-watchdog", Files: files,
	})
}

func (a *Agent) watchdogTiming() fence.WatchdogTiming {
	m := a.m.FenceMargins()
	return fence.WatchdogTiming{TTL: a.m.Dynamic.TTL, DemoteBefore: m.DemoteBefore, KillBefore: m.KillBefore}
}

// activateWatchdog makes the device protect a lease before there is a primary. A
// device that does not work is an error only where it is required.
func (a *Agent) activateWatchdog(ctx context.Context, until cluster.Instant, timing fence.WatchdogTiming) error {
	err := a.watchdog.Activate(ctx, until, timing)
	if err != nil && !a.watchdog.Required() {
		a.log.Warn().Err(err).Msg("no watchdog protects this primary: a host that hangs as a whole is not reset")
		return nil
	}
	return err
}

// mindWatchdog tells the watchdog what there is to protect. While a lease has
// ended and PostgreSQL is still being stopped it is told nothing: the countdown
// goes on.
func (a *Agent) mindWatchdog(v ha.View) {
	primary := v.Postgres.Running && v.Postgres.Primary
	switch {
	case v.PauseInForce() || v.Lease.Until.IsZero() && !primary:
		a.watchdog.StandDown()
	case a.m.Tenure.Held(v.Now) && (primary || a.watchdog.State().Active):
		// Also while PostgreSQL is being promoted, or recovers from a crash.
		a.watchdog.KeepAlive(a.m.Tenure.Until(), a.watchdogTiming())
	}
	if problem := a.watchdog.State().LastError; problem != "" {
		a.m.Once("watchdog", "the watchdog device", problem)
	} else {
		a.m.ClearOnce("watchdog")
	}
}

// watchdogOK tells whether the watchdog lets this member lead, and if not, why.
func (a *Agent) watchdogOK() (ok bool, problem string) {
	if err := a.watchdog.Usable(); err != nil {
		return false, err.Error()
	}
	if s := a.watchdog.State(); a.watchdog.Required() && s.Active && !s.Working {
		return false, s.LastError
	}
	return true, ""
}

// disableWatchdog stops the device of an agent that ends in an orderly way.
func (a *Agent) disableWatchdog() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), time.Second)
	defer cancel()
	if err := a.watchdog.Disable(ctx); err != nil {
		a.log.Error().Err(err).Msg("the watchdog device could not be stopped")
	}
}

// tellLastReset says at the start what reset the host, if the watchdog knows.
func (a *Agent) tellLastReset() {
	if cause := a.watchdog.State().LastReset; cause != "" {
		a.log.Warn().Str("cause", cause).Msg("this host was reset")
	}
}
