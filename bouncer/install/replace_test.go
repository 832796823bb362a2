package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// nobody owns directories here that root does not trust.
const nobody = 65534

// openDir is a directory that every user can come to; those of t.TempDir are root's alone.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lictor-install")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// stat is what matters of a file beside its text.
func stat(t *testing.T, path string) (mode fs.FileMode, uid, gid uint32, inode uint64) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatalf("%T", info.Sys())
	}
	return info.Mode(), s.Uid, s.Gid, s.Ino
}

// names are those in a directory: nothing may be left of a file that did not come to be.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("in the directory are %q, want %q", got, want)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.ini")
	if written, err := File(path, []byte("one")); err != nil || !written || read(t, path) != "one" {
		t.Fatalf("a new file: %v %v", written, err)
	}
	if mode, _, _, _ := stat(t, path); mode != newFileMode {
		t.Errorf("the mode of a new file is %v", mode)
	}
	if err := os.Chmod(path, 0o604); err != nil {
		t.Fatal(err)
	}
	_, _, _, before := stat(t, path)
	if written, err := File(path, []byte("one")); err != nil || written {
		t.Errorf("the same text: %v %v", written, err)
	}
	if _, _, _, now := stat(t, path); now != before {
		t.Error("a file with the text that is wanted was replaced")
	}
	if written, err := File(path, []byte("two")); err != nil || !written || read(t, path) != "two" {
		t.Errorf("another text: %v %v", written, err)
	}
	if mode, _, _, now := stat(t, path); mode != 0o604 || now == before {
		t.Errorf("the mode of the new file is %v; it was written in place: %v", mode, now == before)
	}
	if written, err := File(path, nil); err != nil || !written || read(t, path) != "" {
		t.Errorf("an empty text: %v %v", written, err)
	}
	wantNames(t, dir, "a.ini")
}

// A link stays one: what it leads to is replaced, by a file beside that.
func TestFileBehindLink(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	path, target := filepath.Join(dir, "a.ini"), filepath.Join(elsewhere, "b.ini")
	write(t, target, "old")
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	if written, err := File(path, []byte("new")); err != nil || !written || read(t, target) != "new" {
		t.Errorf("%v %v", written, err)
	}
	if mode, _, _, _ := stat(t, path); mode.Type() != fs.ModeSymlink {
		t.Errorf("the link is %v", mode)
	}
	wantNames(t, dir, "a.ini")
	wantNames(t, elsewhere, "b.ini")
}

// A file belongs to whom it belonged to, a new one to whom its directory does, so that a
// PgBouncer of another user can read it.
func TestFileKeepsItsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away needs root")
	}
	dir := openDir(t)
	path := filepath.Join(dir, "a.ini")
	write(t, path, "old")
	if err := os.Chown(path, nobody, nobody); err != nil { // in root's directory
		t.Fatal(err)
	}
	if _, err := File(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, uid, gid, _ := stat(t, path); uid != nobody || gid != nobody {
		t.Errorf("the owner is %d:%d", uid, gid)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(dir, "b.ini")
	if _, err := File(fresh, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, uid, gid, _ := stat(t, fresh); uid != nobody || gid != nobody {
		t.Errorf("the owner of a new file is %d:%d", uid, gid)
	}
}

// The owner of a directory gets nothing by a link in it that the owner could not have done.
func TestNothingFollowsLinksOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it is about root's rights")
	}
	roots, dir := openDir(t), openDir(t)
	target := filepath.Join(roots, "target")
	write(t, target, "root's")
	write(t, sparePath(target), strings.Repeat(" ", 100))
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a.ini")
	for _, link := range []string{path, sparePath(path), path + ".last-good"} {
		if err := errors.Join(os.Symlink(target, link), os.Lchown(link, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	c := NewConfig(path)
	for what, do := range map[string]func() error{
		"File":      func() error { _, err := File(path, []byte("new")); return err },
		"the same":  func() error { _, err := File(path, []byte("root's")); return err }, // it would tell what is in it
		"Checked":   func() error { _, err := Checked(path, []byte("new"), func(string) error { return nil }); return err },
		"Put":       func() error { _, err := c.Put([]byte("new")); return err },
		"KeepGood":  func() error { return c.KeepGood([]byte("new")) },
		"Good":      func() error { _, err := c.Good(); return err },
		"KeepSpare": func() error { return c.KeepSpare(make([]byte, 1<<20)) },
		"a spare":   func() error { return placeOf(path).putSpare([]byte("new")) },
	} {
		if err := do(); !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%s, by way of a link of another user: %v", what, err)
		}
		if got := read(t, target); got != "root's" {
			t.Fatalf("%s: root's file has %q", what, got)
		}
	}
	wantNames(t, roots, "target", "target.spare")
}

func TestChecked(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.cfg")
	write(t, path, "old")
	refusal := errors.New("line 1 is wrong")
	asked := 0
	look := func(answer error) func(string) error {
		return func(at string) error {
			asked++
			if text := read(t, at); text != "new" || at == path || filepath.Dir(at) != dir {
				t.Errorf("looked at is %s with %q", at, text)
			}
			return answer
		}
	}
	written, err := Checked(path, []byte("new"), look(refusal))
	if !errors.Is(err, refusal) || err.Error() != refusal.Error() || written || read(t, path) != "old" {
		t.Errorf("refused: %v %v, the file has %q", written, err, read(t, path))
	}
	wantNames(t, dir, "a.cfg")
	if written, err := Checked(path, []byte("new"), look(nil)); err != nil || !written || read(t, path) != "new" {
		t.Errorf("taken: %v %v", written, err)
	}
	if written, err := Checked(path, []byte("new"), look(refusal)); err != nil || written || asked != 2 {
		t.Errorf("what is there already: %v %v, asked %d times", written, err, asked)
	}
}

// What goes wrong names the file, and leaves what was there.
func TestFileErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "directory", "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "file"), "x")
	for name, path := range map[string]string{
		"no directory": filepath.Join(dir, "missing", "a.ini"), "a directory": filepath.Join(dir, "directory"), "below a file": filepath.Join(dir, "file", "a.ini"),
	} {
		written, err := File(path, []byte("new"))
		if err == nil || written || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v %v", name, written, err)
		}
	}
	wantNames(t, dir, "directory", "file")
}
