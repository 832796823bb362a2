package lab

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// History is what one client saw: every acknowledged operation and every error,
// with their times. All figures come from it.
type History struct {
	mu     sync.Mutex
	begun  time.Time
	acks   []Ack
	errors []ClientError
	acked  ranges
	count  int64
	// keep bounds how far back acks reach; zero: all. The ids of acknowledged
	// rows are kept for ever, as ranges.
	keep time.Duration
}

// Ack is one acknowledged operation.
type Ack struct {
	ID   int64
	At   time.Time
	Took time.Duration
}

// ClientError is one failed operation or connection attempt.
type ClientError struct {
	At   time.Time
	Took time.Duration
	Err  string
}

func newHistory(keep time.Duration) *History { return &History{begun: time.Now(), keep: keep} }

func (h *History) ack(a Ack) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acks = append(h.acks, a)
	h.acked = h.acked.add(a.ID)
	h.count++
	if h.keep > 0 && len(h.acks)%1024 == 0 {
		old := a.At.Add(-h.keep)
		first, _ := slices.BinarySearchFunc(h.acks, old, func(a Ack, t time.Time) int { return a.At.Compare(t) })
		h.acks = slices.Delete(h.acks, 0, first)
	}
}

func (h *History) fail(e ClientError) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errors = append(h.errors, e)
}

// Acked is how many operations were acknowledged so far.
func (h *History) Acked() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// LastAck is the last acknowledged operation, zero when there was none.
func (h *History) LastAck() Ack {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.acks) == 0 {
		return Ack{}
	}
	return h.acks[len(h.acks)-1]
}

// Acks returns the acknowledged operations between two moments.
func (h *History) Acks(from, to time.Time) []Ack {
	h.mu.Lock()
	defer h.mu.Unlock()
	var between []Ack
	for _, a := range h.acks {
		if !a.At.Before(from) && !a.At.After(to) {
			between = append(between, a)
		}
	}
	return between
}

// Errors returns the errors between two moments.
func (h *History) Errors(from, to time.Time) []ClientError {
	h.mu.Lock()
	defer h.mu.Unlock()
	var between []ClientError
	for _, e := range h.errors {
		if !e.At.Before(from) && !e.At.After(to) {
			between = append(between, e)
		}
	}
	return between
}

// ErrorCount is how many operations failed so far.
func (h *History) ErrorCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.errors)
}

// LongestGap is the longest time between two acknowledgements that touches the
// span from from to to. A gap that began before the span or lasts beyond it
// counts whole, as far as it is known: the client's wait does not begin with
// the fault, nor end with what an observer calls recovery.
func (h *History) LongestGap(from, to time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return longestGap(h.acks, h.begun, from, to)
}

func longestGap(acks []Ack, begun, from, to time.Time) time.Duration {
	var longest time.Duration
	last := begun
	for _, a := range acks {
		if a.At.After(from) && last.Before(to) {
			longest = max(longest, a.At.Sub(last))
		}
		last = a.At
	}
	if last.Before(to) { // nothing was acknowledged since
		longest = max(longest, to.Sub(last))
	}
	return longest
}

// ackedRanges is a copy of the ids acknowledged so far.
func (h *History) ackedRanges() ranges {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.acked)
}

// WriteTo writes the history as lines of text, in order of time.
func (h *History) WriteTo(w io.Writer) (int64, error) {
	type line struct {
		at   time.Time
		text string
	}
	h.mu.Lock()
	var lines []line
	for _, a := range h.acks {
		lines = append(lines, line{a.At, fmt.Sprintf("ack %d %.1fms", a.ID, a.Took.Seconds()*1000)})
	}
	for _, e := range h.errors {
		lines = append(lines, line{e.At, fmt.Sprintf("error %.1fms %s", e.Took.Seconds()*1000, strings.ReplaceAll(e.Err, "\n", " "))})
	}
	h.mu.Unlock()
	slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
	out := bufio.NewWriter(w)
	var written int64
	for _, l := range lines {
		n, err := fmt.Fprintf(out, "%s %s\n", l.at.UTC().Format("2006-01-02T15:04:05.000000Z"), l.text)
		written += int64(n)
		if err != nil {
			return written, fmt.Errorf("writing the history: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return written, fmt.Errorf("writing the history: %w", err)
	}
	return written, nil
}

// ranges is a set of ids that mostly follow each other: sorted, disjoint, both
// ends included.
type ranges []span

type span struct{ first, last int64 }

// add puts in an id that is greater than all before.
func (r ranges) add(id int64) ranges {
	if n := len(r); n > 0 && r[n-1].last+1 == id {
		r[n-1].last = id
		return r
	}
	return append(r, span{id, id})
}

func (r ranges) count() int64 {
	var n int64
	for _, s := range r {
		n += s.last - s.first + 1
	}
	return n
}

// missing lists the ids of r that next, which yields ids in rising order, does
// not bring. At most limit are listed; the count is complete.
func (r ranges) missing(next func() (int64, bool), limit int) (ids []int64, count int64) {
	present, more := next()
	for _, s := range r {
		for id := s.first; id <= s.last; id++ {
			for more && present < id {
				present, more = next()
			}
			if more && present == id {
				continue
			}
			count++
			if len(ids) < limit {
				ids = append(ids, id)
			}
		}
	}
	return ids, count
}
