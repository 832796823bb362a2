package fence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Target is the PostgreSQL of one data directory, as it is found to be killed. By
// its directory alone it would be lost when that is renamed, mounted over, or on a
// disk that fails. So a target is known by three marks, any of which will do:
//
//   - the postmasters that are held by their pidfd, and all their descendants;
//   - all descendants of the guard, which adopts the orphans (PR_SET_CHILD_SUBREAPER);
//   - PostgreSQL's processes that work in the directory, or in that in which a held
//     postmaster was seen.
//
// A process of which none can be told may be ours: it is not killed, as it may be
// another PostgreSQL's, but nobody is told either that all is dead. It is safe for
// use by several goroutines.
type Target struct {
	dataDir string
	// Parent is the process all of whose descendants are PostgreSQL's, the guard;
	// nil, or zero: none is known.
	Parent func() int
	// blind: only descendants count, whatever works in the data directory.
	blind bool
	// Reaper is the process that inherits orphans; nil: they are not looked for. What a held
	// postmaster has left to it is ours even to a target that is blind: it works where that
	// one did, and no other guard has started it.
	Reaper func() int

	mu      sync.Mutex
	held    []*holding // the latest last
	looking *look
}

// holding is one postmaster.
type holding struct {
	pid, fd int
	// home is where it was seen at work last, and path the name of that.
	home identity
	path string
}

// NewTarget makes a target of which no process is held yet.
func NewTarget(dataDir string) *Target { return &Target{dataDir: filepath.Clean(dataDir)} }

// ErrNotPostgres: the process that was to be held is not PostgreSQL's.
var ErrNotPostgres = errors.New("is not a postmaster that may be signalled")

// Hold takes charge of a postmaster that is known to be this PostgreSQL's. It is no
// error when it has ended.
func (t *Target) Hold(pid int) error {
	if t.holds(pid) {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("postmaster %d: %w", pid, err)
	}
	if !isPostgres(pid) && !t.started(pid) {
		over := ended(fd, 0)
		_ = unix.Close(fd)
		if over {
			return nil
		}
		return fmt.Errorf("process %d %w", pid, ErrNotPostgres)
	}
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		_ = unix.Close(fd)
		return fmt.Errorf("process %d %w: %w", pid, ErrNotPostgres, err)
	}
	t.hold(pid, fd)
	return nil
}

// started reports whether a process, whatever its program's name, is the guard's child.
func (t *Target) started(pid int) bool {
	parent, alive := parentOf(pid)
	return alive && t.Parent != nil && parent > 0 && parent == t.Parent()
}

// hold takes charge of a postmaster by its pidfd, which it owns from then on.
func (t *Target) hold(pid, fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.letGo() // whoever starts the next has killed the orphans of the last
	t.held = append(t.held, &holding{pid: pid, fd: fd})
}

func (t *Target) holds(pid int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.held, func(h *holding) bool { return h.pid == pid && !ended(h.fd, 0) })
}

// Postmaster is the pid of the postmaster that is held and lives, zero: none.
func (t *Target) Postmaster() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range slices.Backward(t.held) {
		if !ended(h.fd, 0) {
			return h.pid
		}
	}
	return 0
}

// Signal signals the postmaster that is held, if one lives.
func (t *Target) Signal(sig unix.Signal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range slices.Backward(t.held) {
		if !ended(h.fd, 0) {
			if err := signalFD(h.fd, sig); err != nil {
				return fmt.Errorf("signalling the postmaster (pid %d): %w", h.pid, err)
			}
			return nil
		}
	}
	return nil
}

// awaitEnd waits until the postmasters that are held have ended.
func (t *Target) awaitEnd() {
	t.mu.Lock()
	held := slices.Clone(t.held)
	t.mu.Unlock()
	for _, h := range held {
		ended(h.fd, -1)
	}
}

// forget lets go of postmasters that have ended, when none of their orphans lives.
func (t *Target) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.letGo()
}

// children calls do for each postmaster that is held, lives, and was started by this process.
func (t *Target) children(do func(pid, fd int)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.held {
		if parent, alive := parentOf(h.pid); alive && parent == os.Getpid() && !ended(h.fd, 0) {
			do(h.pid, h.fd)
		}
	}
}

// lookAfter notes where the postmasters that are held work, and lets go of those that have
// ended when the guard that has started them, which lives, has no orphan of theirs.
func (t *Target) lookAfter(ofGuard *Target) {
	t.seeHeld()
	if t.settled() || ofGuard.Parent() == 0 {
		return
	}
	if left, err := ofGuard.Processes(); err == nil && len(left) == 0 && ofGuard.Parent() != 0 {
		t.forget()
	}
}

// settled reports whether no postmaster that is held has ended.
func (t *Target) settled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !slices.ContainsFunc(t.held, func(h *holding) bool { return ended(h.fd, 0) })
}

func (t *Target) letGo() {
	t.held = slices.DeleteFunc(t.held, func(h *holding) bool {
		gone := ended(h.fd, 0)
		if gone {
			_ = unix.Close(h.fd)
		}
		return gone
	})
}

// Processes lists all processes of this PostgreSQL, and of the programs that are
// named. It fails when it cannot tell of some process whether it is one.
func (t *Target) Processes(programs ...string) ([]int, error) {
	s, err := t.scan(programs)
	if err != nil {
		return nil, err
	}
	return s.ours, s.doubt(t.dataDir)
}

// scan is one look at all processes.
type scan struct {
	ours    []int
	unsure  []int
	problem error // why the data directory could not be looked at
	// roots have only descendants that are ours; those whose value is true are ours
	// themselves.
	roots map[int]bool
	homes homes
}

