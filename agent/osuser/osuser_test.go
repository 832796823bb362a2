package osuser

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
)

func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

// attacker is PostgreSQL's user.
func attacker(t *testing.T) (User, int) {
	t.Helper()
	u, err := user.Lookup("postgres")
	if os.Geteuid() != 0 || err != nil {
		t.Skip("needs root, and a user postgres")
	}
	uid, err := strconv.Atoi(u.Uid)
	must(t, err)
	gid, err := strconv.Atoi(u.Gid)
	must(t, err)
	return As(&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{uint32(gid)}}), uid
}

// homes are a directory of root's and one of the attacker's.
func homes(t *testing.T, uid int) (roots, theirs string) {
	t.Helper()
	dir := t.TempDir()
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) { // as the attacker must be able to get there
		must(t, os.Chmod(at, 0o755))
	}
	roots, theirs = filepath.Join(dir, "etc"), filepath.Join(dir, "lib")
	must(t, os.Mkdir(roots, 0o755))
	must(t, os.Mkdir(theirs, 0o755))
	must(t, os.Chown(theirs, uid, -1))
	must(t, os.WriteFile(filepath.Join(roots, "shadow"), []byte("root's"), 0o600))
	return roots, theirs
}

// Whatever the attacker puts in the place of a file or of a directory, root neither reads,
// writes, removes, gives away nor makes anything at its end.
func TestLinksLeadNowhere(t *testing.T) {
	u, uid := attacker(t)
	roots, theirs := homes(t, uid)
	secret := filepath.Join(roots, "shadow")
	link, dir := filepath.Join(theirs, "log"), filepath.Join(theirs, "data")
	must(t, u.Do(func() error { return errors.Join(os.Symlink(secret, link), os.Symlink(roots, dir)) }))
	must(t, os.Mkdir(filepath.Join(roots, "empty"), 0o755))
	for name, act := range map[string]func() error{
		"read": func() error { _, err := u.ReadFile(link); return err },
		"append": func() error {
			f, err := u.OpenFile(link, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o640)
			_ = f
			return err
		},
		"read below":     func() error { _, err := u.ReadFile(filepath.Join(dir, "shadow")); return err },
		"replace below":  func() error { return u.Replace(filepath.Join(dir, "shadow"), []byte("x"), 0o600) },
		"make below":     func() error { return u.Mkdir(filepath.Join(dir, "new"), 0o700) },
		"make all below": func() error { return u.MkdirAll(filepath.Join(dir, "new", "er"), 0o700) },
		"remove below":   func() error { return u.Remove(filepath.Join(dir, "shadow")) },
		"remove all":     func() error { return u.RemoveAll(filepath.Join(dir, "shadow")) },
		"rename out":     func() error { return u.Rename(filepath.Join(dir, "shadow"), filepath.Join(theirs, "mine")) },
		"rename in":      func() error { return u.Rename(link, filepath.Join(dir, "shadow")) },
		"own":            func() error { return u.OwnDirectory(filepath.Join(dir, "empty"), 0o700) },
		"own the end":    func() error { return u.OwnDirectory(dir, 0o700) },
	} {
		if err := act(); err == nil {
			t.Errorf("%s: done", name)
		}
	}
	// These do what they say, to what the attacker has.
	must(t, u.Give(link))
	must(t, u.Give(filepath.Join(dir, "shadow")))
	if err := u.Adopt(filepath.Join(dir, "shadow"), func([]byte) bool { return true }); err == nil {
		t.Error("adopted through a link")
	}
	f, err := u.AppendTo(link, 0o640)
	must(t, err)
	must(t, f.Close())
	must(t, u.Replace(filepath.Join(theirs, "conf"), []byte("x"), 0o600))
	for _, path := range []string{secret, roots, filepath.Join(roots, "empty")} {
		info, err := os.Stat(path)
		must(t, err)
		if info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s was given away", path)
		}
	}
	content, err := os.ReadFile(secret)
	must(t, err)
	entries, err := os.ReadDir(roots)
	must(t, err)
	if string(content) != "root's" || len(entries) != 2 {
		t.Errorf("root's directory has %v, the file says %q", entries, content)
	}
	for _, name := range []string{"conf", "log"} {
		info, err := os.Stat(filepath.Join(theirs, name))
		must(t, err)
		if int(info.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("%s is not its user's", name)
		}
	}
}

