package pooler

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/config"
)

// DeadmanGrace is how much longer than its deadline a hold may last before somebody else
// than the reconciler ends it.
const DeadmanGrace = 2 * time.Second

// deadmanRetry is the pause before it is tried again to release clients.
const deadmanRetry = 250 * time.Millisecond

// Deadman ends holds whose deadline has passed when the reconciler does not: it may hang on
// a disk, or on a template that another host has.
type Deadman struct {
	config config.Config
	log    zerolog.Logger
	// wake says that the deadlines have changed.
	wake chan struct{}

	mu sync.Mutex
	// until are the deadlines of the holds, by database.
	until map[string]time.Time
}

func NewDeadman(c config.Config, log zerolog.Logger) *Deadman {
	return &Deadman{config: c, log: log, wake: make(chan struct{}, 1)}
}

// Set takes the place of all that was known.
func (d *Deadman) Set(until map[string]time.Time) {
	d.mu.Lock()
	same := maps.EqualFunc(until, d.until, time.Time.Equal)
	d.until = until
	d.mu.Unlock()
	if !same {
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

// overdue takes out the databases that the reconciler should have released, and tells when
// to look again.
func (d *Deadman) overdue(now time.Time) (names []string, next time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next = time.Hour
	for name, until := range d.until {
		if left := until.Add(DeadmanGrace).Sub(now); left > 0 {
			next = min(next, left)
		} else {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, next
}

// Run watches until ctx is done, which is not before all else has ended.
func (d *Deadman) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		names, next := d.overdue(time.Now())
		if len(names) > 0 {
			next = min(next, deadmanRetry) // until all are released
			d.release(ctx, names)
		}
		timer.Reset(next)
	}
}

// release resumes databases.
func (d *Deadman) release(ctx context.Context, names []string) {
	console := NewConsole(d.config)
	defer console.Close()
	for _, name := range names {
		if err := console.Resume(ctx, name); err != nil && !IsRefusal(err) { // it is not paused
			d.log.Error().Err(err).Str("database", name).Msg("the loop that holds clients hangs, and they cannot be released")
			return
		}
		d.log.Error().Str("database", name).Bool("alarm", true).Msg("the loop that holds clients hangs; releasing them, hold_timeout is over")
		d.mu.Lock()
		delete(d.until, name)
		d.mu.Unlock()
	}
}
