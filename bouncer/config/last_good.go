package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// lastGoodSuffix is at the end of the name of a bouncer's file as it was last followed.
const lastGoodSuffix = ".last-good"

// lastGoodPath is where that is kept: in the directory that systemd gives the bouncer, else
// beside the file. It must be found while nothing of the file can be read.
func lastGoodPath(source settings.Source) string {
	path, err := filepath.Abs(source.Path)
	if source.Path == "" || err != nil {
		return ""
	}
	if dir, _, _ := strings.Cut(source.Get("STATE_DIRECTORY"), ":"); dir != "" {
		return filepath.Join(dir, strings.ReplaceAll(strings.Trim(path, "/"), "/", "-")+lastGoodSuffix)
	}
	return path + lastGoodSuffix
}

// loadLastGood is load of what is kept, for a file that is refused for a reason. A file that is
// not there is none to stand in for.
func loadLastGood(source settings.Source, cause error) (Config, []cluster.Warning, error) {
	path := lastGoodPath(source)
	if path == "" || errors.Is(cause, fs.ErrNotExist) {
		return Config{}, nil, cause
	}
	holder, err := osuser.Holder(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Config{}, nil, fmt.Errorf("%w\n  There is none to start with that was followed before: it would be %s", cause, path)
	case err == nil && holder != 0 && int(holder) != os.Geteuid(): // it says which programs are run
		err = fmt.Errorf("it belongs to user %d, who is neither root nor the user of this program", holder)
	}
	if err != nil {
		return Config{}, nil, fmt.Errorf("%w\n  %s, which was followed before, cannot stand in for it: %w", cause, path, err)
	}
	c, warnings, err := load(settings.Source{Path: path, Environ: source.Environ, Flags: source.Flags})
	if err != nil {
		return Config{}, warnings, fmt.Errorf("%w\n  What was followed before cannot stand in for it: %w", cause, err)
	}
	c.standsFor = fmt.Errorf("what was last followed of it (%s) is in place: %w", path, cause)
	return c, warnings, nil
}

// StandsFor is why this configuration is not that of the file, but an earlier one; nil: it is.
func (c Config) StandsFor() error { return c.standsFor }

// LastGood is where to keep the file once its configuration stands, and what it says; empty:
// nowhere.
func (c Config) LastGood() (path string, text []byte) {
	if c.standsFor != nil || len(c.refused) > 0 {
		return "", nil
	}
	return c.lastGood, c.text
}