// An empty directory of root's becomes the user's where root has put it, also below a
// directory of the user's, and through root's own links; one with content does not.
func TestOwnDirectory(t *testing.T) {
	u, uid := attacker(t)
	roots, theirs := homes(t, uid)
	mounted, linked := filepath.Join(theirs, "mounted"), filepath.Join(theirs, "linked")
	must(t, os.MkdirAll(filepath.Join(mounted, "lost+found"), 0o755))
	must(t, os.Mkdir(filepath.Join(roots, "disk"), 0o755))
	must(t, os.Symlink(filepath.Join(roots, "disk"), linked))
	for _, dir := range []string{mounted, linked} {
		must(t, u.OwnDirectory(dir, 0o700))
		info, err := os.Stat(dir)
		must(t, err)
		if int(info.Sys().(*syscall.Stat_t).Uid) != uid || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v", dir, info)
		}
	}
	if err := u.OwnDirectory(roots, 0o700); err == nil {
		t.Error("a directory with content was given away")
	}
	// The user's own link to what is root's and empty.
	must(t, os.Mkdir(filepath.Join(roots, "spool"), 0o755))
	link := filepath.Join(theirs, "link")
	must(t, u.Do(func() error { return os.Symlink(filepath.Join(roots, "spool"), link) }))
	if err := u.OwnDirectory(link, 0o700); err == nil {
		t.Error("a directory of root's was given away through a link of the user's")
	}
	info, err := os.Stat(filepath.Join(roots, "spool"))
	must(t, err)
	if info.Sys().(*syscall.Stat_t).Uid != 0 || info.Mode().Perm() != 0o755 {
		t.Errorf("root's directory: %v", info)
	}
}

// Where only root can have put anything root's rights are used: a user has none there.
func TestRootsPlaces(t *testing.T) {
	u, uid := attacker(t)
	roots, theirs := homes(t, uid)
	path := filepath.Join(roots, "pgpass")
	must(t, u.Replace(path, []byte("x"), 0o600))
	info, err := os.Stat(path)
	must(t, err)
	if int(info.Sys().(*syscall.Stat_t).Uid) != uid {
		t.Error("the user cannot read what was written for it")
	}
	for path, want := range map[string]bool{
		path: true, filepath.Join(theirs, "x"): false, filepath.Join(theirs, "x", "y"): false, filepath.Join(os.TempDir(), "x"): false,
		filepath.Join(roots, "not", "there"): true,
	} {
		if got := u.rootHolds(path); got != want {
			t.Errorf("%s: root holds it %t, want %t", path, got, want)
		}
	}
	for path, want := range map[string]int{path: 0, filepath.Join(theirs, "x"): uid, filepath.Join(theirs, "x", "y"): uid} {
		if got, _ := Keeper(path).Other(); got != want {
			t.Errorf("%s is kept by %d, want %d", path, got, want)
		}
	}
	if holder, err := Holder(filepath.Join(theirs)); err != nil || int(holder) != uid {
		t.Errorf("%s is held by %d (%v)", theirs, holder, err)
	}
}

// A link says whose the directory is that it names as PostgreSQL's own.
func TestHolderOfALink(t *testing.T) {
	u, uid := attacker(t)
	roots, theirs := homes(t, uid)
	must(t, os.Mkdir(filepath.Join(roots, "others"), 0o755))
	must(t, os.Chown(filepath.Join(roots, "others"), 65534, -1))
	link := filepath.Join(theirs, "data")
	must(t, u.Do(func() error { return os.Symlink(filepath.Join(roots, "others"), link) }))
	if holder, err := Holder(link); err != nil || int(holder) != uid {
		t.Errorf("its holder is %d (%v): PostgreSQL would run as whomever a link chooses", holder, err)
	}
}

// A note that root has made in the user's directory becomes the user's; what else lies
// there does not.
func TestAdopt(t *testing.T) {
	u, uid := attacker(t)
	roots, theirs := homes(t, uid)
	all := func([]byte) bool { return true }
	note, second, private := filepath.Join(theirs, "note"), filepath.Join(theirs, "second"), filepath.Join(theirs, "private")
	for _, path := range []string{note, second, private} {
		must(t, os.WriteFile(path, []byte("{}"), 0o600))
	}
	must(t, os.Link(second, filepath.Join(roots, "other name")))
	must(t, u.Adopt(note, all))
	must(t, u.Adopt(second, all))
	must(t, u.Adopt(private, func([]byte) bool { return false }))
	for path, want := range map[string]int{note: uid, second: 0, private: 0} {
		info, err := os.Lstat(path)
		must(t, err)
		if got := int(info.Sys().(*syscall.Stat_t).Uid); got != want {
			t.Errorf("%s is user %d's, want %d", path, got, want)
		}
	}
	if err := u.Adopt(filepath.Join(theirs, "none"), all); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// The rights of one goroutine are not another's, and are root's again afterwards.
func TestRightsStayWhereTheyAre(t *testing.T) {
	u, uid := attacker(t)
	roots, _ := homes(t, uid)
	secret := filepath.Join(roots, "shadow")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				err := u.Do(func() error {
					inner := u.Do(func() error { return nil }) // within itself
					_, err := os.ReadFile(secret)
					return errors.Join(inner, err)
				})
				if !errors.Is(err, fs.ErrPermission) {
					t.Errorf("as the user: %v", err)
				}
			}
		})
		all.Go(func() {
			for range 200 {
				if _, err := os.ReadFile(secret); err != nil {
					t.Errorf("as root: %v", err)
				}
			}
		})
	}
	all.Wait()
}
