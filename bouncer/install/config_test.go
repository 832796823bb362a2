package install

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestPut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pgbouncer.ini")
	c := NewConfig(path)
	for _, step := range []struct {
		text    string
		written bool
	}{
		{"[databases]\n", true},
		{"[databases]\n", false},
		{"[databases]\n\n\n", false}, // as a spare file ends
		{"[databases]\na = host=h\n", true},
		{"[databases]\n", true},
	} {
		written, err := c.Put([]byte(step.text))
		if err != nil || written != step.written {
			t.Fatalf("%q: %v %v", step.text, written, err)
		}
		if written && read(t, path) != step.text {
			t.Errorf("%q: the file has %q", step.text, read(t, path))
		}
	}
	write(t, path, "somebody else's")
	if written, err := c.Put([]byte("[databases]\n")); err != nil || !written || read(t, path) != "[databases]\n" {
		t.Errorf("the text of before, after somebody else: %v %v", written, err)
	}
	if err := c.Keep(); err != nil {
		t.Error(err)
	}
	wantNames(t, dir, "pgbouncer.ini")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := c.Keep(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that is gone was made to last: %v", err)
	}
}

func TestGood(t *testing.T) {
	dir := t.TempDir()
	c := NewConfig(filepath.Join(dir, "pgbouncer.ini"))
	if text, err := c.Good(); err != nil || text != nil {
		t.Errorf("before any: %q %v", text, err)
	}
	for _, text := range []string{"one", "two"} {
		if err := c.KeepGood([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := NewConfig(filepath.Join(dir, "pgbouncer.ini")).Good(); err != nil || string(got) != text {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
	wantNames(t, dir, "pgbouncer.ini.last-good")
	if err := os.Remove(lastGood(c.path)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(lastGood(c.path), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Good(); err == nil || !strings.Contains(err.Error(), "last good configuration") {
		t.Errorf("one that cannot be read: %v", err)
	}
	if err := c.KeepGood([]byte("three")); err == nil {
		t.Error("one that cannot be replaced was kept")
	}
}

// There is room for a text like this one, and some more, all of it written.
func TestKeepSpare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pgbouncer.ini")
	c := NewConfig(path)
	size := func() int64 {
		t.Helper()
		info, err := os.Stat(sparePath(path))
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := info.Sys().(*syscall.Stat_t); !ok || s.Blocks*512 < info.Size() {
			t.Errorf("of %d bytes %d are there", info.Size(), s.Blocks*512)
		}
		return info.Size()
	}
	keep := func(length int) {
		t.Helper()
		if err := c.KeepSpare(make([]byte, length)); err != nil {
			t.Fatal(err)
		}
	}
	keep(100)
	first := size()
	if first < 100+spareRoom {
		t.Errorf("for 100 bytes there are %d", first)
	}
	_, _, _, before := stat(t, sparePath(path))
	keep(spareRoom)
	if _, _, _, now := stat(t, sparePath(path)); now != before {
		t.Error("a spare file that is large enough was made anew")
	}
	keep(int(first) + 1)
	if size() <= first {
		t.Errorf("for %d bytes there are %d", first+1, size())
	}
}

// smallDisk is one that fill fills to the last byte.
func smallDisk(t *testing.T) (disk string, fill func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	disk = t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	return disk, func() {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(disk, "rubbish"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 512))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// On a full disk the spare file takes the place of the file, again and again, and has its mode.
func TestPutOnFullDisk(t *testing.T) {
	disk, fill := smallDisk(t)
	path := filepath.Join(disk, "pgbouncer.ini")
	c := NewConfig(path)
	text := bytes.Repeat([]byte("a = host=h\n"), 1000)
	if _, err := c.Put(text); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(path, 0o644), c.KeepSpare(text)); err != nil {
		t.Fatal(err)
	}
	fill()
	for _, host := range []string{"i", "j", "k"} {
		next := bytes.ReplaceAll(text, []byte("=h"), []byte("="+host))
		if written, err := c.Put(next); err != nil || !written {
			t.Fatalf("host %s: %v %v", host, written, err)
		}
		if got := strings.TrimRight(read(t, path), "\n"); got != strings.TrimRight(string(next), "\n") {
			t.Errorf("host %s: the file is another one", host)
		}
		if mode, _, _, _ := stat(t, path); mode != 0o644 {
			t.Errorf("host %s: the mode is %v", host, mode)
		}
		if err := c.Keep(); err != nil {
			t.Error(err)
		}
		if err := c.KeepSpare(next); err != nil { // of the room of the old file
			t.Errorf("host %s: %v", host, err)
		}
	}
	wantNames(t, disk, "pgbouncer.ini", "pgbouncer.ini.spare", "rubbish")

	// What does not fit changes nothing.
	before := read(t, path)
	written, err := c.Put(make([]byte, 1<<20))
	if !errors.Is(err, syscall.ENOSPC) || written || read(t, path) != before {
		t.Errorf("too large a text: %v %v", written, err)
	}
	if err := c.KeepGood(text); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the last good one on a full disk: %v", err)
	}
	wantNames(t, disk, "pgbouncer.ini", "pgbouncer.ini.spare", "rubbish")
}

// A failover waits for no fsync: files are put into place while others are made to last.
func TestPutBesideKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pgbouncer.ini")
	c := NewConfig(path)
	if _, err := c.Put([]byte("0")); err != nil {
		t.Fatal(err)
	}
	var keeping sync.WaitGroup
	done := make(chan struct{})
	keeping.Go(func() {
		for {
			if err := errors.Join(c.Keep(), c.KeepSpare([]byte("0")), c.KeepGood([]byte("0"))); err != nil {
				t.Error(err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i := range 200 {
		text := strings.Repeat("x", i+1)
		if written, err := c.Put([]byte(text)); err != nil || !written || read(t, path) != text {
			t.Errorf("%d: %v %v", i, written, err)
		}
	}
	close(done)
	keeping.Wait()
}

// Without fsync only where a power cut was tried: in memory nothing survives one.
func TestKeepsOrder(t *testing.T) {
	memory, err := os.CreateTemp("/dev/shm", "lictor-order")
	if err != nil {
		t.Skipf("no file system in memory: %v", err)
	}
	defer memory.Close()
	defer os.Remove(memory.Name())
	if !keepsOrder(memory) {
		t.Error("a file in memory waits for fsync")
	}
	if err := writeOut(memory); err != nil {
		t.Error(err)
	}
	other, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if keepsOrder(other) {
		t.Error("a file system that nobody has tried is said to keep order")
	}
}

// A file that was written by hand is kept once, with its mode, and never written over; Lictor's own is not.
func TestKeepBefore(t *testing.T) {
	const lictors = ours + "; edit the template\n"
	for name, test := range map[string]struct {
		before, good string
		kept         bool
	}{
		"by hand":                 {before: "[databases]\n* = host=h\n", kept: true},
		"none":                    {},
		"Debian's, empty":         {before: "\n"},
		"Lictor's":                {before: lictors},
		"a template of one's own": {before: "[databases]\n", good: "[databases]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "pgbouncer.ini")
			if test.before != "" {
				write(t, path, test.before)
				if err := os.Chmod(path, 0o604); err != nil {
					t.Fatal(err)
				}
			}
			if test.good != "" {
				write(t, path+".last-good", test.good)
			}
			put := func() string {
				t.Helper()
				c := NewConfig(path)
				kept, err := c.KeepBefore()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Put([]byte(lictors)); err != nil {
					t.Fatal(err)
				}
				if again, err := c.KeepBefore(); again != "" || err != nil {
					t.Errorf("again: %q %v", again, err)
				}
				return kept
			}
			kept := put()
			if (kept != "") != test.kept {
				t.Fatalf("kept as %q", kept)
			}
			if !test.kept {
				return
			}
			write(t, path, "by hand again\n") // and started anew
			put()
			info, err := os.Stat(kept)
			if err != nil || read(t, kept) != test.before || info.Mode().Perm() != 0o604 || kept != path+".before-lictor" {
				t.Errorf("%s has %q, %v %v", kept, read(t, kept), info, err)
			}
		})
	}
}
