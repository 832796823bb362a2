package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/e2e/vm/event"
)

// The scenarios of this file use the device as the agent does, without the rest
// of a node: a process that protects a lease, which "beats" without Consul.

// protectCommand is this program as that process.
const protectCommand = "protect"

const (
	deviceTTL  = 5 * time.Second
	deviceBeat = 500 * time.Millisecond
	// watch is how often a scenario says that the machine is alive.
	watch = 50 * time.Millisecond
)

func deviceTiming() fence.WatchdogTiming {
	return fence.WatchdogTiming{TTL: deviceTTL, DemoteBefore: deviceTTL / 4, KillBefore: deviceTTL / 10}
}

// protect beats and keeps the watchdog alive until SIGTERM, then stops it.
func protect() error {
	stop, release := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer release()
	ctx, cancel := context.WithCancel(context.Background())
	w := fence.NewWatchdog(fence.WatchdogOptions{Mode: "required", Driver: "default", Device: "/dev/watchdog"})
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	defer running.Wait()
	defer cancel()
	if err := w.Usable(); err != nil {
		return err
	}
	limit, done := context.WithTimeout(ctx, deviceTTL)
	defer done()
	if err := w.Activate(limit, fence.Now().Add(deviceTTL), deviceTiming()); err != nil {
		return err
	}
	if err := show(w); err != nil {
		return err
	}
	tell(event.Leading, event.Event{})
	tick := time.NewTicker(deviceBeat)
	defer tick.Stop()
	for stop.Err() == nil {
		t0 := fence.Now()
		tell(event.Beat, event.Event{Beat: milliseconds(t0)})
		w.KeepAlive(t0.Add(deviceTTL), deviceTiming())
		select {
		case <-tick.C:
		case <-stop.Done():
		}
	}
	limit, done = context.WithTimeout(ctx, deviceTTL)
	defer done()
	if err := w.Disable(limit); err != nil {
		tell(event.Refused, event.Event{Text: err.Error()})
		if err := show(w); err != nil {
			return err
		}
		// It is kept alive as long as this process runs, and not longer.
		time.Sleep(2 * deviceTTL)
		return nil
	}
	return show(w)
}

// show tells the watchdog's state.
func show(w *fence.Watchdog) error {
	s := w.State()
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tell(event.State, event.Event{Text: string(b)})
	if s.LastError != "" && !s.Stuck {
		return errors.New(s.LastError)
	}
	return nil
}

func playDevice(scenario string) error {
	cmd, err := startProtecting()
	if err != nil {
		return err
	}
	time.Sleep(deviceTTL + time.Second) // so that it lives on keepalives, not on the first one
	switch scenario {
	case "device-freeze":
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		tell(event.Frozen, event.Event{})
		stayAlive(time.Minute, nil)
	case "device-stop":
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			return err
		}
		tell(event.Acted, event.Event{Text: "stopped"})
		stayAlive(2*deviceTTL, nil)
	case "device-kill":
		if err := cmd.Process.Kill(); err != nil {
			return err
		}
		_ = cmd.Wait()
		tell(event.Acted, event.Event{Text: "killed"})
		if cmd, err = startProtecting(); err != nil {
			return err
		}
		stayAlive(2*deviceTTL, nil)
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			return err
		}
	case "device-nowayout":
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			return err
		}
		tell(event.Acted, event.Event{Text: "the process that kept it alive has ended"})
		stayAlive(time.Minute, nil)
	}
	tell(event.Survived, event.Event{})
	return nil
}

func startProtecting() (*exec.Cmd, error) {
	cmd := exec.Command("/init", protectCommand) //nolint:noctx // it lasts as long as the scenario
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the process that protects: %w", err)
	}
	return cmd, nil
}

// stayAlive says for a while that the machine is alive.
func stayAlive(d time.Duration, more func(*event.Event)) {
	until := fence.Now().Add(d)
	tick := time.NewTicker(watch)
	defer tick.Stop()
	for fence.Now().Before(until) {
		var e event.Event
		if more != nil {
			more(&e)
		}
		tell(event.Alive, e)
		<-tick.C
	}
}
