package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// obeyAlone does what was asked for last, with nobody waiting for the outcome:
// the state tells it.
func (w *Watchdog) obeyAlone(ctx context.Context) {
	if w.device == nil && w.order.until.IsZero() {
		return
	}
	limit, cancel := context.WithTimeout(ctx, watchdogReopen)
	defer cancel()
	_ = w.obey(limit)
}

// obey brings the device to what was asked for last.
func (w *Watchdog) obey(ctx context.Context) error {
	var err error
	switch {
	case !w.order.until.IsZero():
		err = w.protect(ctx)
	case w.device != nil:
		err = w.standDown()
	}
	// That the device cannot be stopped stays true, and is told again whenever it
	// matters; what else failed is over when something worked.
	w.note(func(s *WatchdogState) {
		s.Active = w.device != nil && !w.order.until.IsZero()
		s.Stuck = w.device != nil && w.order.until.IsZero()
		s.Working = s.Active && err == nil
		s.Timeout, s.ResetAt = w.set, w.resetAt
		s.LastError = ""
		if err != nil {
			s.LastError = err.Error()
		}
	})
	return err
}

// protect sends a keepalive for the lease if it may, and opens the device first
// if need be.
func (w *Watchdog) protect(ctx context.Context) error {
	timeout, err := w.o.timeout(w.order.timing)
	if err != nil && w.device == nil {
		return w.fail(err)
	}
	if err == nil {
		w.timeout = timeout
	}
	// Settings that contradict each other do not reset a host that has a lease:
	// what was valid last goes on, and the error is told.
	if w.device == nil {
		return w.start(ctx)
	}
	return errors.Join(err, w.keepAlive())
}

func (o WatchdogOptions) timeout(t WatchdogTiming) (time.Duration, error) {
	if err := t.Check(o.Mode == watchdogRequired); err != nil {
		return 0, err
	}
	return WatchdogTimeout(t.TTL, o.SafetyMargin)
}

// start opens the device and sends the first keepalive. A device with which the
// rules cannot be kept is stopped again.
func (w *Watchdog) start(ctx context.Context) error {
	now := w.clock()
	if now.Before(w.retryAt) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.failure
	}
	if _, ok := planKeepAlive(now, w.order.until, 0, w.timeout); !ok {
		return fmt.Errorf("the watchdog %s is not started: the lease ends in %s, before it could reset the host", w.o.Device, w.order.until.Sub(now))
	}
	device, err := w.open(ctx, w.o.Device)
	if err != nil {
		return w.fail(fmt.Errorf("watchdog: %w", err))
	}
	about := device.describe()
	w.note(func(s *WatchdogState) {
		s.Identity, s.StopsOnClose, s.Nowayout = about.identity, about.stops, about.nowayout
		if about.bootStatus != nil {
			s.BootStatus = about.bootStatus
		}
	})
	w.device, w.set, w.resetAt = device, 0, 0
	w.mark(true)
	if err := w.keepAlive(); err != nil {
		return w.fail(errors.Join(err, w.standDown()))
	}
	w.mu.Lock()
	w.failure = nil
	w.mu.Unlock()
	return nil
}

// fail notes that an activation failed.
func (w *Watchdog) fail(err error) error {
	now := w.clock()
	w.retryAt = now.Add(watchdogReopen)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure, w.failed = err, now
	return err
}

// keepAlive sends a keepalive if the lease allows one.
func (w *Watchdog) keepAlive() error {
	timeout, ok := planKeepAlive(w.clock(), w.order.until, w.resetAt, w.timeout)
	if !ok {
		if w.resetAt.IsZero() {
			return fmt.Errorf("the watchdog %s cannot be set in time: the lease is about to end", w.o.Device)
		}
		return nil
	}
	if err := w.send(timeout); err != nil {
		if gone(err) {
			w.abandon()
		}
		return fmt.Errorf("watchdog: %w", err)
	}
	// The device counts from some moment before this one.
	if w.order.until.Before(w.resetAt) {
		return fmt.Errorf("the watchdog %s would reset the host %s after the end of the lease: it took a timeout of %s where %s was asked for, or answered slowly",
			w.o.Device, w.resetAt.Sub(w.order.until), w.set, timeout)
	}
	left, err := w.device.timeLeft()
	if err != nil {
		w.note(func(s *WatchdogState) { s.DeviceTimeLeft = nil })
		return nil //nolint:nilerr // few devices can tell
	}
	w.note(func(s *WatchdogState) { s.DeviceTimeLeft = &left })
	if left > w.set {
		return fmt.Errorf("the watchdog %s says that %s are left of a timeout of %s", w.o.Device, left, w.set)
	}
	return nil
}

// send sends a keepalive with a timeout, and notes when the device fires.
func (w *Watchdog) send(timeout time.Duration) error {
	if timeout != w.set {
		got, err := w.device.setTimeout(timeout)
		if err != nil {
			return err
		}
		w.set = got
	}
	if err := w.device.keepAlive(); err != nil {
		return err
	}
	w.resetAt = w.clock().Add(w.set)
	w.note(func(s *WatchdogState) { s.KeepAlives++ })
	return nil
}

// gone reports whether a device, or the reader of a fifo, is no longer there.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EBADF)
}

// standDown stops the device. One that cannot be stopped is kept alive instead.
func (w *Watchdog) standDown() error {
	err := w.device.stop()
	switch {
	case err == nil:
		w.closed()
		w.mark(false)
		return nil
	case errors.Is(err, errNoWayOut):
		yes := true
		w.note(func(s *WatchdogState) { s.Nowayout = &yes })
		if w.set == 0 {
			w.set = w.timeout // it was never set: the device has its own, which is longer
		}
		err = fmt.Errorf("watchdog: %w: it is kept alive while this agent runs, and resets the host %s after that", err, w.set)
		return errors.Join(err, w.send(w.set))
	default:
		w.abandon()
		return fmt.Errorf("watchdog: %w: it may reset the host", err)
	}
}

// abandon closes the device without stopping it.
func (w *Watchdog) abandon() {
	if w.device == nil {
		return
	}
	_ = w.device.abandon()
	w.closed()
	w.note(func(s *WatchdogState) { s.Active, s.Stuck, s.Working = false, false, false })
}

func (w *Watchdog) closed() { w.device, w.set, w.resetAt = nil, 0, 0 }

// next is when to look at the device again without being asked; zero: never.
func (w *Watchdog) next() cluster.Instant {
	now := w.clock()
	switch {
	case w.device == nil:
		return 0 // the next KeepAlive opens it
	case w.order.until.IsZero():
		return now.Add(w.set / 4)
	default:
		return nextKeepAlive(now, w.order.until, w.resetAt, w.timeout)
	}
}
