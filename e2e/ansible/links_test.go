package ansible

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// TestLinksLeadNowhere: PostgreSQL's user puts links where root's tasks go by, in the directories
// that are its own. Root gives away, writes and reads nothing elsewhere.
func TestLinksLeadNowhere(t *testing.T) {
	t.Parallel()
	b := newBesieged(t)

	t.Run("the data directory", func(t *testing.T) {
		task := taskOf(t, "roles/agent/tasks/main.yml", "Make the data directory")
		dir := b.own(t, "postgresql")
		b.link(t, b.secretDir, filepath.Join(dir, "15"))
		out, err := runTasks(t, map[string]any{"lictor_data_dir": filepath.Join(dir, "15")}, task)
		b.unharmed(t)
		if err == nil || !strings.Contains(out, "it is another user's (0)") {
			t.Errorf("root's directory behind a link: %v %s", err, out)
		}
		for _, changed := range []string{"changed=1", "changed=0"} {
			if out, err = runTasks(t, map[string]any{"lictor_data_dir": filepath.Join(dir, "16")}, task); err != nil || !strings.Contains(out, changed) {
				t.Errorf("a directory of its own, want %s: %v %s", changed, err, out)
			}
		}
		if found, err := os.Stat(filepath.Join(dir, "16")); err != nil || owner(found) != b.uid || found.Mode().Perm() != 0o755 {
			t.Errorf("it is %v: %v", found, err)
		}
	})

	t.Run("in a directory of root's", func(t *testing.T) {
		dir, err := os.MkdirTemp("/run", "lictor-test-") // as /tmp is everybody's
		testkit.Must(t, err)
		t.Cleanup(func() { testkit.Must(t, os.RemoveAll(dir)) })
		testkit.Must(t, os.Chmod(dir, 0o755)) //nolint:gosec // as such directories are
		task := taskOf(t, "roles/pgbackrest/tasks/main.yml", "Make the directories of WAL and backups")
		out, err := runTasks(t, map[string]any{"lictor_backup_spool": filepath.Join(dir, "spool"), "lictor_backup_repository": "none", "lictor_backup_repository_host": "none"}, task)
		if found, err2 := os.Stat(filepath.Join(dir, "spool")); err != nil || err2 != nil || owner(found) != b.uid || found.Mode().Perm() != 0o750 {
			t.Errorf("%v: %v, %v: %s", found, err, err2, out)
		}
		// Root's own link, where nobody else could have made it.
		testkit.Must(t, os.Symlink(filepath.Join(dir, "spool"), filepath.Join(dir, "link")))
		out, err = runTasks(t, map[string]any{}, serviceFile(map[string]any{"path": filepath.Join(dir, "link"), "state": "directory", "mode": "0700"}))
		if found, err2 := os.Stat(filepath.Join(dir, "spool")); err != nil || err2 != nil || found.Mode().Perm() != 0o700 {
			t.Errorf("root's link: %v: %v, %v: %s", found, err, err2, out)
		}
	})

	t.Run("a file", func(t *testing.T) {
		dir := b.own(t, "pgbouncer")
		path := filepath.Join(dir, "userlist.txt")
		task := serviceFile(map[string]any{"path": path, "content": "\"app\" \"secret\"\n", "mode": "0640"})
		for _, changed := range []string{"changed=1", "changed=0"} {
			if out, err := runTasks(t, map[string]any{}, task); err != nil || !strings.Contains(out, changed) {
				t.Errorf("want %s: %v %s", changed, err, out)
			}
		}
		text, err := os.ReadFile(path)
		if found, err2 := os.Lstat(path); err != nil || err2 != nil || string(text) != "\"app\" \"secret\"\n" || owner(found) != b.uid || found.Mode().Perm() != 0o640 {
			t.Errorf("%v %q: %v, %v", found, text, err, err2)
		}
		testkit.Must(t, os.Remove(path))
		b.link(t, b.secret, path)
		if out, err := runTasks(t, map[string]any{}, task); err == nil || !strings.Contains(out, "Permission denied") {
			t.Errorf("root's file behind a link: %v %s", err, out)
		}
		b.unharmed(t)
	})

	t.Run("adoption", func(t *testing.T) {
		etc, data, kept := b.own(t, "main"), b.own(t, "data"), filepath.Join(b.secretDir, "kept")
		cluster, err := filepath.Rel("/var/lib/postgresql", data)
		testkit.Must(t, err)
		b.write(t, filepath.Join(data, "postgresql.auto.conf"), "# auto\n")
		b.write(t, filepath.Join(etc, "pg_hba.conf"), "# hba\n")
		start := filepath.Join(etc, "start.conf")
		b.link(t, b.secret, start)
		vars := map[string]any{
			"lictor_etc": etc, "lictor_cluster": cluster, "lictor_adopted_dir": kept, "lictor_scope": "orders",
			"lictor_found": map[string]any{"orders": map[string]any{"upstream": map[string]any{"slot": "two"}}},
		}
		keep := taskOf(t, "playbooks/tasks/adopt_member.yml", "Keep what was there, for the way back")
		disable := taskOf(t, "playbooks/tasks/adopt_member.yml", "Keep Debian's commands from starting it")
		out, err := runTasks(t, vars, keep, disable)
		b.unharmed(t)
		if err == nil || !strings.Contains(out, "Permission denied") {
			t.Errorf("root's file behind start.conf: %v %s", err, out)
		}
		for name, want := range map[string]string{"etc/pg_hba.conf": "# hba\n", "postgresql.auto.conf": "# auto\n", "slot": "two\n"} {
			path := filepath.Join(kept, "shards/orders", name)
			text, err := os.ReadFile(path)
			if found, err2 := os.Stat(path); err != nil || err2 != nil || string(text) != want || owner(found) != 0 || found.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s was kept as %v %q: %v, %v", name, found, text, err, err2)
			}
		}

		// Where an earlier version, or a person, has kept the link, its file goes nowhere; and
		// nothing is stopped before that is known.
		out, err = runTasks(t, map[string]any{}, map[string]any{"lictor_ha.lictor.give_back": map[string]any{
			"shard": "orders", "member": "db1", "unit": "lictor-test-none.service", "config_dir": etc, "data_dir": data, "bin_dir": "/nonexistent",
			"start_conf": filepath.Join(kept, "shards/orders/etc/start.conf"), "port": 1,
		}})
		if err == nil || !strings.Contains(out, "put the operator's start.conf there, no link") {
			t.Errorf("a link among what was kept: %v %s", err, out)
		}

		testkit.Must(t, os.Remove(start))
		b.write(t, start, "# Debian's words\nauto\n")
		for _, changed := range []string{"changed=1", "changed=0"} {
			if out, err := runTasks(t, vars, disable); err != nil || !strings.Contains(out, changed) {
				t.Errorf("want %s: %v %s", changed, err, out)
			}
		}
		text, err := os.ReadFile(start)
		if found, err2 := os.Stat(start); err != nil || err2 != nil || string(text) != "# Debian's words\ndisabled\n" || owner(found) != b.uid || found.Mode().Perm() != 0o644 {
			t.Errorf("start.conf is %v %q: %v, %v", found, text, err, err2)
		}
	})
}

