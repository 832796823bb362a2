package logging

import (
	"io"
	"sync"
	"time"
)

// queueSize is how many bytes of lines wait at most for somebody who reads them.
const queueSize = 1 << 20

// queue passes lines on in a goroutine of its own: whoever logs never waits, though
// the log is a pipe that nobody reads or a file on a disk that hangs. Lines for which
// there is no room are lost, and how many is told once there is room again.
type queue struct {
	out  io.Writer
	lost func(lines int)

	mu      sync.Mutex
	lines   [][]byte
	size    int
	dropped int
	closed  bool

	wake chan struct{}
	done chan struct{} // closed when all has been written after close
}

func newQueue(out io.Writer) *queue {
	return &queue{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// Write implements io.Writer. It never waits.
func (q *queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	switch {
	case q.closed || q.size+len(line) > queueSize:
		q.dropped++
	default:
		q.lines = append(q.lines, append([]byte(nil), line...))
		q.size += len(line)
	}
	q.mu.Unlock()
	q.kick()
	return len(line), nil
}

func (q *queue) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run writes until the queue is closed and empty.
func (q *queue) run() {
	defer close(q.done)
	for {
		lines, dropped, closed := q.take()
		for _, line := range lines {
			_, _ = q.out.Write(line) // there is nowhere to say that the log cannot be written
			q.mu.Lock()
			q.size -= len(line)
			q.mu.Unlock()
		}
		switch {
		case dropped > 0 && !closed:
			q.lost(dropped)
		case len(lines) == 0 && closed:
			return
		case len(lines) == 0:
			<-q.wake
		}
	}
}

// take takes all lines that wait, and how many were lost after them.
func (q *queue) take() (lines [][]byte, dropped int, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines, dropped = q.lines, q.dropped
	q.lines, q.dropped = nil, 0
	return lines, dropped, q.closed
}

// close waits until all lines are written, at most for limit.
func (q *queue) close(limit time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.kick()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-q.done:
	case <-timer.C:
	}
}
