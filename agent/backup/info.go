// Package backup knows what pgBackRest says of a shard's backups, which member a backup is
// taken from, and whether one can be restored. Backups themselves are pgBackRest's.
//
//	info.go    what is in the repository (pgbackrest info)
//	repository.go  how it is asked
//	target.go  the moment that a shard is restored to, and from which backup
//	line.go    the timelines that a recovery to it follows
//	plan.go    whether such a recovery is possible
//	choose.go  which member to back up from
//	run.go     how pgBackRest is run for that
//	verify.go  a backup is restored to a directory of its own, started and checked
//	note.go    what a verification notes down, where and until when
package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/printable"
)

// The types of backups, as pgBackRest names them.
const (
	Full         = "full"
	Differential = "diff"
	Incremental  = "incr"
)

// Types are all types of backups.
func Types() []string { return []string{Full, Differential, Incremental} }

// VerifiedAnnotation is the annotation of a backup that says when it was restored and
// checked. It is kept in the repository, with the backup: whoever asks finds it there, and
// it ends with the backup.
const VerifiedAnnotation = "lictor-verified"

// Backup is one good backup.
type Backup struct {
	Label, Type string
	Stop        time.Time
	// Size is how much is restored of it, in bytes.
	Size int64
	// Timeline is the one on which it was taken, and End where in the WAL it ended; zero:
	// pgBackRest does not say.
	Timeline int
	End      int64
	// Verified is when it was restored and checked; zero: never.
	Verified time.Time
}

// Info is what a repository has of one cluster.
type Info struct {
	// Backups are the good ones, oldest first.
	Backups []Backup
	// Bad are the labels of those in which pgBackRest found damaged pages.
	Bad []string
	// Archives are those of the cluster's WAL, one for each repository and version of PostgreSQL.
	Archives []Archive
	// Bytes is what the files of all backups take in the repository, without the WAL, of
	// which pgBackRest does not say it.
	Bytes int64
	// Trouble says what is wrong with the repository, empty: nothing.
	Trouble string
}

// Archive is where a repository keeps a cluster's WAL.
type Archive struct {
	Repo int
	ID   string
}

// What pgBackRest's status codes mean that are no trouble: 2 is a stanza without a backup.
const (
	statusOK        = 0
	statusNoBackups = 2
)

type status struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (s status) wrong() bool { return s.Code != statusOK && s.Code != statusNoBackups }

type database struct {
	ID      int `json:"id"`
	RepoKey int `json:"repo-key"`
}

