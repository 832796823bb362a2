// Package fence holds what makes sure that a member which lost its lease
// accepts no commit: the clock and the lease's arithmetic, the guard process,
// and the watchdog device.
package fence

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Clock reads a clock that only moves forward.
type Clock func() cluster.Instant

// Now reads CLOCK_BOOTTIME, which also counts while the host is suspended
// (clock_gettime(2)).
func Now() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("fence: CLOCK_BOOTTIME cannot be read: " + err.Error()) // Linux has it since 2.6.39
	}
	return cluster.Instant(time.Duration(ts.Nano()))
}
