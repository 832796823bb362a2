package api

import (
	"strings"
	"time"
)

// Backups are those that the repository has of a shard, as its leader was told.
type Backups struct {
	// At is when it was told.
	At time.Time
	// Last is the end of the last good backup of each type.
	Last map[string]time.Time
	// Verified is when one that is still there was verified last; zero: none was.
	Verified time.Time
	// Count is how many good ones there are, Damaged how many have damaged pages.
	Count, Damaged int
	// Bytes is what all take in the repository, without WAL.
	Bytes int64
	// Unverified says what is wrong with the time of the last verification; empty: nothing.
	Unverified string
	// Up: the repository answers. Troubles say what is wrong.
	Up       bool
	Troubles []string
}

// Problem says what is wrong with the backups; empty: nothing, or nothing is known.
func (b *Backups) Problem() string {
	if b == nil {
		return ""
	}
	return strings.Join(b.Troubles, "; ")
}

// backupsStatus are a shard's backups in the answer of /patroni.
type backupsStatus struct {
	AgeMS    int64             `json:"age_ms"` // since the repository was asked
	Last     map[string]string `json:"last"`
	Verified string            `json:"verified,omitempty"`
	Count    int               `json:"count"`
	Damaged  int               `json:"damaged,omitempty"`
	Bytes    int64             `json:"bytes"`
	Problem  string            `json:"problem,omitempty"`
	// Unverified says what is wrong with the time of the last verification.
	Unverified string `json:"unverified,omitempty"`
}

// PeerBackups are a shard's backups as its leader tells of them.
type PeerBackups struct {
	Age time.Duration // since the repository was asked
	// Last is the end of the last good backup of each type, Verified when one was verified last,
	// both as the leader writes a time.
	Last           map[string]string
	Verified       string
	Count, Damaged int
	Bytes          int64
}

func (b *backupsStatus) peer() *PeerBackups {
	if b == nil {
		return nil
	}
	return &PeerBackups{Age: milliseconds(b.AgeMS), Last: b.Last, Verified: b.Verified, Count: b.Count, Damaged: b.Damaged, Bytes: b.Bytes}
}

func (b *Backups) status(now time.Time) *backupsStatus {
	if b == nil {
		return nil
	}
	out := &backupsStatus{
		AgeMS: age(b.At, now).Milliseconds(), Last: map[string]string{}, Verified: timeOrNone(b.Verified),
		Count: b.Count, Damaged: b.Damaged, Bytes: b.Bytes, Problem: b.Problem(), Unverified: b.Unverified,
	}
	for kind, at := range b.Last {
		out.Last[kind] = timeOrNone(at)
	}
	return out
}

func (b *backupsStatus) problem() string {
	if b == nil {
		return ""
	}
	return b.Problem
}

func (b *backupsStatus) unverified() string {
	if b == nil {
		return ""
	}
	return b.Unverified
}

// Verification is a backup that was restored and checked on a member's host, and when.
type Verification struct {
	Label string    `json:"label"`
	At    time.Time `json:"at"`
}

// orNil is for what is left out of an answer where there is none.
func (v Verification) orNil() *Verification {
	if v.Label == "" {
		return nil
	}
	return &v
}

// metrics sends what is known of the backups. Where the repository has not answered yet only
// that is.
func (b *Backups) metrics(gauge sendGauge) {
	if b == nil {
		return
	}
	gauge("lictor_backup_repository_up", "1 if the last question for the shard's backups was answered without trouble.", flag(b.Up))
	if !b.Up && b.Count == 0 {
		return
	}
	gauge("lictor_backups", "Good backups of this cluster that are in the repository.", float64(b.Count))
	gauge("lictor_backups_damaged", "Backups of this cluster in which pgBackRest has found damaged pages: the database has them, too.", float64(b.Damaged))
	gauge("lictor_backup_repository_bytes", "What all backups of the stanza take in the repository, without WAL.", float64(b.Bytes))
	for kind, at := range b.Last {
		gauge("lictor_backup_last_success_timestamp_seconds", "When the last good backup of each type ended, in seconds since 1970.", float64(at.Unix()), "type", kind)
	}
	if !b.Verified.IsZero() {
		gauge("lictor_backup_last_verified_timestamp_seconds", "When a backup that is still there was restored and checked last, in seconds since 1970; absent when none was.", float64(b.Verified.Unix()))
	}
}
