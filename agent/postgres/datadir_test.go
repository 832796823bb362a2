package postgres

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// put makes a file, and the directories above it.
func put(t *testing.T, path, content string) {
	t.Helper()
	there := filepath.Dir(path) // whose owner has made the file
	made := []string{path}
	for ; ; there = filepath.Dir(there) {
		if _, err := os.Lstat(there); err == nil {
			break
		}
		made = append(made, there)
	}
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o600))
	info, err := os.Stat(there)
	must(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	for _, m := range made {
		must(t, os.Lchown(m, int(owner.Uid), int(owner.Gid)))
	}
}

// listing is every path under dir.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var paths []string
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	return paths
}

// copyOf copies a program.
func copyOf(t *testing.T, from, to string) string {
	t.Helper()
	content, err := os.ReadFile(from)
	must(t, err)
	testkit.WriteProgram(t, to, content)
	return to
}

// allowed is a permission that allows everything to a member of the shard whose data these are.
func allowed(t *testing.T, p *Instance) Permission {
	t.Helper()
	d, _ := p.DataDir(t.Context()) // where it cannot be looked at nothing is removed
	return Permission{NotLeader: true, LeaderReachable: true, AllowedBy: "the test", Shard: d.Control.SystemIdentifier}
}

// What is not our own unfinished work is never touched, whatever a marker says.
func TestDataDirectoryIsSacred(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// abuse is given an instance whose data directory has our marker.
		abuse func(t *testing.T, p *Instance)
	}{
		{"no marker", func(t *testing.T, p *Instance) {
			must(t, os.Remove(p.markerPath()))
			put(t, p.inData("precious"), "x")
		}},
		{"marker of another directory", func(t *testing.T, p *Instance) {
			rewriteMarker(t, p, func(m *marker) { m.DataDir = "/elsewhere" })
			put(t, p.inData("precious"), "x")
		}},
		{"marker of another kind", func(t *testing.T, p *Instance) {
			rewriteMarker(t, p, func(m *marker) { m.Kind = "anything" })
			put(t, p.inData("precious"), "x")
		}},
		{"damaged marker", func(t *testing.T, p *Instance) {
			must(t, os.WriteFile(p.markerPath(), []byte("{"), 0o600))
			put(t, p.inData("precious"), "x")
		}},
		{"directory replaced, the old one kept", func(t *testing.T, p *Instance) {
			must(t, os.Rename(p.dataDir, p.dataDir+".old"))
			put(t, p.inData("precious"), "x")
		}},
		{"directory replaced, its inode used again", func(t *testing.T, p *Instance) {
			var before, now unix.Statx_t
			look := func(st *unix.Statx_t) {
				must(t, unix.Statx(unix.AT_FDCWD, p.dataDir, 0, unix.STATX_INO|unix.STATX_BTIME, st))
			}
			look(&before)
			// Until the clock of the file system has gone on.
			for try := 0; now.Ino != before.Ino || now.Btime == before.Btime; try++ {
				if try == 100000 {
					t.Skip("this file system does not use an inode again")
				}
				must(t, os.RemoveAll(p.dataDir))
				must(t, os.Mkdir(p.dataDir, 0o700))
				look(&now)
			}
			put(t, p.inData("precious"), "x")
			give(t, p, p.dataDir)
		}},
		{"link that points elsewhere now", func(t *testing.T, p *Instance) {
			must(t, os.Rename(p.dataDir, p.dataDir+".old"))
			put(t, p.dataDir+".other/precious", "x")
			must(t, os.Symlink(p.dataDir+".other", p.dataDir))
		}},
	}
	for _, test := range tests {
		for _, kind := range []string{markBootstrap, markClone} {
			t.Run(test.name+", "+kind, func(t *testing.T) {
				ctx, dir := within(t), newDirIn(t, "/var/tmp") // on a disk: tmpfs does not use an inode again
				p := newInstance(t, settings(t, dir, "a"))
				must(t, p.mark(kind, ""))
				test.abuse(t, p)
				before := listing(t, dir)
				if d, err := p.DataDir(ctx); err == nil && d.State != Foreign {
					t.Errorf("state %s", d.State)
				}
				if err := p.DiscardIncomplete(ctx); err == nil {
					t.Error("it was discarded")
				}
				if err := p.RemoveForReinit(ctx, allowed(t, p)); err == nil {
					t.Error("it was removed")
				}
				if err := p.mark(kind, ""); err == nil || !strings.Contains(err.Error(), "not empty") {
					t.Errorf("marked: %v", err)
				}
				if after := listing(t, dir); !slices.Equal(before, after) {
					t.Errorf("changed:\n%v\n%v", before, after)
				}
			})
		}
	}
}

func rewriteMarker(t *testing.T, p *Instance, change func(*marker)) {
	t.Helper()
	m, err := p.marked()
	must(t, err)
	change(m)
	content, err := json.Marshal(m)
	must(t, err)
	must(t, os.WriteFile(p.markerPath(), content, 0o600))
}

