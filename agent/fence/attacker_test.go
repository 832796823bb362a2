package fence

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// PostgreSQL's user has put links to root's files in the place of the logs and of the
// watchdog's note: a guard that is root's writes nothing through them.
func TestLogsThroughLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx, p := t.Context(), newInstance(t)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("root's"), 0o600))
	must(t, os.Chmod(p.dir, 0o755))
	must(t, os.Chown(p.dir, int(p.credential.Uid), int(p.credential.Gid)))
	user := osuser.As(p.credential)
	for _, name := range []string{"log", "guard.log", "mark", "guard.sock"} {
		must(t, user.Do(func() error { return os.Symlink(secret, filepath.Join(p.dir, name)) }))
	}
	p.client.Files = user
	p.start(ctx, t)
	_ = writeMark(user, filepath.Join(p.dir, "mark"), resetMark{BootID: "x"})
	info, err := os.Stat(secret)
	must(t, err)
	if content, err := os.ReadFile(secret); err != nil || string(content) != "root's" || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("root's file says %q (%v)", content, err)
	}
}
