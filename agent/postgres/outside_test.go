package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Bootstrap, clone and reinit can be repeated though WAL and tablespaces lie elsewhere.
func TestWALAndTablespacesOutside(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a := newInstance(t, settings(t, dir, "a"))
	b := bootstrapOptions()
	b.InitDB = append(b.InitDB, map[string]any{"waldir": filepath.Join(dir, "a-wal")})
	b.PostBootstrap = "/bin/false"
	for range 2 {
		if _, err := a.Bootstrap(ctx, b); err == nil || !strings.Contains(err.Error(), "post_bootstrap") {
			t.Fatalf("%v", err)
		}
		must(t, a.Kill(ctx))
		must(t, a.DiscardIncomplete(ctx))
	}
	b.PostBootstrap = ""
	_, err := a.Bootstrap(ctx, b)
	must(t, err)
	must(t, a.FinishBootstrap())
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	space := withTablespace(ctx, t, a, filepath.Join(dir, "a-space"))

	s := settings(t, dir, "c")
	s.Postgres.BaseBackup = []any{
		map[string]any{"waldir": filepath.Join(dir, "c-wal")},
		map[string]any{"tablespace-mapping": space + "=" + filepath.Join(dir, "c-space")},
	}
	c := newInstance(t, s)
	must(t, c.BaseBackup(ctx, upstream(a), nil))
	put(t, filepath.Join(dir, "c-wal", "precious"), "x")
	before := listing(t, dir)
	if err := c.RemoveForReinit(ctx, allowed(t, c)); err == nil || !strings.Contains(err.Error(), "precious") {
		t.Errorf("%v", err)
	}
	if d, err := c.DataDir(ctx); err != nil || d.State != Valid {
		t.Errorf("after the refusal: %+v %v", d, err)
	}
	if after := listing(t, dir); !slices.Equal(before, after) {
		t.Error("something was changed")
	}
	must(t, os.Remove(filepath.Join(dir, "c-wal", "precious")))
	for range 2 {
		must(t, c.RemoveForReinit(ctx, allowed(t, c)))
		must(t, c.BaseBackup(ctx, upstream(a), nil))
	}
	// WAL of another cluster under the link.
	other := newInstance(t, settings(t, dir, "other"))
	bootstrapped(ctx, t, other)
	must(t, os.Rename(other.inData("pg_wal"), filepath.Join(dir, "other-wal")))
	must(t, os.Remove(c.inData("pg_wal")))
	must(t, os.Symlink(filepath.Join(dir, "other-wal"), c.inData("pg_wal")))
	if err := c.RemoveForReinit(ctx, allowed(t, c)); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("%v", err)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "other-wal", "0*")); len(found) == 0 {
		t.Error("another cluster's WAL is gone")
	}
}