// serviceFile is a task for a file or directory of PostgreSQL's user.
func serviceFile(args map[string]any) map[string]any {
	all := map[string]any{"owner": "postgres", "group": "postgres"}
	maps.Copy(all, args)
	return map[string]any{"lictor_ha.lictor.service_file": all}
}

// besieged is a host's directories, in some of which PostgreSQL's user has its way.
type besieged struct {
	dir, secretDir, secret string
	uid                    int
}

func newBesieged(t *testing.T) *besieged {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root's tasks need root")
	}
	u, err := user.Lookup("postgres")
	if _, err2 := exec.LookPath("ansible-playbook"); err != nil || err2 != nil {
		t.Skipf("make deps: %v", errors.Join(err, err2))
	}
	uid, err := strconv.Atoi(u.Uid)
	testkit.Must(t, err)
	dir, err := os.MkdirTemp("", "lictor-links-") // postgres comes through it
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, os.RemoveAll(dir)) })
	testkit.Must(t, os.Chmod(dir, 0o755)) //nolint:gosec // as such directories are
	b := &besieged{dir: dir, secretDir: filepath.Join(dir, "root"), uid: uid}
	b.secret = filepath.Join(b.secretDir, "secret")
	testkit.Must(t, os.Mkdir(b.secretDir, 0o700))
	testkit.Must(t, os.WriteFile(b.secret, []byte("root's\n"), 0o600))
	return b
}

// own makes a directory of PostgreSQL's user.
func (b *besieged) own(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(b.dir, name)
	testkit.Must(t, os.Mkdir(path, 0o755)) //nolint:gosec // as Debian has them
	testkit.Must(t, os.Chown(path, b.uid, -1))
	return path
}

func (b *besieged) link(t *testing.T, to, path string) {
	t.Helper()
	testkit.Must(t, os.Symlink(to, path))
	testkit.Must(t, os.Lchown(path, b.uid, -1))
}

