package operator

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sample() Table {
	return Table{
		Title:   "Cluster: a (1)",
		Columns: []Column{{Name: "Cluster", Programs: true}, {Name: "Member"}, {Name: "Lag", Key: "lag_mb", Right: true}, {Name: "Tags"}},
		Rows: [][]Cell{
			{text("a"), styled("grün", Good), number(7), {Text: "x: 1\nz: 2", Value: map[string]any{"x": 1, "z": 2}}},
			{text("a"), text("<b>"), {}, {}},
		},
		Notes: []string{" note"},
	}
}

func TestTable(t *testing.T) {
	framed := sample()
	framed.Framed = true
	wide := sample()
	wide.Title = strings.Repeat("w", 80)
	wide.Framed = true
	for _, c := range []struct {
		name   string
		table  Table
		format Format
		colour bool
		want   string
	}{
		{"framed, with a cell of two lines", framed, Pretty, false, "" +
			"+ Cluster: a (1) -----+\n" +
			"| Member | Lag | Tags |\n" +
			"+--------+-----+------+\n" +
			"| grün   |   7 | x: 1 |\n" +
			"|        |     | z: 2 |\n" +
			"+--------+-----+------+\n" +
			"| <b>    |     |      |\n" +
			"+--------+-----+------+\n" +
			" note\n"},
		{"plain", sample(), Pretty, false, "" +
			"Cluster: a (1)\nMember  Lag  Tags\ngrün      7  x: 1\n             z: 2\n<b>\n note\n"},
		{"colours do not move columns", Table{Columns: []Column{{Name: "A"}, {Name: "B"}}, Rows: [][]Cell{{styled("x", Bad), text("y")}}}, Pretty, true, "" +
			"\x1b[1mA\x1b[0m  \x1b[1mB\x1b[0m\n\x1b[1;31mx\x1b[0m  y\n"},
		{"JSON leaves out what is empty", sample(), JSON, true, `[
  {"Cluster": "a", "Member": "grün", "lag_mb": 7, "Tags": {"x":1,"z":2}},
  {"Cluster": "a", "Member": "<b>"}
]
`},
		{"JSON of nothing", Table{Columns: []Column{{Name: "A"}}}, JSON, false, "[]\n"},
		{"YAML", sample(), YAML, true, `- Cluster: a
  Member: grün
  lag_mb: 7
  Tags:
    x: 1
    z: 2
- Cluster: a
  Member: <b>
`},
		{"TSV", sample(), TSV, true, "Cluster\tMember\tlag_mb\tTags\na\tgrün\t7\t{\"x\":1,\"z\":2}\na\t<b>\t\t\n"},
		// A column in milliseconds holds milliseconds.
		{"TSV has what programs get", Table{Columns: []Column{{Name: "Took", Key: "took_ms"}, {Name: "Why"}}, Rows: [][]Cell{
			{tookCell(8400 * time.Millisecond), text("a\tb\nc")}, {{}, styled("none", Bad)},
		}}, TSV, false, "took_ms\tWhy\n8400\ta b c\n\tnone\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			if err := c.table.Write(&out, c.format, c.colour); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
	var out strings.Builder
	if err := wide.Write(&out, Pretty, false); err != nil || len(strings.SplitN(out.String(), "\n", 2)[0]) != len("| Member | Lag | Tags |") {
		t.Errorf("a title that is too long: %v\n%s", err, out.String())
	}
}

func TestParseFormat(t *testing.T) {
	for in, want := range map[string]Format{"": Pretty, "json": JSON, "yml": YAML, "tsv": TSV} {
		if got, err := ParseFormat(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if _, err := ParseFormat("xml"); ExitCode(err) != ExitUsage {
		t.Errorf("xml: %v", err)
	}
}

func TestDelimiter(t *testing.T) {
	table := Table{Columns: []Column{{Name: "a;b"}, {Name: "c"}}, Rows: [][]Cell{{{Text: "1;2\t3"}, {Text: "x\ny"}}}}
	for delimiter, want := range map[string]string{"": "a;b\tc\n1;2 3\tx y\n", ";": "a b;c\n1 2 3;x y\n", " | ": "a;b | c\n1;2 3 | x y\n"} {
		var out strings.Builder
		table.Delimiter = delimiter
		if err := table.Write(&out, TSV, false); err != nil || out.String() != want {
			t.Errorf("%q: %q, %v", delimiter, out.String(), err)
		}
	}
	for delimiter, c := range map[string]*Console{";": {Format: Pretty}, "\n": {Format: TSV}} {
		if err := Query(t.Context(), c, nil, QueryOptions{Delimiter: delimiter}); ExitCode(err) != ExitUsage {
			t.Errorf("%q: %v", delimiter, err)
		}
	}
}
