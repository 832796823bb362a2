package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRecord(t *testing.T) {
	const boot = `{"boot":"this"}` + "\n"
	tests := map[string]struct {
		content string
		want    leftovers
	}{
		"processes and namespaces": {
			content: boot + `{"pid":100,"start":7,"name":"h/agent"}` + "\n" + `{"netns":"lictor-ab-db1"}` + "\n",
			want:    leftovers{processes: map[int]uint64{100: 7}, netns: []string{"lictor-ab-db1"}},
		},
		"a line cut off by a crash": {
			content: boot + `{"pid":100,"start":7}` + "\n" + `{"pid":10`,
			want:    leftovers{processes: map[int]uint64{100: 7}},
		},
		"from before the last boot": {
			content: `{"boot":"that"}` + "\n" + `{"pid":100,"start":7}` + "\n",
			want:    leftovers{processes: map[int]uint64{}},
		},
		"no boot id":                   {content: `{"pid":100,"start":7}` + "\n", want: leftovers{processes: map[int]uint64{}}},
		"empty":                        {content: "", want: leftovers{processes: map[int]uint64{}}},
		"pid 1 is never ours":          {content: boot + `{"pid":1,"start":0}` + "\n", want: leftovers{processes: map[int]uint64{}}},
		"a namespace of somebody else": {content: boot + `{"netns":"vpn"}` + "\n", want: leftovers{processes: map[int]uint64{}}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := parseRecord([]byte(tc.content), "this")
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(leftovers{})); diff != "" {
				t.Errorf("leftovers (-want +got):\n%s", diff)
			}
		})
	}
}

// sleeper starts a process that lives until it is killed.
func sleeper(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func alive(pid int) bool {
	p, err := readProc(pid)
	return err == nil && !p.dead
}

// TestClean: what a lab left is killed, what only looks like it is not.
func TestClean(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, hostsDir, "db1")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	recorded := sleeper(t)
	marked := sleeper(t, hostMarker+"="+host)
	reused := sleeper(t)
	foreign := sleeper(t, hostMarker+"="+dir+"-other/hosts/db1")

	r, err := openRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	startOf := func(cmd *exec.Cmd) uint64 {
		p, err := readProc(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return p.start
	}
	for _, e := range []entry{
		{PID: recorded.Process.Pid, Start: startOf(recorded)},
		// The pid was ours once; its present owner started at another time.
		{PID: reused.Process.Pid, Start: startOf(reused) - 1},
	} {
		if err := r.add(e); err != nil {
			t.Fatal(err)
		}
	}

	if err := Clean(t.Context(), dir); err == nil {
		t.Fatal("the directory of a living lab was cleaned")
	}
	if !alive(recorded.Process.Pid) {
		t.Fatal("a living lab's process was killed")
	}
	if err := r.close(); err != nil { // the lab dies
		t.Fatal(err)
	}
	if err := Clean(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[*exec.Cmd]bool{recorded: false, marked: false, reused: true, foreign: true} {
		if got := alive(name.Process.Pid); got != want {
			t.Errorf("%v with %v: alive is %v, want %v", name.Args, name.Env[len(name.Env)-1], got, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("the directory holds %v, %v after cleaning", entries, err)
	}
}

func TestCleanLeavesOtherDirectoriesAlone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Clean(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if _, err := New(context.Background(), Options{Dir: dir, Programs: Programs{Consul: "/bin/true"}}); err == nil {
		t.Error("a lab was built in a directory that holds somebody's file")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
