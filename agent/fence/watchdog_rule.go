package fence

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A watchdog counts from the last keepalive, the lease counts from the sending of
// the last beat. The rules of this file tie the one to the other; all are pure.
const (
	// watchdogSlack is how long before the end of the lease the reset must be
	// due: the kernel's timer fires late rather than early, and a reset takes a
	// moment.
	watchdogSlack = 100 * time.Millisecond
	// watchdogLead is how much earlier than necessary the last keepalive of a
	// lease is sent, as the process that sends it may be held up; and by how much
	// a keepalive must put the reset off to be sent at all.
	watchdogLead = 50 * time.Millisecond
	// worthwhile is by how much a keepalive must put the reset off to be sent with
	// another timeout than the usual one.
	worthwhile = 100 * time.Millisecond
	// watchdogUnit is the unit in which devices count (linux/watchdog.h).
	watchdogUnit = time.Second
	// shortestWatchdog is the shortest timeout: with less, a busy moment would
	// reset the host.
	shortestWatchdog = 2 * time.Second
	// requiredTTL is the shortest ttl for which a watchdog may be required
	// (design 5.4).
	requiredTTL = 5 * time.Second
)

// WatchdogTiming is what the watchdog's timeout is derived from.
type WatchdogTiming struct {
	TTL time.Duration // of the lease
	// DemoteBefore and KillBefore are how long before the end of the lease
	// PostgreSQL is stopped, and killed (lictor.fence).
	DemoteBefore, KillBefore time.Duration
}

// WatchdogTimeout is the device's timeout, in whole seconds: ttl less the safety
// margin. The margin has Patroni's meaning: seconds; nil is the default, 5 s from
// ttl 20 on and else 1 s; -1 is half of ttl.
//
// A keepalive is allowed only for as long after the sending of a beat as the
// margin lasts (MayKeepAlive), so a margin under a second is refused.
func WatchdogTimeout(ttl time.Duration, safetyMargin *int) (time.Duration, error) {
	margin := time.Second
	if ttl >= 20*time.Second {
		margin = 5 * time.Second
	}
	if safetyMargin != nil {
		margin = time.Duration(*safetyMargin) * time.Second
	}
	timeout := (ttl - margin).Truncate(watchdogUnit)
	if safetyMargin != nil && *safetyMargin == -1 {
		timeout = (ttl / 2).Truncate(watchdogUnit)
		margin = ttl - timeout
	}
	switch {
	case margin < watchdogUnit:
		return 0, fmt.Errorf("watchdog.safety_margin: %s: must be at least 1 (or -1 for half of ttl): a beat takes time, "+
			"and a keepalive sent after it must still reset the host before the lease ends", margin)
	case timeout < shortestWatchdog:
		return 0, fmt.Errorf("watchdog.safety_margin: %s of a ttl of %s leaves %s for the watchdog, but it needs at least %s: "+
			"make ttl longer or safety_margin smaller", margin, ttl, max(timeout, 0), shortestWatchdog)
	}
	return timeout, nil
}

// Check reports whether demotion, kill and reset come in this order and by the end
// of the lease. The reset is due at most watchdogSlack before the end.
func (t WatchdogTiming) Check(required bool) error {
	// When an agent that runs sends the last keepalive that is worth it, this is
	// how long before the end of the lease the reset may come.
	switch earliest := watchdogSlack + watchdogLead + worthwhile; {
	case required && t.TTL < requiredTTL:
		return fmt.Errorf("watchdog.mode: required: needs a ttl of at least %s, but ttl is %s: devices count whole seconds; "+
			"set watchdog.mode to automatic or ttl to %s", requiredTTL, t.TTL, requiredTTL)
	case t.DemoteBefore <= t.KillBefore:
		return fmt.Errorf("lictor.fence: PostgreSQL would be stopped %s and killed %s before the end of the lease: "+
			"demote_before must be more than kill_before", t.DemoteBefore, t.KillBefore)
	case t.KillBefore < earliest:
		return fmt.Errorf("lictor.fence.kill_before: PostgreSQL would be killed %s before the end of the lease, but the watchdog resets the host "+
			"%s before it: with a watchdog kill_before must be at least %s", t.KillBefore, watchdogSlack, earliest)
	}
	return nil
}

// MayKeepAlive is the rule that makes the watchdog safe: a keepalive may be sent
// only if the reset that it puts off comes by the end of the lease. A zero until
// is no lease.
func MayKeepAlive(now, until cluster.Instant, timeout time.Duration) bool {
	return !until.IsZero() && !until.Before(now.Add(timeout+watchdogSlack))
}

// planKeepAlive reports whether to send a keepalive now, and with which timeout.
// resetAt is when the device fires as things stand (zero: it does not run).
//
// Usually the timeout is the one that was asked for. When it is too late for that
// one, as the beat was answered late or the lease was cut, a timeout that is
// shorter by whole seconds still ends in time, and is used if it moves the reset
// to a better moment.
func planKeepAlive(now, until, resetAt cluster.Instant, timeout time.Duration) (time.Duration, bool) {
	if until.IsZero() {
		return 0, false
	}
	late := resetAt.IsZero() || until.Add(-watchdogSlack/2).Before(resetAt)
	if MayKeepAlive(now, until, timeout) {
		return timeout, late || !now.Add(timeout).Before(resetAt.Add(watchdogLead))
	}
	short := until.Sub(now.Add(watchdogSlack)).Truncate(watchdogUnit)
	return short, short >= watchdogUnit && (late || !now.Add(short).Before(resetAt.Add(worthwhile)))
}

// nextKeepAlive is when to consider a keepalive again: a few times per timeout,
// and at the last moment at which this lease allows it, so that an agent that
// still runs has time to stop and kill PostgreSQL before the reset. Zero: not
// before there is a new lease.
func nextKeepAlive(now, until, resetAt cluster.Instant, timeout time.Duration) cluster.Instant {
	best := until.Add(-watchdogSlack - watchdogLead)
	if until.IsZero() || best.Before(resetAt.Add(watchdogLead)) {
		return 0
	}
	if last := best.Add(-timeout); now.Before(last) {
		return min(last, now.Add(timeout/4))
	}
	// Too late for this timeout; one that is shorter by whole seconds reaches the
	// best moment from here.
	next := best.Add(-best.Sub(now).Truncate(watchdogUnit))
	if !now.Before(next) {
		next = next.Add(watchdogUnit)
	}
	if best.Before(resetAt.Add(worthwhile)) || best.Before(next.Add(watchdogUnit)) {
		return 0
	}
	return next
}

// errNoWayOut: the device cannot be stopped once it runs (the driver's parameter
// nowayout).
var errNoWayOut = errors.New("the device cannot be stopped once it runs (nowayout)")