// Links that lead to what is somebody else's are not followed, and nothing goes.
func TestLinksThatAreAbused(t *testing.T) {
	t.Parallel()
	const wal = "000000010000000000000001"
	for name, test := range map[string]struct {
		link string
		// to makes what the link leads to.
		to   func(t *testing.T, p *Instance, dir string) string
		want string
	}{
		"/":          {"pg_wal", func(*testing.T, *Instance, string) string { return "/" }, "the data directory"},
		"a parent":   {"pg_wal", func(_ *testing.T, _ *Instance, dir string) string { return dir }, "the data directory"},
		"its parent": {"pg_wal", func(*testing.T, *Instance, string) string { return ".." }, "the data directory"},
		"itself":     {"pg_tblspc/16384", func(_ *testing.T, p *Instance, _ string) string { return p.dataDir }, "the data directory"},
		"another instance's directory": {"pg_tblspc/16384", func(t *testing.T, p *Instance, dir string) string {
			put(t, filepath.Join(dir, "other", "PG_VERSION"), "15")
			put(t, filepath.Join(dir, "other", fmt.Sprintf("PG_%d_1", p.major), "x"), "x")
			return filepath.Join(dir, "other")
		}, "another data directory"},
		"another instance's WAL": {"pg_wal", func(t *testing.T, p *Instance, dir string) string {
			put(t, filepath.Join(dir, "other", "PG_VERSION"), "15")
			put(t, filepath.Join(dir, "other", "pg_wal", wal), "x")
			give(t, p, filepath.Join(dir, "other", "pg_wal"))
			return filepath.Join(dir, "other", "pg_wal")
		}, "another data directory"},
		"other things": {"pg_wal", func(t *testing.T, p *Instance, dir string) string {
			put(t, filepath.Join(dir, "x", wal), "x")
			put(t, filepath.Join(dir, "x", "photo.jpg"), "x")
			give(t, p, filepath.Join(dir, "x"))
			return filepath.Join(dir, "x")
		}, "photo.jpg"},
		"another link on the way": {"pg_wal", func(t *testing.T, _ *Instance, dir string) string {
			must(t, os.Symlink(dir, filepath.Join(dir, "way")))
			return filepath.Join(dir, "way")
		}, "the data directory"},
		"another user's": {"pg_wal", func(t *testing.T, p *Instance, dir string) string {
			if p.credential == nil {
				t.Skip("not root")
			}
			put(t, filepath.Join(dir, "x", wal), "x")
			return filepath.Join(dir, "x")
		}, "PostgreSQL's user"},
		"in use by another PostgreSQL": {"pg_wal", func(t *testing.T, p *Instance, dir string) string {
			put(t, filepath.Join(dir, "x", wal), "x")
			give(t, p, filepath.Join(dir, "x"))
			held, err := os.Open(filepath.Join(dir, "x", wal))
			must(t, err)
			defer held.Close()
			other := exec.Command(copyOf(t, "/bin/sleep", filepath.Join(dir, "postgres-sleep")), "1000")
			other.Dir, other.Stdin = dir, held
			must(t, other.Start())
			t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
			return filepath.Join(dir, "x")
		}, "another PostgreSQL"},
	} {
		for _, kind := range []string{markClone, markBootstrap} {
			t.Run(name+", "+kind, func(t *testing.T) {
				ctx, dir := within(t), newDir(t)
				p := newInstance(t, settings(t, dir, "a"))
				must(t, p.mark(kind, ""))
				must(t, os.MkdirAll(p.inData("pg_tblspc"), 0o700))
				give(t, p, p.inData("pg_tblspc"))
				must(t, os.Symlink(test.to(t, p, dir), p.inData(test.link)))
				if _, err := p.outsides("", everything); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v", err)
				}
				content := func() (paths []string) {
					for _, path := range listing(t, dir) {
						if !strings.HasPrefix(path, p.dataDir) && !strings.Contains(path, ".lictor-") {
							paths = append(paths, path)
						}
					}
					return paths
				}
				before := content()
				err := p.DiscardIncomplete(ctx)
				if kind == markClone && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("discarded: %v", err)
				}
				if _, err := os.Lstat(p.inData(test.link)); kind == markClone && err != nil {
					t.Error(err)
				}
				if after := content(); !slices.Equal(before, after) {
					t.Errorf("changed:\n%v\n%v", before, after)
				}
			})
		}
	}
	t.Run("a link that is changed midway", func(t *testing.T) {
		dir := newDir(t)
		p := newInstance(t, settings(t, dir, "a"))
		must(t, p.mark(markClone, ""))
		mine, theirs := filepath.Join(dir, "mine"), filepath.Join(dir, "theirs")
		for _, d := range []string{mine, theirs} {
			put(t, filepath.Join(d, wal), "x")
			give(t, p, d)
		}
		must(t, os.Symlink(mine, p.inData("pg_wal")))
		out, err := p.outsides("", everything)
		must(t, err)
		defer closeOutsides(out)
		must(t, os.Remove(p.inData("pg_wal")))
		must(t, os.Symlink(theirs, p.inData("pg_wal")))
		must(t, os.Rename(mine, mine+".moved"))
		must(t, os.Symlink(theirs, mine))
		must(t, p.emptyOutside(out))
		if _, err := os.Stat(filepath.Join(theirs, wal)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(mine+".moved", wal)); err == nil {
			t.Error("what was its own is still there")
		}
	})
}

// A program that copies a data directory copies its links: what they lead to is the
// source's, whatever becomes of the copy.
func TestCopiedLinksAreNotFollowed(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	src, id, space := withLinks(ctx, t, dir)
	whole := func(after string) {
		t.Helper()
		wal, _ := filepath.Glob(filepath.Join(dir, "src-wal", "0*"))
		tables, _ := filepath.Glob(filepath.Join(space, "*"))
		if len(wal) == 0 || len(tables) == 0 {
			t.Fatalf("%s: the source's data are gone: WAL %v, tablespace %v", after, wal, tables)
		}
	}

	p := newInstance(t, settings(t, dir, "a"))
	copies := writeScript(t, dir, "restore", "cp -a "+src.dataDir+" "+p.dataDir+"; exit 1")
	o := bootstrapOptions()
	o.Method, o.Methods = "restore", map[string]any{"restore": map[string]any{"command": copies, "no_params": true}}
	if _, err := p.Bootstrap(ctx, o); err == nil {
		t.Fatal("a method that failed made a shard")
	}
	must(t, p.DiscardIncomplete(ctx))
	whole("a bootstrap that failed")

	local := *p.local.Load()
	local.CreateReplica = []string{"copy"}
	local.Methods = map[string]any{"copy": map[string]any{"command": copies, "no_params": true, "no_leader": true}}
	p.Reconfigure(local)
	if err := p.MakeReplica(ctx, nil, id, nil); err == nil {
		t.Fatal("a method that failed made a replica")
	}
	whole("a clone that failed")
	if d, err := p.DataDir(ctx); err == nil && d.State == Incomplete {
		must(t, p.DiscardIncomplete(ctx))
		whole("a clone that was cleared away")
	}
}

