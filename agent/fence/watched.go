package fence

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file is how a guard keeps a watcher: its side, and the watcher that it starts.

// watcherEvery spaces out the watchers that a guard starts.
const watcherEvery = time.Second

// watch is what a guard knows of its watcher.
type watch struct {
	mu      sync.Mutex
	pid     int   // zero: there is none
	lost    int   // that have ended
	problem error // why there is no other one
	// postmasters is the socket on which a watcher that this guard has started gets them;
	// nil: its watcher is its parent.
	postmasters *net.UnixConn
	log         *speaker
}

// openSelf is the pidfd of this very process.
func openSelf() (*os.File, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "self"), nil
}

// keepWatched starts another watcher whenever the last has ended, until ctx ends. Of each
// the kernel tells the end at once.
func (g *guard) keepWatched(ctx context.Context, watcher *os.File) {
	for {
		err := awaitProcess(ctx, watcher)
		_ = watcher.Close()
		if ctx.Err() != nil {
			return
		}
		g.unwatched(err)
		started := time.Now()
		for {
			if watcher, err = g.startWatcher(); err == nil {
				break
			}
			g.watch.set(func(w *watch) { w.problem = err })
			g.log.sayf("%v", err)
			if !pause(ctx, watcherEvery) {
				return
			}
		}
		if !pause(ctx, watcherEvery-time.Since(started)) {
			return
		}
	}
}

// pause waits, and reports whether ctx has not ended meanwhile.
func pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// awaitProcess waits for the end of the process of a pidfd.
func awaitProcess(ctx context.Context, process *os.File) error {
	fd := int(process.Fd())
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(wake)
	var waking sync.WaitGroup
	waking.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer waking.Done()
		_, _ = unix.Write(wake, binary.NativeEndian.AppendUint64(nil, 1))
	})
	defer func() {
		if stop() {
			waking.Done()
		}
		waking.Wait() // it writes to no other file of that number
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// unwatched notes that the watcher has ended.
func (g *guard) unwatched(err error) {
	why := ""
	if err != nil {
		why = ": " + err.Error()
	}
	g.shared.setKilling(false) // it may have been at it
	pid := 0
	g.watch.set(func(w *watch) {
		pid, w.pid, w.problem = w.pid, 0, errors.New("it has just ended, another one is being started")
		w.lost++
		w.hangUp()
	})
	g.log.sayf("the watcher (process %d) has ended%s: starting another one", pid, why)
}

// hangUp gives no more postmasters to the watcher. The lock is held.
func (w *watch) hangUp() {
	if w.postmasters != nil {
		_ = w.postmasters.Close()
		w.postmasters = nil
	}
}

func (w *watch) set(change func(*watch)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

// startWatcher starts a watcher and returns its pidfd. It becomes the child of the guard's
// parent (CLONE_PARENT): a child of the guard would be taken for PostgreSQL's.
func (g *guard) startWatcher() (*os.File, error) {
	ours, its, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("guard: starting a watcher: %w", err)
	}
	defer its.Close()
	self, err := openSelf()
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("guard: starting a watcher: %w", err)
	}
	defer self.Close()
	pidfd := -1
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:len(os.Args):len(os.Args)], "--watch")...) //nolint:noctx // it outlives every request
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{g.shared.file, self, its}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", sharedVariable, firstExtra))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_PARENT, PidFD: &pidfd}
	// It holds what runs by now, and what is launched while it starts.
	g.watch.set(func(w *watch) { w.postmasters = ours })
	g.target.children(func(pid, fd int) { g.watch.set(func(w *watch) { w.pass(pid, fd) }) })
	g.watch.set(func(w *watch) { w.tell([]byte(readyMessage), nil) }) // upon which it says that it is ready
	if err := cmd.Start(); err != nil {
		g.watch.set((*watch).hangUp)
		return nil, fmt.Errorf("guard: starting a watcher: %w", err)
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // its parent reaps it
	go func() {               // ends with the watcher
		if n, _ := ours.Read(make([]byte, 1)); n > 0 {
			g.watch.set(func(w *watch) {
				if w.postmasters == ours {
					w.pid, w.problem = pid, nil
				}
			})
		}
	}()
	return os.NewFile(uintptr(pidfd), "watcher"), nil
}

