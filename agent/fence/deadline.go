package fence

import (
	"errors"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ErrDeadlinePassed: a deadline that has passed is not moved any more; only a new
// lease arms the guard again (design 5.1).
var ErrDeadlinePassed = errors.New("deadline passed; a new lease is required")

// Deadline is the guard's rule: when it kills PostgreSQL. It is pure; the guard
// process gives it the time and does the killing. The zero value is disarmed.
type Deadline struct {
	Until cluster.Instant // zero: disarmed
	Fired bool            // since it was armed last
}

// Arm sets or moves the deadline of the present lease, or, with newLease, sets
// that of a new one.
func (d *Deadline) Arm(now, until cluster.Instant, newLease bool) error {
	switch {
	case until.IsZero():
		return errors.New("a deadline must be given")
	case !newLease && d.Over(now):
		return ErrDeadlinePassed
	}
	d.Until, d.Fired = until, false
	return nil
}

// Disarm takes the deadline away: PostgreSQL is stopped, or a replica.
func (d *Deadline) Disarm() { *d = Deadline{} }

// Due reports whether PostgreSQL must be killed now.
func (d *Deadline) Due(now cluster.Instant) bool { return !d.Until.IsZero() && !now.Before(d.Until) }

// Over reports whether the deadline has passed, and no new one was set since.
func (d *Deadline) Over(now cluster.Instant) bool { return d.Fired || d.Due(now) }

// Fire notes that PostgreSQL is being killed.
func (d *Deadline) Fire() { *d = Deadline{Fired: true} }
