package commands

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/operator"
)

// lictor backup refuses what makes no sense before it runs anything, and says which flag.
func TestBackupCommands(t *testing.T) {
	agents := func(status int, answer string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, answer)
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	leads := agents(http.StatusOK, `{"members":[{"name":"a","role":"leader","state":"running","timeline":1}]}`)
	leaderless := agents(http.StatusOK, `{"members":[{"name":"a","role":"replica","state":"running","timeline":1}]}`)
	down := agents(http.StatusServiceUnavailable, "")
	for name, test := range map[string]struct {
		args, want string
		code       int
		out        string
	}{
		"no stanza":                 {args: "run --agent " + leads, want: `required flag(s) "stanza" not set`, code: operator.ExitUsage},
		"no agent":                  {args: "run --stanza s", want: `required flag(s) "agent" not set`, code: operator.ExitUsage},
		"another type":              {args: "run --stanza s --type weekly --agent " + leads, want: `--type: "weekly" is none of full, diff, incr`, code: operator.ExitUsage},
		"a host without address":    {args: "run --stanza s --host db1 --agent " + leads, want: `--host: "db1" is not MEMBER=ADDRESS`, code: operator.ExitUsage},
		"an agent without a scheme": {args: "run --stanza s --agent 127.0.0.1:8008", want: `--agent: "127.0.0.1:8008" is not http://HOST:PORT`, code: operator.ExitUsage},
		"no such command":           {args: "bananas", want: `unknown command "bananas" for "lictor backup"`, code: operator.ExitUsage},
		"both kinds of place":       {args: "run --stanza s --host a=b --as a --agent " + leads, want: "[as host]", code: operator.ExitUsage},
		"nobody leads":              {args: "run --stanza s --agent " + leaderless, want: "stanza s: the shard has no leader: no backup can be taken", code: 1},
		"no agent answers":          {args: "run --stanza s --agent " + down, want: "no agent of the shard says who leads", code: 1},
		"one of several answers":    {args: "run --dry-run --stanza s --agent " + down + "," + leads, out: "a backup is taken from a: the leader: it has no replica\n"},
		"another member's":          {args: "run --as b --stanza s --agent " + leads, out: "a backup is taken from a: the leader: it has no replica\n"},
		"no program":                {args: "run --stanza s --pgbackrest /nowhere/pgbackrest --agent " + leads, want: "pgBackRest: ", code: 1},
		"nowhere to restore to":     {args: "verify --stanza s --bin-dir /", want: "--scratch: say where there is room to restore to", code: operator.ExitUsage},
		"nowhere to start it by":    {args: "verify --stanza s --scratch /", want: `required flag(s) "bin-dir" not set`, code: operator.ExitUsage},
		"verified elsewhere":        {args: "verify --as b --stanza s --scratch / --bin-dir / --agent " + leads},
		"verified by nobody":        {args: "verify --as a --stanza s --scratch / --bin-dir / --agent " + leaderless, want: "the shard has no leader", code: 1},
		"verified by whom":          {args: "verify --as a --stanza s --scratch / --bin-dir /", want: "[as agent]", code: operator.ExitUsage},
		"noted twice":               {args: "verify --annotate --note /f --stanza s --scratch / --bin-dir /", want: "[annotate note]", code: operator.ExitUsage},
		"no words of a program's":   {args: "verify --stanza s --scratch / --bin-dir / --pgbackrest '", want: "cannot be split into words", code: operator.ExitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			root, began := rootCommand()
			var out strings.Builder
			root.SetOut(&out)
			root.SetErr(io.Discard)
			root.SetArgs(append([]string{"backup"}, strings.Fields(test.args)...))
			err := root.ExecuteContext(t.Context())
			if err != nil && !*began {
				err = operator.Usage(err)
			}
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if code := operator.ExitCode(err); err != nil && code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(out.String(), test.out) {
				t.Errorf("it says %q, want %q", out.String(), test.out)
			}
		})
	}
}
