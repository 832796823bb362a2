package postgres

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writeScript makes a shell script that PostgreSQL's user may run.
func writeScript(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755)) //nolint:gosec // it is run by another user
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
		limit  time.Duration
		cancel bool
	}{
		"limit": {400 * time.Millisecond, false}, "called off": {time.Hour, true}, "called off within its grace": {time.Nanosecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			all := within(t)
			ctx, cancel := context.WithCancel(all)
			defer cancel()
			name := strings.ReplaceAll(name, " ", "-")
			pidFile := filepath.Join(dir, "pid-"+name)
			script := writeScript(t, dir, "stuck-"+name,
				`trap "" TERM; sh -c 'trap "" TERM; echo $$ > `+pidFile+`; while :; do sleep 60; done' & wait; while :; do sleep 60; done`)
			ended := make(chan error, 1)
			go func() { ended <- p.Callback(ctx, test.limit, script, "on_start", "replica") }()
			pid := 0
			if test.limit != time.Nanosecond { // else it may be ended before it has begun
				var err error
				pid, err = strconv.Atoi(awaitFile(all, t, pidFile))
				must(t, err)
			}
			if test.cancel {
				cancel()
			}
			if err := <-ended; err == nil || pid != 0 && !strings.Contains(err.Error(), "callbacks.on_start: it was ended with all that it had started") {
				t.Fatalf("%v", err)
			}
			for pid != 0 && syscall.Kill(pid, 0) == nil {
				if all.Err() != nil {
					t.Fatalf("process %d, which the script has started, lives", pid)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}

// What a script leaves in the background neither holds it up nor is ended.
func TestScriptInTheBackground(t *testing.T) {
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

func TestTold(t *testing.T) {
	dir := newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	if told, err := p.RecallTold(); err != nil || told != (Told{}) {
		t.Fatalf("nothing was told: %+v, %v", told, err)
	}
	must(t, os.Mkdir(p.dataDir, 0o700))
	want := Told{Role: "primary", Started: time.Date(2026, 11, 21, 1, 2, 3, 456789000, time.UTC)}
	must(t, p.KeepTold(want))
	if told, err := p.RecallTold(); err != nil || told.Role != want.Role || !told.Started.Equal(want.Started) {
		t.Errorf("kept %+v, recalled %+v, %v", want, told, err)
	}
	// Another directory in its place was told nothing.
	must(t, os.Remove(p.dataDir))
	must(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600)) // takes the inode, perhaps
	must(t, os.Mkdir(p.dataDir, 0o700))
	if told, err := p.RecallTold(); err != nil || told != (Told{}) {
		t.Errorf("of a new data directory: %+v, %v", told, err)
	}
}
