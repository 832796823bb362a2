package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Limits that keep a file of aliases from growing without end.
const (
	maxDepth = 64
	maxNodes = 100_000
)

// scalar is a plain YAML value that is not text. It keeps how it was written,
// so that `password: 0123` stays what it is where text is expected.
type scalar struct {
	text  string
	value any
}

// MarshalYAML writes it as it was written.
func (s scalar) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Value: s.text}, nil
}

// tree is a configuration before it is decoded. Its values are
// map[string]any, []any, string, scalar and nil.
type tree struct {
	values   map[string]any
	origins  map[string]string // path -> where it was set
	warnings []cluster.Warning
}

func newTree() *tree { return &tree{values: map[string]any{}, origins: map[string]string{}} }

// readPath reads a file, or all *.yml and *.yaml of a directory in alphabetical
// order, later ones over earlier ones.
func (t *tree) readPath(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	names := []string{path}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
		names = nil
		for _, e := range entries { // sorted by name
			file := filepath.Join(path, e.Name())
			if ext := filepath.Ext(file); ext != ".yml" && ext != ".yaml" {
				continue
			}
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
				names = append(names, file)
			}
		}
		if len(names) == 0 {
			return fmt.Errorf("configuration: the directory %s has no *.yml or *.yaml", path)
		}
	}
	var errs []error
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("configuration: %w", err))
			continue
		}
		errs = append(errs, t.readText(filepath.Base(name), content))
		if holdsSecrets(t.values) {
			t.warnIfReadable(name)
		}
	}
	return errors.Join(errs...)
}

// warnIfReadable warns of a file with secrets that everybody may read.
func (t *tree) warnIfReadable(name string) {
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o004 != 0 {
		t.warnings = append(t.warnings, cluster.Warning{
			Path: name, Text: fmt.Sprintf("holds a password or token and may be read by everybody (mode %04o): chmod o-r", info.Mode().Perm()),
		})
	}
}

// readText lays one YAML document over the tree. Maps are merged; null removes
// what an earlier file has set.
func (t *tree) readText(source string, content []byte) error {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF): // nothing but comments
		return nil
	case err != nil:
		return syntaxProblem(source, err)
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		return cluster.Problem{Path: source, Rule: "must be one YAML document, but a second one begins at line " + fmt.Sprint(second.Line)}
	} else if !errors.Is(err, io.EOF) {
		return syntaxProblem(source, err)
	}
	c := converter{tree: t, source: source}
	value := c.value(&document, "", 0)
	if c.errs != nil {
		return errors.Join(c.errs...)
	}
	switch v := value.(type) {
	case nil:
	case map[string]any:
		mergeTree(t.values, v)
	default:
		return cluster.Problem{Path: source, Rule: "must be a map of sections", Origin: c.at(&document)}
	}
	return nil
}

func mergeTree(base, over map[string]any) {
	for key, value := range over {
		inner, both := base[key].(map[string]any)
		switch v := value.(type) {
		case map[string]any:
			if both {
				mergeTree(inner, v)
				continue
			}
		case nil:
			// A section without content (`parameters:`) empties nothing.
			if both {
				continue
			}
		}
		base[key] = value
	}
}

// syntaxProblem takes over yaml's message, which has the line, without what it
// may quote of the content: `password: *secret` is an unknown anchor to it.
func syntaxProblem(source string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if strings.Contains(text, "unknown anchor") {
		text = "a value begins with *, which YAML takes for an alias, and nothing has that name: put it in quotes"
	}
	return cluster.Problem{Path: source, Rule: "is not valid YAML: " + quoted().ReplaceAllString(text, "...")}
}

func quoted() *regexp.Regexp { return regexp.MustCompile("`[^`]*`|'[^']{2,}'") }

// converter makes a tree of YAML's nodes.
type converter struct {
	tree   *tree
	source string
	nodes  int
	errs   []error
}

func (c *converter) at(n *yaml.Node) string {
	if n.Line == 0 {
		return c.source
	}
	return fmt.Sprintf("%s, line %d, column %d", c.source, n.Line, n.Column)
}

func (c *converter) fail(n *yaml.Node, path, rule string) {
	if path == "" {
		path = c.source
	}
	c.errs = append(c.errs, cluster.Problem{Path: path, Rule: rule, Origin: c.at(n)})
}

