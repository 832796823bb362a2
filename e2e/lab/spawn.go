package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// spawner starts processes from one operating system thread that lives as long
// as the lab. Two things belong to a thread: the network namespace in which it
// forks, and the parent-death signal, by which the kernel kills the lab's
// processes should the lab itself be killed.
type spawner struct {
	requests chan spawnRequest
	ended    chan struct{}
}

type spawnRequest struct {
	ns     *namespace // nil: the lab's own
	cmd    *exec.Cmd
	result chan error
}

func newSpawner() (*spawner, error) {
	s := &spawner{requests: make(chan spawnRequest), ended: make(chan struct{})}
	started := make(chan error)
	go s.serve(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return s, nil
}

// serve never unlocks its thread: it ends with the goroutine, whatever
// namespace it was in.
func (s *spawner) serve(started chan<- error) {
	defer close(s.ended)
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	started <- err
	if err != nil {
		return
	}
	defer home.Close()
	for r := range s.requests {
		r.result <- func() error {
			if r.ns != nil {
				if err := unix.Setns(int(r.ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
					return fmt.Errorf("entering network namespace %s: %w", r.ns.name, err)
				}
				defer unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) //nolint:errcheck // the next request sets its own
			}
			return r.cmd.Start()
		}()
	}
}

func (s *spawner) start(ns *namespace, cmd *exec.Cmd) error {
	r := spawnRequest{ns: ns, cmd: cmd, result: make(chan error, 1)}
	s.requests <- r
	return <-r.result
}

// close ends the thread, upon which the kernel kills what it started and what
// still lives. No start may be under way.
func (s *spawner) close() {
	close(s.requests)
	<-s.ended
}
