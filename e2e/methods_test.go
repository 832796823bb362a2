package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// A shard that is made, and cloned, by the operator's own scripts: a backup tool's,
// in their place.
const (
	makeScript = `#!/bin/sh
echo "make $*" >> "$1/methods"
for a in "$@"; do case $a in --datadir=*) d=${a#*=};; esac; done
exec initdb --auth=peer --username=postgres --data-checksums --no-instructions -D "$d"
`
	copyScript = `#!/bin/sh
echo "copy $*" >> "$1/methods"
for a in "$@"; do case $a in --datadir=*) d=${a#*=};; --connstring=*) c=${a#*=};; esac; done
exec pg_basebackup --no-password --wal-method=stream --checkpoint=fast -D "$d" -d "$c"
`
)

func TestCustomMethods(t *testing.T) {
	scripts := t.TempDir()
	letIn(t, scripts)
	for name, content := range map[string]string{"make": makeScript, "copy": copyScript} {
		must(t, os.WriteFile(filepath.Join(scripts, name), []byte(content), 0o755)) //nolint:gosec // another user runs it
	}
	l := labtest.New(t, lab.Options{
		Members: 2, Bouncers: -1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(m *lab.Member, config map[string]any) {
			bootstrap := config["bootstrap"].(map[string]any)
			bootstrap["method"] = "restore"
			bootstrap["restore"] = map[string]any{"command": filepath.Join(scripts, "make") + " " + m.Dir, "stanza": "main"}
			postgres := config["postgresql"].(map[string]any)
			postgres["create_replica_methods"] = []string{"absent", "copy", "basebackup"}
			postgres["absent"] = map[string]any{"command": "/bin/false"}
			postgres["copy"] = map[string]any{"command": filepath.Join(scripts, "copy") + " " + m.Dir, "stanza": "main"}
		}},
	})
	ctx := within(t)
	must(t, l.Start(ctx))
	s := l.Shard(0)
	leader := got(s.AwaitHealthy(ctx))(t)
	must(t, s.AwaitSync(ctx))
	replica := got(s.Replicas(ctx))(t)[0]
	calls := func(m *lab.Member) []string {
		content := got(os.ReadFile(filepath.Join(m.Dir, "methods")))(t)
		return strings.Split(strings.TrimSpace(string(content)), "\n")
	}
	want := []string{fmt.Sprintf("make %s --datadir=%s --scope=%s --stanza=main", leader.Dir, leader.DataDir, s.Name)}
	if have := calls(leader); !slices.Equal(have, want) {
		t.Errorf("the shard was made by %q, want %q", have, want)
	}
	have := calls(replica)
	if len(have) != 1 || !strings.HasPrefix(have[0], "copy "+replica.Dir+" --connstring=host=") || strings.Contains(have[0], l.Secrets.Replication) {
		t.Errorf("the replica was made by %q", have)
	}

	t.Run("reinit uses the method, too", func(t *testing.T) {
		ctx := within(t)
		status, answer, err := replica.Post(ctx, "/reinitialize", map[string]any{})
		if must(t, err); status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
		await(ctx, t, "the second copy", func() error {
			if n := len(calls(replica)); n != 2 {
				return fmt.Errorf("%d calls", n)
			}
			return nil
		})
		got(s.AwaitHealthy(ctx))(t)
	})
}

// letIn lets PostgreSQL's user reach a test's directory.
func letIn(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if info := got(os.Stat(d))(t); info.Mode().Perm()&1 == 0 {
			must(t, os.Chmod(d, info.Mode().Perm()|0o055))
		}
	}
}
