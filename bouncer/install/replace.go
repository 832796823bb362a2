package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// newFileMode is for files that are not there yet: a pgbouncer.ini may hold
// passwords.
const newFileMode = 0o640

// File puts text into place in one step that survives a crash of the host:
// the file is the old one or the new one, never a part, and it is the new one when
// File has returned. Mode, owner and group
// of an existing file stay; a new file gets the owner and group of its
// directory, so that a PgBouncer of another user can read it. It reports whether
// the file had to be written at all.
func File(path string, text []byte) (written bool, err error) {
	return Checked(path, text, unchecked)
}

// Lasting is a file of which one caller writes all texts.
type Lasting struct {
	path string
	// due: the last text is in place, and its name may not last.
	due bool
}

// NewLasting is the file at path.
func NewLasting(path string) *Lasting { return &Lasting{path: path} }

// Checked is the function of that name, but for this: what could be put into place and not be made to last is not
// taken for done by the next call.
func (l *Lasting) Checked(text []byte, check func(path string) error) (written bool, err error) {
	written, err = Checked(l.path, text, check)
	switch {
	case written:
		l.due = err != nil
	case err == nil && l.due:
		if err = placeOf(l.path).sync(); err != nil {
			return false, fmt.Errorf("installing %s: %w", l.path, err)
		}
		l.due = false
	}
	return written, err
}

func unchecked(string) error { return nil }

// Checked is File for a file at which check looks before it takes its place:
// check gets the path of the new one. After its error the old file is there, unchanged.
func Checked(path string, text []byte, check func(path string) error) (written bool, err error) {
	return placeOf(path).install(text, check)
}

// install is Checked.
func (p place) install(text []byte, check func(path string) error) (written bool, err error) {
	if same, err := p.has(func(old []byte) bool { return bytes.Equal(old, text) }); same || err != nil {
		return false, err
	}
	refused := error(nil)
	err = p.put(text, func(file *os.File) error {
		if refused = check(file.Name()); refused != nil {
			return refused
		}
		return file.Sync()
	})
	switch {
	case refused != nil:
		return false, refused
	case err != nil:
		return false, err
	}
	if err := p.sync(); err != nil {
		return true, fmt.Errorf("installing %s: %w", p.path, err)
	}
	return true, nil
}

// place is where a file goes, and the user who may put it there.
type place struct {
	// named is how it is called, path what that leads to.
	named, path string
	keeper      osuser.User
}

// placeOf is that of a path. A link stays a link: what it points at is replaced.
func placeOf(path string) place {
	p := place{path, path, osuser.Keeper(path)}
	if target, err := p.keeper.EvalSymlinks(path); err == nil {
		if p.path = target; p.keeper == (osuser.User{}) {
			p.keeper = osuser.Keeper(target)
		}
	}
	return p
}

// as does something with the file. Root's rights are for a file that nobody else can put
// something in the place of, nor of the link that leads to it: who can change that link does no
// more by it than that user may.
func (p place) as(do func() error) error { return p.keeper.For(do, p.named, p.path) }

// sync makes the file's name last.
func (p place) sync() error {
	return p.as(func() error {
		dir, err := os.Open(filepath.Dir(p.path))
		if err != nil {
			return err
		}
		return errors.Join(dir.Sync(), dir.Close())
	})
}

// has reports whether there is a file whose text is the one that is wanted.
func (p place) has(wanted func(old []byte) bool) (bool, error) {
	var old []byte
	err := p.as(func() (err error) { old, err = os.ReadFile(p.path); return err })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("reading what is installed: %w", err)
	}
	return err == nil && wanted(old), nil
}

// put replaces the file by one with that text, of which ready is the last to be asked.
func (p place) put(text []byte, ready func(*os.File) error) error {
	if err := p.as(func() error { return p.replace(text, ready) }); err != nil {
		return fmt.Errorf("installing %s: %w", p.path, err)
	}
	return nil
}

func (p place) replace(text []byte, ready func(*os.File) error) (err error) {
	file, err := os.CreateTemp(filepath.Dir(p.path), "."+filepath.Base(p.path)+"*")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, file.Close())
		if err != nil {
			_ = os.Remove(file.Name()) // it has no name of its own any more after a success
		}
	}()
	mode := fs.FileMode(newFileMode)
	if old, err := os.Stat(p.path); err == nil {
		mode = old.Mode().Perm()
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	if err := keepOwner(file, p.path, p.keeper); err != nil {
		return err
	}
	if _, err := file.Write(text); err != nil {
		return err
	}
	if err := ready(file); err != nil {
		return err
	}
	return os.Rename(file.Name(), p.path)
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