func (b *besieged) write(t *testing.T, path, text string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o644)) //nolint:gosec // as Debian has them
	testkit.Must(t, os.Chown(path, b.uid, -1))
}

func (b *besieged) unharmed(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(b.secret)
	testkit.Must(t, err)
	if string(text) != "root's\n" {
		t.Errorf("root's file has become %q", text)
	}
	for path, mode := range map[string]os.FileMode{b.secretDir: 0o700, b.secret: 0o600} {
		found, err := os.Stat(path)
		testkit.Must(t, err)
		if owner(found) != 0 || found.Mode().Perm() != mode {
			t.Errorf("%s has become %d's, %v", path, owner(found), found.Mode())
		}
	}
}

func owner(i os.FileInfo) int { return int(i.Sys().(*syscall.Stat_t).Uid) }

// runTasks has Ansible do tasks on this machine; vars are stronger than all others.
func runTasks(t *testing.T, vars map[string]any, tasks ...map[string]any) (string, error) {
	t.Helper()
	play := map[string]any{"hosts": "localhost", "connection": "local", "gather_facts": false, "tasks": tasks}
	local := map[string]any{"all": map[string]any{"hosts": map[string]any{"localhost": map[string]any{"ansible_python_interpreter": "/usr/bin/python3"}}}}
	return runPlay(t, t.TempDir(), local, vars, play)
}

// runPlay has Ansible run a play, with what it needs in a directory.
func runPlay(t *testing.T, dir string, inventory, vars, play map[string]any) (string, error) {
	t.Helper()
	tree, err := collectionTree(filepath.Join(dir, "collections"))
	testkit.Must(t, err)
	write := func(name string, value any) string {
		text, err := json.Marshal(value)
		testkit.Must(t, err)
		path := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(path, text, 0o600))
		return path
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ansible-playbook", "-i", write("inventory.json", inventory), "-e", "@"+write("vars.json", vars), write("play.json", []any{play}))
	cmd.Env = ansibleEnvironment(tree, dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// taskOf is a task of the collection, by its name.
func taskOf(t *testing.T, file, name string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../ansible", file))
	testkit.Must(t, err)
	var tasks []map[string]any
	testkit.Must(t, yaml.Unmarshal(text, &tasks))
	for _, task := range tasks {
		if task["name"] == name {
			return task
		}
	}
	t.Fatalf("%s has no task %q", file, name)
	return nil
}

// Ansible's modules that write a file, or change what it is, by its name.
var byName = []string{"file", "copy", "template", "lineinfile", "blockinfile", "replace", "get_url", "unarchive", "assemble", "slurp"}

// Directories of services' users, as roles and playbooks name them.
var others = regexp.MustCompile(`/etc/postgresql/|/var/lib/postgresql|/etc/pgbouncer|lictor_(data_dir|etc|data|backup_path|backup_spool|backup_data_dir|backup_scratch)\b|consul_data_dir`)

// TestRootWritesInItsOwnDirectories: what belongs to another user, or is in its directory, is
// touched by the module service_file alone, or as that user.
func TestRootWritesInItsOwnDirectories(t *testing.T) {
	t.Parallel()
	seen := 0
	testkit.Must(t, filepath.WalkDir("../../ansible", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yml" || !strings.Contains(path, "/tasks/") && !strings.Contains(path, "/playbooks/") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var all any
		if err := yaml.Unmarshal(text, &all); err != nil {
			return err
		}
		eachTask(all, func(module string, task map[string]any) {
			seen++
			args, _ := task["ansible.builtin."+module].(map[string]any)
			where := ""
			for _, key := range []string{"path", "dest", "src"} {
				if at, ok := args[key].(string); ok && (key != "src" || module == "slurp") {
					where += at + " "
				}
			}
			owner, _ := args["owner"].(string)
			if others.MatchString(where) || owner != "" && owner != "root" {
				t.Errorf("%s: task %q: root's %s of %s(owner %q): use lictor_ha.lictor.service_file", path, task["name"], module, where, owner)
			}
		})
		return nil
	}))
	if seen < 30 {
		t.Errorf("only %d tasks were looked at", seen)
	}
}

// eachTask calls do for all tasks that use such a module, in blocks, too.
func eachTask(node any, do func(module string, task map[string]any)) {
	switch n := node.(type) {
	case []any:
		for _, one := range n {
			eachTask(one, do)
		}
	case map[string]any:
		for key, value := range n {
			if module, ok := strings.CutPrefix(key, "ansible.builtin."); ok && slices.Contains(byName, module) {
				do(module, n)
			}
			eachTask(value, do)
		}
	}
}
