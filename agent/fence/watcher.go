package fence

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// The watcher is the guard's parent, and does what the guard cannot do any more:
//
//   - a guard that has died leaves its postmaster and all orphans to the watcher
//     (PR_SET_CHILD_SUBREAPER), which kills them. The parent-death signal alone does not
//     end a postmaster that is stopped, nor backends without one;
//   - a guard that is stopped, or hangs, does not kill at the deadline. The watcher knows
//     the deadline, and kills a moment later.
//
// A guard whose watcher has died goes on alone.

// fireBehind is how much later than the guard the watcher kills: the guard's kill, and
// what it remembers of that, come first.
const fireBehind = 50 * time.Millisecond

// watchEvery bounds how long a deadline that was set may go unnoticed; none is that near.
const watchEvery = 200 * time.Millisecond

// runWatcher runs a guard and watches it until it ends.
func runWatcher(ctx context.Context, o GuardOptions) error {
	ignoreSignals()
	privilege()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("guard's watcher: becoming the parent of orphans: %w", err)
	}
	shared, err := newSharedDeadline()
	if err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	// The file of this very program, also when another has been installed meanwhile.
	cmd := exec.Command("/proc/self/exe", withoutWatch(os.Args[1:])...) //nolint:noctx // it outlives every request
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{shared.file}
	cmd.Env = append(os.Environ(), deadlineVariable+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("guard's watcher: starting the guard: %w", err)
	}
	guard := cmd.Process.Pid
	if err := cmd.Process.Release(); err != nil { // it is reaped with all others
		return fmt.Errorf("guard's watcher: %w", err)
	}
	firing, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { watchDeadline(firing, o.DataDir, guard, shared) })
	status := awaitGuard(ended, guard)
	cancel()
	work.Wait()
	if status.Exited() && status.ExitStatus() == 0 {
		return nil // it had nothing left to guard
	}
	fmt.Fprintf(os.Stderr, "%s the guard has died: killing what is left of PostgreSQL in %s\n", time.Now().Format(time.RFC3339Nano), o.DataDir)
	// What its successor starts in the data directory is none of this one's.
	killAll(ctx, &Target{dataDir: o.DataDir, Parent: os.Getpid, blind: true})
	return fmt.Errorf("the guard has ended: %s", describe(status))
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// withoutWatch are the arguments of the guard, of those of its watcher.
func withoutWatch(args []string) []string {
	var kept []string
	for _, a := range args {
		if a != "--watch" {
			kept = append(kept, a)
		}
	}
	return kept
}

// awaitGuard takes the exit status of all children until the guard's comes.
func awaitGuard(ended <-chan os.Signal, guard int) unix.WaitStatus {
	for {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if pid == guard {
				return status
			}
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		<-ended
	}
}

// watchDeadline kills PostgreSQL when a deadline has passed and the guard does not.
func watchDeadline(ctx context.Context, dataDir string, guard int, shared *sharedDeadline) {
	parent := func() int { return guard }
	// What the guard has started is killed without a look at the data directory, whose disk
	// may hang; after that what works there, too: PostgreSQL that was adopted.
	started, all := &Target{dataDir: dataDir, Parent: parent, blind: true}, NewTarget(dataDir)
	all.Parent = parent
	var fired, told cluster.Instant
	for {
		wait := watchEvery
		until := shared.get()
		if !until.IsZero() && until != fired {
			wait = min(wait, until.Add(fireBehind).Sub(Now()))
		}
		if wait > 0 {
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
				return
			}
		}
		if told != until {
			told = until
			fmt.Fprintf(os.Stderr, "%s the guard has not killed PostgreSQL in %s at the deadline: killing it\n", time.Now().Format(time.RFC3339Nano), dataDir)
		}
		shared.setKilling(true)
		// The guard may go on meanwhile, and have killed what there was. It starts no other
		// PostgreSQL before we say that we have done.
		moved, err := shared.get() != until, error(nil)
		if !moved {
			_ = killWithin(ctx, started) // the next one tells
			moved = shared.get() != until
		}
		if !moved {
			err = killWithin(ctx, all)
		}
		shared.setKilling(false)
		if moved {
			continue
		}
		if err == nil {
			fired = until
			continue
		}
		select { // one that failed at once
		case <-time.After(killAgainAfter):
		case <-ctx.Done():
			return
		}
	}
}

// killWithin is one attempt: a deadline that has moved is seen before the next.
func killWithin(ctx context.Context, target *Target) error {
	ctx, cancel := context.WithTimeout(ctx, watchEvery)
	defer cancel()
	return target.Kill(ctx)
}

// deadlineVariable names the file of the deadline in the guard's environment.
const deadlineVariable = "LICTOR_GUARD_DEADLINE_FD"

// sharedDeadline is the guard's deadline in memory that its watcher reads. Nobody waits
// for the other there, whatever has become of it.
type sharedDeadline struct{ file *os.File }

func newSharedDeadline() (*sharedDeadline, error) {
	fd, err := unix.MemfdCreate("lictor-guard-deadline", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("guard's watcher: memory for the deadline: %w", err)
	}
	s := &sharedDeadline{file: os.NewFile(uintptr(fd), "deadline")}
	return s, s.set(0)
}

// inheritedDeadline is that of a guard with a watcher; nil: it has none.
func inheritedDeadline() (*sharedDeadline, error) {
	value := os.Getenv(deadlineVariable)
	if value == "" {
		return nil, nil //nolint:nilnil // nobody watches
	}
	fd, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("guard: %s: %w", deadlineVariable, err)
	}
	unix.CloseOnExec(fd) // PostgreSQL has no use for it
	return &sharedDeadline{file: os.NewFile(uintptr(fd), "deadline")}, nil
}

// sharedBytes is the size of the deadline and of its complement, by which a reader knows
// that it has read both halves of one value.
const sharedBytes = 16

func (s *sharedDeadline) set(until cluster.Instant) error {
	if s == nil {
		return nil
	}
	b := binary.NativeEndian.AppendUint64(nil, uint64(until))
	b = binary.NativeEndian.AppendUint64(b, ^uint64(until))
	if _, err := s.file.WriteAt(b, 0); err != nil {
		return fmt.Errorf("guard: telling the watcher the deadline: %w", err)
	}
	return nil
}

// setKilling is the watcher's: whether it kills just now. One that cannot say so kills all
// the same.
func (s *sharedDeadline) setKilling(killing bool) {
	b := make([]byte, 1)
	if killing {
		b[0] = 1
	}
	_, _ = s.file.WriteAt(b, sharedBytes)
}

// killing reports whether the watcher kills just now.
func (s *sharedDeadline) killing() bool {
	var b [1]byte
	if s == nil {
		return false
	}
	n, _ := s.file.ReadAt(b[:], sharedBytes)
	return n == len(b) && b[0] != 0
}

// awaitKill waits until the watcher does not kill, for a while: it may stand still by then.
func (s *sharedDeadline) awaitKill(within time.Duration) {
	for until := Now().Add(within); s.killing() && Now().Before(until); {
		time.Sleep(pollMS * time.Millisecond)
	}
}

// get is the deadline, zero: there is none, or it is just being written.
func (s *sharedDeadline) get() cluster.Instant {
	var b [sharedBytes]byte
	if n, err := s.file.ReadAt(b[:], 0); n != len(b) || err != nil {
		return 0
	}
	until, complement := binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[sharedBytes/2:])
	if until != ^complement {
		return 0
	}
	return cluster.Instant(until)
}
