package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// backupFiles is one way to have backups, and what the files for it must have.
type backupFiles struct {
	host  string
	vars  map[string]any
	needs string // an option that an older pgBackRest does not have
	has   []string
	not   []string
}

// renderBackups renders, in one run of Ansible, what the role pgbackrest installs on a host of a
// site of two shards: pgBackRest's configuration, the flags of the timers, the timers. Each
// way gets a directory of its own.
func renderBackups(t *testing.T, ways map[string]backupFiles) (dirs map[string]string) {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	dir := t.TempDir()
	tree, err := collectionTree(filepath.Join(dir, "collections"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, content any) string {
		path := filepath.Join(dir, name)
		text, err := json.Marshal(content)
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	hosts := map[string]any{}
	for i, name := range []string{"db1", "db2", "db3"} {
		hosts[name] = map[string]any{"ansible_host": fmt.Sprintf("10.0.0.%d", 11+i)}
	}
	inventory := write("inventory.json", map[string]any{
		"lictor_databases":  map[string]any{"hosts": hosts},
		"lictor_repository": map[string]any{"hosts": map[string]any{"keep": map[string]any{"ansible_host": "keep.example.org"}}},
	})
	role := filepath.Join(tree, "ansible_collections", "lictor_ha", "lictor", "roles")
	dirs = map[string]string{}
	var plays []any
	for name, way := range ways {
		to := filepath.Join(dir, fmt.Sprint(len(plays)))
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		dirs[name] = to
		template := func(name, to string, more map[string]any) map[string]any {
			task := map[string]any{"ansible.builtin.template": map[string]any{"src": filepath.Join(role, "pgbackrest", "templates", name), "dest": to, "mode": "0644"}}
			maps.Copy(task, more)
			return task
		}
		vars := map[string]any{
			"ansible_connection": "local",
			"lictor_shards":      map[string]any{"orders": shard(5432, 8008, "db1", "db2", "db3"), "users": shard(5433, 8018, "db3", "db1")},
		}
		maps.Copy(vars, way.vars)
		plays = append(plays, map[string]any{
			"hosts": way.host, "gather_facts": false,
			"vars_files": []string{
				filepath.Join(role, "common/defaults/main.yml"), filepath.Join(role, "pgbackrest/defaults/main.yml"),
				write(filepath.Base(to)+".json", vars),
			},
			"tasks": []any{
				template("pgbackrest.conf.j2", filepath.Join(to, "pgbackrest.conf"), nil),
				template("flags.j2", filepath.Join(to, "{{ scope }}.conf"), map[string]any{"loop": "{{ lictor_backup_shards.keys() | list }}", "loop_control": map[string]string{"loop_var": "scope"}}),
				template("lictor-backup.timer.j2", filepath.Join(to, "{{ item.1 }}-{{ item.0 }}.timer"), map[string]any{
					"loop": "{{ lictor_shards.keys() | product(lictor_backup_types) | list }}", "vars": map[string]string{"scope": "{{ item.0 }}", "type": "{{ item.1 }}"},
				}),
				template("verify.j2", filepath.Join(to, "{{ scope }}.verify.conf"), map[string]any{"loop": "{{ lictor_shards_here | map(attribute='key') | list }}", "loop_control": map[string]string{"loop_var": "scope"}}),
				template("lictor-verify.timer.j2", filepath.Join(to, "verify-{{ scope }}.timer"), map[string]any{"loop": "{{ lictor_shards.keys() | list }}", "loop_control": map[string]string{"loop_var": "scope"}}),
			},
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ansible-playbook", "-i", inventory, write("play.json", plays))
	cmd.Env = ansibleEnvironment(tree, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dirs
}

// checkVerifications has lictor read what its timers on a member's host say.
func checkVerifications(t *testing.T, dir, want string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.verify.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if want == "" {
		if len(files) > 0 {
			t.Errorf("a host that has no member verifies: %v", files)
		}
		return
	}
	if len(files) == 0 {
		t.Error("no backup is verified")
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, flags, _ := strings.Cut(string(text), "LICTOR_VERIFY=")
		if !strings.Contains(flags, want) || !strings.HasPrefix(flags, "--as db") {
			t.Errorf("%s has not %q: %s", file, want, flags)
		}
		if lictor := os.Getenv("LICTOR_BIN"); lictor != "" {
			out, err := output(t.Context(), commandTimeout, lictor, append(append([]string{"backup", "verify", "--stanza", "orders"}, strings.Fields(flags)...), "--help")...)
			if err != nil || !strings.Contains(out, "--note") {
				t.Errorf("%s: %v: %s", flags, err, out)
			}
		}
	}
}

// TestBackupFiles: pgBackRest understands each configuration that the role makes, and systemd
// each timer. Where a repository is in a bucket or on an SFTP server this is all that is tried.
func TestBackupFiles(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("pgbackrest")
	if err != nil {
		t.Skip("pgbackrest is not installed: make deps")
	}
	ways := map[string]backupFiles{
		"the repository's host": {
			host: "keep", has: []string{
				"[users]\nrepo1-cipher-pass=", "[orders]\nrepo1-cipher-pass=", "repo1-cipher-type=aes-256-cbc\n", "repo1-retention-full=2", "pg1-host=db1", "pg3-host=db3", "pg3-path=/var/lib/postgresql/15/orders",
				"tls-server-auth=db2.lictor=orders\n", "tls-server-auth=db3.lictor=orders,users\n",
			},
			not: []string{"archive-async", "repo1-host"},
		},
		"a member with a repository's host": {
			host: "db3", has: []string{"repo1-host=keep.example.org", "archive-async=y", "[users]\npg1-path=/var/lib/postgresql/15/users\n", "tls-server-auth=keep.lictor=orders,users"},
			not: []string{"cipher", "pg2-", "retention", "tls-server-auth=db"},
		},
		"a mounted directory": {
			host: "db2", vars: map[string]any{"lictor_backup_repository": "posix", "lictor_backup_options": map[string]any{"process-max": 7}},
			has: []string{"[orders]\nrepo1-cipher-pass=", "pg2-host=db1", "pg3-host=db3", "process-max=7\n", "[orders]", "tls-server-auth=db1.lictor=orders\n"}, not: []string{"[users]", "repo1-type", "tls-server-auth=keep"},
		},
		"SFTP": {
			host: "db1", needs: "repo-sftp-host", vars: map[string]any{
				"lictor_backup_repository": "sftp",
				"lictor_backup_sftp":       map[string]any{"host": "files.example.org", "user": "backup", "private_key": "/etc/pgbackrest/id_ed25519", "host_fingerprint": strings.Repeat("a1", 32), "hash": "sha256"},
			},
			has: []string{"repo1-type=sftp", "repo1-sftp-host=files.example.org"},
		},
		"S3": {
			host: "db1", vars: map[string]any{
				"lictor_backup_repository": "s3",
				"lictor_backup_s3":         map[string]any{"endpoint": "s3.example.org", "bucket": "backups", "region": "eu-1", "key_type": "shared", "key": "k", "key_secret": "s"},
			},
			has: []string{"repo1-type=s3", "repo1-s3-key-secret=s"},
		},
		"S3 with the instance's role": {
			host: "db1", vars: map[string]any{
				"lictor_backup_repository": "s3", "lictor_backup_encrypt": false,
				"lictor_backup_s3": map[string]any{"endpoint": "s3.example.org", "bucket": "backups", "region": "eu-1", "key_type": "auto"},
			},
			has: []string{"repo1-s3-key-type=auto"}, not: []string{"repo1-s3-key=", "cipher"},
		},
	}
	older := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(older, "backup_cipher"), []byte("of-all-shards\n"), 0o600))
	ways["a site that an earlier version set up"] = backupFiles{
		host: "keep", vars: map[string]any{"lictor_secrets_dir": older}, has: []string{"repo1-cipher-pass=of-all-shards\n"},
	}
	dirs := renderBackups(t, ways)
	for name, test := range ways {
		t.Run(name, func(t *testing.T) {
			dir := dirs[name]
			text, err := os.ReadFile(filepath.Join(dir, "pgbackrest.conf"))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range test.has {
				if !strings.Contains(string(text), want) {
					t.Errorf("%q is missing in\n%s", want, text)
				}
			}
			for _, no := range test.not {
				if strings.Contains(string(text), no) {
					t.Errorf("%q is in\n%s", no, text)
				}
			}
			passes := regexp.MustCompile(`(?m)^repo1-cipher-pass=.*$`).FindAllString(string(text), -1)
			if slices.Sort(passes); len(slices.Compact(slices.Clone(passes))) != len(passes) {
				t.Errorf("shards share a passphrase:\n%s", text)
			}
			if test.needs != "" {
				if out, err := output(t.Context(), commandTimeout, program, "help", "info", test.needs); err != nil {
					t.Skipf("pgBackRest is too old to judge: %s", out)
				}
			}
			checkPgBackRest(t, program, filepath.Join(dir, "pgbackrest.conf"))
			checkTimers(t, dir)
			switch {
			case test.host == "keep":
				checkVerifications(t, dir, "")
			case test.vars["lictor_backup_repository"] == nil:
				checkVerifications(t, dir, "--note /var/lib/postgresql/15/.")
			default:
				checkVerifications(t, dir, "--annotate")
			}
		})
	}
}

// checkPgBackRest has pgBackRest read a configuration. It gets no further than to the
// certificates or the network, which the hosts' names do not have here: what it says must not be
// about an option.
func checkPgBackRest(t *testing.T, program, config string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// A command that reads its section, and nothing of a repository.
	args := []string{"--config=" + config, "--stanza=orders", "--log-path=" + t.TempDir(), "--lock-path=" + t.TempDir(), "stop"}
	if exec.CommandContext(ctx, program, "help", "stop", "allow-root").Run() == nil { // newer ones ask for it
		args = append(args, "--allow-root")
	}
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "option") {
		t.Errorf("pgBackRest: %v: %s", err, out)
	}
}

// checkTimers has systemd judge when they elapse; no two of one shard's do at the same time.
func checkTimers(t *testing.T, dir string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd-analyze")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.timer"))
	if err != nil || len(files) != 8 {
		t.Fatalf("timers: %v, %v", files, err)
	}
	elapses, minutes := map[string]string{}, map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "OnCalendar=")
		when, _, _ := strings.Cut(rest, "\n")
		out, err := output(t.Context(), commandTimeout, "env", "TZ=UTC", "LC_ALL=C.UTF-8", "systemd-analyze", "calendar", "--base-time=2026-11-29 12:00:00 UTC", "--iterations=60", when)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		_, scope, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".timer"), "-")
		minutes[scope+when[strings.LastIndex(when, " ")-6:]] = true
		for line := range strings.Lines(out) {
			what, at, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if what != "Next elapse" && !strings.HasPrefix(what, "Iter. ") {
				continue
			}
			key := scope + " " + strings.TrimSpace(at)
			if other := elapses[key]; other != "" {
				t.Errorf("%s and %s elapse at the same time: %s", other, file, key)
			}
			elapses[key] = file
		}
	}
	if n := len(elapses); n < 8*50 {
		t.Errorf("%d times of eight timers: %v", n, slices.Collect(maps.Keys(elapses)))
	}
	if len(minutes) < 2 {
		t.Errorf("the shards are not spread: %v", minutes)
	}
}
