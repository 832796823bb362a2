package fence

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A guard that ends before its answer is read has ended: none is started to be told.
func TestQuitStartsNoGuard(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "guard.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	go func() {
		defer close(asked)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(conn).ReadString('\n')
		listener.Close() // removes the socket
		conn.Close()
		asked <- line
	}()
	started := filepath.Join(dir, "started")
	c := NewGuardClient([]string{"touch", started}, GuardOptions{Socket: socket, DataDir: dir}, filepath.Join(dir, "log"))
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	if line := <-asked; !strings.Contains(line, `"op":"quit"`) {
		t.Errorf("asked %q", line)
	}
	if _, err := os.Stat(started); err == nil {
		t.Error("a guard was started")
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Errorf("where none runs: %v", err)
	}
}
