package fence

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

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

// Another user's process that may connect to the guard's socket is told nothing, and what
// it asks for is not done.
func TestAnotherUserDoesNotCommandTheGuard(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx, p := t.Context(), newInstance(t)
	pid := p.start(ctx, t)
	must(t, os.Chmod(p.dir, 0o755))
	must(t, os.Chmod(filepath.Join(p.dir, "guard.sock"), 0o777))
	ask := func(uid int) string {
		said := make(chan string, 1)
		go func() { // its thread ends with it, and with that user's rights
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				said <- errno.Error()
				return
			}
			conn, err := net.Dial("unix", filepath.Join(p.dir, "guard.sock"))
			if err != nil {
				said <- err.Error()
				return
			}
			defer conn.Close()
			request, err := json.Marshal(guardRequest{Op: "quit"})
			if err == nil {
				_, _ = conn.Write(append(request, '\n')) // it may have hung up already
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			said <- line
		}()
		return <-said
	}
	if said := ask(65534); said != "" {
		t.Errorf("another user was told %q", said)
	}
	if status, err := p.client.Recall(ctx); err != nil || status.Postmaster != pid {
		t.Errorf("the guard holds %d: %v", status.Postmaster, err)
	}
	if said := ask(0); !strings.HasPrefix(said, "{") {
		t.Errorf("root was told %q", said)
	}
}

// Guard and watcher outlive the agent: its tokens are not in their environment.
func TestGuardsEnvironmentHasNoTokens(t *testing.T) {
	ctx, p := t.Context(), newInstance(t)
	for _, name := range []string{"CONSUL_HTTP_TOKEN", "LICTOR_CONSUL_TOKEN", "PATRONI_SUPERUSER_PASSWORD", "VAULT_TOKEN", "AWS_SECRET_ACCESS_KEY", "ANYTHING"} {
		t.Setenv(name, "a-token")
	}
	p.start(ctx, t)
	guard := p.client.PID()
	watcher, alive := parentOf(guard)
	if guard == 0 || !alive {
		t.Fatalf("guard %d, watcher %d", guard, watcher)
	}
	for _, pid := range []int{guard, watcher} {
		environ, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		must(t, err)
		if text := string(environ); strings.Contains(text, "a-token") || !strings.Contains(text, "PATH=") {
			t.Errorf("process %d: %q", pid, text)
		}
	}
}
