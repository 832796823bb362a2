package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// newFileMode is for files that are not there yet: a pgbouncer.ini may hold
// passwords.
const newFileMode = 0o640

// File puts text into place in one step that survives a crash of the host:
// the file is the old one or the new one, never a part. Mode, owner and group
// of an existing file stay; a new file gets the owner and group of its
// directory, so that a PgBouncer of another user can read it. It reports whether
// the file had to be written at all.
func File(path string, text []byte) (written bool, err error) {
	return Checked(path, text, func(string) error { return nil })
}

// Checked is File for a file at which check looks before it takes its place:
// check gets the path of the new one. After its error the old file is there, unchanged.
func Checked(path string, text []byte, check func(path string) error) (written bool, err error) {
	keeper := osuser.Keeper(path)
	// A link stays a link: what it points at is replaced.
	if target, err := keeper.EvalSymlinks(path); err == nil {
		if path = target; keeper == (osuser.User{}) {
			keeper = osuser.Keeper(path)
		}
	}
	old, err := keeper.ReadFile(path)
	if err == nil && bytes.Equal(old, text) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("reading what is installed: %w", err)
	}
	refused := error(nil)
	look := func(path string) error { refused = check(path); return refused }
	if err := keeper.For(func() error { return replace(path, text, keeper, look) }, path); refused != nil {
		return false, refused
	} else if err != nil {
		return false, fmt.Errorf("installing %s: %w", path, err)
	}
	if err := keeper.Sync(filepath.Dir(path)); err != nil {
		return true, fmt.Errorf("installing %s: %w", path, err)
	}
	return true, nil
}

func replace(path string, text []byte, keeper osuser.User, check func(path string) error) error {
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(newFileMode), renameio.WithExistingPermissions())
	if err != nil {
		return err
	}
	defer file.Cleanup() //nolint:errcheck // nothing is left after a success
	if err := keepOwner(file.File, path, keeper); err != nil {
		return err
	}
	if _, err := file.Write(text); err != nil {
		return err
	}
	if err := check(file.Name()); err != nil {
		return err
	}
	return file.CloseAtomicallyReplace() // it syncs the file before the rename
}

// keepOwner gives the new file the owner of the one it replaces.
func keepOwner(file *os.File, path string, keeper osuser.User) error {
	model, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		model, err = os.Stat(filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	owner, ok := model.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) == os.Geteuid() && int(owner.Gid) == os.Getegid() {
		return nil
	}
	err = file.Chown(int(owner.Uid), int(owner.Gid))
	uid, other := keeper.Other()
	switch {
	case err == nil, os.Geteuid() != 0: // only root can give files away; the mode is kept in any case
		return nil
	case !other:
		return err
	case owner.Uid != 0 && int(owner.Uid) != uid:
		return fmt.Errorf("it is user %d's, in a directory that user %d can change: root writes nothing there, and %d cannot give it away; give the directory to root, or the file to %d",
			owner.Uid, uid, uid, uid)
	}
	return nil
}
