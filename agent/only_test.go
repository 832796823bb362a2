package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// One data directory has one agent, by whatever name it is known and wherever the agent's
// own files are; another directory of that name has its own.
func TestOnlyAgent(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"volume/data", "other/data", "state"} {
		testkit.Must(t, os.MkdirAll(filepath.Join(dir, name), 0o700))
	}
	testkit.Must(t, os.Symlink(filepath.Join(dir, "volume", "data"), filepath.Join(dir, "link")))
	only := func(data, state string) error {
		cfg := config.Config{Postgres: config.Postgres{DataDir: filepath.Join(dir, data)}}
		if state != "" {
			cfg.Lictor.StateDir = filepath.Join(dir, state)
		}
		release, err := onlyAgent(cfg, osuser.User{})
		if err == nil {
			t.Cleanup(release)
		}
		return err
	}
	testkit.Must(t, only("volume/data", ""))
	for _, again := range [][2]string{{"volume/data", ""}, {"volume/data", "state"}, {"link", ""}, {"volume/../link", "state"}} {
		if err := only(again[0], again[1]); err == nil || !strings.Contains(err.Error(), "another agent runs for the data directory") {
			t.Errorf("%v: %v", again, err)
		}
	}
	testkit.Must(t, only("other/data", ""))
	testkit.Must(t, only("volume/none", "state")) // it is not there yet
	if err := only("volume/none", ""); err == nil {
		t.Error("two agents for a data directory that is not there yet")
	}
}

// Two members whose data directories are their own would still write one postgresql.conf.
func TestOnlyAgentOfAConfigDir(t *testing.T) {
	dir := t.TempDir()
	testkit.Must(t, os.MkdirAll(filepath.Join(dir, "etc", "main"), 0o700))
	only := func(data, conf string) error {
		release, err := onlyAgent(config.Config{Postgres: config.Postgres{DataDir: filepath.Join(dir, data), ConfigDir: filepath.Join(dir, conf)}}, osuser.User{})
		if err == nil {
			t.Cleanup(release)
		}
		return err
	}
	testkit.Must(t, only("a", "etc/main"))
	if err := only("b", "etc/../etc/main"); err == nil || !strings.Contains(err.Error(), "another agent runs for the postgresql.config_dir") {
		t.Errorf("a second one: %v", err)
	}
	testkit.Must(t, only("b", "etc")) // what was refused holds no lock
	testkit.Must(t, only("c", "none"))
}
