package bouncer

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// lastGood is the last pgbouncer.ini that was verified: what to go back to.
type lastGood struct {
	path string
	text []byte
}

func newLastGood(c config.Config) *lastGood {
	return &lastGood{path: c.PgBouncer.Config + ".last-good"}
}

// restore reads that of an earlier run.
func (g *lastGood) restore() error {
	text, err := osuser.Keeper(g.path).ReadFile(g.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("last good configuration: %w", err)
	}
	g.text = text
	return nil
}

// keep remembers text as the last good one.
func (g *lastGood) keep(text []byte) error {
	if string(g.text) == string(text) {
		return nil
	}
	g.text = text
	_, err := install(g.path, text)
	return err
}
