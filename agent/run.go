package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// runner runs what may wait in goroutines of their own, and hands to the loop what comes of
// it. Its methods may be called on any goroutine.
type runner struct {
	// ctx ends when the agent must end at once; work counts its goroutines.
	ctx    context.Context
	end    context.CancelFunc
	work   sync.WaitGroup
	events chan func()
}

// goDo runs f in a goroutine that Run waits for at its end.
func (r *runner) goDo(f func(context.Context)) {
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		f(r.ctx)
	}()
}

// workLimit is how long the end of the agent waits for what is under way.
const workLimit = 5 * time.Second

// awaitWork waits for all goroutines. One that waits for a disk that hangs cannot be
// ended: it ends with the process.
func (r *runner) awaitWork(log zerolog.Logger) {
	done := make(chan struct{})
	go func() { // ends with them
		r.work.Wait()
		close(done)
	}()
	limit := time.NewTimer(workLimit)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		log.Error().Dur("limit", workLimit).Msg("something still waits, for a disk that hangs perhaps; the agent ends without it")
	}
}

// post hands f to the loop, which alone may touch its state.
func (r *runner) post(f func()) {
	select {
	case r.events <- f:
	case <-r.ctx.Done():
	}
}

// drain takes all events that are there already, so that a burst costs one
// decision.
func (r *runner) drain() {
	for {
		select {
		case f := <-r.events:
			f()
		default:
			return
		}
	}
}

// ask runs f on the loop's goroutine and waits for what it returns.
func (r *runner) ask(ctx context.Context, f func() error) error {
	return r.hear(ctx, func(done func(error)) { done(f()) })
}

// hear has the loop answer a request, now or later.
func (r *runner) hear(ctx context.Context, request func(done func(error))) error {
	answer := make(chan error, 1)
	select {
	case r.events <- func() { request(func(err error) { answer <- refusal(err) }) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return errStopping
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return errStopping
	}
}

// afterwards runs f on the loop after d.
func (r *runner) afterwards(d time.Duration, f func()) {
	r.goDo(func(ctx context.Context) {
		pause(ctx, d)
		r.post(f)
	})
}

// call runs work in the background; done hears what it returns on the loop.
func call[T any](r *runner, limit time.Duration, work func(context.Context) (T, error), done func(T, error)) {
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	r.goDo(func(context.Context) {
		defer cancel()
		value, err := work(ctx)
		r.post(func() { done(value, err) })
	})
}

// order is a call that returns nothing.
func order(r *runner, limit time.Duration, work func(context.Context) error, done func(error)) {
	call(r, limit, func(ctx context.Context) (struct{}, error) { return struct{}{}, work(ctx) }, func(_ struct{}, err error) { done(err) })
}

// board is what other goroutines may read of the loop's state.
type board struct {
	*runner
	shown   atomic.Pointer[api.State]
	dynamic atomic.Pointer[cluster.Dynamic]
	cloned  atomic.Pointer[cloned]
	made    atomic.Pointer[string] // how the data were made last; nil: not by this run of the agent

	mu sync.Mutex
	ch chan struct{} // is closed when the loop has come round
}

func newBoard(r *runner) *board { return &board{runner: r, ch: make(chan struct{})} }

// changed is closed when the loop has come round.
func (b *board) changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

// show shows a state, and wakes everybody who waits for one.
func (b *board) show(s *api.State) {
	b.shown.Store(s)
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}

// State is what the loop last saw (api.Node), and how far a clone is by now.
func (b *board) State() api.State {
	s := *b.shown.Load()
	if c := b.cloned.Load(); c != nil && s.Task.Kind != "" && !c.began.Before(s.Task.Since) {
		s.Task.From, s.Task.Copying = c.from, c.Copying
	}
	return s
}

// await waits until condition holds for what the loop shows.
func (b *board) await(ctx context.Context, condition func(api.State) bool) error {
	for {
		changed := b.changed()
		if condition(b.State()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-b.ctx.Done():
			return errStopping
		}
	}
}

// cloned is how far a clone is. Its task writes it, the API reads it.
type cloned struct {
	from  string
	began time.Time
	pg.Copying
}

// cloneProgress keeps and, now and then, logs how far a clone is.
func (b *board) cloneProgress(from string, log zerolog.Logger) func(pg.Copying) {
	began := time.Now()
	b.cloned.Store(&cloned{from: from, began: began})
	var last time.Time
	return func(now pg.Copying) {
		b.cloned.Store(&cloned{from: from, began: began, Copying: now})
		if time.Since(last) < 5*time.Second {
			return
		}
		last = time.Now()
		line := log.Info().Str("from", from).Str("method", now.Method)
		if now.Percent > 0 {
			line.Float64("percent", now.Percent)
		} else {
			line.Int64("bytes", now.Done).Int64("of", now.Total)
		}
		line.Msg("cloning")
	}
}

// copyMade keeps how the data were made, for others to see.
func (b *board) copyMade() {
	c := b.cloned.Load()
	how := fmt.Sprintf("by %s in %.0f s", c.Method, time.Since(c.began).Seconds())
	if c.Failed != "" {
		how += "; " + c.Failed
	}
	how = time.Now().UTC().Format(time.RFC3339) + " " + how
	b.made.Store(&how)
}

// Copying is how far a clone is, in words, empty while there is none; and how the data were
// made last, empty when this run of the agent has not.
func (b *board) Copying(since time.Time) (now, made string) {
	if c := b.cloned.Load(); c != nil && !since.IsZero() && !c.began.Before(since) && c.Method != "" {
		now = c.String()
	}
	if m := b.made.Load(); m != nil {
		made = *m
	}
	return now, made
}

func kick(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// retryAfter is how soon a request that certainly failed is tried again, with jitter so
// that many members do not knock together.
func retryAfter() time.Duration { return 200*time.Millisecond + rand.N(200*time.Millisecond) }

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) { pauseOr(ctx, d, nil) }

// pauseOr waits for d, a kick or the end of ctx.
func pauseOr(ctx context.Context, d time.Duration, kicked <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-kicked:
	case <-ctx.Done():
	}
}
