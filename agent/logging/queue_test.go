package logging

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// A log that nobody reads, as a pipe that is full.
func TestNobodyWaitsForTheLog(t *testing.T) {
	read, written := io.Pipe()
	l, err := NewQueued("info", FormatJSON, written, false)
	if err != nil {
		t.Fatal(err)
	}
	log := l.Logger()
	line := strings.Repeat("x", 1000)
	for range 3 * queueSize / len(line) {
		log.Info().Msg(line) // hangs for ever where it waits
	}
	l.queue.mu.Lock()
	size, dropped := l.queue.size, l.queue.dropped
	l.queue.mu.Unlock()
	if size > queueSize || dropped == 0 {
		t.Errorf("%d bytes are kept and %d lines were lost", size, dropped)
	}
	began := time.Now()
	l.Close(10 * time.Millisecond)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end waits %s for nobody", took)
	}
	_ = read.Close() // ends what still writes
	<-l.queue.done
}

// What was lost is told once somebody reads again, and all lines before it are there.
func TestLostLinesAreTold(t *testing.T) {
	gate := &gated{begun: make(chan struct{}), open: make(chan struct{}), told: make(chan struct{})}
	l, err := NewQueued("info", FormatJSON, gate, false)
	if err != nil {
		t.Fatal(err)
	}
	log := l.Logger()
	log.Info().Msg("first")
	<-gate.begun // else what is lost before and after the first line is written are two losses
	line := strings.Repeat("x", 1000)
	for range 2 * queueSize / len(line) {
		log.Info().Msg(line)
	}
	close(gate.open)
	<-gate.told
	log.Info().Msg("last")
	l.Close(time.Minute)
	text := gate.text()
	if !strings.Contains(text, `"first"`) || !strings.HasSuffix(text, "\"last\"}\n") || !strings.Contains(text, `"lines":`) {
		t.Errorf("the log begins with %.200s and ends with %s", text, text[max(0, len(text)-300):])
	}
	log.Info().Msg("after the end") // is lost, and waits for nobody
}

// gated is a log that is read from some moment on.
type gated struct {
	begun, open, told chan struct{}

	mu    sync.Mutex
	first sync.Once
	buf   bytes.Buffer
}

func (g *gated) Write(line []byte) (int, error) {
	g.first.Do(func() { close(g.begun) })
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	if bytes.Contains(line, []byte("log lines were lost")) {
		close(g.told)
	}
	return g.buf.Write(line)
}

func (g *gated) text() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.String()
}
