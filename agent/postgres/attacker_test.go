package postgres

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// attacked is an instance of an agent that is root's, in a directory that is PostgreSQL's
// user's own, beside a directory of root's.
func attacked(t *testing.T) (p *Instance, roots string, as func(words ...string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	top := newDir(t)
	must(t, os.Chmod(top, 0o755))
	home := filepath.Join(top, "lib")
	roots = filepath.Join(top, "etc")
	must(t, os.Mkdir(home, 0o755))
	must(t, os.Mkdir(roots, 0o755))
	must(t, os.WriteFile(filepath.Join(roots, "shadow"), []byte("root's"), 0o600))
	s := settings(t, home, "a")
	s.Postgres.PgPass = filepath.Join(home, "pgpass")
	p = newInstance(t, s)
	must(t, os.Chown(home, int(p.credential.Uid), int(p.credential.Gid)))
	return p, roots, func(words ...string) {
		t.Helper()
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Dir, cmd.SysProcAttr = home, &syscall.SysProcAttr{Credential: p.credential}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", words, err, out)
		}
	}
}

// rootsUntouched looks at what is root's.
func rootsUntouched(t *testing.T, what, roots string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(roots)
	must(t, err)
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
		info, err := os.Lstat(filepath.Join(roots, e.Name()))
		must(t, err)
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || e.IsDir() && info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %s has become user %d's, with mode %v", what, e.Name(), st.Uid, info.Mode())
		}
	}
	if slices.Sort(names); !slices.Equal(found, names) {
		t.Errorf("%s: root's directory has %v, want %v", what, found, names)
	}
	if content, err := os.ReadFile(filepath.Join(roots, "shadow")); err != nil || string(content) != "root's" {
		t.Errorf("%s: root's file says %q (%v)", what, content, err)
	}
}

// PostgreSQL's user puts links to root's files in the place of all that the agent keeps
// beside the data directory.
func TestNotesThroughLinks(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p, roots, as := attacked(t)
	bootstrapped(ctx, t, p)
	secret := filepath.Join(roots, "shadow")
	for _, note := range []string{"unfinished", "failed", "loss", "told", "rewinding", "pwfile", "pgservice", "postgres.log"} {
		as("ln", "-sf", secret, p.stateFile(note))
	}
	as("ln", "-sf", secret, p.pgpassPath())
	as("ln", "-sf", secret, p.inData("patroni.dynamic.json"))
	_, _ = p.DataDir(ctx)
	_, _ = p.CachedDynamic()
	for what, act := range map[string]func() error{
		"loss": func() error { return p.writeLoss(Loss{ID: "x"}) }, "told": func() error { return p.KeepCallbackState(CallbackState{Role: "primary"}) },
		"asides": func() error { return p.noteAsides(nil) }, "marker": func() error { return p.writeMarker(markClone, "1") },
		"pgpass": func() error { return p.writePgpass(upstream(p)) }, "dynamic": func() error { return p.CacheDynamic([]byte("{}")) },
	} {
		if err := act(); err != nil {
			t.Logf("%s: %v", what, err)
		}
	}
	must(t, p.unmark())
	if text := p.logTail(p.stateFile("postgres.log"), 0); text == "root's" {
		t.Error("root's file is read into an error")
	}
	rootsUntouched(t, "notes", roots, "shadow")
}

// PostgreSQL's user makes the data directory a link to an empty directory of root's, or
// to one with content, and asks for every removal.
func TestDataDirThroughALink(t *testing.T) {
	ctx := within(t)
	for _, target := range []string{"empty", "full"} {
		p, roots, as := attacked(t)
		must(t, os.Mkdir(filepath.Join(roots, "empty"), 0o755))
		must(t, os.MkdirAll(filepath.Join(roots, "full", "pg_wal"), 0o755))
		as("ln", "-s", filepath.Join(roots, target), p.dataDir)
		if _, err := p.Bootstrap(ctx, config.Bootstrap{}); err == nil {
			t.Fatalf("%s: a shard was made in root's directory", target)
		}
		// A marker that says that it is unfinished work of ours, as the user can write one.
		_ = p.writeMarker(markBootstrap, "")
		_ = p.DiscardIncomplete(ctx)
		_, _ = p.moveAside(ctx, "", everything)
		_ = p.empty("", everything)
		_ = p.closeToOthers()
		rootsUntouched(t, target, roots, "shadow", "empty", "full")
		if _, err := os.Stat(filepath.Join(roots, "full", "pg_wal")); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// A note names a directory of root's as one that was moved aside.
func TestAsideOfRoots(t *testing.T) {
	p, roots, as := attacked(t)
	dir := filepath.Join(roots, "app.failed.2026")
	must(t, os.Mkdir(dir, 0o755))
	id, err := identity(dir)
	must(t, err)
	as("mkdir", "-p", p.dataDir)
	must(t, p.noteAsides([]aside{{Path: dir, ID: id}}))
	if moved, err := p.moveAside(within(t), "", everything); err != nil {
		t.Fatal(err)
	} else if _, err := os.Stat(moved); err != nil {
		t.Fatal(err)
	}
	rootsUntouched(t, "aside", roots, "shadow", "app.failed.2026")
}

// WAL and tablespaces outside of the data directory lie where a link says: there, too, the
// rights are PostgreSQL's.
func TestWALOfRoots(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p, roots, as := attacked(t)
	bootstrapped(ctx, t, p)
	wal := filepath.Join(roots, "000000010000000000000001")
	must(t, os.WriteFile(wal, []byte("x"), 0o644))
	as("mv", p.inData("pg_wal"), filepath.Join(filepath.Dir(p.dataDir), "wal"))
	as("ln", "-s", roots, p.inData("pg_wal"))
	_ = p.writeNew(p.inData("pg_wal/00000009.history"), "x")
	_ = p.unskipTimelines()
	_ = p.empty("", everything)
	rootsUntouched(t, "pg_wal", roots, "shadow", filepath.Base(wal))
}

// What an agent of root's has left before it took the user's rights is found again.
func TestNotesOfAnEarlierAgent(t *testing.T) {
	p, _, as := attacked(t)
	as("mkdir", p.dataDir)
	must(t, os.WriteFile(p.stateFile("loss"), []byte(`{"id":"x"}`), 0o600))
	p.adoptNotes()
	if l := p.Loss(); l == nil || l.ID != "x" {
		t.Errorf("%+v", l)
	}
}
