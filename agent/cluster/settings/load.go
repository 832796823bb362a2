package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Source is where a configuration comes from.
type Source struct {
	// Path is a YAML file, or a directory of *.yml and *.yaml. Without one the
	// whole YAML comes from LICTOR_CONFIGURATION or PATRONI_CONFIGURATION.
	Path string
	// Environ is the environment, as from os.Environ. Its variables go over the
	// file.
	Environ []string
	// Flags are values by the paths of their settings, like postgresql.listen.
	// They go over the environment.
	Flags map[string]any
	// Text, where it is set, gets what the files say, as one YAML document.
	Text *[]byte
}

// Get returns the value of an environment variable, empty when there is none.
func (s Source) Get(name string) string {
	for _, entry := range s.Environ {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

func (s Source) String() string {
	if s.Path == "" {
		return "the environment"
	}
	return s.Path
}

// Load reads, layers and decodes a configuration into a pointer to its struct.
// Then it calls check, which fills in defaults and checks what decoding cannot.
// All problems are reported at once, each with the place its value comes from.
// Warnings are returned with and without an error.
func Load(source Source, schema Schema, into any, check func() ([]cluster.Warning, error)) ([]cluster.Warning, error) {
	t := newTree()
	if source.Path != "" {
		var failed *fs.PathError
		if _, err := os.Stat(source.Path); errors.As(err, &failed) {
			return nil, &Refused{Source: failed.Path, Err: failed, unread: true}
		}
	}
	if err := t.read(source); err != nil {
		var failed *fs.PathError
		if errors.As(err, &failed) && errors.Is(failed, fs.ErrPermission) {
			return t.warnings, &Refused{Source: failed.Path, Err: failed, unread: true}
		}
		return t.warnings, refused(source, []error{err})
	}
	if source.Text != nil {
		text, err := yaml.Marshal(t.values)
		if err != nil {
			return t.warnings, refused(source, []error{err})
		}
		*source.Text = text
	}
	errs := schema.apply(t)
	l := newLayers(reflect.TypeOf(into).Elem(), schema)
	l.environment(source.Environ)
	l.flags(source.Flags)
	errs = append(errs, l.apply(t)...)
	// Once more: what came from outside the files may need it, too.
	errs = append(errs, schema.apply(t)...)
	errs = append(errs, t.decode(into)...)

	reported := map[string]bool{}
	for _, err := range errs {
		for _, p := range cluster.Problems(err) {
			reported[p.Path] = true
		}
	}
	warnings, err := check()
	warnings = append(t.warnings, warnings...)
	for _, p := range cluster.Problems(err) {
		// What could not be decoded looks as if it were not set.
		if !covers(reported, p.Path) {
			errs = append(errs, p)
		}
	}
	for i, err := range errs {
		if p, ok := err.(cluster.Problem); ok { //nolint:errorlint // only the bare form is located
			errs[i] = t.locate(p)
		}
	}
	slices.SortStableFunc(errs, func(a, b error) int { return strings.Compare(pathOf(a), pathOf(b)) })
	return warnings, refused(source, errs)
}

// covers reports whether a problem of path, or of a section that it is in, has
// been reported.
func covers(reported map[string]bool, path string) bool {
	for path != "" {
		if reported[path] {
			return true
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return false
}

func pathOf(err error) string {
	if p, ok := err.(cluster.Problem); ok { //nolint:errorlint // a wrapped one is no setting's
		return p.Path
	}
	return ""
}

func (t *tree) read(source Source) error {
	var whole []string
	for _, prefix := range []string{ownPrefix, patroniPrefix} {
		if name := prefix + wholeVariable; source.Get(name) != "" {
			whole = append(whole, name)
		}
	}
	unused := func(names []string, beside string) {
		for _, name := range names {
			t.warnings = append(t.warnings, cluster.Warning{Path: name, Text: "has no effect beside " + beside})
		}
	}
	if source.Path != "" {
		unused(whole, "a file or directory")
		return t.readPath(source.Path)
	}
	if len(whole) > 0 {
		unused(whole[1:], whole[0])
		return t.readText(whole[0], []byte(source.Get(whole[0])))
	}
	return fmt.Errorf("no configuration: name a file or a directory, or set %s%s", ownPrefix, wholeVariable)
}

// refused puts a headline over the problems.
func refused(source Source, errs []error) error {
	err := errors.Join(errs...)
	if err == nil {
		return nil
	}
	return &Refused{Source: source.String(), Err: err}
}

// Refused says that a configuration is not valid. Err joins its problems.
type Refused struct {
	Source string
	Err    error
	// unread says that there is nothing that could be valid: Err is an *fs.PathError.
	unread bool
}

func (r *Refused) Error() string {
	var failed *fs.PathError
	switch {
	case r.unread && errors.Is(r.Err, fs.ErrPermission) && errors.As(r.Err, &failed):
		return fmt.Sprintf("the configuration %s cannot be read: %v; run this as root, or as the user to whom the file belongs", r.Source, failed.Err)
	case r.unread && errors.As(r.Err, &failed):
		return fmt.Sprintf("the configuration %s cannot be read: %v", r.Source, failed.Err)
	}
	return fmt.Sprintf("configuration from %s is refused:\n  %s", r.Source, strings.ReplaceAll(r.Err.Error(), "\n", "\n  "))
}

func (r *Refused) Unwrap() error { return r.Err }

// near reports whether a variable's name looks like a slip of another's.
func near(a, b string) bool { return levenshtein.ComputeDistance(a, b) <= 2 }
