package logging

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// Nothing of a file outlives its Close: a bubble ends only with all that was started in it.
func TestFileIsRotated(t *testing.T) { synctest.Test(t, testFileIsRotated) }

func testFileIsRotated(t *testing.T) {
	dir := t.TempDir()
	// Names that are not of its files, though they look so.
	others := []string{"lictor-notes.log", "lictor-2026-01-02T15-04-05.000.log.gz", "lictor-2020-01-02T15-04-05.000.log"}
	for i, name := range others {
		write := func(path string) error { return os.WriteFile(path, nil, 0o600) }
		if i == 2 {
			write = func(path string) error { return os.Mkdir(path, 0o700) }
		}
		err := write(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
	}
	before := filepath.Join(dir, "lictor-1999-01-02T15-04-05.000.log")
	if err := os.WriteFile(before, nil, 0o604); err != nil {
		t.Fatal(err)
	}
	var failed bytes.Buffer
	out, err := OpenFile(dir, Rotation{Size: 1 << 20, Keep: 2, Mode: 0o604}, &failed)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 { // a MiB holds ten, and the time stands still
		if _, err := out.Write(fmt.Appendf(nil, "%02d%s\n", i, strings.Repeat("x", 100<<10))); err != nil {
			t.Fatal(err)
		}
	}
	l, err := NewQueued("info", FormatAuto, out, false)
	if err != nil {
		t.Fatal(err)
	}
	log := l.Logger()
	log.Info().Msg("last")
	l.Close(time.Minute)
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	content, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil || !bytes.Contains(content, []byte(`"message":"last"`)) {
		t.Errorf("the last line is not in the file: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "lictor*"))
	if err != nil {
		t.Fatal(err)
	}
	var begins []string
	for _, path := range files {
		if slices.Contains(others, filepath.Base(path)) {
			continue
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o604 || info.Size() > 1<<20 {
			t.Fatalf("%s: %v, %v", path, info, err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		begins = append(begins, string(content[:2]))
	}
	// By their names the old ones come in the order of time, before the one that is written.
	if want := []string{"20", "30", "40"}; !slices.Equal(begins, want) || len(files) != 3+len(others) {
		t.Errorf("%v begin with %v, want %v", files, begins, want)
	}
	if failed.Len() > 0 {
		t.Errorf("%.200s", failed.String())
	}
}

func TestFileThatCannotBeWritten(t *testing.T) {
	if _, err := OpenFile(filepath.Join(t.TempDir(), "none"), Rotation{}, nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "log.dir") {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	var failed bytes.Buffer
	out, err := OpenFile(dir, Rotation{Size: 6, Keep: 1, Mode: 0o600}, &failed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("full.\n")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // where the directory was
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("lost?\n")); err == nil || failed.String() != "lost?\n" {
		t.Errorf("%q, %v", failed.String(), err)
	}
	// It is written again once it can be.
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("later\n")); err != nil {
		t.Error(err)
	}
	if content, err := os.ReadFile(filepath.Join(dir, FileName)); err != nil || string(content) != "later\n" {
		t.Errorf("%q, %v", content, err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
}

// attackersLogDir makes a directory of PostgreSQL's user below one that others can enter, and
// returns that user's number.
func attackersLogDir(t *testing.T) (parent, dir string, uid int) {
	t.Helper()
	u, err := user.Lookup("postgres")
	if os.Geteuid() != 0 || err != nil {
		t.Skip("needs root, and the user postgres")
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		t.Fatal(err)
	}
	if parent, err = os.MkdirTemp("", "lictor-log-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	dir = filepath.Join(parent, "log")
	for _, err := range []error{os.Chmod(parent, 0o755), os.Mkdir(dir, 0o755), os.Chown(dir, uid, -1)} { //nolint:gosec // all may read it
		if err != nil {
			t.Fatal(err)
		}
	}
	return parent, dir, uid
}

// PostgreSQL's user puts a link to a directory of root's where the log's directory was, at any
// time: nothing is written, made, put aside or removed there.
func TestDirectoryOfTheLogBecomesALink(t *testing.T) {
	parent, above, uid := attackersLogDir(t)
	dir, roots := filepath.Join(above, "log"), filepath.Join(parent, "roots")
	for _, err := range []error{os.Mkdir(dir, 0o755), os.Chown(dir, uid, -1), os.Mkdir(roots, 0o755)} { //nolint:gosec // all may read it
		if err != nil {
			t.Fatal(err)
		}
	}
	names := []string{FileName}
	for day := range 5 {
		names = append(names, fmt.Sprintf("lictor-2026-01-0%dT00-00-00.000.log", day+1))
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(roots, name), []byte("root's"), 0o644); err != nil { //nolint:gosec // all may read it
			t.Fatal(err)
		}
	}
	var failed bytes.Buffer
	out, err := OpenFile(dir, Rotation{Size: 1 << 20, Keep: 1, Mode: 0o600}, &failed)
	if err != nil {
		t.Fatal(err)
	}
	attacker := osuser.Keeper(filepath.Join(dir, FileName))
	if number, ok := attacker.Other(); !ok || number != uid {
		t.Fatalf("%s is user %d's", dir, number)
	}
	if err := attacker.Do(func() error { return errors.Join(os.Rename(dir, dir+".x"), os.Symlink(roots, dir)) }); err != nil {
		t.Fatal(err)
	}
	for range 30 { // which rotate it
		_, _ = out.Write([]byte(strings.Repeat("x", 100<<10) + "\n")) // whether it can is not the question
	}
	_ = out.Close()
	if _, err := OpenFile(dir, Rotation{Size: 1 << 20, Keep: 1, Mode: 0o600}, &failed); err == nil {
		t.Error("a link to a directory of root's was taken")
	}
	entries, err := os.ReadDir(roots)
	if err != nil || len(entries) != len(names) {
		t.Errorf("root's directory has %v, want %v (%v)", entries, names, err)
	}
	for _, name := range names {
		if content, err := os.ReadFile(filepath.Join(roots, name)); err != nil || string(content) != "root's" {
			t.Errorf("%s: %.20q, %v", name, content, err)
		}
	}
}

// PostgreSQL's user has put a link to a file of root's where the log is to be.
func TestFileFollowsNobodysLink(t *testing.T) {
	parent, dir, uid := attackersLogDir(t)
	victim := filepath.Join(parent, "victim")
	for _, err := range []error{
		os.WriteFile(victim, []byte("root's"), 0o644), //nolint:gosec // all may read it
		os.Symlink(victim, filepath.Join(dir, FileName)), os.Lchown(filepath.Join(dir, FileName), uid, -1),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := OpenFile(dir, Rotation{Size: 1, Keep: 1, Mode: 0o600}, nil); err == nil {
		_, _ = out.Write([]byte("x"))
		t.Error("it was followed")
	}
	if content, err := os.ReadFile(victim); err != nil || string(content) != "root's" {
		t.Errorf("%q, %v", content, err)
	}
	if err := os.Remove(filepath.Join(dir, FileName)); err != nil {
		t.Fatal(err)
	}
	out, err := OpenFile(dir, Rotation{Size: 1, Keep: 1, Mode: 0o600}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
}
