package postgres

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
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
	// BlockSize is in bytes.
	BlockSize int64
	// Minima are the settings that a standby must not undercut.
	Minima map[string]int
}

// controlCache keeps what was read from pg_control for as long as the file
// stays the same: it is asked for every second, and changes with checkpoints.
type controlCache struct {
	mu     sync.Mutex
	raw    []byte
	parsed Control
}

// control reads pg_control with pg_controldata, whose output in the C locale has
// kept its labels since version 12.
func (p *installation) control(ctx context.Context) (Control, error) {
	raw, err := p.disk.ReadFile(p.inData(filepath.Join("global", "pg_control")))
	if err != nil {
		return Control{}, fmt.Errorf("control file: %w", err)
	}
	p.controls.mu.Lock()
	defer p.controls.mu.Unlock()
	if len(raw) > 0 && bytes.Equal(raw, p.controls.raw) {
		return p.controls.parsed.clone(), nil
	}
	out, err := p.run(ctx, "pg_controldata", "-D", p.dataDir)
	if err != nil {
		return Control{}, err
	}
	c, err := parseControl(out)
	if err != nil {
		return Control{}, err
	}
	p.controls.raw, p.controls.parsed = raw, c
	return c.clone(), nil
}

func (c Control) clone() Control {
	c.Minima = maps.Clone(c.Minima)
	return c
}

// made is when initdb made the cluster, to the second: the upper half of its
// system identifier (PostgreSQL's src/backend/access/transam/xlog.c).
func (c Control) made() time.Time {
	id, err := strconv.ParseUint(c.SystemIdentifier, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(int64(id>>32), 0)
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
			c.CheckpointLSN, _ = pg.ParseLSN(value)
		case "Database block size":
			c.BlockSize, _ = strconv.ParseInt(value, 10, 32)
		case "Minimum recovery ending location":
			c.MinRecovery, _ = pg.ParseLSN(value)
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

// dataMajor is the major version that made the data directory.
func (p *installation) dataMajor() (int, error) {
	content, err := p.disk.ReadFile(filepath.Join(p.dataDir, "PG_VERSION"))
	if err != nil {
		return 0, fmt.Errorf("data directory: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0, fmt.Errorf("data directory: PG_VERSION holds %q", content)
	}
	return major, nil
}
