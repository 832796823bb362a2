package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// fifoWatchdog is Patroni's watchdog for tests (driver: testing): a fifo whose
// reader plays the device. It gets "Ctimeout=N\n", a byte for each keepalive, and
// "V" before an orderly close.
type fifoWatchdog struct {
	path string
	fd   int
}

// fifoRetry is how soon a fifo that nobody reads yet is tried again: there is no
// event to wait for, as opening it for good would block beyond any context.
const fifoRetry = 20 * time.Millisecond

func openFifoWatchdog(ctx context.Context, path string) (watchdogDevice, error) {
	for {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			return &fifoWatchdog{path: path, fd: fd}, nil
		}
		if !errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("opening %s (watchdog.driver: testing): %w", path, err)
		}
		retry := time.NewTimer(fifoRetry)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return nil, fmt.Errorf("opening %s (watchdog.driver: testing): nobody reads it: %w", path, context.Cause(ctx))
		}
	}
}

func (d *fifoWatchdog) describe() watchdogDescription {
	way := false
	return watchdogDescription{identity: "fifo (testing)", nowayout: &way}
}

func (d *fifoWatchdog) write(s string) error {
	if _, err := unix.Write(d.fd, []byte(s)); err != nil {
		return fmt.Errorf("writing to %s: %w", d.path, err)
	}
	return nil
}

func (d *fifoWatchdog) setTimeout(timeout time.Duration) (time.Duration, error) {
	return timeout, d.write(fmt.Sprintf("Ctimeout=%d\n", timeout/watchdogUnit))
}

func (d *fifoWatchdog) timeLeft() (time.Duration, error) {
	return 0, fmt.Errorf("%s: reading the time left: %w", d.path, errors.ErrUnsupported)
}

func (d *fifoWatchdog) keepAlive() error { return d.write("1") }

func (d *fifoWatchdog) stop() error {
	if err := d.write("V"); err != nil {
		return err
	}
	return unix.Close(d.fd)
}

func (d *fifoWatchdog) abandon() error { return unix.Close(d.fd) }
