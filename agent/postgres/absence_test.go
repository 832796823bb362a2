package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unreadable makes a file whose look fails, as on a disk with errors: a link to itself.
func unreadable(t *testing.T, path string) {
	t.Helper()
	_ = os.Remove(path)
	must(t, os.Symlink(filepath.Base(path), path))
}

// That a file cannot be looked at does not mean that it is not there.
func TestWhatCannotBeLookedAtIsNotAbsent(t *testing.T) {
	names := func(err error, what string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want an error about %s", err, what)
		}
	}
	t.Run("a signal file", func(t *testing.T) {
		p := filesOnly(t)
		if standby, err := p.hasSignalFile(); err != nil || standby {
			t.Errorf("%v %v", standby, err)
		}
		must(t, os.WriteFile(p.inData("recovery.signal"), nil, 0o600))
		if standby, err := p.hasSignalFile(); err != nil || !standby {
			t.Errorf("%v %v", standby, err)
		}
		unreadable(t, p.inData("standby.signal"))
		_, err := p.hasSignalFile()
		names(err, "standby.signal")
		_, err = p.adoptedAs()
		names(err, "standby.signal")
		names((&rewinder{dataDirectory: p.dataDirectory, installation: p.installation}).recoverAlone(t.Context(), Control{}), "standby.signal")
	})
	t.Run("the operator's configuration", func(t *testing.T) {
		p := filesOnly(t)
		base := p.inConf("postgresql.base.conf")
		must(t, os.WriteFile(p.inConf("postgresql.conf"), []byte(confHead+"\n"), 0o600))
		unreadable(t, base)
		names(p.keepBaseConf(), "postgresql.base.conf")
		if _, err := os.Readlink(base); err != nil {
			t.Errorf("it was overwritten: %v", err)
		}
		must(t, os.Remove(base))
		must(t, p.keepBaseConf())
		if content, err := os.ReadFile(base); err != nil || len(content) > 0 {
			t.Errorf("%q %v", content, err)
		}
	})
	t.Run("a configuration that cannot be read is not renamed", func(t *testing.T) {
		p := filesOnly(t)
		unreadable(t, p.inConf("postgresql.conf"))
		names(p.keepBaseConf(), "postgresql.conf")
	})
	t.Run("what a restore has left", func(t *testing.T) {
		for _, name := range []string{"recovery.signal", "standby.signal"} {
			p := filesOnly(t)
			must(t, os.Mkdir(p.inData("loop"), 0o700))
			unreadable(t, p.inData(name))
			_, err := p.prepareRecovery(nil, true)
			names(err, name)
		}
	})
	t.Run("a file of the configuration that is missing", func(t *testing.T) {
		p := filesOnly(t)
		unreadable(t, p.inConf("pg_hba.conf"))
		_, err := p.furnish()
		names(err, "pg_hba.conf")
		if _, err := os.Readlink(p.inConf("pg_hba.conf")); err != nil {
			t.Errorf("it was overwritten: %v", err)
		}
	})
	t.Run("another data directory within", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "other"), 0o700))
		unreadable(t, filepath.Join(dir, "other", "global"))
		if found, err := clusterInside(dir); err == nil {
			t.Errorf("found %q", found)
		}
	})
}

func has(t *testing.T, p *Instance, name string) bool {
	t.Helper()
	found, err := p.exists(name)
	must(t, err)
	return found
}
