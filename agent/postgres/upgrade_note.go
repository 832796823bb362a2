package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// UpgradeNote says beside the data directory that a major upgrade has not ended.
type UpgradeNote struct {
	From int `json:"from"`
	To   int `json:"to"`
	// BinDir has the programs of the new version.
	BinDir string `json:"bin_dir"`
	// Aside is where the old data directory goes, and ID its identity, which a rename does not change.
	Aside string `json:"aside"`
	ID    string `json:"id"`
	// Next is where the new cluster is made, and NextID the identity of that directory; empty: it is not
	// made yet.
	Next   string `json:"next"`
	NextID string `json:"next_id,omitempty"`
	// SystemIdentifier is the old cluster's, Timeline the new one's.
	SystemIdentifier string `json:"system_identifier"`
	Timeline         int    `json:"timeline"`
	// Archives: PostgreSQL archived its WAL.
	Archives bool `json:"archives,omitempty"`
	// Stopped: PostgreSQL was shut down for it. What runs in the data directory since then was started by
	// pg_upgrade, and before that it is the shard's primary.
	Stopped bool `json:"stopped,omitempty"`
	// Work is pg_upgrade's working directory, with the superuser's password in it, and WorkID its identity.
	Work   string `json:"work,omitempty"`
	WorkID string `json:"work_id,omitempty"`
	// Upgraded is the new cluster's system identifier; empty: it is not whole yet.
	Upgraded string `json:"upgraded,omitempty"`
	// Index is that of the status which the announcement of the new cluster replaces; zero: none was sent.
	Index uint64 `json:"index,omitempty"`
}

// dir is the data directory, whatever link leads there.
func (n *UpgradeNote) dir() string { return n.Aside[:strings.LastIndex(n.Aside, beforeUpgrade)] }

// valid reports whether the note names directories beside the data, and nothing else.
func (n *UpgradeNote) valid() bool {
	if n.ID == "" || n.SystemIdentifier == "" || !filepath.IsAbs(n.Aside) || !strings.Contains(n.Aside, beforeUpgrade) {
		return false
	}
	if n.Work != "" && (!filepath.IsAbs(n.Work) || !strings.HasPrefix(filepath.Base(n.Work), upgradeWork)) {
		return false
	}
	at, fits := strings.CutPrefix(n.Next, n.dir()+upgradedInfix)
	return fits && at != "" && !strings.Contains(at, "/") && n.Aside == n.dir()+beforeUpgrade+at
}

// UpgradeNote is the note of a major upgrade that has not ended; nil: there is none.
func (p *dataDirectory) UpgradeNote() (*UpgradeNote, error) {
	content, err := p.disk.ReadFile(p.stateFile("upgrade"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no note is no failure
	}
	if err != nil {
		return nil, fmt.Errorf("the note of a major upgrade: %w", err)
	}
	var note UpgradeNote
	if err := json.Unmarshal(content, &note); err != nil || !note.valid() {
		return nil, fmt.Errorf("the note of a major upgrade, %s, is damaged: put the data directory back by hand if it lies at %s%s*, then remove the note",
			p.stateFile("upgrade"), p.dataDir, beforeUpgrade)
	}
	return &note, nil
}

func (p *dataDirectory) writeUpgradeNote(note UpgradeNote) error {
	content, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("the note of a major upgrade: %w", err)
	}
	if err := p.disk.Replace(p.stateFile("upgrade"), content, 0o600); err != nil {
		return fmt.Errorf("the note of a major upgrade (set lictor.state_dir to a writable directory): %w", err)
	}
	return p.syncDir(p.stateDir)
}

// refuseUpgrading fails while the note of a major upgrade is there: only dataUpgrader's functions may start, replace or
// remove anything then.
func (p *dataDirectory) refuseUpgrading() error {
	switch note, err := p.UpgradeNote(); {
	case err != nil:
		return err
	case note != nil:
		return fmt.Errorf("a major upgrade to PostgreSQL %d has not ended, as %s says", note.To, p.stateFile("upgrade"))
	}
	return nil
}

// notedUpgrade is the note, which must be there.
func (p *dataDirectory) notedUpgrade() (*UpgradeNote, error) {
	note, err := p.UpgradeNote()
	if err == nil && note == nil {
		err = errors.New("nobody has noted a major upgrade of these data")
	}
	return note, err
}

// NoteAnnouncement notes which status the announcement of the new cluster replaces, before it is sent.
func (p *dataUpgrader) NoteAnnouncement(index uint64) error {
	note, err := p.notedUpgrade()
	if err != nil {
		return err
	}
	if err := errors.Join(p.isAt(note.dir(), note.NextID), p.isAt(note.Aside, note.ID)); err != nil {
		return err
	}
	note.Index = index
	return p.writeUpgradeNote(*note)
}

// EndUpgrade drops the note: the new cluster is the shard's. The old data stay where they were moved to.
func (p *dataUpgrader) EndUpgrade(ctx context.Context) error {
	note, err := p.UpgradeNote()
	if err != nil || note == nil {
		return err
	}
	if err := p.isAt(note.dir(), note.NextID); err != nil {
		return err
	}
	if p.major != note.To {
		return fmt.Errorf("the upgraded data are those of PostgreSQL %d, and this agent runs the programs of %d", note.To, p.major)
	}
	control, err := p.control(ctx)
	if err != nil {
		return err
	}
	if control.SystemIdentifier != note.Upgraded {
		return fmt.Errorf("the upgraded data have system identifier %s, noted is %s", control.SystemIdentifier, note.Upgraded)
	}
	return p.dropUpgradeNote()
}

func (p *dataDirectory) dropUpgradeNote() error {
	if err := p.disk.Remove(p.stateFile("upgrade")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("dropping the note of a major upgrade: %w", err)
	}
	return p.syncDir(p.stateDir)
}