// ErrUnsure: there is a process of PostgreSQL's of which nobody can tell whether it
// works in the data directory.
var ErrUnsure = errors.New("it cannot be told whether some processes of PostgreSQL's belong to it")

func (s scan) doubt(dataDir string) error {
	if len(s.unsure) == 0 {
		return nil
	}
	return fmt.Errorf("%w: processes %v, while %s cannot be looked at: %w", ErrUnsure, s.unsure, dataDir, s.problem)
}

func (t *Target) scan(programs []string) (scan, error) {
	s := scan{roots: t.roots()}
	s.homes = t.homes(t.patience())
	s.problem = s.homes.problem
	all, err := parents()
	if err != nil {
		return scan{}, err
	}
	for pid := range all {
		if pid == os.Getpid() {
			continue
		}
		v := others
		if s.descends(all, pid) {
			v = ours
		} else if self, root := s.roots[pid]; !root || self {
			v = t.judge(pid, s.homes, programs)
			if v == ours && t.blind && !t.orphan(all, pid) {
				v = others
			}
		}
		switch v {
		case ours:
			s.ours = append(s.ours, pid)
		case unsure:
			s.unsure = append(s.unsure, pid)
		case others:
		}
	}
	slices.Sort(s.ours)
	return s, nil
}

// orphan reports whether what has started a process, and all before that up to the reaper of
// orphans, is PostgreSQL.
func (t *Target) orphan(all map[int]int, pid int) bool {
	if t.Reaper == nil {
		return false
	}
	reaper := t.Reaper()
	for range all { // a chain of parents is not longer
		parent, known := all[pid]
		if !known || parent == reaper {
			return known
		}
		if !isPostgres(parent) {
			return false
		}
		pid = parent
	}
	return false
}

// roots are the processes all of whose descendants are ours.
func (t *Target) roots() map[int]bool {
	roots := map[int]bool{}
	if t.Parent != nil {
		if pid := t.Parent(); pid > 0 {
			roots[pid] = false
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.held {
		if !ended(h.fd, 0) {
			roots[h.pid] = true
		}
	}
	return roots
}

// descends reports whether a process is a root of ours or descends from one.
func (s scan) descends(all map[int]int, pid int) bool {
	if s.roots[pid] {
		return true
	}
	for range all { // a chain of parents is not longer
		parent, known := all[pid]
		if !known {
			return false
		}
		if _, root := s.roots[parent]; root {
			return true
		}
		pid = parent
	}
	return false
}

// verdict is whose a process is.
type verdict int

const (
	others verdict = iota
	ours
	unsure
)

// judge tells by a process's working directory whose it is.
func (t *Target) judge(pid int, h homes, programs []string) verdict {
	if !isPostgres(pid, programs...) {
		return others
	}
	home, _, err := identify(fmt.Sprintf("/proc/%d/cwd", pid))
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return others // it has ended
	case err == nil && slices.ContainsFunc(h.known, home.same):
		return ours
	case err == nil && (h.problem == nil || len(h.known) > 0):
		return others
	case slices.Contains(h.paths, workDir(pid)) && seesOurFiles(pid):
		return ours
	case h.problem == nil:
		return others // ours can be looked at
	}
	return unsure
}

// seesOurFiles reports whether a process lives in our mount namespace: in another one,
// a container's, the same path is another directory.
func seesOurFiles(pid int) bool {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	return err == nil && own == its
}

// homes are the directories that PostgreSQL's processes work in.
type homes struct {
	known []identity
	paths []string
	// problem is why the data directory could not be looked at. That it is not
	// there is none.
	problem error
}

// How long a look at the data directory may take: when postmasters are held it only
// tells of more; else of all there is.
const (
	lookShort = 100 * time.Millisecond
	lookLong  = time.Second
)

func (t *Target) patience() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.held) > 0 {
		return lookShort
	}
	return lookLong
}

func (t *Target) homes(limit time.Duration) homes {
	var h homes
	// Where they work is known before the disk may keep us: by then they may be dead.
	t.seeHeld()
	if !t.blind {
		h.paths = []string{t.dataDir}
		home, path, err := t.look(limit)
		switch {
		case err == nil:
			h.known, h.paths = append(h.known, home), append(h.paths, path)
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			h.problem = err
		}
		t.seeHeld()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.held {
		if p.path != "" {
			h.known, h.paths = append(h.known, p.home), append(h.paths, p.path)
		}
	}
	return h
}

// seeHeld notes where the postmasters that are held work: one goes to its data directory
// after it was started.
func (t *Target) seeHeld() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.held {
		if home, path, err := identify(fmt.Sprintf("/proc/%d/cwd", p.pid)); err == nil && !home.root() && !ended(p.fd, 0) {
			p.home, p.path = home, path
		}
	}
}

// look is one look at the data directory, which takes as long as its disk does.
type look struct {
	done chan struct{}
	home identity
	path string
	err  error
}

var errHangs = errors.New("its file system does not answer")

// look looks at the data directory. There is one look at a time: one that hangs
// holds a single goroutine, however often it is asked for.
func (t *Target) look(limit time.Duration) (identity, string, error) {
	t.mu.Lock()
	l := t.looking
	if l != nil {
		select {
		case <-l.done:
			l = nil // it began long ago
		default:
		}
	}
	if l == nil {
		l = &look{done: make(chan struct{})}
		t.looking = l
		go func() { // ends when the kernel answers
			defer close(l.done)
			if l.home, l.path, l.err = identify(t.dataDir); l.err == nil && l.home.root() {
				l.err = unix.ENOENT
			}
		}()
	}
	t.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-l.done:
		return l.home, l.path, l.err
	case <-timer.C:
		return identity{}, "", errHangs
	}
}
