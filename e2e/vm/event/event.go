// Package event is how a virtual machine tells its test what happens: lines of
// JSON on the serial console.
package event

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Name of an event.
type Name string

// The events.
const (
	// Booted: the guest's own program runs.
	Booted Name = "booted"
	// Leading: the member leads and PostgreSQL accepts writes.
	Leading Name = "leading"
	// Refused: the member says that it must not lead.
	Refused Name = "refused"
	// Beat: a new status was seen in Consul.
	Beat Name = "beat"
	// Frozen: agent and guard, or what the test freezes, have been stopped.
	Frozen Name = "frozen"
	// Acted: what the test wants done to the agent has been done.
	Acted Name = "acted"
	// Alive is told all the time while a reset may come.
	Alive Name = "alive"
	// Survived: no reset came.
	Survived Name = "survived"
	// Lasts: a file was made to last, in the generation that it had at least.
	Lasts Name = "lasts"
	// Found is a file after a power cut; its generation is -1 when it is broken.
	Found Name = "found"
	// State shows the watchdog.
	State Name = "state"
	// Trouble: the guest cannot go on.
	Trouble Name = "trouble"
)

// Event is one line.
type Event struct {
	Name Name `json:"name"`
	// At is the guest's CLOCK_BOOTTIME in milliseconds.
	At int64 `json:"at"`
	// Acked is At of the last write that PostgreSQL acknowledged; Beat that of the
	// last beat that was seen.
	Acked int64  `json:"acked,omitempty"`
	Beat  int64  `json:"beat,omitempty"`
	Text  string `json:"text,omitempty"`
	// File and Generation are of the scenarios with power cuts.
	File       int `json:"file,omitempty"`
	Generation int `json:"generation,omitempty"`
}

const prefix = "@event "

// Write writes an event.
func Write(w io.Writer, e Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\n%s%s\n", prefix, b)
	return err
}

// Parse reads a line of the console; it is not ok when that is no event.
func Parse(line string) (e Event, ok bool) {
	_, text, found := strings.Cut(line, prefix)
	return e, found && json.Unmarshal([]byte(strings.TrimSpace(text)), &e) == nil
}
