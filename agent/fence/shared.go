package fence

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is what guard and watcher have in common: files that one inherits from the other.

// sharedVariable is the first of them in the environment of whichever was started by the
// other: the deadline, the pidfd of the one who started it, and, for a watcher, the socket
// on which it gets the postmasters.
const sharedVariable = "LICTOR_GUARD_FDS"

// firstExtra is the first file that a process inherits besides the usual three (os/exec).
const firstExtra = 3

// inherited returns file number n of sharedVariable; nil: this process was started by neither.
func inherited(n int) (*os.File, error) {
	value := os.Getenv(sharedVariable)
	if value == "" {
		return nil, nil //nolint:nilnil // nobody watches
	}
	first, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("guard: %s: %w", sharedVariable, err)
	}
	unix.CloseOnExec(first + n) // PostgreSQL has no use for it
	return os.NewFile(uintptr(first+n), sharedVariable+"+"+strconv.Itoa(n)), nil
}

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

// sharedBytes is the size of the deadline and of its complement, by which a reader knows
// that it has read both halves of one value.
const sharedBytes = 16

// What follows them: whether the watcher kills just now, and whether the guard has ended
// in an orderly way.
const (
	killingAt = sharedBytes
	overAt    = sharedBytes + 1
)

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

// setOver is the guard's: it ends in an orderly way, with nothing left to guard.
func (s *sharedDeadline) setOver() {
	if s != nil {
		_, _ = s.file.WriteAt([]byte{1}, overAt)
	}
}

// over reports whether the guard has ended in an orderly way.
func (s *sharedDeadline) over() bool {
	var b [1]byte
	n, _ := s.file.ReadAt(b[:], overAt)
	return n == len(b) && b[0] != 0
}

// setKilling is the watcher's: whether it kills just now. One that cannot say so kills all
// the same.
func (s *sharedDeadline) setKilling(killing bool) {
	b := make([]byte, 1)
	if killing {
		b[0] = 1
	}
	_, _ = s.file.WriteAt(b, killingAt)
}

// killing reports whether the watcher kills just now.
func (s *sharedDeadline) killing() bool {
	var b [1]byte
	if s == nil {
		return false
	}
	n, _ := s.file.ReadAt(b[:], killingAt)
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
