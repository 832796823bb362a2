// Package printable makes what comes from elsewhere safe to be shown: a value in a
// message is quoted and cut, and what reaches a terminal or a line of a log has no
// character that a terminal acts on (escapes, other control characters, those that
// change the direction of text, bytes that are not UTF-8).
package printable

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxValue is how many bytes of a value a message shows, MaxText how many of a text of
// several values.
const (
	MaxValue = 200
	MaxText  = 4096
)

// Quote returns a value for a message: in double quotes, escaped as in Go, cut to
// MaxValue bytes.
func Quote(value string) string {
	if len(value) <= MaxValue {
		return strconv.Quote(value)
	}
	return fmt.Sprintf("%s... (%d bytes)", strconv.Quote(head(value, MaxValue)), len(value))
}

// Text returns text as one line: what is not printable is escaped as in Go, and it is
// cut to MaxText bytes.
func Text(text string) string { return Line(Cut(text, MaxText)) }

// Cut returns at most limit bytes of text, and says how long it was.
func Cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return fmt.Sprintf("%s... (%d bytes)", head(text, limit), len(text))
}

// head returns the first bytes of text, at most n, without half a character.
func head(text string, n int) string {
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// Line returns text with everything escaped that is not printable, line ends and tabs
// too.
func Line(text string) string { return escape(text, "") }

// Lines is Line for a text of several lines, whose line ends and tabs stay.
func Lines(text string) string { return escape(text, "\n\t") }

// escape escapes what is neither printable nor one of keep. A text without such a
// character is returned as it is.
func escape(text, keep string) string {
	var out strings.Builder
	done := 0
	for at := 0; at < len(text); {
		r, size := utf8.DecodeRuneInString(text[at:])
		if (r != utf8.RuneError || size > 1) && (strconv.IsPrint(r) || strings.ContainsRune(keep, r)) {
			at += size
			continue
		}
		quoted := strconv.Quote(text[at : at+size])
		out.WriteString(text[done:at] + quoted[1:len(quoted)-1])
		at += size
		done = at
	}
	if done == 0 {
		return text
	}
	return out.String() + text[done:]
}

// Writer returns a writer that hands on whole writes to w, escaped as by Lines. Each
// write must end with a whole character.
func Writer(w io.Writer) io.Writer { return writer{w} }

type writer struct{ out io.Writer }

func (w writer) Write(text []byte) (int, error) {
	if _, err := io.WriteString(w.out, Lines(string(text))); err != nil {
		return 0, err
	}
	return len(text), nil
}

// Error returns err with its text made safe and cut as by Text: a JSON decoder, for one,
// repeats a number of half a megabyte.
func Error(err error) error {
	if err == nil {
		return nil
	}
	return cutError{err}
}

type cutError struct{ err error }

func (e cutError) Error() string { return Text(e.err.Error()) }
func (e cutError) Unwrap() error { return e.err }
