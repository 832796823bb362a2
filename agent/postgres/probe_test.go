package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// TestProbeChild is no test: it is the child of the probes below.
func TestProbeChild(t *testing.T) {
	args := os.Args[max(0, len(os.Args)-2):]
	if len(args) != 2 || args[0] != "--dir" {
		t.Skip("runs as a child of other tests")
	}
	if err := RunDiskProbe(args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A backup by the group of a directory that it may read can read the probe, too.
func TestProbeOfAGroup(t *testing.T) {
	for dirMode, want := range map[os.FileMode]os.FileMode{0o700: 0o600, groupAccess: 0o640} {
		dir := newDir(t)
		must(t, os.Chmod(dir, dirMode))
		path := filepath.Join(dir, probeName)
		must(t, os.WriteFile(path, nil, 0o600)) // one that was left
		f, err := makeProbe(path)
		must(t, err)
		info, err := f.Stat()
		must(t, err)
		must(t, f.Close())
		if got := info.Mode().Perm(); got != want {
			t.Errorf("in a directory of mode %o it has %o, want %o", dirMode, got, want)
		}
	}
}

// newProbe makes a probe of dir whose child is this test's program, as
// PostgreSQL's user when this is root.
func newProbe(t *testing.T, dir string) *DiskProbe {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	program, err := os.ReadFile(self)
	must(t, err)
	path := filepath.Join(newDir(t), "probe") // go test's own directory is closed to other users
	testkit.WriteProgram(t, path, program)
	return probing(t, dir, path, "-test.run=^TestProbeChild$", "--")
}

func probing(t *testing.T, dir string, command ...string) *DiskProbe {
	t.Helper()
	var credential *syscall.Credential
	if os.Geteuid() == 0 {
		var err error
		credential, err = Credential("postgres", dir)
		must(t, err)
	}
	p := NewDiskProbe(command, dir, credential)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		p.Close(ctx)
		if ctx.Err() != nil {
			t.Error("the probe has not ended")
		}
	})
	return p
}

// dataOn makes a data directory's directories in dir.
func dataOn(t *testing.T, dir string) string {
	t.Helper()
	for _, sub := range []string{"base", "pg_wal"} {
		must(t, os.Mkdir(filepath.Join(dir, sub), 0o777))
		must(t, os.Chmod(filepath.Join(dir, sub), 0o777))
	}
	return dir
}

// mounted mounts a filesystem for the time of the test.
func mounted(t *testing.T, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := newDir(t)
	args = append(args, dir)
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Skipf("mount %v: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	must(t, os.Chmod(dir, 0o777))
	return dir
}

func smallDisk(t *testing.T) string {
	t.Helper()
	return mounted(t, "-t", "tmpfs", "-o", "size=256k", "lictor-test")
}

func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() { must(t, os.Remove(path)) }
}

// probe runs a probe that must come to a verdict.
func probe(ctx context.Context, t *testing.T, p *DiskProbe) DiskVerdict {
	t.Helper()
	v, err := p.Run(ctx, patience)
	must(t, err)
	if left := leftovers(t, p.dataDir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	return v
}

func leftovers(t *testing.T, dir string) (left []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, "pgsql_tmp") {
			left = append(left, path)
		}
		return err
	}))
	return left
}

func TestProbeHealthy(t *testing.T) {
	ctx := within(t)
	p := newProbe(t, dataOn(t, newDir(t)))
	for range 2 {
		if v := probe(ctx, t, p); !v.OK || v.Hung || v.Trouble != "" || v.Problem != "" || v.Took <= 0 {
			t.Errorf("%+v", v)
		}
	}
}

func TestProbeFullDisk(t *testing.T) {
	ctx, dir := within(t), dataOn(t, smallDisk(t))
	p := newProbe(t, dir)
	free := fill(t, dir)
	if v := probe(ctx, t, p); v.OK || v.Trouble != DiskFull || !strings.Contains(v.Problem, "base") || v.Hung {
		t.Errorf("full: %+v", v)
	}
	free()
	if v := probe(ctx, t, p); !v.OK {
		t.Errorf("no longer full: %+v", v)
	}
}

