package fence

import "golang.org/x/sys/unix"

// Tree has all processes that had not ended at one look, with the parent of each.
type Tree map[int]int

// ProcessTree looks at all processes.
func ProcessTree() (Tree, error) { return parents() }

// Descendants are the processes below one.
func (t Tree) Descendants(of int) []int {
	s := scan{roots: map[int]bool{of: false}}
	var below []int
	for pid := range t {
		if pid != of && s.descends(t, pid) {
			below = append(below, pid)
		}
	}
	return below
}

// KillBelow kills the processes below one, which itself goes on, and reports whether there
// was any.
func (t Tree) KillBelow(of int) (killed bool) {
	var below []int // all are held before the first ends: its children get another parent then
	for _, pid := range t.Descendants(of) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		defer unix.Close(fd)
		// The number may have been used again since the look.
		if parent, alive := parentOf(pid); alive && parent == t[pid] {
			below = append(below, fd)
		}
	}
	for _, fd := range below {
		killed = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil || killed
	}
	return killed
}