// Parse reads what `pgbackrest --output=json info` prints of a stanza. Backups of another
// cluster than the one with this system identifier do not count; empty: all do.
func Parse(out []byte, stanza, system string) (Info, error) {
	var all []struct {
		Name   string `json:"name"`
		Status status `json:"status"`
		Repo   []struct {
			Key    int    `json:"key"`
			Status status `json:"status"`
		} `json:"repo"`
		DB []struct {
			database
			System uint64 `json:"system-id"`
		} `json:"db"`
		Archive []struct {
			Database database `json:"database"`
			ID       string   `json:"id"`
			Max      string   `json:"max"`
		} `json:"archive"`
		Backup []struct {
			Label     string               `json:"label"`
			Type      string               `json:"type"`
			Error     *bool                `json:"error"`
			Database  database             `json:"database"`
			Timestamp struct{ Stop int64 } `json:"timestamp"`
			Archive   struct {
				Stop string `json:"stop"`
			} `json:"archive"`
			LSN struct {
				Stop string `json:"stop"`
			} `json:"lsn"`
			Info struct {
				Size       int64 `json:"size"`
				Repository struct {
					Delta int64 `json:"delta"`
				} `json:"repository"`
			} `json:"info"`
			Annotation map[string]string `json:"annotation"`
		} `json:"backup"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return Info{}, fmt.Errorf("pgBackRest's info is not JSON of the expected shape: %w", printable.Error(err))
	}
	for _, s := range all {
		if s.Name != stanza {
			continue
		}
		systems := map[database]string{}
		for _, d := range s.DB {
			systems[d.database] = strconv.FormatUint(d.System, 10)
		}
		info := Info{}
		for _, r := range s.Repo {
			if r.Status.wrong() {
				info.Trouble = strings.Join(strings.Fields(info.Trouble+" repository "+strconv.Itoa(r.Key)+": "+r.Status.Message), " ")
			}
		}
		if info.Trouble == "" && s.Status.wrong() {
			info.Trouble = s.Status.Message
		}
		for _, a := range s.Archive {
			if a.Max != "" && (system == "" || systems[a.Database] == system) {
				info.Archives = append(info.Archives, Archive{Repo: a.Database.RepoKey, ID: a.ID})
			}
		}
		for _, b := range s.Backup {
			info.Bytes += b.Info.Repository.Delta
			switch {
			case system != "" && systems[b.Database] != system:
			case b.Error != nil && *b.Error:
				info.Bad = append(info.Bad, b.Label)
			default:
				verified, _ := time.Parse(time.RFC3339, b.Annotation[VerifiedAnnotation]) // whatever else is there says nothing
				timeline, end := placeOf(b.Archive.Stop, b.LSN.Stop)
				info.Backups = append(info.Backups, Backup{
					Label: b.Label, Type: b.Type, Stop: time.Unix(b.Timestamp.Stop, 0), Size: b.Info.Size, Timeline: timeline, End: end, Verified: verified,
				})
			}
		}
		slices.SortFunc(info.Backups, func(a, b Backup) int { return a.Stop.Compare(b.Stop) })
		return info, nil
	}
	return Info{}, fmt.Errorf("pgBackRest says nothing of stanza %q", stanza)
}

// placeOf is where a backup ended, by the last segment and the position that it needs; zeroes:
// that is not told.
func placeOf(segment, lsn string) (timeline int, end int64) {
	const digits = 8
	if len(segment) < digits {
		return 0, 0
	}
	n, err := strconv.ParseInt(segment[:digits], 16, 32)
	if err != nil {
		return 0, 0
	}
	end, _ = pg.ParseLSN(lsn) // without it the timeline has to do
	return int(n), end
}

// ErrNoBackup: there is no good backup of this cluster.
var ErrNoBackup = errors.New("there is no good backup of this cluster")

// Newest is the last good backup, of a type or, where that is empty, of any.
func (i Info) Newest(kind string) (Backup, error) {
	for _, b := range slices.Backward(i.Backups) {
		if kind == "" || b.Type == kind {
			return b, nil
		}
	}
	return Backup{}, ErrNoBackup
}

// Verified is when a backup that is still there was verified last; zero: none was.
func (i Info) Verified() time.Time {
	var last time.Time
	for _, b := range i.Backups {
		if b.Verified.After(last) {
			last = b.Verified
		}
	}
	return last
}

// Unverified says what is wrong with the age of the last verification, empty: nothing. That
// there was none is wrong when a backup was there for half of that time.
func (i Info) Unverified(now time.Time, most time.Duration) string {
	switch last := i.Verified(); {
	case len(i.Backups) == 0:
	case !last.IsZero() && now.Sub(last) > most:
		return fmt.Sprintf("no backup was restored and checked since %s, more than %.0f days ago", last.UTC().Format(time.RFC3339), most.Hours()/24)
	case last.IsZero() && now.Sub(i.Backups[0].Stop) > most/2:
		return "none of the backups was restored and checked"
	}
	return ""
}

// Late says what is wrong with the age of the last good backup, empty: nothing.
func (i Info) Late(now time.Time, most time.Duration) string {
	newest, err := i.Newest("")
	if err != nil {
		return err.Error()
	}
	if age := now.Sub(newest.Stop); age > most {
		return fmt.Sprintf("the last good backup, %s, ended at %s, more than %.0f h ago", newest.Label, newest.Stop.UTC().Format(time.RFC3339), most.Hours())
	}
	return ""
}
