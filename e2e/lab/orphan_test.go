package lab_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// doomedDir, in the environment, makes TestDoomedLab the program that
// TestLabThatIsKilled kills.
const doomedDir = "LAB_TEST_DOOMED_DIR"

// TestDoomedLab is no test of its own: it builds a lab, says the pid of its
// Consul server, and waits for its end.
func TestDoomedLab(t *testing.T) {
	dir := os.Getenv(doomedDir)
	if dir == "" {
		t.Skip("runs only as a child of TestLabThatIsKilled")
	}
	ctx := context.Background()
	l, err := lab.New(ctx, lab.Options{Dir: dir, Database: idle{}, Bouncers: -1, ConsulServers: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StartConsul(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stdout.WriteString("pid " + strconv.Itoa(l.ConsulServers()[0].Process("consul").PID()) + "\n"); err != nil {
		t.Fatal(err)
	}
	select {}
}

// TestLabThatIsKilled: when the lab's own process is killed, what it started
// dies with it, and the next lab in the same directory removes the rest.
func TestLabThatIsKilled(t *testing.T) {
	ctx := timeout(t, time.Minute)
	dir, err := os.MkdirTemp("", "lictor-lab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Clean(context.Background(), dir); err != nil {
			t.Error(err)
		}
		_ = os.Remove(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestDoomedLab$")
	child.Env = append(os.Environ(), doomedDir+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if text, found := strings.CutPrefix(lines.Text(), "pid "); found {
			if pid, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pid == 0 {
		t.Fatalf("the child built no lab: %v", child.Wait())
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 10_000); err != nil || n != 1 {
		t.Fatalf("Consul lives 10 s after its lab was killed: %d, %v", n, err)
	}

	if err := lab.Clean(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the directory holds %v, %v after cleaning", entries, err)
	}
}
