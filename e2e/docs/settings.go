package docs

import (
	"cmp"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/web"
	bouncerconfig "github.com/lictor-ha/lictor/bouncer/config"
)

// Setting is one line of the page.
type Setting struct {
	// Path is the setting's full name; [] stands for an item of a list and * for a
	// name that the user chooses.
	Path string
	// Type is what it takes, with its unit.
	Type    string
	Default string
	// Rules are what the loader says to values that it refuses.
	Rules   []string
	Meaning string
	// Field is the Go field that holds it.
	Field string
}

// Section is one of the files or keys that settings stand in.
type Section struct {
	Title, Intro string
	Settings     []Setting
	load         loader
}

// Sections reads all settings from the source tree at root and from the code that
// this program was built with. dir is an empty directory for scratch files.
func Sections(root, dir string) ([]Section, error) {
	said, err := readComments(root, "agent/config", "agent/cluster", "agent/cluster/settings", "bouncer/config", "agent/web")
	if err != nil {
		return nil, err
	}
	agent, err := minimal(dir, "agent.yml", agentMinimum)
	if err != nil {
		return nil, err
	}
	own, _, err := config.Load(settings.Source{Path: agent})
	if err != nil {
		return nil, fmt.Errorf("the smallest configuration of an agent: %w", err)
	}
	pooler, err := minimal(dir, "bouncer.yml", bouncerMinimum)
	if err != nil {
		return nil, err
	}
	follow, _, err := bouncerconfig.Load(settings.Source{Path: pooler})
	if err != nil {
		return nil, fmt.Errorf("the smallest configuration of a bouncer: %w", err)
	}
	page, _, err := web.Load(settings.Source{})
	if err != nil {
		return nil, fmt.Errorf("the smallest configuration of the fleet page: %w", err)
	}
	dynamic, _, err := cluster.ParseDynamic(nil)
	if err != nil {
		return nil, fmt.Errorf("the default dynamic configuration: %w", err)
	}
	sections := []Section{
		{
			Title: "Agent",
			Intro: "The file of `lictor agent FILE`, which has Patroni's schema. `LICTOR_<SECTION>_<KEY>` and `PATRONI_<SECTION>_<KEY>` go over the file, `--set` over both; a variable that is not known, is empty or does not count is told when the agent starts. " +
				"`lictor validate FILE` checks it; SIGHUP and `lictor reload` read it again.",
			Settings: walk(said, reflect.ValueOf(own), ""), load: agentLoader(dir),
		},
		{
			Title: "Dynamic configuration",
			Intro: "What all members of a shard share: the key `config` in Consul, at first `bootstrap.dcs`. `lictor edit-config`, `patronictl edit-config` and `PATCH /config` change it; " +
				"members follow at once. What breaks a rule is refused, never clamped (but see lictor.compat). Times are whole seconds or text with a unit (10s, 5min), sizes bytes or text with a unit (10MB).",
			Settings: walk(said, reflect.ValueOf(dynamic), ""), load: dynamicLoader,
		},
		{
			Title:    "Bouncer",
			Intro:    "The file of `lictor bouncer FILE` (bouncer.yml; [bouncer.md](bouncer.md) has examples). `LICTOR_<SECTION>_<KEY>` goes over it; `lictor bouncer validate FILE` checks it, SIGHUP reads it again. The section `consul` is the agent's.",
			Settings: slices.DeleteFunc(walk(said, reflect.ValueOf(follow), ""), func(s Setting) bool { return strings.HasPrefix(s.Path, "consul.") }),
			load:     bouncerLoader(dir),
		},
		{
			Title:    "Fleet page",
			Intro:    "The file of `lictor web FILE` ([web.md](web.md) has examples). `LICTOR_<SECTION>_<KEY>` goes over it. The section `consul` is the agent's.",
			Settings: slices.DeleteFunc(walk(said, reflect.ValueOf(page), ""), func(s Setting) bool { return strings.HasPrefix(s.Path, "consul.") }),
			load:     webLoader(dir),
		},
	}
	for i := range sections {
		if err := sections[i].complete(); err != nil {
			return nil, fmt.Errorf("%s: %w", sections[i].Title, err)
		}
	}
	return sections, nil
}

