package osuser

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// These are the functions of package os and filepath of the same names, with For, and Room.

func get[T any](u User, path string, fn func(string) (T, error)) (value T, err error) {
	err = u.For(func() (err error) { value, err = fn(path); return err }, path)
	return value, err
}

// ReadFile is os.ReadFile.
func (u User) ReadFile(path string) ([]byte, error) { return get(u, path, os.ReadFile) }

// ReadDir is os.ReadDir. The directory's own content is what is read: with the user's
// rights, unless root holds it.
func (u User) ReadDir(path string) ([]os.DirEntry, error) { return get(u, path, os.ReadDir) }

// Stat is os.Stat.
func (u User) Stat(path string) (fs.FileInfo, error) { return get(u, path, os.Stat) }

// Room is how many bytes may still be written, not by root, to the file system of a path.
func (u User) Room(path string) (int64, error) {
	return get(u, path, func(path string) (int64, error) {
		var on unix.Statfs_t
		if err := unix.Statfs(path, &on); err != nil {
			return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
		}
		return int64(on.Bavail) * on.Bsize, nil //nolint:gosec // no file system is that large
	})
}

// Lstat is os.Lstat.
func (u User) Lstat(path string) (fs.FileInfo, error) { return get(u, path, os.Lstat) }

// Readlink is os.Readlink.
func (u User) Readlink(path string) (string, error) { return get(u, path, os.Readlink) }

// Open is os.Open.
func (u User) Open(path string) (*os.File, error) { return get(u, path, os.Open) }

// EvalSymlinks is filepath.EvalSymlinks.
func (u User) EvalSymlinks(path string) (string, error) { return get(u, path, filepath.EvalSymlinks) }

// OpenRoot is os.OpenRoot, with the user's rights. What is done through the handle has
// those of who does it.
func (u User) OpenRoot(path string) (root *os.Root, err error) {
	err = u.Do(func() (err error) { root, err = os.OpenRoot(path); return err })
	return root, err
}

// OpenFile is os.OpenFile.
func (u User) OpenFile(path string, flag int, mode fs.FileMode) (*os.File, error) {
	return get(u, path, func(path string) (*os.File, error) { return os.OpenFile(path, flag, mode) })
}

// AppendTo opens a log, and makes it. One that the user may not write, as root had made
// it, is put aside.
func (u User) AppendTo(path string, mode fs.FileMode) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_APPEND | os.O_CREATE
	f, err := u.OpenFile(path, flags, mode)
	if u.credential == nil || !errors.Is(err, fs.ErrPermission) {
		return f, err
	}
	if u.Rename(path, path+".root") != nil {
		return nil, err
	}
	return u.OpenFile(path, flags, mode)
}

// Glob is filepath.Glob with a pattern in the last element alone.
func (u User) Glob(pattern string) ([]string, error) { return get(u, pattern, filepath.Glob) }

// Remove is os.Remove.
func (u User) Remove(path string) error {
	return u.For(func() error { return os.Remove(path) }, path)
}

// RemoveAll is os.RemoveAll.
func (u User) RemoveAll(path string) error {
	return u.For(func() error { return os.RemoveAll(path) }, path)
}

// Rename is os.Rename.
func (u User) Rename(from, to string) error {
	return u.For(func() error { return os.Rename(from, to) }, from, to)
}

// Link is os.Link.
func (u User) Link(from, to string) error {
	return u.For(func() error { return os.Link(from, to) }, from, to)
}

// Mkdir is os.Mkdir. Where root makes the directory, it is root's.
func (u User) Mkdir(path string, mode fs.FileMode) error {
	return u.For(func() error { return os.Mkdir(path, mode) }, path)
}

// MkdirAll is os.MkdirAll, directory by directory.
func (u User) MkdirAll(path string, mode fs.FileMode) error {
	if info, err := u.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	if parent := filepath.Dir(path); parent != path {
		if err := u.MkdirAll(parent, mode); err != nil {
			return err
		}
	}
	if err := u.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Replace replaces a file in one step; the new one is the user's.
func (u User) Replace(path string, content []byte, mode fs.FileMode) error {
	return u.For(func() error {
		f, err := renameio.NewPendingFile(path, renameio.WithPermissions(mode), renameio.IgnoreUmask())
		if err != nil {
			return err
		}
		defer f.Cleanup() //nolint:errcheck // nothing is left to clean after a success
		if err := u.giveOpen(f.File, filepath.Dir(path)); err != nil {
			return err
		}
		if _, err := f.Write(content); err != nil {
			return err
		}
		return f.CloseAtomicallyReplace()
	}, path)
}

// giveOpen gives a file that was just made in a directory to the user, with the group
// that the user's own files have there.
func (u User) giveOpen(f *os.File, dir string) error {
	if u.credential == nil {
		return nil
	}
	var file, holder unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &file), unix.Stat(dir, &holder)); err != nil || file.Uid == u.credential.Uid {
		return err
	}
	gid := u.credential.Gid
	if holder.Mode&unix.S_ISGID != 0 {
		gid = holder.Gid
	}
	return f.Chown(int(u.credential.Uid), int(gid))
}

// Sync syncs a directory.
func (u User) Sync(dir string) error {
	d, err := u.Open(filepath.Join(dir, "."))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
