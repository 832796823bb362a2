package pooler

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Connections of a PgBouncer in another network namespace, with whom only the unix socket is shared, cannot be
// closed here: it is not said that they can.
func TestPgBouncerInAnotherNetwork(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip(err)
	}
	if os.Geteuid() != 0 || !canCloseSockets(t.Context()) {
		t.Skip("a network of its own needs root, and CAP_NET_ADMIN")
	}
	for _, other := range []bool{false, true} {
		dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "userlist.txt"), []byte(`"app" "app"`+"\n"), 0o644))
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "pgbouncer.ini"), []byte(fmt.Sprintf(
			"[pgbouncer]\nlisten_addr =\nlisten_port = %d\nunix_socket_dir = %s\nauth_type = md5\nauth_file = %s/userlist.txt\n", port, dir, dir)), 0o644))
		cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", filepath.Join(dir, "pgbouncer.ini")))
		if other {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
		}
		output := &bouncertest.Log{}
		cmd.Stdout, cmd.Stderr = output, output
		testkit.Must(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		testkit.Await(t.Context(), t, "PgBouncer", func() error {
			if !strings.Contains(output.String(), "process up") {
				return fmt.Errorf("it says %s", output)
			}
			return nil
		})
		c := Probed(t.Context(), config.Config{PgBouncer: config.PgBouncer{Admin: dir + ":" + strconv.Itoa(port), User: config.DefaultUser}})
		if can, known := c.Closing(); !known || can == other || (c.Setting("tcp_user_timeout") == "0") == other {
			t.Errorf("in another network %v: closing %v (%v), tcp_user_timeout %s", other, can, known, c.Setting("tcp_user_timeout"))
		}
	}
}
