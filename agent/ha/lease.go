package ha

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ErrLeaseOver: a lease that has run out is never extended; the lock has to be
// taken anew (design 5.1).
var ErrLeaseOver = errors.New("the lease has run out and is not extended")

// lease is the leader's own, pessimistic account of how long it may accept
// commits. It holds no clock: every method is told what it needs. The zero
// value is no lease.
type lease struct {
	until cluster.Instant // its end; zero: there is none
}

// grant begins a lease after a takeover whose transaction was sent at t0.
func (l *lease) grant(t0 cluster.Instant, ttl time.Duration) { l.until = t0.Add(ttl) }

// extend prolongs the lease after a beat that was sent at t0 and is known, at
// now, to have succeeded. It never shortens it, and never revives it.
func (l *lease) extend(now, t0 cluster.Instant, ttl time.Duration) error {
	if !l.held(now) {
		return fmt.Errorf("%w: it ended at %s, now is %s", ErrLeaseOver, l.until, now)
	}
	l.until = max(l.until, t0.Add(ttl))
	return nil
}

// shorten cuts the lease to what a beat sent at t0 with this ttl would give. It
// is called before the beat is sent, as observers will count the new ttl.
func (l *lease) shorten(t0 cluster.Instant, ttl time.Duration) {
	if !l.until.IsZero() {
		l.until = min(l.until, t0.Add(ttl))
	}
}

// drop gives the lease up.
func (l *lease) drop() { l.until = 0 }

// held tells whether the lease runs at now.
func (l *lease) held(now cluster.Instant) bool { return !l.until.IsZero() && now.Before(l.until) }
