package printable

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"plain text, 100%":      "plain text, 100%",
		"schön 好 👍":             "schön 好 👍",
		"\x1b[31mred":           `\x1b[31mred`,
		"a\r\nb\tc":             `a\r\nb\tc`,
		"\x9b31m":               `\x9b31m`, // a byte that is no UTF-8, which some terminals take for CSI
		"\u009b\u0085\x7f\x00":  `\u009b\u0085\x7f\x00`,
		"\u202eevil\u2066":      `\u202eevil\u2066`,
		"zero\u200bwidth\ufeff": `zero\u200bwidth\ufeff`,
		"\u00a0":                `\u00a0`,
	} {
		if got := Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
	if got := Lines("a\n\tb\r\x1b"); got != "a\n\tb\\r\\x1b" {
		t.Errorf("Lines: %q", got)
	}
	huge := strings.Repeat("ä", 250_000)
	for what, got := range map[string]string{"Quote": Quote(huge), "Text": Text(huge), "Error": Error(&strconv.NumError{Func: "f", Num: huge, Err: strconv.ErrSyntax}).Error()} {
		if len(got) > MaxText+100 || !utf8.ValidString(got) || !strings.Contains(got, "bytes)") {
			t.Errorf("%s of half a megabyte: %d bytes, %.50s", what, len(got), got)
		}
	}
	if Quote("a\x1b\"") != `"a\x1b\""` {
		t.Error(Quote("a\x1b\""))
	}
	if Error(nil) != nil {
		t.Error("no error is one")
	}
}

// FuzzPrintable: what comes out is printable, and JSON means the same afterwards.
func FuzzPrintable(f *testing.F) {
	for _, seed := range []string{"", "a", "\x1b[31m", "\u202e", "\x9b", "ä\n\t", strings.Repeat("x", MaxText+1), "\ufffd", "\U000e0001", "👍\U0001f468\u200d"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for what, got := range map[string]string{"Quote": Quote(text), "Text": Text(text), "Line": Line(text), "Lines": strings.NewReplacer("\n", "", "\t", "").Replace(Lines(text))} {
			if !Printable(got) {
				t.Errorf("%s(%q) = %q", what, text, got)
			}
		}
		if Printable(text) && Line(text) != text {
			t.Errorf("%q has become %q", text, Line(text))
		}
		encoded, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		safe := JSON(encoded)
		var back string
		if err := json.Unmarshal(safe, &back); err != nil || back != strings.ToValidUTF8(text, "\ufffd") && utf8.ValidString(text) || !Printable(string(safe)) {
			t.Errorf("%q became %s, and %q: %v", text, safe, back, err)
		}
		if utf8.ValidString(text) {
			var again string
			if err := yaml.Unmarshal(YAML(encoded), &again); err != nil || again != text {
				t.Errorf("as YAML: %q became %s, and %q: %v", text, safe, again, err)
			}
		}
	})
}
