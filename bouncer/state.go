package bouncer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/install"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// savedState is what a bouncer keeps across its own restarts, so that it serves
// without Consul and takes its own presence key over.
type savedState struct {
	Version int `json:"version"`
	// RoutesPrefix is where the routes came from; those of another prefix are
	// of no use.
	RoutesPrefix string `json:"routes_prefix"`
	// Name and Listen are the bouncer's: whose state this is. Two of one host may have one
	// name by mistake, and cannot listen at one address.
	Name    string `json:"name,omitempty"`
	Listen  string `json:"listen,omitempty"`
	Session string `json:"session,omitempty"`
	// Draining: an operator has not yet ended it.
	Draining bool `json:"draining,omitempty"`
	// Proven: clients were rightly sent here once; nil, before there was this: if there are routes.
	Proven *bool `json:"proven,omitempty"`
	// Pauses are those of operators, by shard.
	Pauses map[config.ShardID]OperatorPause `json:"pauses,omitempty"`
	// Strangers are the databases that somebody else has paused, on the console, by
	// PgBouncer's file.
	Strangers map[string][]string `json:"strangers,omitempty"`
	// Holds are those that had not ended by a primary that serves, by PgBouncer's file.
	Holds map[string]map[config.ShardID]savedHold `json:"holds,omitempty"`
	// Due are the further files whose command is to be run.
	Due    []string                        `json:"due,omitempty"`
	Routes map[config.ShardID]routes.Known `json:"routes"`
}

// savedHold is a hold as the next bouncer has to know it, so that its clients wait no longer.
type savedHold struct {
	// Until is its deadline, by the clock on the wall.
	Until    time.Time `json:"until"`
	Leader   string    `json:"leader,omitempty"`
	Extended bool      `json:"extended,omitempty"`
	// Over: the dead man's timer has released the clients.
	Over bool `json:"over,omitempty"`
}

const stateVersion = 1

// findState is the newest state file of this bouncer: the default name is that of the first
// process, and changes with the list of them.
func findState(c config.Config) string {
	newest := c.StateFile
	if newest != c.DefaultStateFile() {
		return newest // as the operator wants it
	}
	var at time.Time
	if info, err := osuser.Keeper(newest).Stat(newest); err == nil {
		at = info.ModTime()
	}
	for _, path := range stateFiles(c) {
		info, err := osuser.Keeper(path).Stat(path)
		if err != nil || !info.ModTime().After(at) {
			continue
		}
		if s, err := loadState(path, c.RoutesPrefix); err == nil && s.Name == c.Name && s.Listen == c.Listen {
			newest, at = path, info.ModTime()
		}
	}
	return newest
}

// stateFiles are all that have a default name, of any bouncer, beside PgBouncer's files.
func stateFiles(c config.Config) (paths []string) {
	var dirs []string
	for _, file := range configFiles(c) {
		if dir := filepath.Dir(file); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		entries, err := osuser.Keeper(dir).ReadDir(dir)
		if err != nil {
			continue // whatever is wrong there is said of PgBouncer's own file
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), config.StateSuffix) {
				paths = append(paths, filepath.Join(dir, e.Name()))
			}
		}
	}
	return paths
}

// loadState reads a state file. An absent file, and one of another version or
// prefix, is an empty state; a damaged one is an error to be reported, after
// which the caller goes on without.
func loadState(path, prefix string) (savedState, error) {
	empty := savedState{Version: stateVersion, RoutesPrefix: prefix}
	text, err := osuser.Keeper(path).ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return empty, fmt.Errorf("state file: %w", err)
	}
	var s savedState
	if err := json.Unmarshal(text, &s); err != nil {
		return empty, fmt.Errorf("state file %s is damaged and is ignored: %w", path, err)
	}
	if s.Version != stateVersion || s.RoutesPrefix != prefix {
		return empty, nil
	}
	return s, nil
}

// isProven reports whether clients were rightly sent to the PgBouncer here.
func (s savedState) isProven() bool {
	if s.Proven == nil {
		return len(s.Routes) > 0
	}
	return *s.Proven
}

// isEmpty reports whether there is nothing to keep.
func (s savedState) isEmpty() bool {
	return len(s.Routes) == 0 && s.Session == "" && !s.Draining && len(s.Pauses) == 0 && len(s.Strangers) == 0 && len(s.Holds) == 0 && len(s.Due) == 0
}

// save writes a state file that survives a crash of the host, and has room at hand for the next one on
// a full disk: an older one would be followed at a start.
func (s savedState) save(file *install.Config) error {
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(s); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	written, err := file.PutLasting(text.Bytes())
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if written {
		_ = file.KeepSpare(text.Bytes()) // where there is no room the next write tells, if it fails
	}
	return nil
}
