package install

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// LastGood is the last pgbouncer.ini that was verified: what to go back to.
type LastGood struct {
	path string
	Text []byte
}

func NewLastGood(config string) *LastGood {
	return &LastGood{path: config + ".last-good"}
}

// Restore reads that of an earlier run.
func (g *LastGood) Restore() error {
	text, err := osuser.Keeper(g.path).ReadFile(g.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("last good configuration: %w", err)
	}
	g.Text = text
	return nil
}

// Keep remembers text as the last good one.
func (g *LastGood) Keep(text []byte) error {
	if string(g.Text) == string(text) {
		return nil
	}
	g.Text = text
	_, err := File(g.path, text)
	return err
}
