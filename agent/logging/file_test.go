package logging

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestFileIsRotated(t *testing.T) {
	dir := t.TempDir()
	var failed bytes.Buffer
	out, err := OpenFile(dir, Rotation{Size: 1, Keep: 2, Mode: 0o604}, &failed)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 100<<10) + "\n")
	for range 50 { // a MiB holds ten
		if _, err := out.Write(line); err != nil {
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
	for deadline := time.Now().Add(time.Minute); ; { // old files are removed in the background
		files, err := filepath.Glob(filepath.Join(dir, "lictor*.log"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			// One that is removed just now is none.
			if info, err := os.Stat(path); err == nil && (info.Mode().Perm() != 0o604 || info.Size() > 1<<20+1000) {
				t.Fatalf("%s: %s, %d bytes", path, info.Mode(), info.Size())
			}
		}
		if len(files) == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("files: %v", files)
		}
		time.Sleep(10 * time.Millisecond)
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
	out, err := OpenFile(dir, Rotation{Size: 1, Keep: 1, Mode: 0o600}, &failed)
	if err != nil {
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
}

// PostgreSQL's user has put a link to a file of root's where the log is to be.
func TestFileFollowsNobodysLink(t *testing.T) {
	u, err := user.Lookup("postgres")
	if os.Geteuid() != 0 || err != nil {
		t.Skip("needs root, and the user postgres")
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp("", "lictor-log-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	dir, victim := filepath.Join(parent, "log"), filepath.Join(parent, "victim")
	for _, err := range []error{
		os.Chmod(parent, 0o755), os.Mkdir(dir, 0o755), os.WriteFile(victim, []byte("root's"), 0o644), //nolint:gosec // all may read it
		os.Symlink(victim, filepath.Join(dir, FileName)), os.Chown(dir, uid, -1), os.Lchown(filepath.Join(dir, FileName), uid, -1),
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
