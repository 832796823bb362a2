package settings

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/viper"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Prefixes of environment variables. Where both set the same, Lictor's own wins.
const (
	ownPrefix     = "LICTOR_"
	patroniPrefix = "PATRONI_"
	// wholeVariable, with a prefix, holds a whole YAML document.
	wholeVariable = "CONFIGURATION"
	// operatorVariable, with Lictor's prefix, names the file of operators' commands.
	operatorVariable = "CONFIG_FILE"
)

// override is a value from outside the files.
type override struct {
	path   []string
	value  any
	origin string
}

// layers finds what environment and flags set. Viper says which layer wins: flags,
// then LICTOR_*, then PATRONI_*. It folds the case of its keys and splits them, so
// it is given names of settings only, with a delimiter that none contains; the
// values pass it unseen.
type layers struct {
	root   reflect.Type
	schema Schema
	viper  *viper.Viper
	errs   []error
	// users are set beside viper: their names are the user's own.
	users    []override
	warnings []cluster.Warning
}

const delimiter = "\x1f"

func newLayers(root reflect.Type, schema Schema) *layers {
	return &layers{root: root, schema: schema, viper: viper.NewWithOptions(viper.KeyDelimiter(delimiter))}
}

// environment takes in variables of the form NAME=value.
func (l *layers) environment(environ []string) {
	own, patroni := l.names()
	inOwn := map[string]any{}
	by := map[string]string{} // the variable that has set a path, with each prefix
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		prefix, known := ownPrefix, own
		short, ok := strings.CutPrefix(name, ownPrefix)
		if !ok {
			prefix, known = patroniPrefix, patroni
			if short, ok = strings.CutPrefix(name, patroniPrefix); !ok {
				continue
			}
		}
		if short == wholeVariable || prefix == ownPrefix && short == operatorVariable {
			continue
		}
		path, ok := known[short]
		switch {
		case text == "":
			if ok {
				l.warnings = append(l.warnings, cluster.Warning{Path: name, Text: "is empty and has no effect"})
			}
			continue
		case !ok:
			l.other(prefix, short, text, known)
			continue
		}
		if other := by[prefix+path]; other != "" {
			l.errs = append(l.errs, cluster.Problem{Path: name, Rule: "sets " + path + ", as " + other + " does: keep one of them"})
		}
		by[prefix+path] = name
		o := l.override(path, text, "environment variable "+name)
		switch {
		case o == nil:
		case prefix == ownPrefix:
			setNested(inOwn, o)
		default:
			l.viper.SetDefault(strings.Join(o.path, delimiter), o)
		}
	}
	for path := range by {
		if own, both := by[ownPrefix+strings.TrimPrefix(path, patroniPrefix)]; both && strings.HasPrefix(path, patroniPrefix) {
			l.warnings = append(l.warnings, cluster.Warning{Path: by[path], Text: "has no effect beside " + own})
		}
	}
	if err := l.viper.MergeConfigMap(inOwn); err != nil {
		l.errs = append(l.errs, fmt.Errorf("environment: %w", err))
	}
}

func setNested(m map[string]any, o *override) {
	for _, word := range o.path[:len(o.path)-1] {
		inner, ok := m[word].(map[string]any)
		if !ok {
			inner = map[string]any{}
			m[word] = inner
		}
		m = inner
	}
	m[o.path[len(o.path)-1]] = o
}

// names lists the variables that have a setting, without their prefixes.
func (l *layers) names() (own, patroni map[string]string) {
	own = map[string]string{}
	for _, path := range leaves(l.root, "") {
		own[strings.ToUpper(strings.ReplaceAll(path, ".", "_"))] = path
	}
	for _, names := range []map[string]string{l.schema.Patroni, l.schema.Variables} {
		for name, path := range names {
			own[name] = path
		}
	}
	return own, l.schema.Patroni
}

// other deals with a variable that has a prefix of ours and is no setting.
func (l *layers) other(prefix, short, text string, known map[string]string) {
	for _, start := range sortedKeys(l.schema.RefusedVariables) {
		if strings.HasPrefix(short, start) {
			l.errs = append(l.errs, cluster.Problem{Path: prefix + short, Rule: l.schema.RefusedVariables[start]})
			return
		}
	}
	if l.user(prefix, short, text) {
		return
	}
	// Other programs have variables with Patroni's prefix: of these only what looks
	// like a slip is worth a word.
	if name := Closest(short, sortedKeys(known)); name != "" && len(short) > 5 && near(short, name) {
		l.warnings = append(l.warnings, cluster.Warning{
			Path: prefix + short, Text: "is not a known variable and has no effect; did you mean " + prefix + name + "?",
		})
	} else if prefix == ownPrefix {
		l.warnings = append(l.warnings, cluster.Warning{Path: prefix + short, Text: "is not a known variable and has no effect"})
	}
}

