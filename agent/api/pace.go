package api

import (
	"context"
	"sync"
	"time"
)

// observePace is how often clients can have PostgreSQL looked at, all together: an
// election asks once, and nobody who asks all the time shall keep the loop busy.
const observePace = 20 * time.Millisecond

// pace has things happen at most once in an interval, however many ask: those who ask
// within one share the next.
type pace struct {
	interval time.Duration

	mu   sync.Mutex
	next time.Time // the last moment that was given out
}

// wait returns at once, or at the next moment, or when ctx ends.
func (p *pace) wait(ctx context.Context) error {
	delay := time.Until(p.moment(time.Now()))
	if delay <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// moment is the first one that is not before now and no sooner after another than the
// interval.
func (p *pace) moment(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Before(now) {
		if p.next = p.next.Add(p.interval); p.next.Before(now) {
			p.next = now
		}
	}
	return p.next
}

// pacedNode is a node that is asked to look at PostgreSQL no more often than that.
type pacedNode struct {
	Node
	pace pace
}

// Observe has the node look at PostgreSQL anew, at the pace that all clients share.
func (n *pacedNode) Observe(ctx context.Context) {
	if n.pace.wait(ctx) == nil {
		n.Node.Observe(ctx)
	}
}
