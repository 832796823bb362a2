package settings

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/go-viper/mapstructure/v2"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// decode fills into, a pointer to a struct with mapstructure tags. Unknown keys
// and wrong types are problems, all of them at once; a map in the struct takes
// any key. Names count with their case.
func (t *tree) decode(into any) []error {
	decoder, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result: into, DecodeHook: convert,
		MatchName: func(key, field string) bool { return key == field },
	})
	if err != nil {
		return []error{fmt.Errorf("configuration: %w", err)}
	}
	root := reflect.TypeOf(into).Elem()
	var errs []error
	if err := decoder.Decode(t.values); err != nil {
		for _, name := range failedNames(err) {
			path := dotted(name)
			expected, _ := typeAt(root, path)
			errs = append(errs, cluster.Problem{Path: path, Value: display(path, expected, t.item(path)), Rule: "must be " + describe(expected)})
		}
	}
	return append(errs, unknownKeys(root, t.values, "")...)
}

// item finds a value, below lists as well.
func (t *tree) item(path string) any {
	var value any = t.values
	for path != "" {
		switch v := value.(type) {
		case map[string]any:
			end := strings.IndexAny(path, ".[")
			if end <= 0 {
				end = len(path)
			}
			value, path = v[path[:end]], strings.TrimPrefix(path[end:], ".")
		case []any:
			index, rest, _ := strings.Cut(strings.TrimPrefix(path, "["), "]")
			n, err := strconv.Atoi(index)
			if err != nil || n < 0 || n >= len(v) {
				return nil
			}
			value, path = v[n], strings.TrimPrefix(rest, ".")
		default:
			return nil
		}
	}
	return value
}

// failedNames lists the settings that could not be decoded.
func failedNames(err error) []string {
	//nolint:errorlint // each level of the error is taken apart
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		var all []string
		for _, inner := range e.Unwrap() {
			all = append(all, failedNames(inner)...)
		}
		return all
	case *mapstructure.DecodeError:
		if below := failedNames(e.Unwrap()); len(below) > 0 {
			return below
		}
		return []string{e.Name()}
	case interface{ Unwrap() error }:
		return failedNames(e.Unwrap())
	}
	return nil
}

// unknownKeys walks a section and lists the keys that its struct does not have.
func unknownKeys(t reflect.Type, value any, path string) (errs []error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := value.(type) {
	case map[string]any:
		for _, key := range sortedKeys(v) {
			below := join(path, key)
			switch t.Kind() {
			case reflect.Map:
				errs = append(errs, unknownKeys(t.Elem(), v[key], below)...)
			case reflect.Struct:
				field, known := fieldByName(t, key)
				switch {
				case known:
					errs = append(errs, unknownKeys(field.Type, v[key], below)...)
				case !slices.ContainsFunc(reflect.VisibleFields(t), isRemain):
					errs = append(errs, unknown(t, below, key))
				}
			}
		}
	case []any:
		if t.Kind() == reflect.Slice {
			for i, item := range v {
				errs = append(errs, unknownKeys(t.Elem(), item, fmt.Sprintf("%s[%d]", path, i))...)
			}
		}
	}
	return errs
}

// convert makes of a value what the field takes, as far as YAML's writers expect
// it: how a number was written where text is expected, a number with quotes
// around it, comma-separated text for a list.
func convert(_, to reflect.Type, value any) (any, error) {
	for to.Kind() == reflect.Pointer {
		to = to.Elem()
	}
	if to.Kind() == reflect.Interface {
		return resolve(value), nil
	}
	switch v := value.(type) {
	case scalar:
		if to.Kind() == reflect.String {
			return v.text, nil
		}
		if to.Kind() == reflect.Slice && to.Elem().Kind() == reflect.String {
			return []any{v.text}, nil
		}
		if to.Kind() == reflect.Bool {
			return cluster.ParseBoolean(v.text)
		}
		return number(to, v.value)
	case string:
		switch to.Kind() {
		case reflect.Bool:
			return cluster.ParseBoolean(v)
		case reflect.Slice:
			if to.Elem().Kind() == reflect.String {
				return toAny(SplitList(v)), nil
			}
			return nil, errors.New("is text")
		case reflect.String:
			return v, nil
		}
		return number(to, v)
	case map[string]any:
		// {encoding: UTF8} where options are listed.
		if to.Kind() == reflect.Slice && to.Elem().Kind() == reflect.Interface {
			list := make([]any, 0, len(v))
			for _, key := range sortedKeys(v) {
				list = append(list, map[string]any{key: v[key]})
			}
			return list, nil
		}
	}
	return value, nil
}

