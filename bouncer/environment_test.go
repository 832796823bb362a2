package bouncer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Whoever may run a program as PgBouncer's user, or look at one, reads its environment:
// no token of the bouncer's is there, nor in that of commands, unless it is named.
func TestCommandsGetNoTokens(t *testing.T) {
	for _, name := range []string{"VAULT_TOKEN", "CONSUL_TEST_TOKEN", "AWS_SECRET_ACCESS_KEY", "LICTOR_TEST_PASSWORD", "PGPASSWORD", "NOTIFY_SOCKET", "SOMETHING_ELSE"} {
		t.Setenv(name, "top secret of "+name)
	}
	t.Setenv("SITE_REGION", "eu")
	w, pid := supervised(t)
	says := func(name string) []string {
		return []string{"sh", "-c", fmt.Sprintf("env >%[1]s.new && mv %[1]s.new %[1]s", filepath.Join(w.dir, name))}
	}
	w.write("own.ctmpl", "anything\n")
	w.config.Files = []config.File{{
		Template: filepath.Join(w.dir, "own.ctmpl"), Path: filepath.Join(w.dir, "own"), Validate: says("validate"), Command: says("command"),
	}}
	w.config.PassEnvironment = []string{"SITE_*", "AWS_SECRET_ACCESS_KEY", "PG*"}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.awaitLeader(0)
	of := func(path, separator string) (environment []string) {
		t.Helper()
		w.await(path, func() error {
			content, err := os.ReadFile(path)
			if err == nil && len(content) == 0 {
				err = errors.New("it is empty")
			}
			environment = strings.Split(strings.TrimRight(string(content), separator), separator)
			return err
		})
		return environment
	}
	for what, environment := range map[string][]string{
		"pgbouncer.command": of(fmt.Sprintf("/proc/%d/environ", pid()), "\x00"),
		"files[].validate":  of(filepath.Join(w.dir, "validate"), "\n"),
		"files[].command":   of(filepath.Join(w.dir, "command"), "\n"),
	} {
		for _, kv := range environment {
			name, value, _ := strings.Cut(kv, "=")
			if strings.Contains(value, "top secret") && name != "AWS_SECRET_ACCESS_KEY" {
				t.Errorf("%s has %s", what, name)
			}
		}
		for _, want := range []string{"SITE_REGION=eu", "AWS_SECRET_ACCESS_KEY=top secret of AWS_SECRET_ACCESS_KEY"} {
			if !slices.Contains(environment, want) {
				t.Errorf("%s has no %s: %q", what, want, environment)
			}
		}
		if !slices.ContainsFunc(environment, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
			t.Errorf("%s has no PATH", what)
		}
	}
	if log := w.log.String(); !strings.Contains(log, `"VAULT_TOKEN"`) || strings.Contains(log, `"SITE_REGION"`) {
		t.Error("the log does not say which variables are not handed on")
	}
}
