package drill

import (
	"slices"
	"sync"
	"time"
)

// Result is what a probe has seen.
type Result struct {
	// Mode says whether it wrote or read; Why why it only read.
	Mode Mode   `json:"mode"`
	Why  string `json:"why,omitempty"`
	// Run is what its rows in the table have in the column run.
	Run      string `json:"run,omitempty"`
	Attempts int64  `json:"attempts"`
	Acked    int64  `json:"acked"`
	Errors   int    `json:"errors"`
	// Failures are the first errors, at most maxFailures.
	Failures []Failure `json:"failures,omitempty"`
	// GapMS is the longest time without an answer to a client that asks all the time, GapAt when it
	// began.
	GapMS int64     `json:"gap_ms"`
	GapAt time.Time `json:"gap_at"`
	// Lost are acknowledged rows that were missing in the end. Unchecked says why that is not known;
	// empty: it is, or nothing was written.
	Lost      int64   `json:"lost"`
	LostIDs   []int64 `json:"lost_ids,omitempty"`
	Unchecked string  `json:"unchecked,omitempty"`
	// Left says why the probe's rows were left in the table; empty: they were not.
	Left string `json:"left,omitempty"`
	// Samples are all attempts, for a picture.
	Samples []Sample `json:"-"`
}

// Gap is GapMS as a duration.
func (r Result) Gap() time.Duration { return time.Duration(r.GapMS) * time.Millisecond }

// Mode is what a probe does.
type Mode string

// The modes.
const (
	Writes Mode = "writes"
	Reads  Mode = "reads"
)

// Failure is an attempt that failed.
type Failure struct {
	At     time.Time `json:"at"`
	TookMS int64     `json:"took_ms"`
	Text   string    `json:"text"`
}

// Sample is one attempt: when it was answered, how long it took, and whether it failed.
type Sample struct {
	At     time.Time
	Took   time.Duration
	Failed bool
}

const (
	// maxFailures is how many errors a report repeats, maxLostIDs how many missing rows.
	maxFailures = 10
	maxLostIDs  = 20
)

// record collects what one client sees.
type record struct {
	mu     sync.Mutex
	last   time.Time // of the last answer; at first: when it began
	acked  []int64   // ids, which only grow
	result Result
	news   chan struct{} // closed with the next answer
}

func newRecord(mode Mode, now time.Time) *record {
	return &record{last: now, result: Result{Mode: mode}, news: make(chan struct{})}
}

// ack notes an attempt that was answered.
func (r *record) ack(id int64, at time.Time, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gap(at)
	r.last = at
	r.acked = append(r.acked, id)
	r.result.Attempts++
	r.result.Acked++
	r.result.Samples = append(r.result.Samples, Sample{At: at, Took: took})
	close(r.news)
	r.news = make(chan struct{})
}

// fail notes one that was not.
func (r *record) fail(at time.Time, took time.Duration, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Attempts++
	r.result.Errors++
	if len(r.result.Failures) < maxFailures {
		r.result.Failures = append(r.result.Failures, Failure{At: at, TookMS: took.Milliseconds(), Text: text})
	}
	r.result.Samples = append(r.result.Samples, Sample{At: at, Took: took, Failed: true})
}

// end notes that the client has stopped: a wait that was under way counts.
func (r *record) end(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gap(at)
}

func (r *record) gap(at time.Time) {
	if gap := at.Sub(r.last).Milliseconds(); gap > r.result.GapMS {
		r.result.GapMS, r.result.GapAt = gap, r.last
	}
}

// state is what is known now. news is closed with the next answer.
func (r *record) state() (result Result, acked []int64, news <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	result = r.result
	result.Samples, result.Failures = slices.Clone(result.Samples), slices.Clone(result.Failures)
	return result, slices.Clone(r.acked), r.news
}

// missing counts those of the acknowledged ids that are not there, and names the first ones. Both
// lists are in order.
func missing(acked, there []int64) (lost int64, ids []int64) {
	for _, id := range acked {
		if _, found := slices.BinarySearch(there, id); found {
			continue
		}
		if lost++; len(ids) < maxLostIDs {
			ids = append(ids, id)
		}
	}
	return lost, ids
}
