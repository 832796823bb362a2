package httpserver

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"sync"
	"time"
)

// Shared has a handler make one answer for all who ask, where making one takes a processor's
// time or much room: who comes while one is made gets the next, which begins after a rest as
// long as the last one took, mostRest at the most. So none is older than its request, and all
// who ask cost about half a processor. The handler sees the request of one of them.
type Shared struct {
	handler http.Handler
	// turn holds one while an answer is made.
	turn chan struct{}
	// rested is when the next may begin; whoever has the turn may look.
	rested time.Time

	mu   sync.Mutex
	next *sharedAnswer // that has not begun; nil: nobody waits for one
}

// NewShared makes one for a handler that does not wait for its client.
func NewShared(handler http.Handler) *Shared {
	return &Shared{handler: handler, turn: make(chan struct{}, 1)}
}

// mostRest keeps the next from waiting for long after one that has waited for something itself.
const mostRest = 250 * time.Millisecond

// sharedAnswer is complete when done is closed.
type sharedAnswer struct {
	done   chan struct{}
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *sharedAnswer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *sharedAnswer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter.
func (a *sharedAnswer) Write(p []byte) (int, error) { return a.body.Write(p) }

// ServeHTTP implements http.Handler.
func (s *Shared) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	a := s.next
	first := a == nil
	if first {
		a = &sharedAnswer{done: make(chan struct{}), header: http.Header{}, status: http.StatusOK}
		s.next = a
	}
	s.mu.Unlock()
	if first {
		s.make(a, r)
	}
	select {
	case <-a.done:
	case <-r.Context().Done():
		return
	}
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes()) // a client that has gone needs no answer
}

// make makes an answer when its turn has come, whether this client is still there or not:
// others wait for it.
func (s *Shared) make(a *sharedAnswer, r *http.Request) {
	defer close(a.done)
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	time.Sleep(time.Until(s.rested))
	s.mu.Lock()
	s.next = nil // who asks from now on gets one that begins later
	s.mu.Unlock()
	began := time.Now()
	r = r.WithContext(context.WithoutCancel(r.Context()))
	r.Header = http.Header{} // what one client accepts is not for all
	s.handler.ServeHTTP(a, r)
	s.rested = time.Now().Add(min(time.Since(began), mostRest))
}
