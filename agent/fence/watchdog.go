package fence

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// WatchdogOptions are the settings of the section watchdog.
type WatchdogOptions struct {
	Mode         string // off, automatic, required
	Driver       string // default, testing
	Device       string
	SafetyMargin *int // seconds; nil: by ttl; -1: half of ttl
	// MarkFile remembers over a reset that the watchdog was armed; empty: it is
	// not remembered.
	MarkFile string
	Files    osuser.User // with whose rights it is written
	Clock    Clock       // nil: Now
}

// The modes and the driver for tests.
const (
	watchdogOff      = "off"
	watchdogRequired = "required"
	watchdogTesting  = "testing"
)

// WatchdogState is what API and metrics tell of a watchdog.
type WatchdogState struct {
	Mode, Driver, Device string
	Identity             string // what the device calls itself; known once it was open
	// Active: the countdown runs, and protects a lease.
	Active bool
	// Stuck: it runs though there is no lease, as the device cannot be stopped; it
	// is kept alive until there is one, or until the agent ends.
	Stuck bool
	// Working: it is active, and the last keepalive succeeded.
	Working  bool
	Timeout  time.Duration   // what the device is set to; zero: it does not run
	ResetAt  cluster.Instant // when it resets the host unless it is kept alive; zero: never
	TimeLeft time.Duration   // until then
	// DeviceTimeLeft is what the device itself said after the last keepalive; nil:
	// it cannot tell.
	DeviceTimeLeft *time.Duration
	Nowayout       *bool // the device cannot be stopped; nil: not known
	// StopsOnClose: an agent that is killed switches the device off, as it knows
	// no magic close.
	StopsOnClose bool
	KeepAlives   uint64   // that were sent
	BootStatus   []string // what the device says caused the last boot
	LastReset    string   // the same in words, with what was remembered; empty: not known
	LastError    string   // empty: the last thing that was tried worked
}

// Watchdog keeps a device that resets the host when nobody sends it keepalives. A
// keepalive is sent only on behalf of a lease and only while the reset that it
// puts off still comes by the end of that lease (MayKeepAlive). So whatever
// hangs, PostgreSQL does not outlive the lease.
//
// All work on the device is done by Run; the other methods may be called from
// several goroutines.
type Watchdog struct {
	o     WatchdogOptions
	clock Clock
	open  func(context.Context, string) (watchdogDevice, error)

	commands chan watchdogCommand
	post     chan struct{}
	marks    chan bool

	mu    sync.Mutex
	left  *watchdogOrder // by KeepAlive or StandDown, not yet done
	state WatchdogState
	// failure is why the last activation failed, and failed when; nil: it did not.
	failure error
	failed  cluster.Instant

	// What follows belongs to Run.
	device  watchdogDevice  // nil: closed
	order   watchdogOrder   // what was asked for last
	timeout time.Duration   // for the lease's ttl
	set     time.Duration   // what the device is set to
	resetAt cluster.Instant // when it fires
	retryAt cluster.Instant // when to open it again
}

// watchdogOrder is what the agent wants: a lease to protect, or none.
type watchdogOrder struct {
	until  cluster.Instant // zero: stop the device
	timing WatchdogTiming
}

type watchdogCommand struct {
	ctx    context.Context
	order  watchdogOrder
	answer chan error
}

const (
	// watchdogReopen is how soon a device that could not be opened is tried again.
	watchdogReopen = time.Second
	// watchdogGrudge is how long a failed activation makes a member stay away
	// from the lock when a watchdog is required.
	watchdogGrudge = 30 * time.Second
	// markLimit is how long the end of Run waits for a disk that hangs.
	markLimit = time.Second
)

// NewWatchdog makes a watchdog; nothing is opened before Activate or KeepAlive.
func NewWatchdog(o WatchdogOptions) *Watchdog {
	w := &Watchdog{
		o: o, clock: o.Clock, open: openKernelWatchdog, commands: make(chan watchdogCommand), post: make(chan struct{}, 1), marks: make(chan bool, 1),
		state: WatchdogState{Mode: o.Mode, Driver: o.Driver, Device: o.Device},
	}
	if w.clock == nil {
		w.clock = Now
	}
	if o.Driver == watchdogTesting {
		w.open = openFifoWatchdog
	} else if o.Mode != watchdogOff {
		w.state.BootStatus = sysfsBootStatus(o.Device)
		w.state.Nowayout = sysfsNowayout(o.Device)
	}
	if o.Mode != watchdogOff {
		w.state.LastReset = lastReset(o.Files, o.MarkFile, bootID(), w.state.BootStatus)
	}
	return w
}