// complete marks what must be set and asks the loader for its rules.
func (s *Section) complete() error {
	needed, err := s.load(nil)
	if err != nil {
		return err
	}
	for i := range s.Settings {
		setting := &s.Settings[i]
		for _, p := range needed {
			if p.Path == setting.Path && strings.HasPrefix(p.Rule, "must be set") {
				setting.Default = "must be set"
				if rule := examples.ReplaceAllString(p.Rule, ""); rule != setting.Default && !strings.HasPrefix(rule, "must be set: ") {
					setting.Rules = append(setting.Rules, rule)
				}
			}
		}
		more, err := rules(s.load, *setting)
		if err != nil {
			return err
		}
		setting.Rules = append(setting.Rules, more...)
	}
	// Sections one after another, what stands in none of them first.
	order := map[string]int{"": 0}
	for _, setting := range s.Settings {
		if group := setting.group(); order[group] == 0 && group != "" {
			order[group] = len(order)
		}
	}
	slices.SortStableFunc(s.Settings, func(a, b Setting) int { return order[a.group()] - order[b.group()] })
	return nil
}

// group is the section that a setting stands in.
func (s Setting) group() string {
	head, _, found := strings.Cut(s.Path, ".")
	if !found {
		return ""
	}
	return strings.TrimSuffix(head, "[]")
}

// walk lists the settings below a struct that holds the defaults.
func walk(said comments, v reflect.Value, prefix string) (list []Setting) {
	t := v.Type()
	for i := range t.NumField() {
		field := t.Field(i)
		name, ok := settingName(field)
		if !ok {
			continue
		}
		if field.Anonymous {
			list = append(list, walk(said, v.Field(i), prefix)...)
			continue
		}
		value, path := v.Field(i), prefix+name
		switch {
		case value.Kind() == reflect.Struct:
			list = append(list, walk(said, value, path+".")...)
			continue
		case value.Kind() == reflect.Slice && value.Type().Elem().Kind() == reflect.Struct && hasFields(value.Type().Elem()):
			list = append(list, walk(said, reflect.Zero(value.Type().Elem()), path+"[].")...)
			continue
		case value.Kind() == reflect.Map && value.Type().Elem().Kind() == reflect.Struct:
			list = append(list, walk(said, reflect.Zero(value.Type().Elem()), path+".*.")...)
			continue
		}
		meaning, fallback := meaningOf(said.of(t, field.Name), field.Name)
		if fallback == "" {
			fallback = shown(value)
		}
		list = append(list, Setting{Path: path, Type: typeOf(value.Type(), meaning), Default: fallback, Meaning: meaning, Field: field.Name})
	}
	return list
}

// hasFields reports whether a struct has fields that are settings; one that is read from a text has none.
func hasFields(t reflect.Type) bool {
	return slices.ContainsFunc(reflect.VisibleFields(t), reflect.StructField.IsExported)
}

// settingName is a field's name in the file. Fields of the dynamic configuration
// that are read by hand have none in their tag; there it follows from the field.
func settingName(field reflect.StructField) (string, bool) {
	tag, options, _ := strings.Cut(field.Tag.Get("mapstructure"), ",")
	switch {
	case options == "remain" || !field.IsExported() || field.Name == "Raw" || field.Name == "Version":
		return "", false
	case tag != "" && tag != "-":
		return tag, true
	}
	return snake(field.Name), true
}