func (c *converter) value(n *yaml.Node, path string, depth int) any {
	if c.nodes++; depth > maxDepth || c.nodes > maxNodes {
		if len(c.errs) == 0 {
			c.fail(n, path, "is nested too deeply or too large, or an alias contains itself")
		}
		return nil
	}
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return nil
		}
		return c.value(n.Content[0], path, depth+1)
	case yaml.AliasNode:
		return c.value(n.Alias, path, depth+1)
	case yaml.MappingNode:
		return c.mapping(n, path, depth)
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, item := range n.Content {
			below := fmt.Sprintf("%s[%d]", path, i)
			c.tree.origins[below] = c.at(item)
			list = append(list, c.value(item, below, depth+1))
		}
		return list
	case yaml.ScalarNode:
		return c.scalar(n, path)
	}
	return nil
}

func (c *converter) mapping(n *yaml.Node, path string, depth int) map[string]any {
	out := make(map[string]any, len(n.Content)/2)
	own := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		for key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			c.fail(key, path, "a key must be a single value")
			continue
		}
		if key.Value == "<<" && key.Style == 0 {
			c.merge(out, own, value, path, depth)
			continue
		}
		below := join(path, key.Value)
		if own[key.Value] {
			c.tree.warnings = append(c.tree.warnings, cluster.Warning{
				Path: below, Text: "is set twice, the last one counts (" + c.at(key) + ")",
			})
		}
		own[key.Value] = true
		c.tree.origins[below] = c.at(key)
		out[key.Value] = c.value(value, below, depth+1)
	}
	return out
}

// merge takes in what a merge key (<<) names; the map's own keys win.
func (c *converter) merge(out map[string]any, own map[string]bool, n *yaml.Node, path string, depth int) {
	switch v := c.value(n, path, depth+1).(type) {
	case map[string]any:
		for key, value := range v {
			if _, set := out[key]; !set || !own[key] {
				out[key] = value
			}
		}
	case []any:
		for _, item := range slices.Backward(v) {
			m, ok := item.(map[string]any)
			if !ok {
				c.fail(n, path, "<< must name maps")
				continue
			}
			for key, value := range m {
				if !own[key] {
					out[key] = value
				}
			}
		}
	default:
		c.fail(n, path, "<< must name a map")
	}
}

// scalar resolves a value as PyYAML does, which reads patroni.yml: unquoted yes,
// no, on and off are booleans, too.
func (c *converter) scalar(n *yaml.Node, path string) any {
	plain := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!str":
		if plain && n.Style&yaml.TaggedStyle == 0 {
			switch n.Value {
			case "yes", "Yes", "YES", "on", "On", "ON":
				return scalar{n.Value, true}
			case "no", "No", "NO", "off", "Off", "OFF":
				return scalar{n.Value, false}
			}
		}
	case "!!bool", "!!int", "!!float":
		var value any
		if err := n.Decode(&value); err != nil {
			c.fail(n, path, "does not fit its tag "+n.ShortTag())
			return nil
		}
		return scalar{n.Value, value}
	}
	return n.Value
}

// resolve turns a tree into plain values, for settings that take anything.
func resolve(value any) any {
	switch v := value.(type) {
	case scalar:
		return v.value
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, inner := range v {
			out[key] = resolve(inner)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = resolve(v[i])
		}
		return out
	}
	return value
}

// lookup finds the value at a path of settings' names.
func (t *tree) lookup(path string) (value any, set bool) {
	words := strings.Split(path, ".")
	m := t.values
	for _, word := range words[:len(words)-1] {
		inner, ok := m[word].(map[string]any)
		if !ok {
			return nil, false
		}
		m = inner
	}
	value, set = m[words[len(words)-1]]
	return value, set
}

// set puts a value at a path, whose words may contain dots. What is in the way
// and is not a map is left for the decoder to refuse.
func (t *tree) set(path []string, value any, origin string) {
	m := t.values
	for _, word := range path[:len(path)-1] {
		inner, ok := m[word].(map[string]any)
		if !ok {
			if m[word] != nil {
				return
			}
			inner = map[string]any{}
			m[word] = inner
		}
		m = inner
	}
	m[path[len(path)-1]] = value
	t.origins[strings.Join(path, ".")] = origin
}

// remove deletes the value at a path.
func (t *tree) remove(path string) {
	words := strings.Split(path, ".")
	m := t.values
	for _, word := range words[:len(words)-1] {
		inner, ok := m[word].(map[string]any)
		if !ok {
			return
		}
		m = inner
	}
	delete(m, words[len(words)-1])
}

// locate adds to a problem where its value comes from.
func (t *tree) locate(p cluster.Problem) cluster.Problem {
	for path := p.Path; p.Origin == "" && path != ""; {
		if origin, known := t.origins[path]; known {
			p.Origin = origin
			break
		}
		// What is missing is missing in its section.
		end := strings.LastIndexAny(path, ".[")
		if end < 0 {
			break
		}
		path = path[:end]
	}
	return p
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