// Run does the work until ctx ends. A device that still runs then is left running:
// a successor of this process takes it over, or the host is reset.
func (w *Watchdog) Run(ctx context.Context) {
	marked := make(chan struct{})
	go func() {
		defer close(marked)
		w.keepMark(ctx)
	}()
	defer func() {
		w.abandon()
		limit := time.NewTimer(markLimit)
		defer limit.Stop()
		select {
		case <-marked:
		case <-limit.C: // it waits for a disk that hangs, and cannot be ended
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case c := <-w.commands:
			w.mu.Lock()
			w.left = nil // it is older
			w.mu.Unlock()
			w.retryAt = 0
			w.order = c.order
			c.answer <- w.obey(c.ctx)
		case <-w.post:
			w.mu.Lock()
			left := w.left
			w.left = nil
			w.mu.Unlock()
			if left == nil {
				continue
			}
			w.order = *left
			w.obeyAlone(ctx)
		case <-timer.C:
			w.obeyAlone(ctx)
		case <-ctx.Done():
			return
		}
		timer.Stop()
		if next := w.next(); !next.IsZero() {
			timer.Reset(max(next.Sub(w.clock()), time.Millisecond))
		}
	}
}

// Activate begins to protect a lease that ends at until, and waits until the
// device runs. It is called before PostgreSQL is promoted; a second call does
// no harm. With the mode off it does nothing. An error means that there is no
// protection: where it is required PostgreSQL must not be promoted.
func (w *Watchdog) Activate(ctx context.Context, until cluster.Instant, t WatchdogTiming) error {
	if until.IsZero() {
		return errors.New("the watchdog: there is no lease")
	}
	return w.command(ctx, watchdogOrder{until: until, timing: t})
}

// KeepAlive tells of the lease as it is now. It may be called as often as the
// caller likes, also when the lease has not moved: whether a keepalive may be
// sent is decided here. It does not wait. A device that is not open (the mode is
// automatic and there was none; it was lost) is opened.
func (w *Watchdog) KeepAlive(until cluster.Instant, t WatchdogTiming) {
	if !until.IsZero() {
		w.leave(watchdogOrder{until: until, timing: t})
	}
}

// StandDown says that there is nothing to protect: PostgreSQL has stopped, is a
// replica, or the shard is paused. It does not wait.
func (w *Watchdog) StandDown() { w.leave(watchdogOrder{}) }

// Disable is StandDown that waits until the device has stopped. A device that
// cannot be stopped is an error (it says what that means); it is kept alive
// until Run ends.
func (w *Watchdog) Disable(ctx context.Context) error { return w.command(ctx, watchdogOrder{}) }

// Required reports whether nothing may be promoted without a working device.
func (w *Watchdog) Required() bool { return w.o.Mode == watchdogRequired }

// Working reports whether the device runs and the last keepalive succeeded. An
// active one that does not work resets the host at the end of the lease.
func (w *Watchdog) Working() bool { return w.State().Working }

// Usable tells why a member for which a watchdog is required must not take the
// lock; nil: it may. The device is not opened, as that would start it.
func (w *Watchdog) Usable() error {
	if !w.Required() {
		return nil
	}
	s := w.State()
	if s.Active && s.Working || s.Stuck {
		return nil
	}
	w.mu.Lock()
	failure, failed := w.failure, w.failed
	w.mu.Unlock()
	if failure != nil && w.clock().Sub(failed) < watchdogGrudge {
		return failure
	}
	if err := unix.Access(w.o.Device, unix.W_OK); err != nil {
		return fmt.Errorf("watchdog: %s: %w%s", w.o.Device, err, openAdvice(err))
	}
	return nil
}

// State is what API and metrics show.
func (w *Watchdog) State() WatchdogState {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state
	if !s.ResetAt.IsZero() {
		s.TimeLeft = max(0, s.ResetAt.Sub(w.clock()))
	}
	return s
}

func (w *Watchdog) command(ctx context.Context, o watchdogOrder) error {
	if w.o.Mode == watchdogOff {
		return nil
	}
	c := watchdogCommand{ctx: ctx, order: o, answer: make(chan error, 1)}
	select {
	case w.commands <- c:
	case <-ctx.Done():
		return fmt.Errorf("the watchdog %s does not answer: %w", w.o.Device, context.Cause(ctx))
	}
	select {
	case err := <-c.answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the watchdog %s does not answer: %w", w.o.Device, context.Cause(ctx))
	}
}

func (w *Watchdog) leave(o watchdogOrder) {
	if w.o.Mode == watchdogOff {
		return
	}
	w.mu.Lock()
	w.left = &o
	w.mu.Unlock()
	select {
	case w.post <- struct{}{}:
	default:
	}
}

func (w *Watchdog) note(change func(*WatchdogState)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.state)
}
