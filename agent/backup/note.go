package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
)

// pgBackRest writes to a repository on the repository's host alone, and a backup is verified
// on a member's. So the verification leaves a note beside that member's data, its agent
// shows it, and the next backup, which is begun on the repository's host, puts it there.

// Note writes down, where the member's agent finds it, which backup is good and since when.
func (done Verified) Note(file string) error {
	content, err := json.Marshal(api.Verification{Label: done.Label, At: done.At})
	if err == nil {
		err = os.WriteFile(file+".new", append(content, '\n'), 0o644) //nolint:gosec // it is no secret
	}
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		return fmt.Errorf("noting that the backup is good: %w", err)
	}
	return nil
}

// NotedVerification is the latest verification that the members of a shard know of; zero: none.
func NotedVerification(ctx context.Context, client *api.Client, urls []string) (last api.Verification) {
	for _, url := range urls {
		ctx, cancel := context.WithTimeout(ctx, agentLimit)
		status, err := client.Status(ctx, api.Peer{APIURL: url})
		cancel()
		// One that does not answer says it next time.
		if err == nil && status.Lictor != nil && status.Lictor.Verified.At.After(last.At) {
			last = status.Lictor.Verified
		}
	}
	return last
}

// Annotate puts a verification that a member has noted into the repository, which is this
// host's, unless it is there. The backup may have expired meanwhile.
func (r Run) Annotate(ctx context.Context, noted api.Verification) error {
	if noted.Label == "" {
		return nil
	}
	info, err := Repository{Command: r.PgBackRest, Stanza: r.Stanza}.Info(ctx, "")
	if err != nil {
		return err
	}
	b, err := info.labelled(noted.Label)
	if err != nil {
		return errors.Join(fmt.Errorf("backup %s, which was verified, is not there any more", noted.Label), err)
	}
	if !b.Verified.Before(noted.At) {
		return nil
	}
	v := Verification{PgBackRest: r.PgBackRest, Stanza: r.Stanza}
	return v.Annotate(ctx, Verified{Backup: b, At: noted.At.UTC().Truncate(time.Second)})
}

// ReadNote reads what Note has written.
func ReadNote(content []byte) (noted api.Verification, err error) {
	if err := json.Unmarshal(content, &noted); err != nil {
		return api.Verification{}, fmt.Errorf("the note of the last verification: %w", err)
	}
	return noted, nil
}
