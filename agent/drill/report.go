package drill

import (
	"time"

	"github.com/lictor-ha/lictor/agent/events"
)

// Report is how a drill went.
type Report struct {
	Kind      string
	Namespace string
	Began     time.Time
	Ended     time.Time // zero: it is under way
	Shards    []Shard
	// Verdict is one of the states of a shard, for all of them; What says what went wrong, Do what to
	// do about it.
	Verdict  State
	What, Do string
}

// State is how the drill of a shard went.
type State string

// The states.
const (
	Passed      State = "passed"
	Surprised   State = "surprise"
	Interrupted State = "interrupted"
	UnderWay    State = "under way"
	NotBegun    State = "not begun"
)

// Shard is the drill of one shard.
type Shard struct {
	Name string
	// From led before and To after it; Host is From's.
	From, To, Host string
	State          State
	// What says what was not as it should be, Do what to do about it.
	What, Do string
	Began    time.Time
	Took     time.Duration
	Steps    []Step
	Probe    *Result // nil: there was none
	// Events are what the shard's leaders have recorded meanwhile.
	Events []events.Event
	// Slow says what took longest of a change of leader, and why.
	Slow  string
	Notes []string
}

// Step is one part of the drill of a shard.
type Step struct {
	Name string `json:"name"`
	// AtMS is when it began, counted from the beginning of the shard's drill.
	AtMS   int64 `json:"at_ms"`
	TookMS int64 `json:"took_ms"`
}

// Took is TookMS as a duration.
func (s Step) Took() time.Duration { return time.Duration(s.TookMS) * time.Millisecond }
