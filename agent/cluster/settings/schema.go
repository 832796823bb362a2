package settings

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Schema says what a program's configuration takes besides the fields of its
// struct. Paths are names of settings joined by dots.
type Schema struct {
	// Variables are names of environment variables, without their prefix, that
	// do not follow from the struct, with the path that each one sets.
	Variables map[string]string
	// Patroni are the names, without the prefix PATRONI_, that count with it,
	// each with the path that it sets. They count with LICTOR_, too.
	Patroni map[string]string
	// UserVariables has the path of the map whose users may be set with
	// PATRONI_<user>_PASSWORD and PATRONI_<user>_OPTIONS; empty: none.
	UserVariables string
	// Renamed are old names of settings and the new one of each, in full.
	Renamed map[string]string
	// Unused are settings that are taken for compatibility and have no effect,
	// with the reason.
	Unused map[string]string
	// Refused are settings, or whole sections, that must not be there, with the
	// reason and what to do.
	Refused map[string]string
	// RefusedVariables are beginnings of variables' names, without PATRONI_, that
	// are refused like the sections that they would set.
	RefusedVariables map[string]string
	// Adjust changes the value of a setting before it is decoded, where Patroni
	// takes more forms than the struct does.
	Adjust map[string]Adjuster
}

// Adjuster changes a value. It may return a warning, and an error that says the
// rule.
type Adjuster func(value any) (adjusted any, warning string, err error)

// WholeSeconds is an Adjuster for a time in whole seconds that may have a unit.
func WholeSeconds(value any) (any, string, error) {
	d, err := cluster.ParseSeconds(value)
	if err != nil {
		return nil, "", err
	}
	return int(d.Seconds()), "", nil
}

// Seconds is an Adjuster for a time that may have a fraction or a unit.
func Seconds(value any) (any, string, error) {
	text, ok := value.(string)
	if !ok {
		return value, "", nil
	}
	text = strings.TrimSpace(text)
	if n, err := strconv.ParseFloat(text, 64); err == nil {
		return n, "", nil
	}
	d, err := time.ParseDuration(strings.Replace(strings.ReplaceAll(text, " ", ""), "min", "m", 1))
	if err != nil {
		return nil, "", errors.New("must be a number of seconds, or one with a unit (ms, s, min)")
	}
	return d.Seconds(), "", nil
}

// Lines is an Adjuster for a list of lines that may be written as one text.
func Lines(value any) (any, string, error) {
	text, ok := value.(string)
	if !ok {
		return value, "", nil
	}
	return toAny(splitLines(text)), "", nil
}

// apply brings a tree into the form that the struct has.
func (s Schema) apply(t *tree) (errs []error) {
	for _, old := range sortedKeys(s.Renamed) {
		value, set := t.lookup(old)
		if !set {
			continue
		}
		name := s.Renamed[old]
		t.remove(old)
		if _, both := t.lookup(name); both {
			t.warn(old, "is an old name of %s and has no effect beside it", name)
			continue
		}
		t.set(splitPath(name), value, t.origins[old])
	}
	for _, path := range sortedKeys(s.Refused) {
		if _, set := t.lookup(path); set {
			t.remove(path)
			errs = append(errs, cluster.Problem{Path: path, Rule: s.Refused[path]})
		}
	}
	for _, path := range sortedKeys(s.Unused) {
		if _, set := t.lookup(path); set {
			t.remove(path)
			t.warn(path, "has no effect: %s", s.Unused[path])
		}
	}
	for _, path := range sortedKeys(s.Adjust) {
		value, set := t.lookup(path)
		if !set || value == nil {
			continue
		}
		adjusted, warning, err := s.Adjust[path](resolveText(value))
		if err != nil {
			errs = append(errs, cluster.Problem{Path: path, Value: display(path, nil, value), Rule: err.Error()})
			t.remove(path)
			continue
		}
		if warning != "" {
			t.warn(path, "%s", warning)
		}
		t.set(splitPath(path), adjusted, t.origins[path])
	}
	return errs
}

func (t *tree) warn(path, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if origin := t.origins[path]; origin != "" {
		text += " (" + origin + ")"
	}
	t.warnings = append(t.warnings, cluster.Warning{Path: path, Text: text})
}

// resolveText gives an Adjuster plain values: numbers and booleans that are
// written plainly come as text.
func resolveText(value any) any {
	if s, ok := value.(scalar); ok {
		return s.text
	}
	return value
}
