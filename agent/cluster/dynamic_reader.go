package cluster

import (
	"fmt"
	"time"
)

// reader takes typed values out of a map and collects what is wrong with them,
// so that everything is reported at once. A key that is absent or null has its
// default.
type reader struct {
	raw      map[string]any
	prefix   string // of the paths in problems
	rules    Rules
	errs     []error
	warnings []Warning
}

func (r *reader) fail(path string, value any, rule string) {
	p := Problem{Path: r.prefix + path, Rule: rule}
	if value != nil {
		p.Value = shown(value)
	}
	r.errs = append(r.errs, p)
}

func (r *reader) warn(path, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{Path: r.prefix + path, Text: fmt.Sprintf(format, args...)})
}

// pick returns alias when it alone is set.
func (r *reader) pick(key, alias string) string {
	if r.raw[key] == nil && r.raw[alias] != nil {
		return alias
	}
	return key
}

func (r *reader) number(key string, fallback, least, most int64) int64 {
	value := r.raw[key]
	if value == nil {
		return fallback
	}
	n, err := ParseInteger(value)
	if err != nil {
		r.fail(key, value, err.Error())
		return fallback
	}
	return r.between(key, n, fallback, least, most, "")
}

func (r *reader) seconds(key string, fallback, least, most int64) int64 {
	value := r.raw[key]
	if value == nil {
		return fallback
	}
	d, err := ParseSeconds(value)
	if err != nil {
		r.fail(key, value, err.Error())
		return fallback
	}
	return r.between(key, int64(d/time.Second), fallback, least, most, " s")
}

func (r *reader) between(key string, n, fallback, least, most int64, unit string) int64 {
	switch {
	case n < least:
		r.fail(key, r.raw[key], fmt.Sprintf("must be at least %d%s", least, unit))
	case n > most:
		r.fail(key, r.raw[key], fmt.Sprintf("must be at most %d%s", most, unit))
	default:
		return n
	}
	return fallback
}

func (r *reader) duration(key string, fallback time.Duration) time.Duration {
	value := r.raw[key]
	if value == nil {
		return fallback
	}
	d, err := ParseSeconds(value)
	switch {
	case err != nil:
		r.fail(key, value, err.Error())
	case d < 0:
		r.fail(key, value, "must not be negative")
	default:
		return d
	}
	return fallback
}

func (r *reader) bytes(key string, fallback, least int64) int64 {
	value := r.raw[key]
	if value == nil {
		return fallback
	}
	n, err := ParseBytes(value)
	switch {
	case err != nil:
		r.fail(key, value, err.Error())
	case n < least:
		r.fail(key, value, fmt.Sprintf("must be at least %d", least))
	default:
		return n
	}
	return fallback
}

func (r *reader) boolean(key string, fallback bool) bool {
	value := r.raw[key]
	if value == nil {
		return fallback
	}
	b, err := ParseBoolean(value)
	if err != nil {
		r.fail(key, value, err.Error())
		return fallback
	}
	return b
}

func (r *reader) optional(key string) *bool {
	if r.raw[key] == nil {
		return nil
	}
	b := r.boolean(key, false)
	return &b
}

func (r *reader) object(key string) map[string]any {
	value := r.raw[key]
	if value == nil {
		return nil
	}
	m, ok := value.(map[string]any)
	if !ok {
		r.fail(key, value, "must be a map")
	}
	return m
}

func (r *reader) list(key string) []any {
	value := r.raw[key]
	if value == nil {
		return nil
	}
	l, ok := value.([]any)
	if !ok {
		r.fail(key, value, "must be a list")
	}
	return l
}

// lines reads a list of text. An absent list is nil, an empty one is not.
func (r *reader) lines(key string) []string {
	list := r.list(key)
	if list == nil {
		return nil
	}
	lines := make([]string, 0, len(list))
	for i, item := range list {
		text, ok := item.(string)
		if !ok {
			r.fail(fmt.Sprintf("%s[%d]", key, i), item, "must be text")
			continue
		}
		lines = append(lines, text)
	}
	return lines
}

// cloneTree copies a tree of maps and lists.
func cloneTree(m map[string]any) map[string]any {
	if m == nil {
		return nil
	}
	out := make(map[string]any, len(m))
	for key, value := range m {
		out[key] = cloneValue(value)
	}
	return out
}

func cloneValue(value any) any {
	switch v := value.(type) {
	case map[string]any:
		return cloneTree(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = cloneValue(v[i])
		}
		return out
	}
	return value
}
