package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// volumeDir is where a member's volume is mounted, below its host's directory.
const volumeDir = "volume"

// Requests of ioctl(2) that stop and allow writes to a file system
// (linux/fs.h: FIFREEZE, FITHAW).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Volume is a file system of its own for one member's data directory, so that it
// can be full or hang without the rest of the machine taking part. It is an image
// in a sparse file; making one needs root.
type Volume struct {
	Dir string // where it is mounted
}

func (l *Lab) addVolume(ctx context.Context, h *Host) (*Volume, error) {
	v := &Volume{Dir: filepath.Join(h.Dir, volumeDir)}
	// Noted first: a mount that is not there harms no cleaning.
	if err := l.record.add(entry{Mount: v.Dir}); err != nil {
		return nil, err
	}
	if err := mountVolume(ctx, v.Dir, int64(l.Options.VolumeMB)<<20); err != nil {
		return nil, fmt.Errorf("volume of %s: %w", h.Name, err)
	}
	l.volumes = append(l.volumes, v)
	return v, l.owner.own(v.Dir)
}

// mountVolume makes a file system of so many bytes in a file beside dir, and
// mounts it there.
func mountVolume(ctx context.Context, dir string, size int64) error {
	image := dir + ".img"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	// No reserved blocks: root would still write where PostgreSQL no longer can.
	if err := systemCommand(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", image); err != nil {
		return err
	}
	return systemCommand(ctx, "mount", "-o", "loop", image, dir)
}

// CanMakeVolumes says why Options.VolumeMB cannot be used here, nil when it can:
// it makes a small volume and removes it again.
func CanMakeVolumes(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "lictor-volume-")
	if err != nil {
		return fmt.Errorf("trying to make a volume: %w", err)
	}
	mounted := filepath.Join(dir, volumeDir)
	if err = mountVolume(ctx, mounted, 4<<20); err == nil {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = unmountVolume(limit, mounted)
	}
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("volumes cannot be made here (they need root, e2fsprogs and loop devices): %w", err)
	}
	return nil
}

// Freeze makes every write to the volume hang, fsync included, until Thaw. What
// hangs in a write does not die of SIGKILL before that.
func (v *Volume) Freeze() error { return volumeControl(v.Dir, fiFreeze, "freezing") }

// Thaw lets a frozen volume go on; one that is not frozen is no error.
func (v *Volume) Thaw() error { return volumeControl(v.Dir, fiThaw, "thawing") }

func volumeControl(dir string, request uintptr, what string) error {
	file, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%s the volume: %w", what, err)
	}
	defer file.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), request, 0)
	if errno != 0 && (request != fiThaw || errno != unix.EINVAL) { // EINVAL: it was not frozen
		return fmt.Errorf("%s the volume %s: %w", what, dir, errno)
	}
	return nil
}

// ballast is the file that fills a volume.
const ballast = "ballast"

// Fill takes all space that is left on the volume, until Drain.
func (v *Volume) Fill() error {
	file, err := os.OpenFile(filepath.Join(v.Dir, ballast), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("filling the volume: %w", err)
	}
	defer file.Close()
	// Allocated in ever smaller steps; what is left after the last one is less
	// than a block.
	size, err := file.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("filling the volume: %w", err)
	}
	for step := int64(64 << 20); step >= 4<<10; {
		switch err := unix.Fallocate(int(file.Fd()), 0, size, step); {
		case err == nil:
			size += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("filling the volume %s: %w", v.Dir, err)
		}
	}
	return nil
}

// Drain gives back what Fill took.
func (v *Volume) Drain() error {
	if err := os.Remove(filepath.Join(v.Dir, ballast)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("draining the volume: %w", err)
	}
	return nil
}

// unmountVolume thaws and unmounts a volume, if it is mounted. Its users must
// have been killed; the kernel may need a moment to let go of their files.
func unmountVolume(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return poll(ctx, 50*time.Millisecond, func(context.Context) error {
		err := unix.Unmount(dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point
			return nil
		}
		return fmt.Errorf("unmounting %s: %w", dir, err)
	})
}

// systemCommand runs a program that may lie in a directory for administrators.
func systemCommand(ctx context.Context, name string, args ...string) error {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); !strings.Contains(name, "/") {
			if _, err := os.Stat(path); err == nil {
				name = path
			}
		}
	}
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
