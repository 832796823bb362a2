package commands

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/operator"
)

// What is mistyped is told in words, with the exit code of a command line that makes no sense.
func TestMistyped(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bouncers := file("bouncer.yml", "pgbouncer: {config: /x/pgbouncer.ini, admin: 127.0.0.1:6432}\n")
	agents := file("db.yml", "scope: a\npostgresql: {listen: 10.0.0.1:5432}\n")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"validate", "--set", "foo"}, "--set foo: must be section.key=value"},
		{[]string{"events", "--last", "-3"}, "--last: -3, must be 0 (all) or more"},
		{[]string{"events", "--last", "x"}, `--last: "x", must be a whole number`},
		{[]string{"events", "--last", "99999999999999999999"}, "is too large a number"},
		{[]string{"demote-cluster", "orders", "--host", "h", "--port", "70000"}, "--port: 70000, must be from 1 to 65535"},
		{[]string{"bouncer", "stauts"}, `unknown command "stauts" for "lictor bouncer"; did you mean status?`},
		{[]string{"bouncer", "stauts", bouncers}, "did you mean status?"},
		{[]string{"bouncer", filepath.Join(dir, "missing.yml")}, "cannot be read"},
		{[]string{"validate", bouncers}, "it is a bouncer's file: lictor bouncer validate " + bouncers},
		{[]string{"agent", bouncers}, "it is a bouncer's file: lictor bouncer " + bouncers},
		{[]string{"bouncer", "validate", agents}, "it is an agent's file: lictor validate " + agents},
		{[]string{"bouncer", agents}, "it is an agent's file: lictor agent " + agents},
	} {
		root, began := rootCommand()
		root.SetArgs(test.args)
		root.SetOut(new(strings.Builder))
		root.SetErr(new(strings.Builder))
		err := root.ExecuteContext(context.Background())
		if err != nil && !*began {
			err = operator.Usage(err)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "strconv") || operator.ExitCode(err) != operator.ExitUsage {
			t.Errorf("%v: %v (exit code %d), want %q", test.args, err, operator.ExitCode(err), test.want)
		}
	}
}
