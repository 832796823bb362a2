// Package systemd tells systemd how a service fares (sd_notify(3)): when it is
// ready, reloads and stops, what it does, and that its loop still comes round
// (WatchdogSec). Nobody who calls it ever waits for systemd.
package systemd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Notifier passes messages on to systemd. A nil Notifier, and one of a process
// that systemd has not started, does nothing.
type Notifier struct {
	send     func(state string) error
	watchdog time.Duration
	wake     chan struct{}

	mu      sync.Mutex
	pending []string // in order; a status and a keepalive stand there once
	status  string   // the last one
}

// New makes the notifier of this process, from the variables that systemd sets
// (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID). It is nil when there are none.
func New() (*Notifier, error) {
	if sent, err := daemon.SdNotify(false, ""); !sent && err == nil {
		return nil, nil //nolint:nilnil // a nil notifier is one that does nothing
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("systemd's watchdog: %w", err)
	}
	return &Notifier{
		watchdog: watchdog, wake: make(chan struct{}, 1),
		send: func(state string) error {
			_, err := daemon.SdNotify(false, state)
			return err
		},
	}, nil
}

// KeepAliveEvery is how often Alive must be called: three times within the unit's
// WatchdogSec. Zero: never.
func (n *Notifier) KeepAliveEvery() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog / 3
}

// MayHang says how much longer than the unit's WatchdogSec Alive may fail to come, from now on,
// before systemd starts the service anew. How often it is to come stays.
func (n *Notifier) MayHang(longest time.Duration) {
	if n == nil || n.watchdog == 0 {
		return
	}
	n.leave(fmt.Sprintf("WATCHDOG_USEC=%d", (n.watchdog + longest).Microseconds()))
}

// Ready says that the service has started, or that a reload is over.
func (n *Notifier) Ready() { n.leave(daemon.SdNotifyReady) }

// Reloading says that the configuration is being read. Ready must follow.
func (n *Notifier) Reloading() {
	// Type=notify-reload wants to know when it began (sd_notify(3)).
	var now unix.Timespec
	state := daemon.SdNotifyReloading
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		state += fmt.Sprintf("\nMONOTONIC_USEC=%d", now.Nano()/1000)
	}
	n.leave(state)
}

// Stopping says that the service ends.
func (n *Notifier) Stopping() { n.leave(daemon.SdNotifyStopping) }

// Alive says that the loop has come round.
func (n *Notifier) Alive() { n.leave(daemon.SdNotifyWatchdog) }

// Status says in one line what the service does; it is told when it has changed.
func (n *Notifier) Status(text string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	same := text == n.status
	n.status = text
	n.mu.Unlock()
	if !same {
		n.leave(statusPrefix)
	}
}

// statusPrefix stands in the queue for the status as it is when it is sent.
const statusPrefix = "STATUS="

func (n *Notifier) leave(state string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	once := state == statusPrefix || state == daemon.SdNotifyWatchdog
	for _, p := range n.pending {
		once = once && p != state
	}
	if once || state != statusPrefix && state != daemon.SdNotifyWatchdog {
		n.pending = append(n.pending, state)
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run sends what is left for systemd, until ctx ends and all has been sent. The
// first failure is returned: a service that systemd does not hear of is killed.
func (n *Notifier) Run(ctx context.Context) error {
	if n == nil {
		return nil
	}
	for {
		if err := n.flush(); err != nil {
			return err
		}
		select {
		case <-n.wake:
		case <-ctx.Done():
			return n.flush()
		}
	}
}

func (n *Notifier) flush() error {
	for {
		n.mu.Lock()
		if len(n.pending) == 0 {
			n.mu.Unlock()
			return nil
		}
		state := n.pending[0]
		n.pending = n.pending[1:]
		if state == statusPrefix {
			state += n.status
		}
		n.mu.Unlock()
		if err := n.send(state); err != nil {
			return fmt.Errorf("telling systemd: %w", err)
		}
	}
}