// A data directory that somebody has copied by hand leads to the original's tablespaces,
// in which that one's PostgreSQL need not have a file open: nothing is started on them, and
// nothing of them is removed.
func TestNeighboursTablespace(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	src := newInstance(t, settings(t, dir, "src"))
	bootstrapped(ctx, t, src)
	must(t, src.Start(ctx, StartAs{Role: Primary}))
	space := withTablespace(ctx, t, src, filepath.Join(dir, "src-space"))
	must(t, src.Stop(ctx, Fast))
	p := newInstance(t, settings(t, dir, "a"))
	must(t, exec.Command("cp", "-a", src.dataDir, p.dataDir).Run())
	must(t, src.Start(ctx, StartAs{Role: Primary}))
	for what, try := range map[string]func() error{
		"started": func() error { return p.Start(ctx, StartAs{Role: Primary}) },
		"removed": func() error { return p.RemoveForReinit(ctx, allowed(t, p)) },
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "another PostgreSQL (pid ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if tables, _ := filepath.Glob(filepath.Join(space, "*")); len(tables) == 0 {
		t.Error("the tablespace of a PostgreSQL that runs is gone")
	}
}

// A neighbour whose disk hangs holds up no start, and nothing is emptied that it may use. The
// disk is one of a mount namespace of the test's own, so that nobody else's looks at this
// neighbour hang.
func TestNeighbourWhoseDiskHangs(t *testing.T) {
	t.Parallel()
	const apart = "LICTOR_TEST_MOUNTS"
	if os.Getenv(apart) == "" {
		again := exec.CommandContext(within(t), "unshare", "--mount", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		again.Env = append(os.Environ(), apart+"=1")
		out, err := again.CombinedOutput()
		switch {
		case os.Getuid() != 0:
			t.Skip("mounts are root's")
		case err != nil:
			t.Fatalf("%v\n%s", err, out)
		case bytes.Contains(out, []byte("--- SKIP")):
			t.Skipf("%s", out)
		}
		return
	}
	ctx, dir := within(t), newDir(t)
	src := newInstance(t, settings(t, dir, "src"))
	bootstrapped(ctx, t, src)
	must(t, src.Start(ctx, StartAs{Role: Primary}))
	p := newInstance(t, settings(t, dir, "a"))
	b, wal := bootstrapOptions(), filepath.Join(dir, "a-wal")
	b.InitDB = append(b.InitDB, map[string]any{"waldir": wal})
	_, err := p.Bootstrap(ctx, b)
	must(t, err)
	must(t, p.FinishBootstrap())

	disk := filepath.Join(dir, "disk")
	must(t, os.Mkdir(disk, 0o755))
	answer := mountSilent(t, disk)
	must(t, os.Symlink(disk, src.inData("pg_tblspc/99999")))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	must(t, p.Stop(ctx, Fast))
	if err := p.RemoveForReinit(ctx, allowed(t, p)); err == nil || !strings.Contains(err.Error(), "whose disk does not answer, may use it") {
		t.Errorf("removed: %v", err)
	}
	if segments, _ := filepath.Glob(filepath.Join(wal, "0*")); len(segments) == 0 {
		t.Error("WAL that a neighbour may use is gone")
	}
	answer()
	must(t, p.RemoveForReinit(ctx, allowed(t, p)))
}

// mountSilent mounts a file system that answers nothing until answer is called, and then
// fails (the kernel's Documentation/filesystems/fuse: requests wait for FUSE_INIT's answer).
func mountSilent(t *testing.T, dir string) (answer func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("/dev/fuse: " + err.Error())
	}
	device := os.NewFile(uintptr(fd), "/dev/fuse")
	options := fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("lictor-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		_ = device.Close()
		t.Skip("mounting: " + err.Error())
	}
	t.Cleanup(func() {
		_ = device.Close()
		must(t, unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE))
	})
	return func() { _ = device.Close() }
}

// withLinks is a cluster that was stopped, whose WAL (src-wal) and tablespace lie outside
// its data directory; id is its system identifier.
func withLinks(ctx context.Context, t *testing.T, dir string) (src *Instance, id, space string) {
	t.Helper()
	src = newInstance(t, settings(t, dir, "src"))
	b := bootstrapOptions()
	b.InitDB = append(b.InitDB, map[string]any{"waldir": filepath.Join(dir, "src-wal")})
	id, err := src.Bootstrap(ctx, b)
	must(t, err)
	must(t, src.FinishBootstrap())
	must(t, src.Start(ctx, StartAs{Role: Primary}))
	space = withTablespace(ctx, t, src, filepath.Join(dir, "src-space"))
	must(t, src.Stop(ctx, Fast))
	return src, id, space
}

// withTablespace makes a directory a tablespace with a table in it.
func withTablespace(ctx context.Context, t *testing.T, p *Instance, space string) string {
	t.Helper()
	must(t, os.Mkdir(space, 0o700))
	give(t, p, space)
	sql(ctx, t, p, "CREATE TABLESPACE elsewhere LOCATION '"+space+"'")
	sql(ctx, t, p, "CREATE TABLE public.t TABLESPACE elsewhere AS SELECT 1 AS i")
	return space
}
