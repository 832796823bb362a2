package bouncer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/render"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// savedState is what a bouncer keeps across its own restarts, so that it serves
// without Consul and takes its own presence key over.
type savedState struct {
	Version int `json:"version"`
	// RoutesPrefix is where the routes came from; those of another prefix are
	// of no use.
	RoutesPrefix string `json:"routes_prefix"`
	Session      string `json:"session,omitempty"`
	// Draining: an operator has not yet ended it.
	Draining bool `json:"draining,omitempty"`
	// Pauses are those of operators, by shard.
	Pauses map[config.ShardID]OperatorPause `json:"pauses,omitempty"`
	Routes map[config.ShardID]routes.Known  `json:"routes"`
}

const stateVersion = 1

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

// isEmpty reports whether there is nothing to keep.
func (s savedState) isEmpty() bool {
	return len(s.Routes) == 0 && s.Session == "" && !s.Draining && len(s.Pauses) == 0
}

// save writes a state file that survives a crash of the host.
func (s savedState) save(path string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if _, err := render.Install(path, append(text, '\n')); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	return nil
}
