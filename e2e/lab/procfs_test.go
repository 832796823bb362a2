package lab

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	fields := func(state, ppid string) string {
		// Fields 3 to 22 of proc(5), the start time last.
		return strings.Join([]string{state, ppid, "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "777"}, " ")
	}
	tests := map[string]struct {
		stat string
		want proc
		fail bool
	}{
		"plain":                     {stat: "12 (sleep) " + fields("S", "3"), want: proc{pid: 12, ppid: 3, start: 777, comm: "sleep"}},
		"name with parentheses":     {stat: "12 (a) R 9 (b)) " + fields("S", "3"), want: proc{pid: 12, ppid: 3, start: 777, comm: "a) R 9 (b)"}},
		"zombie":                    {stat: "12 (x) " + fields("Z", "3"), want: proc{pid: 12, ppid: 3, start: 777, comm: "x", dead: true}},
		"cut off":                   {stat: "12 (x) S 3", fail: true},
		"no name":                   {stat: "12 S 3", fail: true},
		"parent is not a number":    {stat: "12 (x) " + fields("S", "x"), fail: true},
		"parentheses the other way": {stat: "12 )x( " + fields("S", "3"), fail: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseStat(12, []byte(tc.stat))
			if (err != nil) != tc.fail {
				t.Fatalf("error %v", err)
			}
			if !tc.fail && got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestSelectorTakesDescendants: a child belongs to a host though it has lost
// the marker; a shell that merely stands in the directory does not.
func TestSelectorTakesDescendants(t *testing.T) {
	dir := t.TempDir()
	parent := exec.Command("sh", "-c", "env -u "+hostMarker+" setsid sleep 600 & echo $!; wait")
	parent.Env = append(os.Environ(), hostMarker+"="+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = parent.Wait() })
	line := make([]byte, 32)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatal(err)
	}
	bystander := exec.Command("sleep", "600")
	bystander.Dir = dir
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	})

	s := selector{dir: dir, exact: true}
	c, err := halt(s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	var pids []int
	for _, h := range c {
		pids = append(pids, h.pid)
	}
	if !slices.Contains(pids, parent.Process.Pid) || !slices.Contains(pids, child) {
		t.Errorf("halted %v, want %d and its child %d", pids, parent.Process.Pid, child)
	}
	if slices.Contains(pids, bystander.Process.Pid) {
		t.Error("a bystander was halted")
	}
	if err := c.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	if alive(child) {
		t.Error("the child lives")
	}
}

func TestEnvironValue(t *testing.T) {
	environ := []byte("A=1\x00" + hostMarker + "X=no\x00" + hostMarker + "=/lab/hosts/a\x00")
	if value, found := environValue(environ, hostMarker); !found || value != "/lab/hosts/a" {
		t.Errorf("%q, %v", value, found)
	}
	if _, found := environValue(nil, hostMarker); found {
		t.Error("found in nothing")
	}
}

func TestWithin(t *testing.T) {
	for path, want := range map[string]bool{"/a/b": true, "/a/b/c": true, "/a/bc": false, "/a": false, "": false} {
		if within("/a/b", path) != want {
			t.Errorf("within(/a/b, %q) is %v", path, !want)
		}
	}
}
