package backup

import (
	"context"
	"encoding/json"
	"fmt"
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
}

// InfoOptions have pgBackRest print what it knows of a stanza, and errors elsewhere.
func InfoOptions(stanza string) []string { return quietly(stanza, "info") }

// quietly has pgBackRest answer in JSON. It logs to no file: one that it makes for root could
// not be written by PostgreSQL's user afterwards.
func quietly(stanza string, command ...string) []string {
	return append([]string{"--stanza=" + stanza, "--output=json", "--log-level-console=off", "--log-level-file=off", "--log-level-stderr=error"}, command...)
}

func (r Repository) run(ctx context.Context, args ...string) ([]byte, error) {
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

// segmentsOf is how many digits of a segment's name its directory in the archive has.
const segmentsOf = 16

// Archived is when the last WAL came into the archive: what was committed before is there.
// pgBackRest tells the segment, and of a file its time; of several repositories the one that
// has most counts, as a recovery looks into all of them.
func (r Repository) Archived(ctx context.Context, info Info) (last time.Time, err error) {
	for _, a := range info.Archives {
		if len(a.Last) <= segmentsOf {
			return last, fmt.Errorf("pgBackRest names %s as the last WAL of the archive, which is no segment's name", printable.Quote(a.Last))
		}
		dir := strings.Join([]string{"archive", r.Stanza, a.ID, a.Last[:segmentsOf]}, "/")
		out, err := r.run(ctx, append([]string{"--repo=" + strconv.Itoa(a.Repo)}, quietly(r.Stanza, "repo-ls", dir)...)...)
		if err != nil {
			return last, err
		}
		at, err := timeOf(out, a.Last)
		if err != nil {
			return last, err
		}
		if at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		return last, fmt.Errorf("the archive of stanza %s has no WAL of this cluster", r.Stanza)
	}
	return last, nil
}

// timeOf reads what `pgbackrest --output=json repo-ls` prints: the time of a segment's file,
// whose name goes on with a checksum.
func timeOf(out []byte, segment string) (time.Time, error) {
	var files map[string]struct {
		Time int64 `json:"time"`
	}
	if err := json.Unmarshal(out, &files); err != nil {
		return time.Time{}, fmt.Errorf("pgBackRest's repo-ls is not JSON of the expected shape: %w", printable.Error(err))
	}
	for name, file := range files {
		if strings.HasPrefix(name, segment) && file.Time > 0 {
			return time.Unix(file.Time, 0), nil
		}
	}
	return time.Time{}, fmt.Errorf("the archive has no file of the segment %s that pgBackRest names as its last", segment)
}
