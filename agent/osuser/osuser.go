// Package osuser touches files as the user whose directories they are in, where this
// process is root's.
//
// The owner of a directory can put a link to anything in the place of any file in it,
// also between a look and a write. What root does there, it does for that owner. So
// root's rights are used only where nobody but root could have changed what a path
// leads to, and everywhere else the rights of the user: what the user may not touch is
// then refused by the kernel, whichever link leads to it.
package osuser

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// User is whose rights are used. The zero value is this process's own user.
type User struct{ credential *syscall.Credential }

// As is the user of a credential; nil: this process's own.
func As(c *syscall.Credential) User {
	if os.Geteuid() != 0 {
		return User{}
	}
	return User{credential: c}
}

// Keeper is who can change what a path leads to: this process's own user where only root
// can, or where this process is not root's, else the first other user on the way to it.
func Keeper(path string) User {
	var uid uint32
	if os.Geteuid() != 0 {
		return User{}
	}
	fd, err := walk(filepath.Dir(path), func(dir, entry *unix.Stat_t) error {
		err := onlyRoots(dir, entry)
		if uid = dir.Uid; uid == 0 && err != nil && entry != nil {
			uid = entry.Uid
		}
		return err
	})
	if err == nil {
		_ = unix.Close(fd)
	}
	if uid == 0 {
		return User{}
	}
	return Numbered(uid)
}

// Numbered is the user with a number, in its groups; for a process that is not root's, which
// cannot take its rights on, this process's own user.
func Numbered(uid uint32) User {
	c := &syscall.Credential{Uid: uid, Gid: uid}
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		if gid, err := strconv.ParseUint(u.Gid, 10, 32); err == nil {
			c.Gid = uint32(gid)
		}
		ids, _ := u.GroupIds() // without them there are fewer rights
		for _, id := range ids {
			if gid, err := strconv.ParseUint(id, 10, 32); err == nil {
				c.Groups = append(c.Groups, uint32(gid))
			}
		}
	}
	return As(c)
}

// Other is the user's number, where it is another one than this process's.
func (u User) Other() (uid int, ok bool) {
	if u.credential == nil {
		return 0, false
	}
	return int(u.credential.Uid), true
}

// Do runs fn with the user's rights on files; fn must do its work in the goroutine in
// which it is called.
func (u User) Do(fn func() error) error {
	if u.credential == nil {
		return fn()
	}
	runtime.LockOSThread()
	back, err := lower(u.credential)
	defer func() {
		if back() == nil {
			runtime.UnlockOSThread()
		} // else this thread ends with its goroutine, and nothing else gets its rights
	}()
	if err != nil {
		return fmt.Errorf("taking on the rights of user %d: %w", u.credential.Uid, err)
	}
	return fn()
}

// lower changes the rights of this thread alone: setfsuid(2) takes root's from it too,
// as far as they are about files (capabilities(7)).
func lower(c *syscall.Credential) (back func() error, err error) {
	groups, err := unix.Getgroups()
	if err != nil {
		return func() error { return nil }, err
	}
	before := make([]uint32, len(groups))
	for i, g := range groups {
		before[i] = uint32(g)
	}
	uid, err := unix.SetfsuidRetUid(-1)
	if err != nil {
		return func() error { return nil }, err
	}
	gid, err := unix.SetfsgidRetGid(-1)
	if err != nil {
		return func() error { return nil }, err
	}
	back = func() error { return setRights(uint32(uid), uint32(gid), before) }
	return back, setRights(c.Uid, c.Gid, c.Groups)
}

func setRights(uid, gid uint32, groups []uint32) error {
	// The other ways to do it are for all threads.
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	runtime.KeepAlive(groups)
	// These two tell of no failure: what is in force has to be asked for.
	_, _ = unix.SetfsgidRetGid(int(gid))
	_, _ = unix.SetfsuidRetUid(int(uid))
	if now, err := unix.SetfsgidRetGid(-1); err != nil || uint32(now) != gid {
		return errors.Join(err, unix.EPERM)
	}
	if now, err := unix.SetfsuidRetUid(-1); err != nil || uint32(now) != uid {
		return errors.Join(err, unix.EPERM)
	}
	return nil
}

// For runs fn with this process's own rights if only root can change what is in the
// directories that hold paths, and where these are; else with the user's.
func (u User) For(fn func() error, paths ...string) error {
	if u.credential == nil || !slices.ContainsFunc(paths, func(path string) bool { return !u.rootHolds(path) }) {
		return fn()
	}
	return u.Do(fn)
}

