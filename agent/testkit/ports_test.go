package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Processes that ask at the same time, as packages' tests do, get other ports: a server listens
// on its port some time after it has asked, and not while it is started again.
func TestFreePortsOfProcesses(t *testing.T) {
	if os.Getenv("TESTKIT_PORTS") != "" {
		free, err := FreePorts(300)
		Must(t, err)
		fmt.Println("ports:", free)
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the other one has asked, too
		return
	}
	seen := map[string]bool{}
	var wait []func() error
	for range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFreePortsOfProcesses$", "-test.v")
		cmd.Env = append(os.Environ(), "TESTKIT_PORTS=1")
		in, err := cmd.StdinPipe()
		Must(t, err)
		out, err := cmd.StdoutPipe()
		Must(t, err)
		Must(t, cmd.Start())
		wait = append(wait, func() error { _ = in.Close(); return cmd.Wait() })
		var line strings.Builder
		for !strings.Contains(line.String(), "]") {
			text := make([]byte, 4096)
			n, err := out.Read(text)
			Must(t, err)
			line.Write(text[:n])
		}
		_, list, _ := strings.Cut(line.String(), "ports: [")
		list, _, _ = strings.Cut(list, "]")
		for _, port := range strings.Fields(list) {
			if seen[port] {
				t.Errorf("two processes were given port %s", port)
			}
			seen[port] = true
		}
	}
	for _, end := range wait {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	if len(seen) != 8*300 {
		t.Errorf("%d ports", len(seen))
	}
}
