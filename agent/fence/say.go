package fence

import (
	"fmt"
	"io"
	"time"
)

// speaker writes the log of guard and watcher. Who has something to say does not wait: the
// log's disk may hang, and PostgreSQL must be killed all the same.
type speaker struct {
	lines   chan string
	ending  chan struct{}
	written chan struct{}
}

const (
	// unsaid is how many lines wait for a disk that hangs; more are dropped.
	unsaid = 64
	// sayWithin is how long the end of a process waits for its last lines to be written.
	sayWithin = 500 * time.Millisecond
)

func newSpeaker(to io.Writer) *speaker {
	s := &speaker{lines: make(chan string, unsaid), ending: make(chan struct{}), written: make(chan struct{})}
	go s.write(to) // ends after close, when the disk answers
	return s
}

func (s *speaker) write(to io.Writer) {
	defer close(s.written)
	for {
		select {
		case line := <-s.lines:
			_, _ = io.WriteString(to, line)
			continue
		default:
		}
		select {
		case line := <-s.lines:
			_, _ = io.WriteString(to, line)
		case <-s.ending:
			if len(s.lines) == 0 {
				return
			}
		}
	}
}

// sayf says something, if there is a speaker and room for it.
func (s *speaker) sayf(format string, args ...any) {
	if s == nil {
		return
	}
	select {
	case s.lines <- time.Now().Format(time.RFC3339Nano) + " " + fmt.Sprintf(format, args...) + "\n":
	default:
	}
}

// close says nothing more, and waits a while until all is written.
func (s *speaker) close() {
	close(s.ending)
	select {
	case <-s.written:
	case <-time.After(sayWithin):
	}
}
