package operator

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A mistyped setting is refused; one that was there before, as Patroni's own, keeps nobody from changing others.
func TestUnknownSettings(t *testing.T) {
	before := map[string]any{"ttl": 8, "my_own": map[string]any{"deep": 1}}
	for name, test := range map[string]struct {
		change map[string]any
		want   string
	}{
		"known":              {map[string]any{"ttl": 10}, ""},
		"mistyped":           {map[string]any{"tll": 10}, "tll: is not a known setting and has no effect; did you mean ttl?"},
		"mistyped in a part": {map[string]any{"postgresql": map[string]any{"use_pg_rewnd": true}}, "postgresql.use_pg_rewnd"},
		"there before":       {map[string]any{"my_own": map[string]any{"deep": 2}}, ""},
	} {
		_, warnings, err := taken().Parse(cluster.MergePatch(before, test.change))
		if err == nil {
			err = unknownSettings(taken(), before, warnings)
		}
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChangeOfConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "patch.yml")
	if err := os.WriteFile(file, []byte("ttl: 10\npostgresql:\n  parameters: {work_mem: null, jit: off}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := func() map[string]any {
		return map[string]any{"ttl": 8, "postgresql": map[string]any{"parameters": map[string]any{"work_mem": "4MB", "pg_stat_statements.max": 100}}}
	}
	parameters := func(p map[string]any) map[string]any { return map[string]any{"parameters": p} }
	for _, c := range []struct {
		name  string
		o     EditOptions
		stdin string
		want  map[string]any
		fails string
	}{
		{"set", EditOptions{Set: []string{"ttl=10", "failsafe_mode=false", "a.b.c=[1, x]"}}, "", map[string]any{
			"ttl": 10, "failsafe_mode": false, "a": map[string]any{"b": map[string]any{"c": []any{1, "x"}}}, "postgresql": before()["postgresql"],
		}, ""},
		{"remove", EditOptions{Set: []string{"ttl=null", "postgresql="}}, "", map[string]any{}, ""},
		{"a parameter with a dot", EditOptions{Pg: []string{"pg_stat_statements.max=200"}, Set: []string{"postgresql.parameters.pg_stat_statements.track=all"}}, "", map[string]any{
			"ttl": 8, "postgresql": parameters(map[string]any{"work_mem": "4MB", "pg_stat_statements.max": 200, "pg_stat_statements.track": "all"}),
		}, ""},
		{"a value with =", EditOptions{Pg: []string{`log_line_prefix="%m a=b "`}}, "", map[string]any{
			"ttl": 8, "postgresql": parameters(map[string]any{"work_mem": "4MB", "pg_stat_statements.max": 100, "log_line_prefix": "%m a=b "}),
		}, ""},
		{"apply", EditOptions{Apply: file}, "", map[string]any{
			"ttl": 10, "postgresql": parameters(map[string]any{"pg_stat_statements.max": 100, "jit": "off"}),
		}, ""},
		{"replace", EditOptions{Replace: "-", Set: []string{"ttl=9"}}, `{"loop_wait": 1, "ttl": 20}`, map[string]any{"loop_wait": 1, "ttl": 9}, ""},
		{"no value", EditOptions{Set: []string{"ttl"}}, "", nil, "name=value"},
		{"no name", EditOptions{Set: []string{"a..b=1"}}, "", nil, "part of the name is empty"},
		{"no YAML", EditOptions{Set: []string{"a=[1"}}, "", nil, "not YAML"},
		{"no map", EditOptions{Apply: "-"}, "- a\n", nil, "must be a map"},
		{"no file", EditOptions{Apply: "/nowhere"}, "", nil, "--apply: open /nowhere: no such file"},
		{"replace by nothing, as of a pipe whose first program failed", EditOptions{Replace: "-"}, "", nil, "--replace -: is empty"},
		{"replace by comments", EditOptions{Replace: "-"}, "# ttl: 9\n", nil, "--replace -: is empty"},
		{"replace by no settings, on purpose", EditOptions{Replace: "-"}, "{}\n", map[string]any{}, ""},
		{"apply nothing", EditOptions{Apply: "-"}, "\n", nil, "--apply -: is empty"},
		{"one standard input for two", EditOptions{Apply: "-", Replace: "-"}, "ttl: 9", nil, "--apply and --replace"},
		{"nobody can edit", EditOptions{Editor: "true"}, "", nil, "standard input is no terminal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := before()
			got, err := c.o.change(context.Background(), &Console{In: strings.NewReader(c.stdin), Out: t.Output(), Err: t.Output()}, now)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) || ExitCode(err) != ExitUsage {
					t.Fatalf("got %v (%d), want %s", err, ExitCode(err), c.fails)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Error(err, diff)
			}
			if diff := cmp.Diff(before(), now); diff != "" {
				t.Errorf("the argument was changed: %s", diff)
			}
		})
	}
}

// An editor that first writes nonsense: the person is shown what is wrong and edits
// again.
func TestEditByHand(t *testing.T) {
	script := filepath.Join(t.TempDir(), "editor")
	content := "#!/bin/sh\nif [ -e \"$0.once\" ]; then echo 'ttl: 10' > \"$2\"; else touch \"$0.once\"; echo 'ttl: 1' > \"$2\"; fi\n"
	if err := os.WriteFile(script, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	answers := filepath.Join(t.TempDir(), "answers")
	if err := os.WriteFile(answers, []byte("y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(answers) // a file, so that the editor gets it and not a copy
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out strings.Builder
	c := &Console{In: in, Out: &out, Err: &out, Interactive: true}
	got, err := EditOptions{Editor: script + " --wait"}.change(t.Context(), c, map[string]any{"ttl": 8})
	if diff := cmp.Diff(map[string]any{"ttl": 10}, got); err != nil || diff != "" || !strings.Contains(out.String(), "ttl: 1: must be") {
		t.Errorf("%v %s\n%s", err, diff, out.String())
	}
}

// Whoever empties the file in the editor wants to break off, or has slipped.
func TestEmptiedByHand(t *testing.T) {
	script := filepath.Join(t.TempDir(), "editor")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n: > \"$1\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		before map[string]any
		fails  bool
	}{{"settings", map[string]any{"ttl": 8}, true}, {"none before", map[string]any{}, false}} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			c := &Console{In: strings.NewReader(""), Out: &out, Err: &out, Interactive: true}
			got, err := EditOptions{Editor: script}.change(t.Context(), c, test.before)
			if (err != nil) != test.fails || test.fails != strings.Contains(out.String(), "is empty") || !test.fails && len(got) > 0 {
				t.Errorf("%v %v\n%s", got, err, out.String())
			}
		})
	}
}

func TestConfigDiff(t *testing.T) {
	same, err := configDiff(map[string]any{"a": 1}, map[string]any{"a": 1})
	if err != nil || same != "" {
		t.Errorf("%q %v", same, err)
	}
	diff, err := configDiff(map[string]any{"a": 1, "b": 2}, map[string]any{"a": 1, "b": 3})
	if err != nil || !strings.Contains(diff, "-b: 2\n+b: 3\n") {
		t.Errorf("%q %v", diff, err)
	}
	if coloured := colourDiff("+b\n", true); coloured != "\x1b[32m+b\x1b[0m\n" {
		t.Errorf("%q", coloured)
	}
}
