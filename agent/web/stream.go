package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/printable"
)

// stream makes the messages that browsers get: the whole fleet for who comes, and for who has
// seen the view before what is different from it. Each is made once, however many look.
type stream struct {
	mu     sync.Mutex
	number uint64 // of the view that the messages below are of
	view   operator.FleetView
	rows   map[string][]byte // the shards as they were sent, by name
	sheet  []byte            // the poolers, too
	whole  []byte            // nil: nobody has asked for it yet
	// since is what is different from the view with the number before.
	since  []byte
	before uint64
}

// shardsMessage is a change of the fleet as browsers get it.
type shardsMessage struct {
	// Whole: what a browser knew before is of no use any more.
	Whole   bool                  `json:"whole,omitempty"`
	Columns []operator.ColumnView `json:"columns,omitempty"`
	Shards  []json.RawMessage     `json:"shards"`
	Gone    []string              `json:"gone,omitempty"`
	Poolers json.RawMessage       `json:"poolers,omitempty"`
}

// ageMessage says how old what a browser shows is.
type ageMessage struct {
	// AgeMS is negative while nothing is known.
	AgeMS   int64  `json:"age_ms"`
	Problem string `json:"problem,omitempty"`
}

// message is what brings a browser that has seen the view with the number seen, 0 for none, to
// the state or a newer one, the number of which it returns; nil: nothing.
func (s *stream) message(state operator.FleetState, seen uint64) (text []byte, number uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state.Number > s.number {
		if err := s.advance(state); err != nil {
			return nil, seen, err
		}
	}
	switch {
	case seen == s.number:
		return nil, seen, nil
	case seen != 0 && seen == s.before:
		return s.since, s.number, nil
	case s.whole == nil:
		// Of the view that the number is of: another one may have taken in a newer one than this state.
		m := shardsMessage{Whole: true, Columns: s.view.Columns, Shards: []json.RawMessage{}, Poolers: s.sheet}
		for _, row := range s.view.Shards {
			m.Shards = append(m.Shards, row.JSON)
		}
		if s.whole, err = event("shards", m); err != nil {
			return nil, seen, err
		}
	}
	return s.whole, s.number, nil
}

// advance takes in a newer view.
func (s *stream) advance(state operator.FleetState) error {
	m := shardsMessage{Shards: []json.RawMessage{}}
	rows := make(map[string][]byte, len(state.View.Shards))
	for _, row := range state.View.Shards {
		rows[row.Name] = row.JSON
		if old, known := s.rows[row.Name]; !known || !bytes.Equal(old, row.JSON) {
			m.Shards = append(m.Shards, row.JSON)
		}
	}
	for name := range s.rows {
		if _, still := rows[name]; !still {
			m.Gone = append(m.Gone, name)
		}
	}
	poolers, err := json.Marshal(state.View.Poolers)
	if err != nil {
		return fmt.Errorf("the poolers as JSON: %w", err)
	}
	if !bytes.Equal(poolers, s.sheet) {
		m.Poolers = poolers
	}
	since, err := event("shards", m)
	if err != nil {
		return err
	}
	s.before, s.number, s.view, s.rows, s.sheet, s.since, s.whole = s.number, state.Number, state.View, rows, poolers, since, nil
	return nil
}

// age is the message of how old a state is.
func age(state operator.FleetState, now time.Time) ([]byte, error) {
	m := ageMessage{AgeMS: -1, Problem: state.Problem}
	if !state.At.IsZero() && state.Number > 0 {
		m.AgeMS = max(0, now.Sub(state.At).Milliseconds())
	}
	return event("age", m)
}

// event is one of the server-sent events of a browser's EventSource. JSON has no line breaks.
func event(name string, value any) ([]byte, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", name, err)
	}
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, printable.JSON(text)), nil
}
