package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A method that keeps data (pgBackRest's --delta, rsync) is broken off half-way: what is
// there is no data directory, whatever it looks like, until a method has ended.
func TestKeptDataOfAMethodThatBreaksOff(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a := newInstance(t, settings(t, dir, "a"))
	id := bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, a, "CREATE TABLE public.kept AS SELECT 42 AS answer")
	up := upstream(a)

	began, full := filepath.Join(dir, "began"), filepath.Join(dir, "full")
	copyAll := binDir(t) + `/pg_basebackup -w -D "$d.new" -X stream -c fast -d "$c" && rm -rf "$d"/* && cp -a "$d.new/." "$d" && rm -rf "$d.new"`
	writeScript(t, dir, "delta", getDatadir+`
[ -e "$d/PG_VERSION" ] && echo "found $(cat "$d/found" 2>/dev/null)" >> "`+full+`"
case "$(cat "`+dir+`/mode")" in
fail) echo > "$d/found"; echo "no repository" >&2; exit 56;;
hang) echo half > "$d/found"; rm -rf "$d/base"; echo > "`+began+`"; exec sleep 1000;;
esac
`+copyAll)
	mode := func(m string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, "mode"), []byte(m), 0o644)) //nolint:gosec // PostgreSQL's user reads it
	}
	found := func() string {
		content, err := os.ReadFile(full)
		if err != nil {
			return ""
		}
		must(t, os.Remove(full))
		return strings.TrimSpace(string(content))
	}
	configured := func(name string, methods ...string) *Instance {
		s := settings(t, dir, name)
		s.Postgres.CreateReplica = methods
		s.Postgres.Methods = map[string]any{"delta": map[string]any{"command": filepath.Join(dir, "delta"), "keep_data": true}}
		keepSlots(ctx, t, a, name)
		return newInstance(t, s)
	}
	b := configured("b", "delta")
	mode("copy")
	must(t, b.MakeReplica(ctx, &up, id, nil))
	if got := found(); got != "" {
		t.Errorf("into the empty directory: %s", got)
	}
	follow(ctx, t, b, a)
	must(t, b.Stop(ctx, Fast))
	unusable := func(t *testing.T, p *Instance) {
		t.Helper()
		d, err := p.DataDir(ctx)
		if err != nil || d.State != Incomplete || !d.Clone {
			t.Errorf("%+v %v", d, err)
		}
		if p.Loss() == nil {
			t.Error("nothing says that what it had acknowledged may be gone")
		}
		if err := p.Start(ctx, StartAs{Role: Replica, Upstream: &up}); err == nil {
			t.Error("it was started")
			must(t, p.Kill(ctx))
		}
	}

	t.Run("it fails: what is there stays, and serves the next try", func(t *testing.T) {
		mode("fail")
		must(t, b.RemoveForReinit(ctx, allowed(t, b)))
		unusable(t, b)
		for range 2 {
			if err := b.MakeReplica(ctx, &up, id, nil); err == nil || !strings.Contains(err.Error(), "no repository") {
				t.Fatalf("%v", err)
			}
			unusable(t, b)
		}
		if got := found(); got != "found \nfound" && got != "found\nfound" {
			t.Errorf("the tries found %q", got)
		}
		t.Run("asked for again", func(t *testing.T) {
			must(t, b.RemoveForReinit(ctx, allowed(t, b)))
			unusable(t, b)
		})
		mode("copy")
		must(t, b.MakeReplica(ctx, &up, id, nil))
		found()
		follow(ctx, t, b, a)
		must(t, b.Stop(ctx, Fast))
	})

	t.Run("its agent is killed", func(t *testing.T) {
		mode("hang")
		must(t, b.RemoveForReinit(ctx, allowed(t, b)))
		// The agent that is killed: its method is left behind.
		orphan := exec.Command("sh", filepath.Join(dir, "delta"), "--datadir="+b.dataDir)
		orphan.Env = append(os.Environ(), methodMark+"="+b.dataDir)
		orphan.SysProcAttr = &syscall.SysProcAttr{Credential: b.credential}
		must(t, orphan.Start())
		awaitFile(ctx, t, began)
		next := configured("b", "delta")
		unusable(t, next)
		mode("copy")
		must(t, next.MakeReplica(ctx, &up, id, nil))
		if err := orphan.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the method of the agent before: %v", err)
		}
		if got := found(); !strings.Contains(got, "found half") {
			t.Errorf("the second try found %q", got)
		}
		follow(ctx, t, next, a)
		must(t, next.Stop(ctx, Fast))
		b = next
	})

	t.Run("it is called off", func(t *testing.T) {
		must(t, os.Remove(began))
		mode("hang")
		must(t, b.RemoveForReinit(ctx, allowed(t, b)))
		limited, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- b.MakeReplica(limited, &up, id, nil) }()
		awaitFile(ctx, t, began)
		cancel()
		if err := <-ended; err == nil {
			t.Error("it was called off and succeeded")
		}
		unusable(t, b)
	})

	t.Run("the next method begins with an empty directory", func(t *testing.T) {
		found()
		mode("fail")
		local := *b.local.Load()
		local.CreateReplica = []string{"delta", "basebackup"}
		b.Reconfigure(local)
		must(t, b.MakeReplica(ctx, &up, id, nil))
		if has(t, b, "found") {
			t.Error("what the method has left is in the data directory")
		}
		follow(ctx, t, b, a)
		must(t, b.Stop(ctx, Fast))
	})

	t.Run("another cluster's data", func(t *testing.T) {
		other := newInstance(t, settings(t, dir, "other"))
		bootstrapped(ctx, t, other)
		for how, exit := range map[string]int{"with success": 0, "and fails": 1} {
			t.Run(how, func(t *testing.T) {
				local := *b.local.Load()
				local.CreateReplica = []string{"foreign"}
				local.Methods = map[string]any{"foreign": map[string]any{"keep_data": true, "command": writeScript(t, dir, fmt.Sprintf("foreign%d", exit),
					getDatadir+fmt.Sprintf(`rm -rf "$d"/*; cp -a "%s/." "$d"; exit %d`, other.dataDir, exit))}}
				b.Reconfigure(local)
				if d, err := b.DataDir(ctx); err != nil || d.State != Empty {
					must(t, b.RemoveForReinit(ctx, allowed(t, b)))
				}
				if err := b.MakeReplica(ctx, &up, id, nil); err == nil {
					t.Error("it was taken")
				}
				if d, err := b.DataDir(ctx); err != nil || d.State != Empty {
					t.Errorf("%+v %v", d, err)
				}
			})
		}
	})
}