func TestProbeFullDiskOfTheWAL(t *testing.T) {
	ctx, dir, wal := within(t), newDir(t), smallDisk(t)
	must(t, os.Mkdir(filepath.Join(dir, "base"), 0o777))
	must(t, os.Chmod(filepath.Join(dir, "base"), 0o777))
	must(t, os.Symlink(wal, filepath.Join(dir, "pg_wal")))
	p := newProbe(t, dir)
	if v := probe(ctx, t, p); !v.OK {
		t.Errorf("healthy: %+v", v)
	}
	fill(t, wal)
	if v := probe(ctx, t, p); v.OK || v.Trouble != DiskFull || !strings.Contains(v.Problem, "pg_wal") {
		t.Errorf("full: %+v", v)
	}
	if left := leftovers(t, wal); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestProbeReadOnlyDisk(t *testing.T) {
	ctx, dir := within(t), dataOn(t, smallDisk(t))
	p := newProbe(t, dir)
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if v := probe(ctx, t, p); v.OK || v.Trouble != DiskReadOnly {
		t.Errorf("read-only: %+v", v)
	}
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	if v := probe(ctx, t, p); !v.OK {
		t.Errorf("writable again: %+v", v)
	}
}

// A tablespace is on another disk. One that is full stops nobody but who writes there, and is as full
// on every member; one that fails keeps checkpoints from ending.
func TestProbeTablespace(t *testing.T) {
	ctx, dir, disk := within(t), dataOn(t, newDir(t)), smallDisk(t)
	must(t, os.Mkdir(filepath.Join(dir, "pg_tblspc"), 0o777))
	must(t, os.Symlink(filepath.Join(dir, "gone"), filepath.Join(dir, "pg_tblspc", "16384"))) // it is just being dropped
	must(t, os.Symlink(disk, filepath.Join(dir, "pg_tblspc", "16385")))
	p := newProbe(t, dir)
	if v := probe(ctx, t, p); !v.OK {
		t.Errorf("healthy: %+v", v)
	}
	free := fill(t, disk)
	if v := probe(ctx, t, p); !v.OK {
		t.Errorf("full: %+v", v)
	}
	free()
	must(t, unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if v := probe(ctx, t, p); v.OK || v.Trouble != DiskReadOnly || !strings.Contains(v.Problem, "pg_tblspc/16385") {
		t.Errorf("read-only: %+v", v)
	}
	must(t, unix.Mount("", disk, "", unix.MS_REMOUNT, ""))
	if v := probe(ctx, t, p); !v.OK {
		t.Errorf("writable again: %+v", v)
	}
	if left := leftovers(t, disk); len(left) > 0 { // pg_basebackup would not take the directory
		t.Errorf("left behind: %v", left)
	}
}

// A disk that hangs in the kernel: nobody waits for it, no second probe is
// started, and the first one is reaped when it ends.
func TestProbeHungDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	ctx := within(t)
	image := filepath.Join(newDir(t), "disk")
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(16<<20))
	must(t, f.Close())
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	dir := dataOn(t, mounted(t, "-o", "loop", image))
	p := newProbe(t, dir)
	if v := probe(ctx, t, p); !v.OK {
		t.Fatalf("before: %+v", v)
	}
	thaw := frozen(t, dir)
	first := hangs(ctx, t, p)
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", first))
	must(t, err)
	if second := hangs(ctx, t, p); second != first || !strings.Contains(string(state), "(probe)") {
		t.Errorf("a second probe: %d after %d (%s)", second, first, state)
	}
	// Closing does not wait for it either.
	closing, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	p.Close(closing)
	thaw()
	// It was killed meanwhile; the next one is well.
	for {
		v, err := p.Run(ctx, patience)
		if err == nil && v.OK {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("thawed: %+v %v", v, err)
		}
	}
	if err := syscall.Kill(first, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the first probe was not reaped: %v", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// frozen makes every write to the filesystem hang, until thaw or the end of the
// test.
func frozen(t *testing.T, dir string) (thaw func()) {
	t.Helper()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878 // linux/fs.h
	d, err := os.Open(dir)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	if err := unix.IoctlSetInt(int(d.Fd()), fifreeze, 0); err != nil {
		t.Skipf("freezing %s: %v", dir, err)
	}
	thawed := false
	thaw = func() {
		if !thawed {
			thawed = true
			if err := unix.IoctlSetInt(int(d.Fd()), fithaw, 0); err != nil {
				t.Errorf("thawing %s: %v", dir, err)
			}
			d.Close() // so that it can be unmounted
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// hangs waits until the probe is seen to hang, and returns its pid.
func hangs(ctx context.Context, t *testing.T, p *DiskProbe) int {
	t.Helper()
	for {
		v, err := p.Run(ctx, 100*time.Millisecond)
		switch {
		case err == nil && v.Hung:
			if v.OK || v.Trouble != DiskHung || v.Took <= 0 || v.Problem == "" {
				t.Errorf("%+v", v)
			}
			p.current.mu.Lock()
			defer p.current.mu.Unlock()
			return p.current.process.Pid
		case err == nil:
			t.Fatalf("does not hang: %+v", v)
		case !errors.Is(err, errProbeStarved):
			t.Fatal(err)
		}
	}
}

// Without root: a write that blocks and can be killed.
func TestProbeHangsOnAFifo(t *testing.T) {
	ctx, dir := within(t), dataOn(t, newDir(t))
	fifo := filepath.Join(dir, "base", probeName)
	must(t, syscall.Mkfifo(fifo, 0o666))
	must(t, os.Chmod(fifo, 0o666))
	p := newProbe(t, dir)
	first := hangs(ctx, t, p)
	if hangs(ctx, t, p) != first {
		t.Error("a second probe was started")
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	must(t, err)
	defer reader.Close()
	if v := probe(ctx, t, p); v.OK || v.Trouble != DiskUnusable {
		t.Errorf("a fifo cannot be synced: %+v", v)
	}
	if v := probe(ctx, t, p); !v.OK {
		t.Errorf("it is gone: %+v", v)
	}
}

// Nothing that is not PostgreSQL's is written to.
func TestProbeUnusable(t *testing.T) {
	ctx := within(t)
	empty := newDir(t)
	if v := probe(ctx, t, newProbe(t, empty)); v.OK || v.Trouble != DiskUnusable {
		t.Errorf("empty: %+v", v)
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 {
		t.Errorf("empty: %v %v", entries, err)
	}
	planted := dataOn(t, newDir(t))
	target := filepath.Join(newDir(t), "precious")
	must(t, os.WriteFile(target, []byte("x"), 0o666))
	must(t, os.Symlink(target, filepath.Join(planted, "base", probeName)))
	v, err := newProbe(t, planted).Run(ctx, patience)
	if content, _ := os.ReadFile(target); err != nil || v.OK || string(content) != "x" {
		t.Errorf("through a symbolic link: %+v %v, wrote %q", v, err, content)
	}
}

// What says nothing about the disk is an error, not a verdict.
func TestProbeSaysNothing(t *testing.T) {
	ctx := within(t)
	shell := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	for name, tt := range map[string]struct {
		command []string
		want    string
		starved bool
	}{
		"cannot be started":       {[]string{"/nonexistent/lictor", "probe-disk"}, "/nonexistent/lictor", false},
		"fails":                   {shell("echo out of memory >&2; exit 3"), "out of memory", false},
		"has not begun":           {shell("exec sleep 1000"), "CPU", true},
		"has begun, wants to run": {shell(`echo '{"begins":true}'; while :; do :; done`), "CPU", true},
	} {
		t.Run(name, func(t *testing.T) {
			p := probing(t, newDir(t), tt.command...)
			limit := patience
			if tt.starved {
				limit = 200 * time.Millisecond
			}
			v, err := p.Run(ctx, limit)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, errProbeStarved) != tt.starved || v != (DiskVerdict{}) {
				t.Errorf("%+v %v", v, err)
			}
		})
	}
	p := probing(t, newDir(t), shell("exec sleep 1000")...)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := p.Run(canceled, patience); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestTroubleOf(t *testing.T) {
	for want, errnos := range map[DiskTrouble][]syscall.Errno{
		DiskFull: {syscall.ENOSPC, syscall.EDQUOT}, DiskReadOnly: {syscall.EROFS},
		DiskIOError: {syscall.EIO, syscall.ESTALE, syscall.ENODEV}, DiskUnusable: {syscall.EACCES, syscall.ENOENT, syscall.ELOOP},
	} {
		for _, e := range errnos {
			if got := troubleOf(fmt.Errorf("writing: %w", &os.PathError{Op: "write", Path: "x", Err: e})); got != want {
				t.Errorf("%v: %s", e, got)
			}
		}
	}
	if got := troubleOf(errors.Join(syscall.EROFS, syscall.EIO)); got != DiskIOError {
		t.Errorf("the cause counts more than what follows from it: %s", got)
	}
}

// A probe's file that was left behind is in no base backup.
func TestProbeFileIsNotBackedUp(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a, b := newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	for _, sub := range []string{"base", "pg_wal"} {
		path := a.inData(filepath.Join(sub, probeName))
		put(t, path, "left behind")
		must(t, os.Chmod(path, 0o666))
	}
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	if left := leftovers(t, b.dataDir); len(left) > 0 {
		t.Errorf("in the copy: %v", left)
	}
}