// rootHolds reports whether only root can put something else in a path's place.
func (u User) rootHolds(path string) bool {
	dir := filepath.Dir(path)
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Uid != 0 {
		return false // as nearly always
	}
	fd, err := walk(dir, onlyRoots)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

var (
	errOthers = errors.New("others than root can change it")
	errLink   = errors.New("a link that is not root's leads to it")
)

// links is how many links a path may lead through, as for the kernel.
const links = 40

// onlyRoots refuses directories in which others than root could replace an entry. One
// with the sticky bit is taken on the way to an entry that is root's.
func onlyRoots(dir, entry *unix.Stat_t) error {
	shared := dir.Mode&0o022 != 0
	if dir.Uid != 0 || shared && (entry == nil || dir.Mode&unix.S_ISVTX == 0 || entry.Uid != 0) {
		return errOthers
	}
	return nil
}

// rootsLinks refuses links that others than root have made.
func rootsLinks(_, entry *unix.Stat_t) error {
	if entry != nil && entry.Mode&unix.S_IFMT == unix.S_IFLNK && entry.Uid != 0 {
		return errLink
	}
	return nil
}

// walk opens a directory step by step. may is asked about every directory on the way with
// what is taken in it, and about the last one with nil.
func walk(path string, may func(dir, entry *unix.Stat_t) error) (fd int, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return -1, err
	}
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if fd, err = unix.Open("/", flags, 0); err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			fd = -1
		}
	}()
	var here, next unix.Stat_t
	if err := unix.Fstat(fd, &here); err != nil {
		return fd, err
	}
	followed := 0
	for rest := strings.Split(path, "/"); len(rest) > 0; {
		name := rest[0]
		if rest = rest[1:]; name == "" || name == "." {
			continue
		}
		entry, err := unix.Openat(fd, name, flags, 0)
		if errors.Is(err, fs.ErrNotExist) { // it can be made by whoever can change the directory
			if refused := may(&here, nil); refused != nil {
				err = refused
			}
			return fd, err
		}
		if err != nil {
			return fd, err
		}
		if err = unix.Fstat(entry, &next); err == nil {
			err = may(&here, &next)
		}
		if err != nil {
			_ = unix.Close(entry)
			return fd, err
		}
		if next.Mode&unix.S_IFMT != unix.S_IFLNK {
			_ = unix.Close(fd)
			fd, here = entry, next
			continue
		}
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(entry, "", target)
		_ = unix.Close(entry)
		if followed++; err == nil && followed > links {
			err = unix.ELOOP
		}
		if err != nil {
			return fd, err
		}
		rest = append(strings.Split(string(target[:n]), "/"), rest...)
		if target[0] != '/' {
			continue
		}
		root, err := unix.Open("/", flags, 0)
		if err != nil {
			return fd, err
		}
		_ = unix.Close(fd)
		fd = root
		if err := unix.Fstat(fd, &here); err != nil {
			return fd, err
		}
	}
	return fd, may(&here, nil)
}

// OwnDirectory makes an empty directory the user's own, with a mode. As root it does so
// only if no link that others than root have made leads to it.
func (u User) OwnDirectory(path string, mode fs.FileMode) error {
	if u.credential == nil {
		return os.Chmod(path, mode)
	}
	var st unix.Stat_t
	err := u.Do(func() error {
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		defer d.Close()
		if err := unix.Fstat(int(d.Fd()), &st); err != nil || st.Uid != u.credential.Uid {
			return err
		}
		if info, err := d.Stat(); err != nil || info.Mode()&^fs.ModeDir == mode {
			return err
		}
		return d.Chmod(mode)
	})
	if err == nil && st.Uid == u.credential.Uid || err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	at, err := walk(path, rootsLinks)
	if err != nil {
		return &fs.PathError{Op: "giving it to its user", Path: path, Err: err}
	}
	defer unix.Close(at)
	dir, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", at)) // the same one, for more than its path
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(names, func(n string) bool { return n != "lost+found" }); i >= 0 {
		return fmt.Errorf("%s is another user's and is not empty (%s)", path, names[i])
	}
	gid := int(u.credential.Gid)
	if info, err := dir.Stat(); err == nil && info.Mode()&fs.ModeSetgid != 0 {
		gid, mode = int(info.Sys().(*syscall.Stat_t).Gid), mode|fs.ModeSetgid
	}
	return errors.Join(dir.Chown(int(u.credential.Uid), gid), dir.Chmod(mode))
}

// Give gives the user a file that this process has just made with For.
func (u User) Give(path string) error {
	if u.credential == nil || !u.rootHolds(path) {
		return nil
	}
	return os.Lchown(path, int(u.credential.Uid), int(u.credential.Gid))
}

// Adopt gives the user a file that root has made in a directory of the user's, if it is
// nothing else than a regular file without another name, and looks as it should.
func (u User) Adopt(path string, looks func(content []byte) bool) error {
	if u.credential == nil || u.rootHolds(path) {
		return nil
	}
	dir, err := walk(filepath.Dir(path), rootsLinks)
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	fd, err := unix.Openat(dir, filepath.Base(path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	_ = unix.Close(dir)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	const most = 1 << 16
	if err := unix.Fstat(fd, &st); err != nil || st.Uid != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size > most {
		return err
	}
	content := make([]byte, st.Size)
	if n, err := f.ReadAt(content, 0); err != nil || n < len(content) || !looks(content) {
		return err
	}
	return f.Chown(int(u.credential.Uid), int(u.credential.Gid))
}

// Holder is the user whom a file belongs to, or the one who has made a link on the way to
// it: that user says what is there.
func Holder(path string) (uid uint32, err error) {
	fd, err := walk(path, func(_, entry *unix.Stat_t) error {
		if err := rootsLinks(nil, entry); err != nil {
			uid = entry.Uid
			return err
		}
		return nil
	})
	if errors.Is(err, errLink) {
		return uid, nil
	}
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Uid, nil
}