// user takes PATRONI_<user>_PASSWORD and PATRONI_<user>_OPTIONS, Patroni's way to
// have users created at bootstrap.
func (l *layers) user(prefix, short, text string) bool {
	if prefix != patroniPrefix || l.schema.UserVariables == "" {
		return false
	}
	base := splitPath(l.schema.UserVariables)
	for suffix, field := range map[string]string{"_PASSWORD": "password", "_OPTIONS": "options"} {
		if name, ok := strings.CutSuffix(short, suffix); ok && name != "" {
			var value any = text
			if field == "options" {
				value = toAny(SplitList(strings.Trim(strings.TrimSpace(text), "[]")))
			}
			l.users = append(l.users, override{path: append(base[:len(base):len(base)], name, field), value: value, origin: "environment variable " + prefix + short})
			return true
		}
	}
	return false
}

// flags takes in values by the dotted paths of their settings; they go over the
// environment.
func (l *layers) flags(flags map[string]any) {
	for _, path := range sortedKeys(flags) {
		if _, ok := typeAt(l.root, path); !ok {
			l.errs = append(l.errs, Unknown(reflect.New(l.root).Elem().Interface(), path))
			continue
		}
		var o *override
		if text, ok := flags[path].(string); ok {
			o = l.override(path, text, "command line")
		} else {
			o = &override{path: splitPath(path), value: fromGo(flags[path]), origin: "command line"}
		}
		if o != nil {
			l.viper.Set(strings.Join(o.path, delimiter), o)
		}
	}
}

// override reads the text of a variable in the form that its setting takes.
func (l *layers) override(path, text, origin string) *override {
	o := &override{path: splitPath(path), value: text, origin: origin}
	t, _ := typeAt(l.root, path)
	switch {
	case t == nil:
		return nil
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Map, t.Kind() == reflect.Interface, t.Kind() == reflect.Struct:
		value, warnings, err := fromText(t.Kind(), text)
		for _, w := range warnings {
			l.warnings = append(l.warnings, cluster.Warning{Path: path, Text: origin + ": " + strings.TrimPrefix(w.Path, "value.") + ": " + w.Text})
		}
		if err != nil {
			l.errs = append(l.errs, cluster.Problem{Path: path, Rule: err.Error(), Origin: origin})
			return nil
		}
		o.value = value
	}
	return o
}

// fromText reads a list or map as Patroni takes it from a variable: YAML, whose
// outer brackets may be left out.
func fromText(kind reflect.Kind, text string) (any, []cluster.Warning, error) {
	trimmed := strings.TrimSpace(text)
	candidates := []string{text}
	switch kind {
	case reflect.Slice:
		if !strings.HasPrefix(trimmed, "-") && !strings.Contains(trimmed, "[") && !strings.HasPrefix(trimmed, "{") {
			candidates = []string{"[" + text + "]"}
		}
	case reflect.Map, reflect.Struct:
		if !strings.HasPrefix(trimmed, "{") {
			candidates = []string{text, "{" + text + "}"}
		}
	}
	for _, candidate := range candidates {
		t := newTree()
		if err := t.readText("", []byte("value: "+indent(candidate))); err != nil {
			continue
		}
		switch value := t.values["value"]; value.(type) {
		case []any:
			if kind != reflect.Map && kind != reflect.Struct {
				return value, t.warnings, nil
			}
		case map[string]any:
			return value, t.warnings, nil
		default:
			if kind == reflect.Interface {
				return value, t.warnings, nil
			}
		}
	}
	if kind == reflect.Slice {
		return nil, nil, fmt.Errorf("must be a list: a, b or YAML")
	}
	return nil, nil, fmt.Errorf("must be a map: a: b, c: d or YAML")
}

func indent(text string) string {
	return "\n  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

// fromGo makes a value of a flag one of a tree.
func fromGo(value any) any {
	switch v := value.(type) {
	case nil, string:
		return v
	case []string:
		return toAny(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = fromGo(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, inner := range v {
			out[key] = fromGo(inner)
		}
		return out
	}
	return scalar{text: fmt.Sprint(value), value: value}
}

// apply lays what was found over the tree.
func (l *layers) apply(t *tree) []error {
	for _, key := range l.viper.AllKeys() {
		if o, ok := l.viper.Get(key).(*override); ok {
			t.set(o.path, o.value, o.origin)
		}
	}
	for _, o := range l.users {
		t.set(o.path, o.value, o.origin)
	}
	t.warnings = append(t.warnings, l.warnings...)
	return l.errs
}

// leaves lists the paths of a struct's settings that fit into one variable.
func leaves(t reflect.Type, prefix string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return []string{prefix}
	}
	var paths []string
	for i := range t.NumField() {
		if name := tagName(t.Field(i)); name != "" && name != "-" {
			paths = append(paths, leaves(t.Field(i).Type, join(prefix, name))...)
		}
	}
	return paths
}
