package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

// Whatever a line quotes, in whatever format: nothing that a terminal acts on comes out,
// a line stays one line, and half a megabyte makes no line of half a megabyte.
func TestLinesAreShownSafely(t *testing.T) {
	const evil = "\x1b[95mEVIL\x1b]0;title\x07\u202e\u2066\u009b31m\u0085\x7f\x9b\r\nspoof"
	huge := strings.Repeat("x\x1b[31m", 100_000)
	own := regexp.MustCompile(`\x1b\[(0|1|2|30|31|32|33|34|35|36|90)m`) // zerolog's colours
	for _, format := range []string{FormatConsole, FormatJSON, FormatPatroni} {
		var out bytes.Buffer
		l, err := New("debug", format, &out, true)
		if err != nil {
			t.Fatal(err)
		}
		log := l.Logger()
		log.Info().Msg(evil)
		log.Debug().Msg(evil)
		log.Error().Err(errors.New(evil)).Str("value", evil).Strs("list", []string{evil, evil}).Interface("map", map[string]any{evil: evil}).Msg("m")
		log.Warn().Err(errors.New(huge)).Str("value", huge).Strs("list", strings.Split(huge, "x")).Msg(huge)
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 4 {
			t.Errorf("%s: %d lines, want 4", format, len(lines))
		}
		for _, line := range lines {
			shown := own.ReplaceAllString(line, "")
			if i := strings.IndexFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("%s: %.300q", format, shown[i:])
			}
			if len(line) > 100_000 {
				t.Errorf("%s: a line of %d bytes", format, len(line))
			}
			if format == FormatJSON && !json.Valid([]byte(line)) {
				t.Errorf("not JSON: %.300s", line)
			}
		}
		if !strings.Contains(lines[0], "EVIL") {
			t.Errorf("%s: the text is gone: %s", format, lines[0])
		}
	}
}

// A line that is good stays as it is, byte by byte, also with letters beyond ASCII.
func TestGoodLinesStayAsTheyAre(t *testing.T) {
	for _, line := range []string{`{"level":"info","message":"all is well"}`, `{"message":"schön, 好, 👍"}`, `{"a":"tab \t and \"quotes\" and \\"}`} {
		var out bytes.Buffer
		if _, err := (tidy{&out}).Write([]byte(line + "\n")); err != nil || out.String() != line+"\n" {
			t.Errorf("%s became %s, %v", line, out.String(), err)
		}
	}
}
