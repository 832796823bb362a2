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
	"unicode/utf16"
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
func Text(text string) string { return short(text, MaxText, Line) }

// Block is Text for a text of several lines.
func Block(text string) string { return short(text, MaxText, Lines) }

// Short is Text for another length than MaxText.
func Short(text string, limit int) string { return short(text, limit, Line) }

func short(text string, limit int, escape func(string) string) string {
	shown := escape(head(text, limit))
	if len(text) <= limit && len(shown) <= limit {
		return shown
	}
	return fmt.Sprintf("%s... (%d bytes)", head(shown, limit), len(text))
}

// Cut returns at most limit bytes of text, and says how long it was.
func Cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return fmt.Sprintf("%s... (%d bytes)", head(text, limit), len(text))
}

// head returns the first bytes of text, at most n, without half a character.
func head(text string, n int) string {
	if len(text) <= n {
		return text
	}
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

// JSON escapes what is not printable within the strings of a JSON text: the value is the
// same.
func JSON(text []byte) []byte {
	return within(text, func(out []byte, r rune) []byte {
		if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
			return fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		}
		return fmt.Appendf(out, `\u%04x`, r)
	})
}

// YAML is JSON for a YAML text whose strings with such characters stand in double quotes.
func YAML(text []byte) []byte {
	return within(text, func(out []byte, r rune) []byte {
		if r > 0xffff {
			return fmt.Appendf(out, `\U%08x`, r)
		}
		return fmt.Appendf(out, `\u%04x`, r)
	})
}

// within escapes what is not printable, except the line ends of the text's own layout.
func within(text []byte, escape func(out []byte, r rune) []byte) []byte {
	if clean(text) {
		return text
	}
	out := make([]byte, 0, len(text)+len(text)/8)
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r < utf8.RuneSelf && r != 0x7f || strconv.IsPrint(r) {
			out = append(out, text[:size]...)
		} else {
			out = escape(out, r)
		}
		text = text[size:]
	}
	return out
}

// clean reports whether a text has printable ASCII characters and line ends only, as
// nearly every one has.
func clean(text []byte) bool {
	for _, b := range text {
		if b >= 0x7f || b < ' ' && b != '\n' {
			return false
		}
	}
	return true
}

// Printable reports whether every character of text is printable.
func Printable(text string) bool {
	if !utf8.ValidString(text) {
		return false
	}
	for _, r := range text {
		if !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}
