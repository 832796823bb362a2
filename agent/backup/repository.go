package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Repository is pgBackRest as a member of a shard calls it.
type Repository struct {
	// Command is the program with its own options.
	Command []string
	Stanza  string
	// As is the user that it runs as; nil: this process's own.
	As *syscall.Credential
	// Output, where it is set, runs the program instead, with arguments.
	Output func(ctx context.Context, args ...string) ([]byte, error)
}

// QuestionLimit bounds one question to pgBackRest. Its own limits are half an hour.
const QuestionLimit = time.Minute

// InfoOptions have pgBackRest print what it knows of a stanza, and errors elsewhere.
func InfoOptions(stanza string) []string { return quietly(stanza, "info") }

// quietly has pgBackRest answer in JSON. It logs to no file: one that it makes for root could
// not be written by PostgreSQL's user afterwards.
func quietly(stanza string, command ...string) []string {
	return append([]string{"--stanza=" + stanza, "--output=json", "--log-level-console=off", "--log-level-file=off", "--log-level-stderr=error"}, command...)
}

func (r Repository) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, QuestionLimit)
	defer cancel()
	if r.Output != nil {
		return r.Output(ctx, args...)
	}
	return command(ctx, r.As, r.Command[0], append(slices.Clone(r.Command[1:]), args...)...)
}

// Info is what the repository has of the cluster with a system identifier; empty: of any.
func (r Repository) Info(ctx context.Context, system string) (Info, error) {
	out, err := r.run(ctx, InfoOptions(r.Stanza)...)
	if err != nil {
		return Info{}, err
	}
	return Parse(out, r.Stanza, system)
}

// files are what one directory of a repository has, by their names.
type files map[string]file

type file struct {
	// Time is when it was written, in seconds.
	Time int64 `json:"time"`
}

// list lists a directory of a cluster's WAL in the archive.
func (r Repository) list(ctx context.Context, a Archive, dir ...string) (files, error) {
	path := strings.Join(append([]string{"archive", r.Stanza, a.ID}, dir...), "/")
	out, err := r.run(ctx, append([]string{"--repo=" + strconv.Itoa(a.Repo)}, quietly(r.Stanza, "repo-ls", path)...)...)
	if err != nil {
		return nil, err
	}
	var found files
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("pgBackRest's repo-ls is not JSON of the expected shape: %w", printable.Error(err))
	}
	return found, nil
}

// get is a file of a cluster's archive.
func (r Repository) get(ctx context.Context, a Archive, name string) ([]byte, error) {
	path := strings.Join([]string{"archive", r.Stanza, a.ID, name}, "/")
	// It knows no format of its output.
	options := slices.DeleteFunc(quietly(r.Stanza, "repo-get", path), func(o string) bool { return strings.HasPrefix(o, "--output=") })
	return r.run(ctx, append([]string{"--repo=" + strconv.Itoa(a.Repo)}, options...)...)
}

// Archived is when the last WAL of a line came into the archive: what was committed before is
// there. Of several repositories the one that has most counts, as a recovery looks into all of
// them.
func (r Repository) Archived(ctx context.Context, line Line) (last time.Time, err error) {
	for _, a := range line.archives {
		top, err := r.list(ctx, a)
		if err != nil {
			return last, err
		}
		dir := line.lastDirectory(top)
		if dir == "" {
			continue
		}
		segments, err := r.list(ctx, a, dir)
		if err != nil {
			return last, err
		}
		if at := segments.newest(); at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		return last, fmt.Errorf("the archive of stanza %s has no WAL of timeline %d", r.Stanza, line.Timeline)
	}
	return last, nil
}

// newest is when the last segment came there; zero: there is none.
func (f files) newest() (at time.Time) {
	// The name of a segment's file goes on with a checksum.
	segmentFile := regexp.MustCompile(`^[0-9A-F]{24}-`)
	last := ""
	for name, file := range f {
		if segmentFile.MatchString(name) && name > last && file.Time > 0 {
			last, at = name, time.Unix(file.Time, 0)
		}
	}
	return at
}
