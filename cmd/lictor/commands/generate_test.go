package commands

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// Root has a file written where another user has put a link to a directory of root's.
func TestWriteNewThroughALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const nobody = 65534
	dir := t.TempDir()
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		testkit.Must(t, os.Chmod(at, 0o755))
	}
	roots, link := filepath.Join(dir, "roots"), filepath.Join(dir, "theirs", "link")
	testkit.Must(t, os.Mkdir(roots, 0o755))
	testkit.Must(t, os.Mkdir(filepath.Dir(link), 0o755))
	testkit.Must(t, os.Symlink(roots, link))
	testkit.Must(t, os.Lchown(link, nobody, nobody))
	testkit.Must(t, os.Chown(filepath.Dir(link), nobody, nobody))
	err := writeNew(nil, []string{filepath.Join(link, "db.yml")}, []byte("x"))
	if left, _ := os.ReadDir(roots); !errors.Is(err, fs.ErrPermission) || len(left) > 0 {
		t.Errorf("root's directory has %v: %v", left, err)
	}
	for _, path := range []string{filepath.Join(roots, "db.yml"), filepath.Join(filepath.Dir(link), "db.yml")} {
		testkit.Must(t, writeNew(nil, []string{path}, []byte("x")))
		if err := writeNew(nil, []string{path}, []byte("y")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s is there: %v", path, err)
		}
		if content, err := os.ReadFile(path); err != nil || string(content) != "x" {
			t.Errorf("%q, %v", content, err)
		}
	}
}
