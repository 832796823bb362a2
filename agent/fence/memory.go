package fence

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// lockMemory keeps what a guard needs in memory, so that it kills while the machine swaps or
// its disk hangs: the program, of which any page may be needed, and what it has written to by
// now or will. It does not lock what it only has reserved: Go's runtime has room for tables
// that no guard fills, 70 MB of it as if it were used, more than a gigabyte in all.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("the memory of the guard, or of its watcher, is not locked (the unit's LimitMEMLOCK=infinity lets it be): %w", err)
	}
	warmHeap()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("the guard's program may be read from disk when it is needed: %w", err)
	}
	for _, m := range programMappings(string(maps)) {
		// mlock(2) reads all of it in, unlike the lock that mlockall has left with it.
		if err := mlock(m.from, m.to); err != nil {
			return fmt.Errorf("the guard's program may be read from disk when it is needed: %w", err)
		}
	}
	return nil
}

// heapAtHand is the size that Go's heap grows to before it is collected first.
const heapAtHand = 4 << 20

// warmHeap has a heap of that size made of real memory: the runtime keeps it.
func warmHeap() {
	b := make([]byte, heapAtHand)
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	runtime.KeepAlive(b)
}

type mapping struct{ from, to uintptr }

// programMappings are the mappings of this program's file (proc_pid_maps(5)): it is the
// first of all files.
func programMappings(maps string) []mapping {
	var found []mapping
	program := ""
	for line := range strings.Lines(maps) {
		var m mapping
		var mode, offset, device, inode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s", &m.from, &m.to, &mode, &offset, &device, &inode); n < 6 || inode == "0" {
			continue
		}
		if program == "" {
			program = device + " " + inode
		}
		if program == device+" "+inode && strings.HasPrefix(mode, "r") {
			found = append(found, m)
		}
	}
	return found
}

func mlock(from, to uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_MLOCK, from, to-from, 0); errno != 0 {
		return fmt.Errorf("mlock: %w", errno)
	}
	return nil
}
