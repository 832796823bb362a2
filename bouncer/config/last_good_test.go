package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// What stands in for a file must be kept by who may say what the bouncer runs, must be good itself,
// and stands for no file that is not there.
func TestLastGoodIsNotAnybodys(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bouncer.yml")
	kept := path + lastGoodSuffix
	good := []byte("name: b1\npgbouncer: {config: /nowhere/pgbouncer.ini, admin: \"127.0.0.1:6432\"}\n")
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refuses := func(what, why string) {
		t.Helper()
		if c, _, err := LoadServable(settings.Source{Path: path}); err == nil || !strings.Contains(err.Error(), why) || c.Name != "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	write(kept, good)
	refuses("no file", "cannot be read")
	write(path, []byte("name: b1\n"))
	if c, _, err := LoadServable(settings.Source{Path: path}); err != nil || c.Name != "b1" || c.StandsFor() == nil {
		t.Fatalf("%v", err)
	} else if at, _ := c.LastGood(); at != "" {
		t.Error("what stands in is kept as if it were the file")
	}
	if _, _, err := Load(settings.Source{Path: path}); err == nil {
		t.Error("SIGHUP takes it")
	}
	write(kept, []byte("name: [b1"))
	refuses("another that is wrong", "cannot stand in for it")
	write(kept, good)
	if os.Geteuid() == 0 {
		if err := os.Chown(kept, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		refuses("somebody else's", "it belongs to user 12345")
	}
}
