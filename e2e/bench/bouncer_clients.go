package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	crowdSize = 200
	// thinkTime is between two tasks of a client, on average.
	thinkTime = 500 * time.Millisecond
)

// task is what a client does again and again. done is how many of its own have
// succeeded before.
type task func(ctx context.Context, conn *pgx.Conn, client int, done int64) error

// crowd is 200 clients that come through the load balancer, each with a connection of
// its own, which it makes anew after an error. They think between their tasks.
type crowd struct {
	shard  *lab.Shard
	task   task
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	acked    [crowdSize]int64
	underWay map[int]time.Time // begins, by client
	// since is the last reset; history is what has ended since.
	since   time.Time
	history []turn
}

// turn is one task, with the connection that it needed.
type turn struct {
	begun time.Time
	took  time.Duration
	err   error
}

func startCrowd(ctx context.Context, s *lab.Shard, t task) *crowd {
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd{shard: s, task: t, cancel: cancel, underWay: map[int]time.Time{}, since: time.Now()}
	for i := range crowdSize {
		c.done.Go(func() { c.client(ctx, i) })
	}
	return c
}

func (c *crowd) stop() {
	c.cancel()
	c.done.Wait()
}

func (c *crowd) client(ctx context.Context, me int) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for sleep(ctx, rand.N(2*thinkTime)) == nil {
		done := c.enter(me)
		var err error
		if conn == nil {
			conn, err = c.shard.ConnectClient(ctx)
		}
		if err == nil {
			err = c.task(ctx, conn, me, done)
		}
		if ctx.Err() != nil {
			return
		}
		c.leave(me, err)
		if err != nil && conn != nil {
			_ = conn.Close(ctx)
			conn = nil
		}
	}
}

func (c *crowd) enter(me int) (done int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.underWay[me] = time.Now()
	return c.acked[me]
}

func (c *crowd) leave(me int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	begun := c.underWay[me]
	delete(c.underWay, me)
	c.history = append(c.history, turn{begun, time.Since(begun), err})
	if err == nil {
		c.acked[me]++
	}
}

// reset forgets what has been.
func (c *crowd) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since, c.history = time.Now(), nil
}

// turns are those that have ended since reset, and those under way, which may have
// begun before it as well.
func (c *crowd) turns() (since time.Time, ended, underWay []turn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, begun := range c.underWay {
		underWay = append(underWay, turn{begun: begun, took: time.Since(begun)})
	}
	return c.since, slices.Clone(c.history), underWay
}

// counts is how many tasks of each client have succeeded.
func (c *crowd) counts() [crowdSize]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked
}

func (c *crowd) total() (sum int64) {
	for _, n := range c.counts() {
		sum += n
	}
	return sum
}

// awaitAll waits until every client has had a success from now on.
func (c *crowd) awaitAll(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	from := c.counts()
	for {
		left := 0
		for i, n := range c.counts() {
			if n == from[i] {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			_, ended, _ := c.turns()
			errs := []error{fmt.Errorf("%d clients get no answer: %w", left, err)}
			for _, t := range ended {
				if t.err != nil && len(errs) <= 3 {
					errs = append(errs, t.err)
				}
			}
			return errors.Join(errs...)
		}
	}
}
