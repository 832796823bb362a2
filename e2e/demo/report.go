package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Report is what --report writes. All figures come from the clients' own
// records, except the times of start and recovery.
type Report struct {
	Shards    int      `json:"shards"`
	StartupMS int64    `json:"startup_ms"`
	Scenarios []Result `json:"scenarios"`
}

// Result is what the clients of one shard saw of one scenario.
type Result struct {
	Name  string `json:"name"`
	Shard string `json:"shard"`
	// WriteGapMS is the longest time between two acknowledged inserts.
	WriteGapMS int64 `json:"write_gap_ms"`
	// ClientErrors counts failed statements and connections, of writers and
	// readers.
	ClientErrors int `json:"client_errors"`
	// Acked counts the rows that were acknowledged since the demo's start,
	// LostAcked those of them that the primary no longer has.
	Acked     int64 `json:"acked"`
	LostAcked int64 `json:"lost_acked"`
	// RecoveredMS is the time from the fault until the shard was whole again.
	RecoveredMS int64  `json:"recovered_ms"`
	OldPrimary  string `json:"old_primary"`
	NewPrimary  string `json:"new_primary"`
}

// lines says the same in words.
func (r Result) lines() []string {
	primary := "primary: still " + r.NewPrimary
	if r.OldPrimary != r.NewPrimary {
		primary = fmt.Sprintf("primary: %s, before %s", r.NewPrimary, r.OldPrimary)
	}
	return []string{
		fmt.Sprintf("%s on %s: longest write gap %s, %d client errors, %d rows acknowledged, %d of them lost",
			r.Name, r.Shard, seconds(r.WriteGapMS), r.ClientErrors, r.Acked, r.LostAcked),
		fmt.Sprintf("%s; whole again after %s", primary, seconds(r.RecoveredMS)),
	}
}

func seconds(ms int64) string {
	return fmt.Sprintf("%.2f s", (time.Duration(ms) * time.Millisecond).Seconds())
}

// writable returns an error if no report could be written there in the end, minutes later.
func writable(path string) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"*")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return errors.Join(fmt.Errorf("report: %s is a directory", path), file.Close(), os.Remove(file.Name()))
	}
	return errors.Join(file.Close(), os.Remove(file.Name()))
}

// writeReport replaces the file at once, so that nobody reads half a report.
func writeReport(path string, r Report) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
