package fence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLingering: every process has been sent SIGKILL, but not all have ended, as
// the disk they wait for hangs. They are harmless: the kernel ends them before
// they could run, and so answer a client, again (signal(7)).
var ErrLingering = errors.New("killed, but some of its processes still wait for a disk that hangs")

// KillProcesses kills every process of the PostgreSQL in a data directory, found by
// that directory alone (Target.Kill).
func KillProcesses(ctx context.Context, dataDir string, programs ...string) error {
	return NewTarget(dataDir).Kill(ctx, programs...)
}

// Kill kills every process of PostgreSQL and waits until none is left, or until ctx
// ends (ErrLingering). All are signalled before the first one is waited for: a
// backend must not have time to finish a commit. Programs that are named are killed
// with it. It succeeds only when the postmasters that are held have ended and no
// process is left that may be ours (ErrUnsure).
func (t *Target) Kill(ctx context.Context, programs ...string) error {
	k := killing{target: t, programs: programs, pidfds: map[int]int{}}
	defer k.close()
	for {
		// A process may have been forked while the others were signalled, so
		// look again until there is no new one.
		more, doubt, err := k.more()
		if err != nil {
			return fmt.Errorf("killing PostgreSQL in %s: %w", t.dataDir, err)
		}
		if more {
			if ctx.Err() != nil {
				return fmt.Errorf("killing PostgreSQL in %s, which forks on: %w", t.dataDir, ctx.Err())
			}
			continue
		}
		if len(k.pidfds) == 0 && t.Postmaster() == 0 {
			if doubt != nil {
				return fmt.Errorf("killing PostgreSQL in %s: %w", t.dataDir, doubt)
			}
			t.forget()
			return nil
		}
		if err := k.await(ctx); doubt != nil && err != nil {
			return fmt.Errorf("killing PostgreSQL in %s: %w: %w", t.dataDir, doubt, err)
		} else if err != nil {
			return fmt.Errorf("PostgreSQL in %s: %w: %w", t.dataDir, ErrLingering, err)
		}
	}
}

// killing is one Kill.
type killing struct {
	target   *Target
	programs []string
	pidfds   map[int]int // of those that were signalled
}

func (k *killing) close() {
	for _, fd := range k.pidfds {
		_ = unix.Close(fd)
	}
}

// more kills the processes that were not yet, and reports whether there were any. It
// forgets those that have ended. doubt is about processes that may be ours.
func (k *killing) more() (more bool, doubt, err error) {
	for pid, fd := range k.pidfds {
		if ended(fd, 0) {
			_ = unix.Close(fd)
			delete(k.pidfds, pid)
		}
	}
	s, err := k.target.scan(k.programs)
	if err != nil {
		// What is held is killed all the same.
		return false, nil, errors.Join(err, k.target.Signal(unix.SIGKILL))
	}
	// All are got hold of before the first is killed: its children get another
	// parent then, by which they may be found no more.
	candidates, errs := map[int]int{}, []error(nil)
	for _, pid := range s.ours {
		if _, signalled := k.pidfds[pid]; signalled {
			continue
		}
		switch fd, err := unix.PidfdOpen(pid, 0); {
		case err == nil:
			candidates[pid] = fd
		case !errors.Is(err, unix.ESRCH):
			errs = append(errs, fmt.Errorf("process %d: %w", pid, err))
		}
	}
	verified := k.verify(s, candidates)
	for pid, fd := range candidates {
		more = true
		if !verified[pid] {
			_ = unix.Close(fd) // it has ended, or has another parent by now: the next look tells
			continue
		}
		k.pidfds[pid] = fd
		if err := signalFD(fd, unix.SIGKILL); err != nil {
			errs = append(errs, fmt.Errorf("signalling process %d: %w", pid, err)) // the others are killed all the same
		}
	}
	// Of what is held, nothing that /proc hides is spared.
	errs = append(errs, k.target.Signal(unix.SIGKILL))
	return more, s.doubt(k.target.dataDir), errors.Join(errs...)
}

// verify looks again at processes whose pidfds are open by now, so that a pid that
// is used again is never hit.
func (k *killing) verify(s scan, candidates map[int]int) map[int]bool {
	verified := map[int]bool{}
	roots := k.target.roots() // that live still
	for pid := range candidates {
		var chain []int
		sure := false
		for p := pid; ; {
			if done, known := verified[p]; known {
				sure = done
				break
			}
			if slices.Contains(chain, p) {
				break
			}
			chain = append(chain, p)
			if roots[p] || k.target.judge(p, s.homes, k.programs) == ours {
				sure = true
				break
			}
			parent, alive := parentOf(p)
			if _, root := roots[parent]; alive && root {
				sure = true
				break
			}
			fd, candidate := candidates[parent]
			if !candidate {
				fd, candidate = k.pidfds[parent]
			}
			if !alive || !candidate || ended(fd, 0) {
				break
			}
			p = parent
		}
		for _, p := range chain {
			verified[p] = sure
		}
	}
	return verified
}

// await waits until all have ended.
func (k *killing) await(ctx context.Context) error {
	for _, fd := range k.pidfds {
		for !ended(fd, pollMS) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	for k.target.Postmaster() != 0 {
		select {
		case <-time.After(pollMS * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
