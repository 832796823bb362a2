package commands

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSetOfOneSettingTwice(t *testing.T) {
	if _, err := configSource(nil, []string{"log.level=info", "name=a", "log.level=debug"}); err == nil || !strings.Contains(err.Error(), "--set log.level: is given twice") {
		t.Error(err)
	}
	source, err := configSource([]string{"f"}, []string{"name=a=b"})
	if err != nil || source.Flags["name"] != "a=b" || source.Path != "f" {
		t.Error(source, err)
	}
}

func TestValidatePrints(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "db1.yml")
	text := "scope: orders\nname: db1\nrestapi: {listen: '127.0.0.1:8008'}\npostgresql:\n  listen: 127.0.0.1:5432\n  data_dir: " + filepath.Join(dir, "data") +
		"\n  authentication: {superuser: {username: postgres, password: hush}, replication: {username: replicator, password: hush}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LICTOR_LOG_LEVEL", "debug")
	var out, complaints strings.Builder
	cmd := validateCommand()
	cmd.SetArgs([]string{file, "--print", "--set", "name=db2"})
	cmd.SetOut(&out)
	cmd.SetErr(&complaints)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err, complaints.String())
	}
	for _, want := range []string{"name: db2\n", "scope: orders\n", "level: debug\n", "password: (hidden)\n", "pg_ctl_timeout: 60\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String()+complaints.String(), "hush") {
		t.Errorf("a secret is told:\n%s%s", out.String(), complaints.String())
	}
}
