package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Control is what pg_control says of a cluster.
type Control struct {
	SystemIdentifier string
	// State in pg_controldata's words, e.g. "in production", "shut down".
	State         string
	Timeline      int
	CheckpointLSN int64
	// MinRecovery is up to where a standby must recover to be consistent.
	MinRecovery         int64
	MinRecoveryTimeline int
	// Minima are the settings that a standby must not undercut.
	Minima map[string]int
}

// control reads pg_control with pg_controldata, whose output in the C locale has
// kept its labels since version 12.
func (p *Instance) control(ctx context.Context) (Control, error) {
	out, err := p.run(ctx, nil, "pg_controldata", "-D", p.dataDir)
	if err != nil {
		return Control{}, err
	}
	return parseControl(out)
}

func parseControl(out string) (Control, error) {
	c := Control{Minima: map[string]int{}}
	for line := range strings.Lines(out) {
		label, value, found := strings.Cut(line, ":")
		if !found {
			continue
		}
		value = strings.TrimSpace(value)
		switch label {
		case "Database system identifier":
			c.SystemIdentifier = value
		case "Database cluster state":
			c.State = value
		case "Latest checkpoint's TimeLineID":
			c.Timeline, _ = strconv.Atoi(value)
		case "Latest checkpoint location":
			c.CheckpointLSN, _ = ParseLSN(value)
		case "Minimum recovery ending location":
			c.MinRecovery, _ = ParseLSN(value)
		case "Min recovery ending loc's timeline":
			c.MinRecoveryTimeline, _ = strconv.Atoi(value)
		}
		if name, ok := strings.CutSuffix(label, " setting"); ok {
			if n, err := strconv.Atoi(value); err == nil {
				switch name {
				case "max_connections", "max_worker_processes", "max_wal_senders", "max_locks_per_xact":
					c.Minima[strings.Replace(name, "max_locks_per_xact", "max_locks_per_transaction", 1)] = n
				case "max_prepared_xacts":
					c.Minima["max_prepared_transactions"] = n
				}
			}
		}
	}
	if c.SystemIdentifier == "" || c.Timeline == 0 {
		return Control{}, fmt.Errorf("pg_controldata gives no system identifier or timeline: %s", tail(out, 300))
	}
	return c, nil
}

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

// dataMajor is the major version that made the data directory.
func (p *Instance) dataMajor() (int, error) {
	content, err := os.ReadFile(filepath.Join(p.dataDir, "PG_VERSION"))
	if err != nil {
		return 0, fmt.Errorf("data directory: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0, fmt.Errorf("data directory: PG_VERSION holds %q", content)
	}
	return major, nil
}
