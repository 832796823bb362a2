package operator

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestTablesFitTheTerminal(t *testing.T) {
	wide := Table{
		Columns: []Column{{Name: "Time"}, {Name: "What"}, {Name: "Took", Right: true}, {Name: "Noticed", Right: true}, {Name: "Why", Prose: true}, {Name: "x", Programs: true}},
		Rows: [][]Cell{
			{text("12:00:00"), text("failover"), text("9 s"), text("+8 s"), text("no sign of life from db1 for 8.3 s, more than its lease"), text("hidden")},
			{text("13:00:00"), text("pause"), {}, {}, {}, {}},
		},
		Notes: []string{"one two three four five six seven eight nine ten eleven twelve"},
	}
	for _, c := range []struct {
		width int
		want  string
	}{
		{0, `
Time      What      Took  Noticed  Why
12:00:00  failover   9 s     +8 s  no sign of life from db1 for 8.3 s, more than its lease
13:00:00  pause
one two three four five six seven eight nine ten eleven twelve`},
		{60, `
Time      What      Took  Noticed  Why
12:00:00  failover   9 s     +8 s  no sign of life from db1
                                   for 8.3 s, more than its
                                   lease
13:00:00  pause
one two three four five six seven eight nine ten eleven
twelve`},
		{28, `
Time      What      Took
12:00:00  failover   9 s
    Noticed +8 s
    Why: no sign of life
    from db1 for 8.3 s, more
    than its lease
13:00:00  pause
one two three four five six
seven eight nine ten eleven
twelve`},
	} {
		wide.Width = c.width
		got := pretty(t, wide)
		if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n")+"\n", got); diff != "" {
			t.Errorf("width %d (-want +got):\n%s", c.width, diff)
		}
		for line := range strings.SplitSeq(got, "\n") {
			if c.width > 0 && utf8.RuneCountInString(line) > c.width {
				t.Errorf("width %d: %q", c.width, line)
			}
		}
	}
	if got := wrapped("a-word-that-is-longer-than-the-line and more", 10); got != "a-word-that-is-longer-than-the-line\nand more" {
		t.Errorf("one long word: %q", got)
	}
	framed := Table{Framed: true, Width: 10, Columns: []Column{{Name: "Member"}, {Name: "Host"}}, Rows: [][]Cell{{text("db1"), text("10.0.0.1")}}}
	if got := pretty(t, framed); !strings.Contains(got, "| db1    | 10.0.0.1 |") {
		t.Errorf("a framed table is what patronictl shows:\n%s", got)
	}
}
