package api

import (
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
)

// archiverStatus is how WAL gets into the archive.
type archiverStatus struct {
	Failing      bool   `json:"failing"`
	Archived     int64  `json:"archived"`
	Failed       int64  `json:"failed"`
	LastArchived string `json:"last_archived,omitempty"`
	LastFailed   string `json:"last_failed,omitempty"`
	ArchivedAt   string `json:"archived_at,omitempty"`
	FailedAt     string `json:"failed_at,omitempty"`
	// Waiting is how many files wait, WaitingMS for how long the first of them does.
	Waiting   int   `json:"waiting"`
	WaitingMS int64 `json:"waiting_ms"`
}

// newArchiverStatus is nil where nothing is archived.
func newArchiverStatus(a pg.Archiver, now time.Time) *archiverStatus {
	if !a.On {
		return nil
	}
	out := &archiverStatus{
		Failing: a.Failing(), Archived: a.Archived, Failed: a.Failed, LastArchived: a.LastArchived, LastFailed: a.LastFailed,
		ArchivedAt: timeOrNone(a.ArchivedAt), FailedAt: timeOrNone(a.FailedAt), Waiting: a.Waiting,
	}
	if a.Waiting > 0 && !a.WaitingSince.IsZero() {
		out.WaitingMS = max(0, now.Sub(a.WaitingSince)).Milliseconds()
	}
	return out
}

// timeOrNone writes a time, empty for none.
func timeOrNone(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return isoTime(t.UTC())
}

// PeerArchiver is what a member says of its archiver.
type PeerArchiver struct {
	Failing    bool
	Waiting    int
	WaitingFor time.Duration
	LastFailed string
}

func (a *archiverStatus) peer() *PeerArchiver {
	if a == nil {
		return nil
	}
	return &PeerArchiver{Failing: a.Failing, Waiting: a.Waiting, WaitingFor: milliseconds(a.WaitingMS), LastFailed: a.LastFailed}
}

// archiver sends the metrics of the archiver, where there is one at work.
func (c *collector) archiver(a pg.Archiver, status *archiverStatus, gauge sendGauge, counter sendCounter) {
	gauge("lictor_archive_mode", "1 if this member archives its WAL; without it the other metrics of the archive are absent.", flag(a.On))
	if status == nil {
		return
	}
	gauge("lictor_archive_failing", "1 if the last try to archive a file has failed, and it waits.", flag(status.Failing))
	gauge("lictor_archive_waiting_files", "Files of WAL that wait to be archived.", float64(status.Waiting))
	gauge("lictor_archive_waiting_seconds", "How long the first of them has waited, 0 when none does.", float64(status.WaitingMS)/1000)
	counter("lictor_archive_files_total", "Files that were archived since PostgreSQL's statistics were reset.", float64(status.Archived))
	counter("lictor_archive_failures_total", "Tries to archive a file that have failed since then.", float64(status.Failed))
	if !a.ArchivedAt.IsZero() {
		gauge("lictor_archive_last_success_timestamp_seconds", "When a file was archived last, in seconds since 1970, absent when none was.", float64(a.ArchivedAt.UnixMilli())/1000)
	}
}
