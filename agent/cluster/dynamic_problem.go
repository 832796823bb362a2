package cluster

import (
	"fmt"
	"strings"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Problem is one thing that is wrong with a configuration: the setting, what it
// was set to, and the rule that it breaks.
type Problem struct {
	// Path is the setting's full name, e.g. postgresql.listen.
	Path string
	// Value is what was set, in the form in which it may be shown; empty when it
	// was not set, says nothing, or is secret.
	Value string
	// Rule says what is asked for.
	Rule string
	// Origin says where the value comes from, when that is known: a file with
	// line and column, or an environment variable.
	Origin string
}

func (p Problem) Error() string {
	var b strings.Builder
	for _, part := range []string{p.Path, p.Value} {
		if part != "" {
			b.WriteString(printable.Short(part, printable.MaxValue) + ": ")
		}
	}
	b.WriteString(printable.Cut(p.Rule, printable.MaxText))
	if p.Origin != "" {
		b.WriteString(" (" + p.Origin + ")")
	}
	return b.String()
}

// Warning is something that is allowed but probably not meant, or costs more
// than its author may know.
type Warning struct {
	Path string
	Text string
	// Unknown: there is no such setting.
	Unknown bool
}

func (w Warning) String() string {
	text := printable.Text(w.Text)
	if w.Path == "" {
		return text
	}
	return printable.Short(w.Path, printable.MaxValue) + ": " + text
}

// Problems takes a joined error apart into its problems. An error that is no
// Problem becomes one without a path.
func Problems(err error) []Problem {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // a list is taken apart
		var all []Problem
		for _, e := range joined.Unwrap() {
			all = append(all, Problems(e)...)
		}
		return all
	}
	if p, ok := err.(Problem); ok { //nolint:errorlint // a wrapped one has lost its form
		return []Problem{p}
	}
	return []Problem{{Rule: err.Error()}}
}

// shown is a value as an error message shows it.
func shown(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case string:
		return fmt.Sprintf("%.100q", v)
	case map[string]any:
		return "a map"
	case []any:
		return "a list"
	}
	return fmt.Sprintf("%.100s", fmt.Sprint(value))
}
