package commands

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A start, and the commands that ask a running bouncer, take a file in which one shard is wrong;
// SIGHUP and validate do not.
func TestFileWithABadShard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bouncer.yml")
	write := func(size string) {
		t.Helper()
		text := "name: pool1\npgbouncer: {config: /nowhere/pgbouncer.ini, admin: \"127.0.0.1:6432\"}\nshards: [{scope: orders}, {scope: users, pool_size: " + size + "}]\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	validate := func() (string, error) {
		var out bytes.Buffer
		cmd := validateBouncerCommand()
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard) // the environment of who tests may have variables of its own
		cmd.SetArgs([]string{path})
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		err := cmd.Execute()
		return out.String(), err
	}
	write("-1")
	cfg, _, err := loadBouncer(path, false)
	if err != nil || len(cfg.Shards) != 1 || len(cfg.Refused()) != 1 || cfg.Version != version {
		t.Errorf("a start has %+v, refused %v: %v", cfg.Shards, cfg.Refused(), err)
	}
	if _, _, err := loadBouncerBy(config.Load, path, false); err == nil || !strings.Contains(err.Error(), "shards[1].pool_size: -1") {
		t.Errorf("SIGHUP: %v", err)
	}
	if out, err := validate(); err == nil || !strings.Contains(err.Error(), "shards[1].pool_size: -1") {
		t.Errorf("validate: %s %v", out, err)
	}
	write("5")
	if out, err := validate(); err != nil || out != "valid\n" {
		t.Errorf("validate: %s %v", out, err)
	}
}

// What makes no sense on the command line is said before anything is asked, with the exit code of
// its kind.
func TestCommandLines(t *testing.T) {
	for args, want := range map[string]string{
		"list --watch -1":                            "--watch -1: must be a number of seconds above 0",
		"list --watch NaN":                           "--watch NaN: must be",
		"list orders --scope users --consul x":       "two shards are named: orders, and --scope users",
		"history orders --scope users --consul x":    "two shards are named: orders, and --scope users",
		"bouncer drain --wait soon FILE":             "must be a time like 30, 30s or 2m",
		"bouncer pause --allow-empty FILE orders":    "unknown flag: --allow-empty",
		"bouncer status FILE --allow-empty":          "unknown flag: --allow-empty",
		"restart orders --pg-version 15":             `--pg-version: "15": must be a version`,
		"bouncer render --dry-run --template x FILE": "does not go with --template",
		"bouncer render --template nosuch FILE":      "Lictor ships: pgbouncer.ini.ctmpl, userlist.txt.ctmpl, haproxy.cfg.ctmpl",
		"query orders --file /nowhere --consul x":    "--file: open /nowhere: no such file",
		"restore orders --to x --port 5433":          "are of a new shard: say with --as",
		"restore orders --cancel --as b":             "were all set",
		"switchover a b --master db1":                "accepts at most 1 arg(s)",
		"version --json --output tsv":                "[json output] were all set",
		"version --output xml":                       "--output xml: must be one of pretty, json, yaml, tsv",
	} {
		t.Run(args, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bouncer.yml")
			if err := os.WriteFile(path, []byte("pgbouncer: {config: /nowhere/pgbouncer.ini, admin: \"127.0.0.1:6432\"}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			root, began := rootCommand()
			root.SetOut(io.Discard)
			root.SetErr(io.Discard)
			root.SetArgs(strings.Fields(strings.ReplaceAll(args, "FILE", path)))
			err := root.ExecuteContext(t.Context())
			if err != nil && !*began {
				err = operator.Usage(err)
			}
			if err == nil || !strings.Contains(err.Error(), want) || operator.ExitCode(err) != operator.ExitUsage {
				t.Errorf("%v (exit code %d), want %q", err, operator.ExitCode(err), want)
			}
		})
	}
}