func TestDiscardIncomplete(t *testing.T) {
	t.Run("bootstrap is moved aside", func(t *testing.T) {
		ctx, dir := within(t), newDir(t)
		p := newInstance(t, settings(t, dir, "a"))
		must(t, p.mark(markBootstrap, ""))
		put(t, p.inData("half"), "x")
		if d, err := p.DataDir(ctx); err != nil || d.State != Incomplete {
			t.Fatalf("before: %+v %v", d, err)
		}
		must(t, p.DiscardIncomplete(ctx))
		if found, _ := filepath.Glob(p.dataDir + ".failed.*/half"); len(found) != 1 {
			t.Errorf("not moved aside: %v", listing(t, dir))
		}
		if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
			t.Errorf("after: %+v %v", d, err)
		}
		if err := p.DiscardIncomplete(ctx); err == nil {
			t.Error("discarded twice")
		}
	})
	t.Run("one bootstrap that failed is kept, and nothing else goes", func(t *testing.T) {
		ctx, dir := within(t), newDir(t)
		p := newInstance(t, settings(t, dir, "a"))
		fail := func(what string) string {
			t.Helper()
			must(t, p.mark(markBootstrap, ""))
			put(t, p.inData(what), "x")
			put(t, p.inData("postmaster.pid"), "1\n") // it was killed
			must(t, p.DiscardIncomplete(ctx))
			found, _ := filepath.Glob(p.dataDir + ".failed.*/" + what)
			if len(found) != 1 {
				t.Fatalf("%s was not moved aside: %v", what, listing(t, dir))
			}
			return filepath.Dir(found[0])
		}
		put(t, p.dataDir+".failed.20260101T000000.000/precious", "x") // somebody else's
		first := fail("first")
		second := fail("second")
		if _, err := os.Lstat(first); err == nil {
			t.Error("the first is still there")
		}
		// Another directory in its place, or a link, is not ours.
		must(t, os.Rename(second, second+".kept"))
		put(t, filepath.Join(second, "precious"), "x")
		third := fail("third")
		must(t, os.Rename(third, third+".kept"))
		must(t, os.Symlink(third+".kept", third))
		fourth := fail("fourth")
		for _, path := range []string{filepath.Join(second, "precious"), filepath.Join(second+".kept", "second"), filepath.Join(third, "third"), p.dataDir + ".failed.20260101T000000.000/precious"} {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
		// One that somebody's PostgreSQL runs in stays.
		used := exec.Command(copyOf(t, "/bin/sleep", filepath.Join(dir, "postgres-sleep")), "1000")
		used.Dir = fourth
		must(t, used.Start())
		defer func() { _ = used.Process.Kill(); _ = used.Wait() }()
		fail("fifth")
		if _, err := os.Stat(filepath.Join(fourth, "fourth")); err != nil {
			t.Error(err)
		}
	})
	t.Run("clone is removed, and what its links point at stays", func(t *testing.T) {
		ctx, dir := within(t), newDir(t)
		p := newInstance(t, settings(t, dir, "a"))
		must(t, p.mark(markClone, ""))
		put(t, filepath.Join(dir, "tablespace", "precious"), "x")
		put(t, p.inData("half"), "x")
		must(t, os.Symlink(filepath.Join(dir, "tablespace"), p.inData("link")))
		must(t, p.DiscardIncomplete(ctx))
		if entries, err := os.ReadDir(p.dataDir); err != nil || len(entries) != 0 {
			t.Errorf("not empty: %v %v", entries, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "tablespace", "precious")); err != nil {
			t.Error(err)
		}
	})
	t.Run("of a link the target is moved aside", func(t *testing.T) {
		ctx, dir := within(t), newDir(t)
		p := newInstance(t, settings(t, dir, "a"))
		big := filepath.Join(dir, "disk", "data")
		must(t, os.MkdirAll(big, 0o755))
		give(t, p, filepath.Dir(big))
		must(t, os.Symlink(big, p.dataDir))
		must(t, p.mark(markBootstrap, ""))
		put(t, p.inData("half"), "x")
		must(t, p.DiscardIncomplete(ctx))
		if target, err := os.Readlink(p.dataDir); err != nil || target != big {
			t.Errorf("the link: %s %v", target, err)
		}
		if found, _ := filepath.Glob(big + ".failed.*/half"); len(found) != 1 {
			t.Errorf("not moved aside: %v", listing(t, dir))
		}
		if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
			t.Errorf("after: %+v %v", d, err)
		}
		must(t, p.mark(markBootstrap, ""))
	})
	t.Run("a mount point is emptied", func(t *testing.T) {
		ctx, dir := within(t), newDir(t)
		p := newInstance(t, settings(t, dir, "a"))
		must(t, os.Mkdir(p.dataDir, 0o700))
		if err := unix.Mount("lictor", p.dataDir, "tmpfs", 0, "size=1m"); errors.Is(err, unix.EPERM) {
			t.Skip("no right to mount")
		} else if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { must(t, unix.Unmount(p.dataDir, unix.MNT_DETACH)) })
		must(t, p.mark(markBootstrap, ""))
		put(t, p.inData("half"), "x")
		must(t, p.DiscardIncomplete(ctx))
		if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
			t.Errorf("after: %+v %v", d, err)
		}
	})
}