// snake turns MemberSlotsTTL into member_slots_ttl.
func snake(name string) string {
	var b strings.Builder
	letters := []rune(name)
	for i, r := range letters {
		if i > 0 && unicode.IsUpper(r) && (unicode.IsLower(letters[i-1]) || i+1 < len(letters) && unicode.IsLower(letters[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// meaningOf takes a comment apart into what it says of a field, without the
// field's name, and the default that it names ("Default: ttl/4.").
func meaningOf(comment, field string) (meaning, fallback string) {
	if before, after, found := strings.Cut(comment, " Default: "); found {
		fallback, after, _ = strings.Cut(after, ". ")
		comment, fallback = strings.TrimSpace(before+" "+after), strings.TrimSuffix(fallback, ".")
	}
	comment = strings.TrimPrefix(comment, field+" ")
	for _, verb := range []string{"is ", "are "} {
		comment = strings.TrimPrefix(comment, verb)
	}
	if comment == "" {
		return "", fallback
	}
	return strings.ToUpper(comment[:1]) + comment[1:], fallback
}

// typeOf says in words what a field takes; the unit stands in its meaning.
func typeOf(t reflect.Type, meaning string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	unit := ""
	for word, name := range map[string]string{"second": "seconds", "bytes": "bytes", "connections)": "connections", "port number": "port"} {
		if strings.Contains(meaning, word) {
			unit = name
		}
	}
	switch t.Kind() {
	case reflect.String:
		if t == reflect.TypeFor[cluster.SyncMode]() {
			return "true, false, quorum"
		}
		return "text"
	case reflect.Bool:
		return "true, false"
	case reflect.Int64:
		if t == reflect.TypeFor[time.Duration]() {
			return "seconds"
		}
		return cmp.Or(unit, "number")
	case reflect.Int:
		return cmp.Or(unit, "number")
	case reflect.Float64:
		return cmp.Or(unit, "number") + ", with fractions"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "map"
	}
	return "list or map"
}

// shown is a default as the page shows it.
func shown(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return "not set"
		}
		return shown(v.Elem())
	case reflect.String:
		switch v.Interface() {
		case cluster.SyncOff:
			return "false"
		case "", secret:
			return "not set"
		}
		return v.String()
	case reflect.Slice, reflect.Map:
		if v.Len() == 0 {
			return "none"
		}
	case reflect.Int64:
		if d, ok := v.Interface().(time.Duration); ok {
			return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
		}
	}
	return fmt.Sprint(v.Interface())
}

// secret stands for passwords in the smallest configurations.
const secret = "not-shown"

// Page is docs/settings.md.
func Page(sections []Section) string {
	var b strings.Builder
	b.WriteString("# Settings\n\n<!-- Made from the code by `go run ./e2e/docs/cmd/settings`: change the comments of the types there, not this page. -->\n\n" +
		"Every setting of agent, shard, bouncer and fleet page, made from the code by `go run ./e2e/docs/cmd/settings`: what it means and why is the comment of\n" +
		"the field that holds it, the default is what the loader fills in, and a rule is what the loader answers to a value that breaks it (with all other\n" +
		"settings at their defaults; X stands for the value). All problems of a file are reported at once, each with its place.\n\n" +
		"`*` stands for a name that you choose, `[]` for each item of a list. A setting that has no effect says so: it is read so that a `patroni.yml` works unchanged.\n")
	for _, section := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", section.Title, section.Intro)
		group := "\x00"
		for _, s := range section.Settings {
			if s.group() != group {
				group = s.group()
				title := cmp.Or(group, "top level")
				fmt.Fprintf(&b, "\n### %s: %s\n\n| setting | takes | default | rule | meaning, and why |\n| --- | --- | --- | --- | --- |\n", section.Title, title)
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", s.Path, s.Type, cell(s.Default), cell(strings.Join(s.Rules, "; ")), cell(s.Meaning))
		}
	}
	return b.String()
}

var blanks = regexp.MustCompile(`\s+`)

// cell makes a text fit into a table.
func cell(text string) string {
	text = blanks.ReplaceAllString(text, " ")
	text = strings.NewReplacer("|", "\\|", "<", "&lt;", "*", "\\*").Replace(text)
	return strings.TrimSpace(text)
}
