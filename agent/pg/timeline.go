package pg

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// ParseLSN reads PostgreSQL's text form of a position in the WAL.
func ParseLSN(text string) (int64, error) {
	high, low, found := strings.Cut(text, "/")
	h, errH := strconv.ParseUint(high, 16, 32)
	l, errL := strconv.ParseUint(low, 16, 32)
	if !found || errH != nil || errL != nil {
		return 0, fmt.Errorf("%s is not a position in the WAL", printable.Quote(text))
	}
	return int64(h<<32 | l), nil
}

// FormatLSN writes a position in the WAL as PostgreSQL does.
func FormatLSN(lsn int64) string {
	return fmt.Sprintf("%X/%X", uint64(lsn)>>32, uint32(lsn))
}

// ParseHistory reads lines of timeline, position and reason, apart by tabs
// (PostgreSQL's src/backend/access/transam/timeline.c).
func ParseHistory(content string) (cluster.History, error) {
	var history cluster.History
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, "\t", 3)
		if len(fields) < 2 {
			return nil, fmt.Errorf("timeline history: line %s has less than two fields", printable.Quote(line))
		}
		tli, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("timeline history: line %s: %w", printable.Quote(line), printable.Error(err))
		}
		lsn, err := ParseLSN(fields[1])
		if err != nil {
			return nil, fmt.Errorf("timeline history: line %s: %w", printable.Quote(line), err)
		}
		h := cluster.TimelineSwitch{Timeline: tli, LSN: lsn}
		if len(fields) == 3 {
			h.Reason = fields[2]
		}
		history = append(history, h)
	}
	return history, nil
}

// Skipped is the reason of a history that stands for a timeline which another member may have
// begun, and which never reached the one that has it.
const Skipped = "skipped by lictor"

// promoted is PostgreSQL's reason of a timeline that was begun by a promotion: whatever it had
// received of the one before goes on.
const promoted = "no recovery target specified"

// Discards reports whether a timeline was left by a recovery to a target, as the reason in the
// history of the next one says (getRecoveryStopReason in PostgreSQL's xlogrecovery.c): then all
// that came later on it was discarded. from is when the first transaction of that had ended;
// zero: it is not known, as the target was no time.
func Discards(reason string) (from time.Time, discards bool) {
	reason = strings.TrimSpace(reason)
	if reason == "" || reason == promoted || reason == Skipped {
		return time.Time{}, false
	}
	_, at, _ := strings.Cut(reason, " ")
	for _, layout := range []string{"2006-01-02 15:04:05-07", "2006-01-02 15:04:05-07:00", "2006-01-02 15:04:05-07:00:00"} {
		if from, err := time.Parse(layout, at); err == nil {
			return from.UTC(), true
		}
	}
	return time.Time{}, true
}
