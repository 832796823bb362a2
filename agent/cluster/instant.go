package cluster

import "time"

// Instant is a reading of a clock that only moves forward and also counts while
// the host is suspended (CLOCK_BOOTTIME): time since boot. Instants of two
// hosts must never be compared. Zero means "never".
type Instant time.Duration

// Add returns the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the time from j to i.
func (i Instant) Sub(j Instant) time.Duration { return time.Duration(i - j) }

// Before reports whether i is earlier than j.
func (i Instant) Before(j Instant) bool { return i < j }

// IsZero reports whether i is "never".
func (i Instant) IsZero() bool { return i == 0 }

func (i Instant) String() string { return time.Duration(i).String() }
