package pooler

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// While PgBouncer is stopped another one may be installed: the file must be one with which
// that one starts.
func TestInstalledVersionFollowsTheProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "pgbouncer")
	c := config.Config{PgBouncer: config.PgBouncer{Command: []string{program, "-q"}}}
	install := func(version string) {
		t.Helper()
		text := "#!/bin/sh\necho asked >> $0.asked\necho PgBouncer " + version + "\n"
		testkit.Must(t, os.WriteFile(program+".new", []byte(text), 0o755))
		testkit.Must(t, os.Rename(program+".new", program))
	}
	var installed Installed
	for _, step := range []struct {
		install string
		want    pgbouncer.Version
	}{{"", pgbouncer.Version{}}, {"1.24.1", pgbouncer.Version{1, 24, 1}}, {"1.18.0", pgbouncer.Version{1, 18, 0}}} {
		if step.install != "" {
			install(step.install)
		}
		for range 3 {
			if got := installed.Version(t.Context(), c); got != step.want {
				t.Errorf("installed is %s, want %s", got, step.want)
			}
		}
	}
	if asked, err := os.ReadFile(program + ".asked"); err != nil || string(asked) != "asked\nasked\n" {
		t.Errorf("asked: %q %v", asked, err)
	}
}
