package agent

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// watchdog is the host's watchdog device. What says nothing else runs on the loop.
type watchdog struct {
	*fence.Watchdog
	m   *member.Member
	log zerolog.Logger
}

func newWatchdog(cfg config.Config, files osuser.User, log zerolog.Logger) *watchdog {
	w := cfg.Watchdog
	return &watchdog{log: log, Watchdog: fence.NewWatchdog(fence.WatchdogOptions{
		Mode: w.Mode, Driver: w.Driver, Device: w.Device, SafetyMargin: w.SafetyMargin,
		MarkFile: statePrefix(cfg) + "-watchdog", Files: files,
	})}
}

func (w *watchdog) timing() fence.WatchdogTiming {
	m := w.m.FenceMargins()
	return fence.WatchdogTiming{TTL: w.m.Dynamic.TTL, DemoteBefore: m.DemoteBefore, KillBefore: m.KillBefore}
}

// activate makes the device protect a lease before there is a primary, on a task's goroutine. A
// device that does not work is an error only where it is required.
func (w *watchdog) activate(ctx context.Context, until cluster.Instant, timing fence.WatchdogTiming) error {
	err := w.Activate(ctx, until, timing)
	if err != nil && !w.Required() {
		w.log.Warn().Err(err).Msg("no watchdog protects this primary: a host that hangs as a whole is not reset")
		return nil
	}
	return err
}

// mind tells the watchdog what there is to protect. While a lease has
// ended and PostgreSQL is still being stopped it is told nothing: the countdown
// goes on.
func (w *watchdog) mind(v ha.View) {
	primary := v.Postgres.Running && v.Postgres.Primary
	switch {
	case v.PauseInForce() || v.Lease.Until.IsZero() && !primary:
		w.StandDown()
	case w.m.LeaseState.Held(v.Now) && (primary || w.State().Active):
		// Also while PostgreSQL is being promoted, or recovers from a crash.
		w.KeepAlive(w.m.LeaseState.Until(), w.timing())
	}
	w.m.Problem("watchdog", "the watchdog device", w.State().LastError)
}

// ok reports whether the watchdog lets this member lead, and if not, why.
func (w *watchdog) ok() (ok bool, problem string) {
	if err := w.Usable(); err != nil {
		return false, err.Error()
	}
	if s := w.State(); w.Required() && s.Active && !s.Working {
		return false, s.LastError
	}
	return true, ""
}

// disable stops the device of an agent that ends in an orderly way.
func (w *watchdog) disable(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := w.Disable(ctx); err != nil {
		w.log.Error().Err(err).Msg("the watchdog device could not be stopped")
	}
}

// tellLastReset says at the start what reset the host, if the watchdog knows.
func (w *watchdog) tellLastReset() {
	if cause := w.State().LastReset; cause != "" {
		w.log.Warn().Str("cause", cause).Msg("this host was reset")
	}
}
