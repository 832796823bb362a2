package postgres

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// writeScript makes a shell script that PostgreSQL's user may run.
func writeScript(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	testkit.WriteProgram(t, path, []byte("#!/bin/sh\n"+body+"\n"))
	return path
}

// awaitFile waits for a file with something in it and returns that.
func awaitFile(ctx context.Context, t *testing.T, path string) string {
	t.Helper()
	for ctx.Err() == nil {
		if content, err := os.ReadFile(path); err == nil && strings.HasSuffix(string(content), "\n") {
			return strings.TrimSpace(string(content))
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s was not written", path)
	return ""
}

func TestCallbackArguments(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	script := writeScript(t, dir, "cb", `printf '%s|' "$@" > "$0.said"; id -un >> "$0.said"; echo PATH=$PATH NS=$NOTIFY_SOCKET >> "$0.said"`)
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	must(t, p.Callback(ctx, time.Minute, script+" 'one argument'", "on_role_change", "primary"))
	lines := strings.Split(awaitFile(ctx, t, script+".said"), "\n")
	if !strings.HasPrefix(lines[0], "one argument|on_role_change|primary|"+p.scope+"|") {
		t.Errorf("arguments %s", lines[0])
	}
	if os.Geteuid() == 0 && !strings.HasSuffix(lines[0], "|postgres") {
		t.Errorf("it ran as somebody else than PostgreSQL: %s", lines[0])
	}
	if !strings.HasSuffix(lines[1], "NS=") {
		t.Errorf("it speaks to systemd: %s", lines[1])
	}
	err := p.Callback(ctx, time.Minute, writeScript(t, dir, "bad", "echo out of order >&2; exit 3"), "on_start", "replica")
	if err == nil || !strings.Contains(err.Error(), "callbacks.on_start: exit status 3: out of order") {
		t.Errorf("a failure: %v", err)
	}
}

// A script that takes too long is ended with everything that it has started, also
// with what ignores SIGTERM; one that is called off is killed at once, also when its
// time was over just before.
func TestStuckScript(t *testing.T) {
	dir := newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	for name, test := range map[string]struct {
		limit   time.Duration
		callOff string // when this file is there; empty: never
		want    []string
	}{
		"limit":                       {limit: 400 * time.Millisecond, want: []string{"it took more than"}},
		"called off":                  {limit: time.Hour, callOff: ".pid", want: []string{context.Canceled.Error()}},
		"called off within its grace": {limit: 400 * time.Millisecond, callOff: ".term", want: []string{"it took more than", context.Canceled.Error()}},
	} {
		t.Run(name, func(t *testing.T) {
			all := within(t)
			script := writeScript(t, dir, "stuck-"+strings.ReplaceAll(name, " ", "-"),
				`trap 'echo > "$0.term"' TERM; sh -c 'trap "" TERM; echo $$ > "$0"; while :; do sleep 60; done' "$0.pid" & while :; do wait; done`)
			// A busy machine may need longer than the limit to begin with the script, or
			// longer than its grace to call it off.
			for limit := test.limit; ; limit *= 2 {
				pid, err := callStuck(all, t, p, script, limit, test.callOff)
				if err == nil || !strings.Contains(err.Error(), "callbacks.on_start: ") {
					t.Fatalf("%v", err)
				}
				for pid != 0 && syscall.Kill(pid, 0) == nil {
					if all.Err() != nil {
						t.Fatalf("process %d, which the script has started, lives", pid)
					}
					time.Sleep(5 * time.Millisecond)
				}
				told := strings.Contains(err.Error(), "it was ended with all that it had started")
				for _, want := range test.want {
					told = told && strings.Contains(err.Error(), want)
				}
				if told && pid != 0 {
					return
				}
				if all.Err() != nil {
					t.Fatalf("%v", err)
				}
			}
		})
	}
}

// callStuck runs a script that writes two files, the process that it has started and
// that it got SIGTERM, and calls it off when callOff, one of these, is there.
func callStuck(all context.Context, t *testing.T, p *Instance, script string, limit time.Duration, callOff string) (pid int, err error) {
	t.Helper()
	for _, file := range []string{".pid", ".term"} {
		must(t, os.RemoveAll(script+file))
	}
	ctx, cancel := context.WithCancel(all)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.Callback(ctx, limit, script, "on_start", "replica") }()
	for waiting := true; waiting; {
		select {
		case err = <-ended:
			waiting = false
		case <-time.After(5 * time.Millisecond):
			if content, err := os.ReadFile(script + callOff); callOff != "" && err == nil && len(content) > 0 {
				cancel()
			}
		}
	}
	if content, err := os.ReadFile(script + ".pid"); err == nil && strings.HasSuffix(string(content), "\n") {
		pid, err = strconv.Atoi(strings.TrimSpace(string(content)))
		must(t, err)
	}
	return pid, err
}

// What a script leaves in the background neither holds it up nor is ended.
func TestScriptInTheBackground(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	script := writeScript(t, dir, "bg", `sleep 300 & echo $! > "$0.pid"`)
	must(t, p.Callback(ctx, time.Minute, script, "on_start", "replica"))
	pid, err := strconv.Atoi(awaitFile(ctx, t, script+".pid"))
	must(t, err)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the process in the background is gone: %v", err)
	}
}

func TestCallbackState(t *testing.T) {
	dir := newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	if told, err := p.RecallCallbackState(); err != nil || told != (CallbackState{}) {
		t.Fatalf("nothing was told: %+v, %v", told, err)
	}
	must(t, os.Mkdir(p.dataDir, 0o700))
	want := CallbackState{Role: "primary", Started: time.Date(2026, 11, 21, 1, 2, 3, 456789000, time.UTC)}
	must(t, p.KeepCallbackState(want))
	if told, err := p.RecallCallbackState(); err != nil || told.Role != want.Role || !told.Started.Equal(want.Started) {
		t.Errorf("kept %+v, recalled %+v, %v", want, told, err)
	}
	// Another directory in its place was told nothing.
	must(t, os.Remove(p.dataDir))
	must(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600)) // takes the inode, perhaps
	must(t, os.Mkdir(p.dataDir, 0o700))
	if told, err := p.RecallCallbackState(); err != nil || told != (CallbackState{}) {
		t.Errorf("of a new data directory: %+v, %v", told, err)
	}
}

// How far a program says it is: pgBackRest, rsync and pg_basebackup print it in different ways.
func TestPercentages(t *testing.T) {
	for _, test := range []struct {
		printed []string
		want    []float64
	}{
		{[]string{"P01 DETAIL: restore file /d/base/1/2 (8KB, 12.34%) checksum abc\n", "none\n", "(8KB, 99.9%) checksum\n"}, []float64{12.34, 99.9}},
		{[]string{"  1,024  45%    1.2MB/s\r  2,048  46%", "\n"}, []float64{46, 46}},
		{[]string{"120/240 kB (5", "0%), 0/1 tablespace"}, []float64{50}},
		{[]string{"150%", " %d of 100"}, nil},
	} {
		var told []float64
		w := &lastWords{percent: func(percent float64) { told = append(told, percent) }}
		for _, text := range test.printed {
			_, err := w.Write([]byte(text))
			must(t, err)
		}
		if !slices.Equal(told, test.want) {
			t.Errorf("%q: %v, want %v", test.printed, told, test.want)
		}
	}
}