// socketPair is a socket for this process and one for another.
func socketPair() (ours *net.UnixConn, its *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket: %w", err)
	}
	file, its := os.NewFile(uintptr(pair[0]), "postmasters"), os.NewFile(uintptr(pair[1]), "postmasters")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		_ = its.Close()
		return nil, nil, fmt.Errorf("socket: %w", err)
	}
	return conn.(*net.UnixConn), its, nil
}

// pass gives the watcher a postmaster to hold. The lock is held.
func (w *watch) pass(pid, fd int) {
	w.tell(binary.NativeEndian.AppendUint32(nil, uint32(pid)), unix.UnixRights(fd))
}

// readyMessage asks a watcher to say that it has read all that came before, and is its
// answer.
const readyMessage = "?"

// tell sends the watcher a message, and waits for none that stands still. The lock is held.
func (w *watch) tell(message, rights []byte) {
	if w.postmasters == nil {
		return
	}
	raw, err := w.postmasters.SyscallConn()
	if err == nil {
		control := raw.Control(func(fd uintptr) {
			err = unix.Sendmsg(int(fd), message, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		err = errors.Join(control, err)
	}
	if err != nil {
		w.log.sayf("guard: telling the watcher: %v", err)
	}
}

// runNextWatcher watches the guard that has started it, as its last watcher has ended.
func runNextWatcher(ctx context.Context, o GuardOptions, log *speaker) error {
	deadline, err := inherited(0)
	if err != nil {
		return err
	}
	guard, err := inherited(1)
	if err != nil {
		return err
	}
	socket, err := inherited(2)
	if err != nil {
		return err
	}
	shared := &sharedDeadline{file: deadline}
	pid, err := pidOf(guard)
	if err != nil {
		return fmt.Errorf("guard's watcher: %w", err)
	}
	parent := func() int {
		if ended(int(guard.Fd()), 0) {
			return 0 // another process may have its number
		}
		return pid
	}
	conn, err := net.FileConn(socket)
	if err != nil {
		return fmt.Errorf("guard's watcher: %w", err)
	}
	_ = socket.Close()
	left := &Target{dataDir: o.DataDir, blind: true, Reaper: os.Getppid}
	firing, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() {
		watchDeadline(firing, o.DataDir, parent, shared, log, func() { left.lookAfter(&Target{dataDir: o.DataDir, blind: true, Parent: parent}) })
	})
	work.Go(func() { receivePostmasters(conn.(*net.UnixConn), left) }) // ends with the guard
	err = awaitProcess(ctx, guard)
	cancel()
	if err != nil {
		return fmt.Errorf("guard's watcher: waiting for the guard's end: %w", err)
	}
	work.Wait()
	if shared.over() {
		return nil // it had nothing left to guard
	}
	inherit(ctx, left, log)
	return errors.New("the guard has died")
}

// receivePostmasters holds those that the guard starts, until the guard has ended.
func receivePostmasters(conn *net.UnixConn, left *Target) {
	defer func() { _ = conn.Close() }() // nobody is told
	message, rights := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	for {
		n, m, _, _, err := conn.ReadMsgUnix(message, rights)
		if err != nil || n == 0 {
			return
		}
		if string(message[:n]) == readyMessage {
			_, _ = conn.Write(message[:n])
			continue
		}
		control, err := unix.ParseSocketControlMessage(rights[:m])
		if err != nil || len(control) != 1 || n != len(message) {
			continue
		}
		fds, err := unix.ParseUnixRights(&control[0])
		if err != nil || len(fds) != 1 {
			continue
		}
		left.hold(int(binary.NativeEndian.Uint32(message)), fds[0])
		left.seeHeld()
	}
}
