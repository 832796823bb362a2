package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/environ"
)

// Whoever can run a program as PostgreSQL reads its environment: no token of the agent's
// is there, nor in that of a script, unless it is named.
func TestEnvironmentHasNoTokens(t *testing.T) {
	secrets := []string{
		"VAULT_TOKEN", "CONSUL_HTTP_TOKEN", "AWS_SECRET_ACCESS_KEY", "LICTOR_SUPERUSER_PASSWORD", "PATRONI_REPLICATION_PASSWORD",
		"PGPASSWORD", "PGBACKREST_REPO1_CIPHER_PASS", "SOMETHING_ELSE",
	}
	for _, name := range secrets {
		t.Setenv(name, "top secret of "+name)
	}
	t.Setenv("WALG_S3_PREFIX", "s3://bucket")
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.PassEnvironment = []string{"PGBACKREST_*", "WALG_S3_PREFIX", "PG*"}
	p := newInstance(t, s)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	said := filepath.Join(dir, "said")
	must(t, p.Callback(ctx, time.Minute, fmt.Sprintf("/bin/sh -c 'tr \"\\0\" \"\\n\" </proc/self/environ >%s'", said), "on_start", "primary"))
	of := func(path, separator string) []string {
		content, err := os.ReadFile(path)
		must(t, err)
		return strings.Split(strings.TrimRight(string(content), separator), separator)
	}
	for what, environment := range map[string][]string{
		"postmaster": of(fmt.Sprintf("/proc/%d/environ", p.PID()), "\x00"), "callback": of(said, "\n"),
	} {
		for _, kv := range environment {
			name, value, _ := strings.Cut(kv, "=")
			if strings.Contains(value, "top secret") && name != "PGBACKREST_REPO1_CIPHER_PASS" {
				t.Errorf("%s has %s", what, name)
			}
		}
		for _, want := range []string{"PGBACKREST_REPO1_CIPHER_PASS=top secret of PGBACKREST_REPO1_CIPHER_PASS", "WALG_S3_PREFIX=s3://bucket"} {
			if !slices.Contains(environment, want) {
				t.Errorf("%s has no %s: %q", what, want, environment)
			}
		}
		if !slices.ContainsFunc(environment, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
			t.Errorf("%s has no PATH", what)
		}
	}
	if left := environ.Withheld(s.PassEnvironment); !slices.Contains(left, "VAULT_TOKEN") || slices.Contains(left, "WALG_S3_PREFIX") {
		t.Errorf("told of as not handed on: %q", left)
	}
}
