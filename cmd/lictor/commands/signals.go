package commands

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// signalled are the wishes that signals express: SIGTERM and SIGINT stop, SIGHUP
// reloads, SIGUSR1 switches debug lines on and off, SIGUSR2 goes on with the binary
// that is installed by now.
type signalled struct {
	stop, reload, upgrade chan struct{}
	debug                 func()

	ch         chan os.Signal
	quit, done chan struct{}
}

// listenForSignals listens until release is called; debug is called at SIGUSR1.
func listenForSignals(debug func()) *signalled {
	s := &signalled{
		debug: debug,
		stop:  make(chan struct{}), reload: make(chan struct{}, 1), upgrade: make(chan struct{}, 1),
		ch: make(chan os.Signal, 4), quit: make(chan struct{}), done: make(chan struct{}),
	}
	signal.Notify(s.ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	go s.listen()
	return s
}

func (s *signalled) listen() {
	defer close(s.done)
	stopped := false
	for {
		select {
		case got := <-s.ch:
			switch {
			case got == syscall.SIGHUP:
				post(s.reload)
			case got == syscall.SIGUSR1:
				s.debug()
			case got == syscall.SIGUSR2:
				post(s.upgrade)
			case !stopped:
				stopped = true
				close(s.stop)
			}
		case <-s.quit:
			return
		}
	}
}

func (s *signalled) release() {
	signal.Stop(s.ch)
	close(s.quit)
	<-s.done
}

func post(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// installed is where this binary is installed, as it was called: a link there may
// lead to another version by now, which the running program's own file does not.
func installed() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("finding the lictor binary: %w", err)
	}
	return path, nil
}

// runnable tells whether a binary starts at all: nothing is replaced by one that
// does not.
func runnable(ctx context.Context, binary string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, binary, "--version").CombinedOutput(); err != nil {
		return fmt.Errorf("%s --version: %w: %s", binary, err, out)
	}
	return nil
}

// execute replaces this process by a binary, with the same arguments.
func execute(binary string) error {
	if err := syscall.Exec(binary, os.Args, os.Environ()); err != nil {
		return fmt.Errorf("executing %s: %w", binary, err)
	}
	return nil
}
