package postgres

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// A data directory that the group may read stays readable for it, whatever the agent
// writes and wherever it is cloned to; one that it may not read stays closed.
func TestGroupAccess(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a, b := newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b"))
	check := func(p *Instance, dirMode, fileMode fs.FileMode) {
		t.Helper()
		must(t, filepath.WalkDir(p.dataDir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // files come and go
			}
			info, err := d.Info()
			if err != nil {
				return nil //nolint:nilerr // files come and go
			}
			want := fileMode
			if d.IsDir() {
				want = dirMode
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s has mode %v, want %v", path, got, want)
			}
			return nil
		}))
	}
	_, err := a.Bootstrap(ctx, config.Bootstrap{InitDB: []any{"allow-group-access"}})
	must(t, err)
	must(t, a.FinishBootstrap())
	must(t, a.CacheDynamic([]byte("{}")))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b")
	check(a, 0o750, 0o640)
	for range 2 { // made, and made anew
		must(t, b.BaseBackup(ctx, upstream(a), nil))
		follow(ctx, t, b, a)
		caughtUp(ctx, t, a, b)
		check(b, 0o750, 0o640)
		must(t, b.Stop(ctx, Fast))
		must(t, b.RemoveForReinit(ctx, allowed(t, b)))
	}
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	must(t, b.Promote(ctx, 4)) // passes over timelines, by files of the agent's own
	check(b, 0o750, 0o640)

	c := newInstance(t, settings(t, dir, "c"))
	must(t, os.Mkdir(c.dataDir, 0o755))
	bootstrapped(ctx, t, c)
	must(t, c.Start(ctx, StartAs{Role: Primary}))
	check(c, 0o700, 0o600)
}
