package pg

import (
	"fmt"
	"time"
)

// Archiver is how PostgreSQL's archiver fares (pg_stat_archiver, pg_wal/archive_status).
type Archiver struct {
	// On: this server archives its WAL. A replica does so with archive_mode=always only.
	On bool
	// Archived and Failed count since PostgreSQL's statistics were reset; a file that is
	// tried again counts each time.
	Archived, Failed int64
	// LastArchived and LastFailed are names of files, empty: none yet.
	LastArchived, LastFailed string
	ArchivedAt, FailedAt     time.Time
	// Waiting is how many files wait to be archived, WaitingSince since when the first
	// of them does.
	Waiting      int
	WaitingSince time.Time
	// Keeps is how many bytes of WAL max_wal_size and wal_keep_size explain; zero: not known.
	Keeps int64
}

// Failing reports whether the last try to archive something has failed, and it waits.
func (a Archiver) Failing() bool {
	return a.On && a.Waiting > 0 && a.FailedAt.After(a.ArchivedAt)
}

// Trouble says of an archiver that fails what does not get into the archive. It stays the
// same while that does.
func (a Archiver) Trouble() string {
	if !a.Failing() {
		return ""
	}
	return fmt.Sprintf("the archive does not take %s; WAL has waited since %s and fills the disk; PostgreSQL's log says what archive_command met with",
		a.LastFailed, a.WaitingSince.UTC().Format(time.RFC3339))
}
