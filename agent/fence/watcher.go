package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
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
// The guard hears of the end of its watcher and starts another one at once (watched.go). That
// one is not the guard's parent, and does not get its orphans. It holds the postmasters that
// the guard has started, and knows their orphans by where those worked.

// fireBehind is how much later than the guard the watcher kills: the guard's kill, and
// what it remembers of that, come first.
const fireBehind = 50 * time.Millisecond

// watchEvery bounds how long a deadline that was set may go unnoticed; none is that near.
const watchEvery = 200 * time.Millisecond

// runWatcher runs a guard and watches it until it ends; one that was started by a guard
// watches that.
func runWatcher(ctx context.Context, o GuardOptions) error {
	log := newSpeaker(os.Stderr)
	defer log.close()
	ignoreSignals()
	privilege(log)
	if os.Getenv(sharedVariable) != "" {
		return runNextWatcher(ctx, o, log)
	}
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
	self, err := openSelf()
	if err != nil {
		return fmt.Errorf("guard's watcher: %w", err)
	}
	cmd.ExtraFiles = []*os.File{shared.file, self}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", sharedVariable, firstExtra))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("guard's watcher: starting the guard: %w", err)
	}
	_ = self.Close() // the guard has it
	guard := cmd.Process.Pid
	if err := cmd.Process.Release(); err != nil { // it is reaped with all others
		return fmt.Errorf("guard's watcher: %w", err)
	}
	firing, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { watchDeadline(firing, o.DataDir, func() int { return guard }, shared, log, nil) })
	status := awaitGuard(ended, guard)
	cancel()
	work.Wait()
	if status.Exited() && status.ExitStatus() == 0 {
		return nil // it had nothing left to guard
	}
	inherit(ctx, &Target{dataDir: o.DataDir, Parent: os.Getpid, blind: true}, log)
	return fmt.Errorf("the guard has ended: %s", describe(status))
}

// inherit kills what a guard that has died has left. What its successor starts in the data
// directory is none of that.
func inherit(ctx context.Context, left *Target, log *speaker) {
	log.sayf("the guard has died: killing what is left of PostgreSQL in %s", left.dataDir)
	killAll(ctx, left, log)
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
// look is called now and then meanwhile, unless it is nil.
func watchDeadline(ctx context.Context, dataDir string, parent func() int, shared *sharedDeadline, log *speaker, look func()) {
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
				if look != nil {
					look()
				}
				continue
			case <-ctx.Done():
				return
			}
		}
		if told != until {
			told = until
			log.sayf("the guard has not killed PostgreSQL in %s at the deadline: killing it", dataDir)
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