// A real cluster under a marker that cannot be its own is an operator's.
func TestRestoredClusterUnderAnOldMarker(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	check := func(what string) {
		t.Helper()
		d, err := p.DataDir(ctx)
		if err != nil || d.State != Foreign || !strings.Contains(d.Problem, p.markerPath()) {
			t.Errorf("%s: %+v %v", what, d, err)
		}
		if err := p.DiscardIncomplete(ctx); !errors.Is(err, errNotOurs) {
			t.Errorf("%s: discarded: %v", what, err)
		}
		if err := p.RemoveForReinit(ctx, allowed(t, p)); err == nil {
			t.Errorf("%s: removed", what)
		}
	}
	must(t, p.writeMarker(markBootstrap, ""))
	rewriteMarker(t, p, func(m *marker) { m.Made = time.Now().Add(2 * clockSlack) })
	check("older than its bootstrap")
	must(t, p.writeMarker(markClone, "4711"))
	check("another cluster than was cloned")
	must(t, p.unmark())
	if d, err := p.DataDir(ctx); err != nil || d.State != Valid {
		t.Errorf("without the marker: %+v %v", d, err)
	}
}

func TestRemoveForReinit(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	for want, permission := range map[string]Permission{
		"leader":    {LeaderReachable: true, AllowedBy: "x"},
		"answer":    {NotLeader: true, AllowedBy: "x"},
		"nobody":    {NotLeader: true, LeaderReachable: true},
		"directory": {},
	} {
		if err := p.RemoveForReinit(ctx, permission); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", permission, err)
		}
	}
	// A wrong data_dir, or the last copy from before an upgrade: whatever Consul says of the route.
	for _, shard := range []string{"4711", ""} {
		other := allowed(t, p)
		other.Shard = shard
		untouched(t, dir, "those of another shard than "+shard, func() error { return p.RemoveForReinit(ctx, other) })
	}
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	if err := p.RemoveForReinit(ctx, allowed(t, p)); err == nil || !strings.Contains(err.Error(), "runs in it") {
		t.Errorf("while it runs: %v", err)
	}
	must(t, p.Stop(ctx, Fast))
	// A rewind that was cut short is over with the data that it was about.
	id, err := identity(p.dataDir)
	must(t, err)
	must(t, p.writeFile(p.stateFile("rewinding"), id))
	if err := p.Start(ctx, StartAs{Role: Primary}); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("started after half a rewind: %v", err)
	}
	must(t, p.RemoveForReinit(ctx, allowed(t, p)))
	if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
		t.Errorf("after: %+v %v", d, err)
	}
	if cut, err := p.rewindCutShort(); err != nil || cut {
		t.Errorf("the rewind is still there: %v %v", cut, err)
	}
}

func TestDataDirRefusals(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	put(t, p.inData("PG_VERSION"), "9\n")
	give(t, p, p.dataDir)
	if d, err := p.DataDir(ctx); err != nil || d.State != Foreign || !strings.Contains(d.Problem, "pg_upgrade") {
		t.Errorf("other version: %+v %v", d, err)
	}
	if err := p.Start(ctx, StartAs{Role: Primary}); err == nil || !strings.Contains(err.Error(), "pg_upgrade") {
		t.Errorf("started: %v", err)
	}
	put(t, p.inData("PG_VERSION"), fmt.Sprintf("%d\n", p.major))
	if d, err := p.DataDir(ctx); err != nil || d.State != Foreign {
		t.Errorf("without a control file: %+v %v", d, err)
	}
	if _, err := p.Bootstrap(ctx, bootstrapOptions()); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("bootstrapped over it: %v", err)
	}
}

func TestStateDirectory(t *testing.T) {
	dir := newDir(t)
	put(t, filepath.Join(dir, "file"), "x")
	s := settings(t, dir, "a")
	s.StateDir = filepath.Join(dir, "file", "state")
	if _, err := New(s); err == nil || !strings.Contains(err.Error(), "lictor.state_dir") {
		t.Errorf("cannot be made: %v", err)
	}
	// Two instances with data directories of the same name share one.
	var paths []string
	for _, parent := range []string{"x", "y"} {
		s := settings(t, filepath.Join(dir, parent), "data")
		s.StateDir = filepath.Join(dir, "state")
		paths = append(paths, newInstance(t, s).markerPath())
	}
	if paths[0] == paths[1] {
		t.Errorf("one marker for two: %s", paths[0])
	}
}
