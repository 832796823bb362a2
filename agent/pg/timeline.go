package pg

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ParseLSN reads PostgreSQL's text form of a position in the WAL.
func ParseLSN(text string) (int64, error) {
	high, low, found := strings.Cut(text, "/")
	h, errH := strconv.ParseUint(high, 16, 32)
	l, errL := strconv.ParseUint(low, 16, 32)
	if !found || errH != nil || errL != nil {
		return 0, fmt.Errorf("%q is not a position in the WAL", text)
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
			return nil, fmt.Errorf("timeline history: line %q has less than two fields", line)
		}
		tli, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("timeline history: line %q: %w", line, err)
		}
		lsn, err := ParseLSN(fields[1])
		if err != nil {
			return nil, fmt.Errorf("timeline history: line %q: %w", line, err)
		}
		h := cluster.TimelineSwitch{Timeline: tli, LSN: lsn}
		if len(fields) == 3 {
			h.Reason = fields[2]
		}
		history = append(history, h)
	}
	return history, nil
}
