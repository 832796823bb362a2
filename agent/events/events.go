// Package events is the memory of a shard: what happened to it, why, and how long
// each phase took. A Recorder watches one member's loop and turns changes into
// events; the leader keeps the last ones of all leaders under one bounded key in
// Consul, outside the shard's own prefix, so that writing it wakes nobody.
//
// Events are told by the clock of the member that records them. Durations within an
// event are measured on one host by a clock that only moves forward.
package events

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Kind says what happened.
type Kind string

// The kinds of events.
const (
	Bootstrap  Kind = "bootstrap"  // the shard was made, or taken in from existing data
	Failover   Kind = "failover"   // another member leads, because the last leader failed or left
	Switchover Kind = "switchover" // the same, as an operator asked for
	Resumed    Kind = "resumed"    // the member that led last leads again, after nobody did
	Crash      Kind = "crash"      // the primary's PostgreSQL ended without being told to
	Paused     Kind = "pause"
	Unpaused   Kind = "resume"
	Failsafe   Kind = "failsafe" // the lease rested on the members, Consul being away
	MemberLost Kind = "member lost"
	MemberBack Kind = "member back"
	Configured Kind = "config" // the dynamic configuration was changed
	// MemberMade: a member's data directory was made; the cause says by which method, and why
	// others have failed.
	MemberMade Kind = "member made"
	// MemberStranded: a member cannot go on with its data; the cause says why.
	MemberStranded Kind = "member stranded"
	// WatcherLost: the process that watches the leader's guard has ended, and has a successor.
	WatcherLost Kind = "watcher lost"
	// ArchiveFails: the primary's WAL did not get into the archive.
	ArchiveFails Kind = "archive fails"
	// BackupsMissing: there is no good backup that is young enough, or the repository does not answer.
	BackupsMissing Kind = "backups missing"
)

// Outcome is how something that was begun has ended.
type Outcome string

// The outcomes. An event without one simply happened.
const (
	Done       Outcome = "done"
	Refused    Outcome = "refused"     // nothing has changed
	RolledBack Outcome = "rolled back" // it was begun, and everything is as before
	UnderWay   Outcome = "under way"
)

// The phases of a change of leader, in their order.
const (
	Noticed    = "noticed"     // that nobody leads; of a switchover: that the old leader has handed over
	Elected    = "elected"     // the lock is the new leader's
	Promoted   = "promoted"    // PostgreSQL accepts writes
	Routed     = "routed"      // the open route is in Consul
	FirstWrite = "first write" // the first transaction that wrote has ended
	Recovered  = "recovered"   // of a crash: PostgreSQL accepts writes again
)

// Phase is a moment within an event.
type Phase struct {
	Name string `json:"name"`
	// AtMS is the time since the event's At, in milliseconds.
	AtMS int64 `json:"at_ms"`
}

// Event is something that happened to a shard.
type Event struct {
	// At is when it began: of a failover the last sign of life of the old leader.
	At   time.Time `json:"at"`
	Kind Kind      `json:"kind"`
	// By is the member that recorded it.
	By      string  `json:"by"`
	Outcome Outcome `json:"outcome,omitempty"`
	// From and To are the leaders before and after; To alone is the member that
	// the event is about.
	From     string `json:"from,omitempty"`
	To       string `json:"to,omitempty"`
	Timeline int    `json:"timeline,omitempty"`
	Cause    string `json:"cause,omitempty"`
	// TookMS is how long it lasted, in milliseconds; 0: no time worth telling, or
	// not over yet.
	TookMS int64   `json:"took_ms,omitempty"`
	Phases []Phase `json:"phases,omitempty"`
}

// Phase returns when a phase was reached, counted from At.
func (e Event) Phase(name string) (time.Duration, bool) {
	for _, p := range e.Phases {
		if p.Name == name {
			return time.Duration(p.AtMS) * time.Millisecond, true
		}
	}
	return 0, false
}

// Took is TookMS as a duration.
func (e Event) Took() time.Duration { return time.Duration(e.TookMS) * time.Millisecond }

// weighty reports whether the event is one that is kept longer: those about the
// leader are not to be driven out by a member that comes and goes.
func (e Event) weighty() bool {
	switch e.Kind {
	case Bootstrap, Failover, Switchover, Resumed, Crash, Failsafe:
		return true
	case Paused, Unpaused, MemberLost, MemberBack, Configured, WatcherLost, ArchiveFails, MemberMade, MemberStranded, BackupsMissing:
	}
	return false
}

// id tells events apart: a member records no two at the same moment.
func (e Event) id() string { return fmt.Sprintf("%s %s %d", e.By, e.Kind, e.At.UnixNano()) }

// keep is how many events of either weight are kept, causeLimit how long a cause
// may be: the key stays below 64 KB.
const (
	keep       = 40
	causeLimit = 300
)

// Log is the value of the key: the last events, oldest first.
type Log struct {
	Version int     `json:"version"`
	Events  []Event `json:"events"`
}

// version is that of the format which this code writes.
const version = 1

// Parse reads the value of the key; an empty one is an empty log.
func Parse(value []byte) (Log, error) {
	var l Log
	if len(value) == 0 {
		return l, nil
	}
	if err := json.Unmarshal(value, &l); err != nil {
		return Log{}, fmt.Errorf("events are not JSON of the expected shape: %w", printable.Error(err))
	}
	return l, nil
}

// Merge adds events, or replaces those that are known, and drops what is too old.
func (l Log) Merge(events []Event) Log {
	out := Log{Version: version, Events: slices.Clone(l.Events)}
	for _, e := range events {
		if i := slices.IndexFunc(out.Events, func(o Event) bool { return o.id() == e.id() }); i >= 0 {
			out.Events[i] = e
			continue
		}
		out.Events = append(out.Events, e)
	}
	slices.SortStableFunc(out.Events, func(a, b Event) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) })
	left := map[bool]int{true: keep, false: keep}
	for i := len(out.Events) - 1; i >= 0; i-- {
		w := out.Events[i].weighty()
		if left[w]--; left[w] < 0 {
			out.Events = slices.Delete(out.Events, i, i+1)
		}
	}
	return out
}
