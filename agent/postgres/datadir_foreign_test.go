package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// untouched runs what must refuse, and compares all files before and after.
func untouched(t *testing.T, dir, what string, refuse func() error) {
	t.Helper()
	before := contents(t, dir)
	if err := refuse(); err == nil {
		t.Errorf("%s: was not refused", what)
	}
	after := contents(t, dir)
	for path, content := range before {
		if got, found := after[path]; !found || got != content {
			t.Errorf("%s: %s was touched", what, path)
		}
	}
}

// contents is every path under dir, with what is in the files.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, path := range listing(t, dir) {
		info, err := os.Lstat(path)
		must(t, err)
		files[path] = info.Mode().String()
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			must(t, err)
			files[path] += " " + string(content)
		}
	}
	return files
}

// What is not ours is called foreign, and neither emptied nor filled.
func TestForeignContent(t *testing.T) {
	for name, test := range map[string]struct {
		files   map[string]string
		problem string
	}{
		"somebody's files":       {map[string]string{"thesis.txt": "precious"}, "not a PostgreSQL data directory"},
		"a hidden file":          {map[string]string{".bashrc": "precious"}, "not a PostgreSQL data directory"},
		"an older PostgreSQL":    {map[string]string{"PG_VERSION": "9\n", "base/1/1": "x"}, "pg_upgrade"},
		"a newer PostgreSQL":     {map[string]string{"PG_VERSION": "99\n"}, "pg_upgrade"},
		"a damaged version":      {map[string]string{"PG_VERSION": "fifteen"}, "not a PostgreSQL data directory"},
		"without a control file": {map[string]string{"PG_VERSION": "MAJOR\n", "base/1/1": "x"}, "control file"},
		"an empty control file":  {map[string]string{"PG_VERSION": "MAJOR\n", "global/pg_control": ""}, "control file"},
		"a file in its place":    {map[string]string{"": "precious"}, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, dir := within(t), newDir(t)
			p := newInstance(t, settings(t, dir, "a"))
			for file, content := range test.files {
				put(t, p.inData(file), strings.Replace(content, "MAJOR", fmt.Sprint(p.major), 1))
			}
			give(t, p, p.dataDir)
			foreign := func() {
				t.Helper()
				if d, err := p.DataDir(ctx); err != nil || d.State != Foreign || !strings.Contains(d.Problem, test.problem) {
					t.Errorf("%s (%s), %v; want %s about %s", d.State, d.Problem, err, Foreign, test.problem)
				}
			}
			foreign()
			untouched(t, dir, "discarding", func() error { return p.DiscardIncomplete(ctx) })
			untouched(t, dir, "removing for a clone", func() error { return p.RemoveForReinit(ctx, allowed(t, p)) })
			untouched(t, dir, "bootstrapping", func() error { _, err := p.Bootstrap(ctx, config.Bootstrap{}); return err })
			foreign()
		})
	}
}

// A file system of its own is empty but for lost+found, which stays.
func TestLostAndFound(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	put(t, p.inData("lost+found/1"), "x")
	if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
		t.Errorf("%+v %v", d, err)
	}
	untouched(t, dir, "discarding", func() error { return p.DiscardIncomplete(ctx) })
	must(t, p.mark(markClone, ""))
	put(t, p.inData("half"), "x")
	must(t, p.DiscardIncomplete(ctx))
	if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
		t.Errorf("cleared: %+v %v", d, err)
	}
	if _, err := os.Stat(p.inData("lost+found/1")); err != nil {
		t.Error(err)
	}
}

// A link to a disk that is not mounted is no place for a new cluster.
func TestDanglingLink(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	disk := filepath.Join(dir, "not mounted")
	must(t, os.Symlink(disk, p.dataDir))
	untouched(t, dir, "bootstrapping", func() error { _, err := p.Bootstrap(ctx, config.Bootstrap{}); return err })
	if _, err := os.Lstat(disk); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("was made: %v", err)
	}
}

// Nothing is removed under a PostgreSQL that runs, whoever started it.
func TestRemoveForReinitUnderSomebodyElsesPostgres(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	pid := p.process.pid()
	again, err := New(settings(t, dir, "a")) // has not started it and not adopted it
	must(t, err)
	if err := again.RemoveForReinit(ctx, allowed(t, again)); err == nil || !strings.Contains(err.Error(), fmt.Sprint(pid)) {
		t.Errorf("removed: %v", err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("it was ended: %v", err)
	}
	observe(ctx, t, p, "goes on", func(s State) bool { return s.Accepting })
	must(t, p.Stop(ctx, Fast))
	must(t, again.RemoveForReinit(ctx, allowed(t, again)))
}

// A removal that was cut short goes on as unfinished work, not as data.
func TestRemovalCutShort(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	id := bootstrapped(ctx, t, p)
	must(t, p.writeMarker(markClone, id)) // as RemoveForReinit does first
	for _, gone := range []string{"base", "global", "PG_VERSION"} {
		must(t, os.RemoveAll(p.inData(gone)))
		if d, err := p.DataDir(ctx); err != nil || d.State != Incomplete {
			t.Errorf("without %s: %+v %v", gone, d, err)
		}
	}
	must(t, p.DiscardIncomplete(ctx))
	if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
		t.Errorf("cleared: %+v %v", d, err)
	}
}