func number(to reflect.Type, value any) (any, error) {
	switch to.Kind() {
	case reflect.Int, reflect.Int64:
		n, err := cluster.ParseInteger(value)
		if err == nil && to.Kind() == reflect.Int && int64(int(n)) != n {
			err = errors.New("is too large")
		}
		return n, err
	case reflect.Float64:
		return strconv.ParseFloat(strings.TrimSpace(fmt.Sprint(value)), 64)
	}
	return nil, errors.New("is a single value")
}

// Unknown is the problem of a key that the configuration does not have; config is
// any value of its struct. It says which key was perhaps meant.
func Unknown(config any, path string) cluster.Problem {
	section, key := "", path
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		section, key = path[:i], path[i+1:]
	}
	t, _ := typeAt(reflect.TypeOf(config), section)
	return unknown(t, path, key)
}

// unknown is the problem of a key that the section t does not have.
func unknown(t reflect.Type, path, key string) cluster.Problem {
	p := cluster.Problem{Path: path, Rule: "is not a known key"}
	if name := Closest(key, fieldNames(t)); name != "" {
		p.Rule += "; did you mean " + name + "?"
	}
	return p
}

// Closest is the name that key was perhaps meant to be, empty if none is near.
func Closest(key string, names []string) string {
	best, distance := "", len(key)/3+2
	for _, name := range names {
		if d := levenshtein.ComputeDistance(strings.ToLower(key), strings.ToLower(name)); d < distance {
			best, distance = name, d
		}
	}
	return best
}

// display is a value as a problem may show it.
func display(path string, expected reflect.Type, value any) string {
	name := path[strings.LastIndexByte(path, '.')+1:]
	name, _, _ = strings.Cut(name, "[")
	if value != nil && (isSecret(name) || expected != nil && mayHoldSecrets(expected)) {
		return hidden
	}
	switch v := value.(type) {
	case nil:
		return ""
	case scalar:
		return fmt.Sprintf("%.100s", v.text)
	case string:
		return fmt.Sprintf("%.100q", Redact(v))
	case map[string]any:
		return "a map"
	case []any:
		return "a list"
	}
	return fmt.Sprintf("%.100s", Redact(fmt.Sprint(value)))
}

// describe says in words what a field takes.
func describe(t reflect.Type) string {
	if t == nil {
		return "of another type"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return describe(t.Elem())
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		if k := t.Elem().Kind(); k == reflect.String {
			return "a list of texts"
		}
		return "a list"
	case reflect.Map:
		return "a map"
	case reflect.Struct:
		return "a section with keys of its own"
	}
	return "of another type"
}

// dotted turns mapstructure's users[AppUser].password into one with dots. An
// index into a list keeps its brackets.
func dotted(name string) string {
	var b strings.Builder
	for {
		open := strings.IndexByte(name, '[')
		if open < 0 {
			break
		}
		end := strings.IndexByte(name[open:], ']')
		if end < 0 {
			break
		}
		inner := name[open+1 : open+end]
		if _, err := strconv.Atoi(inner); err == nil {
			b.WriteString(name[:open+end+1])
		} else {
			b.WriteString(name[:open] + "." + inner)
		}
		name = name[open+end+1:]
	}
	return b.String() + name
}

// typeAt is the type of the setting at a path; false when there is none.
func typeAt(t reflect.Type, path string) (reflect.Type, bool) {
	for path != "" {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Struct:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			field, ok := fieldByName(t, path[:end])
			if !ok {
				return nil, false
			}
			t, path = field.Type, strings.TrimPrefix(path[end:], ".")
		case reflect.Slice:
			_, rest, ok := strings.Cut(path, "]")
			if !ok {
				return nil, false
			}
			t, path = t.Elem(), strings.TrimPrefix(rest, ".")
		case reflect.Map:
			// A user's name may have dots; a field of what it names has none.
			t = t.Elem()
			i := strings.LastIndexByte(path, '.')
			if t.Kind() != reflect.Struct || i < 0 {
				return t, true
			}
			if _, ok := fieldByName(t, path[i+1:]); !ok {
				return t, true
			}
			path = path[i+1:]
		default:
			return t, true
		}
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t, true
}

func fieldByName(t reflect.Type, name string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if f := t.Field(i); tagName(f) == name && name != "" && name != "-" {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// fieldNames lists the keys of a section.
func fieldNames(t reflect.Type) []string {
	for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map) {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		if name := tagName(t.Field(i)); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func tagName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("mapstructure"), ",")
	return name
}

func isRemain(f reflect.StructField) bool {
	return strings.HasSuffix(f.Tag.Get("mapstructure"), ",remain")
}

// SplitList takes comma-separated text apart; empty parts are left out.
func SplitList(text string) []string {
	var out []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func splitLines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func splitPath(path string) []string { return strings.Split(path, ".") }

func toAny(texts []string) []any {
	out := make([]any, len(texts))
	for i, text := range texts {
		out[i] = text
	}
	return out
}
