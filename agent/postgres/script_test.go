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
	must(t, p.Callback(ctx, script+" 'one argument'", "on_role_change", "primary"))
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
	err := p.Callback(ctx, writeScript(t, dir, "bad", "echo out of order >&2; exit 3"), "on_start", "replica")
	if err == nil || !strings.Contains(err.Error(), "callbacks.on_start: exit status 3: out of order") {
		t.Errorf("a failure: %v", err)
	}
}

// A script that takes too long is ended with everything that it has started, also
// with what ignores SIGTERM; one that is called off is killed at once.
func TestStuckScript(t *testing.T) {
	dir := newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	for name, stop := range map[string]func(context.Context, context.CancelFunc, string) (context.Context, func()){
		"limit": func(ctx context.Context, _ context.CancelFunc, _ string) (context.Context, func()) {
			limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			return limited, func() { cancel() }
		},
		"called off": func(ctx context.Context, cancel context.CancelFunc, pidFile string) (context.Context, func()) {
			go func() {
				for ctx.Err() == nil {
					if content, err := os.ReadFile(pidFile); err == nil && strings.HasSuffix(string(content), "\n") {
						cancel()
					}
					time.Sleep(5 * time.Millisecond)
				}
			}()
			return ctx, cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			all := within(t)
			ctx, cancel := context.WithCancel(all)
			defer cancel()
			pidFile := filepath.Join(dir, "pid-"+strings.Fields(name)[0])
			script := writeScript(t, dir, "stuck-"+strings.Fields(name)[0],
				`sh -c 'trap "" TERM; echo $$ > `+pidFile+`; while :; do sleep 60; done' & trap "" TERM; wait; while :; do sleep 60; done`)
			limited, release := stop(ctx, cancel, pidFile)
			defer release()
			err := p.Callback(limited, script, "on_start", "replica")
			if err == nil || !strings.Contains(err.Error(), "callbacks.on_start: it was ended with all that it had started") {
				t.Fatalf("%v", err)
			}
			content, readErr := os.ReadFile(pidFile)
			if readErr != nil {
				return // it was ended before it had begun
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
			must(t, err)
			for syscall.Kill(pid, 0) == nil {
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
	must(t, p.Callback(ctx, script, "on_start", "replica"))
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
