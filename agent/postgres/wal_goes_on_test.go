package postgres

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// Only pg_waldump itself can say that there is no WAL: a loader that finds no library for it cannot.
func TestWALGoesOn(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		on     bool
		fails  bool
	}{
		"a record":      {"exit 0", true, false},
		"no record":     {"echo 'pg_waldump: error: could not find a valid record after 0/3000000' >&2; exit 1", false, false},
		"no file":       {`echo 'pg_waldump: error: could not find file "000000010000000000000003": No such file or directory' >&2; exit 1`, false, false},
		"no segment":    {`echo 'pg_waldump: fatal: could not locate WAL file "000000010000000000000003"' >&2; exit 1`, false, false},
		"something":     {"echo 'pg_waldump: error: invalid page' >&2; exit 1", true, false},
		"no directory":  {`echo 'pg_waldump: error: could not open directory "pg_wal": No such file or directory' >&2; exit 1`, true, false},
		"no library":    {"echo 'pg_waldump: error while loading shared libraries: libpq.so.5: cannot open shared object file: No such file or directory' >&2; exit 127", false, true},
		"it was killed": {"kill -9 $$", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := filesOnly(t)
			bin := t.TempDir()
			must(t, os.WriteFile(filepath.Join(bin, "pg_waldump"), []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700))
			p.local.Store(&config.Postgres{BinDir: bin})
			if on, err := p.walGoesOn(t.Context(), 1, 3<<24); on != tt.on || err != nil != tt.fails {
				t.Errorf("%v %v", on, err)
			}
		})
	}
}
