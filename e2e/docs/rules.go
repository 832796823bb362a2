package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/web"
	bouncerconfig "github.com/lictor-ha/lictor/bouncer/config"
)

// A loader reads a configuration that has only these settings and returns its
// problems. It fails only if the attempt itself does.
type loader func(values map[string]any) ([]cluster.Problem, error)

// The smallest configurations that pass.
const (
	agentMinimum = `
scope: shard1
name: db1
restapi: {listen: "127.0.0.1:8008"}
postgresql:
  listen: 127.0.0.1:5432
  data_dir: /var/lib/postgresql/shard1
  authentication: {superuser: {password: not-shown}, replication: {username: replicator, password: not-shown}}
`
	bouncerMinimum = `
name: pool1
pgbouncer: {config: /etc/pgbouncer/pgbouncer.ini, admin: "127.0.0.1:6432"}
`
)

// minimal writes one of them.
func minimal(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("scratch file: %w", err)
	}
	return path, nil
}

func agentLoader(dir string) loader {
	return fileLoader(filepath.Join(dir, "probe.yml"), func(s settings.Source) error {
		_, _, err := config.Load(s)
		return err
	})
}

func bouncerLoader(dir string) loader {
	return fileLoader(filepath.Join(dir, "probe.yml"), func(s settings.Source) error {
		_, _, err := bouncerconfig.Load(s)
		return err
	})
}

func webLoader(dir string) loader {
	return fileLoader(filepath.Join(dir, "probe.yml"), func(s settings.Source) error {
		_, _, err := web.Load(s)
		return err
	})
}

// fileLoader loads from a file; JSON is YAML.
func fileLoader(path string, load func(settings.Source) error) loader {
	return func(values map[string]any) ([]cluster.Problem, error) {
		text, err := json.Marshal(values)
		if err != nil {
			return nil, fmt.Errorf("probe: %w", err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, fmt.Errorf("probe: %w", err)
		}
		var problems []cluster.Problem
		if err := load(settings.Source{Path: path}); err != nil {
			if refused, ok := err.(*settings.Refused); ok { //nolint:errorlint // the loaders return it bare
				err = refused.Err
			}
			problems = cluster.Problems(err)
		}
		return problems, nil
	}
}

func dynamicLoader(values map[string]any) ([]cluster.Problem, error) {
	_, _, err := cluster.ParseDynamic(values)
	return cluster.Problems(err), nil
}

// probes are values that most settings refuse: of a wrong form, too small, too
// large, a file that is not there.
func probes(s Setting) []any {
	switch {
	case s.Path == "lictor.os_user":
		return nil // checked only when root asks
	case strings.HasPrefix(s.Type, "true, false"):
		return []any{"perhaps"}
	case s.Type == "text":
		return []any{"no such/value ,", "1.2.3.4.5:x:", "/nowhere/at/all"}
	case s.Type == "list":
		return []any{[]any{"no such/value ,"}}
	case s.Type == "map", s.Type == "list or map":
		return []any{"x", map[string]any{"no such": []any{}}}
	}
	return []any{"x", -7, 1_000_000}
}

var (
	index    = regexp.MustCompile(`\[\d+\]`)
	examples = regexp.MustCompile(`, e\.g\. .*$`)
)

// rules asks the loader what it says to values that break them.
func rules(load loader, s Setting) ([]string, error) {
	var list []string
	for _, value := range probes(s) {
		problems, err := load(nested(s.Path, value))
		if err != nil {
			return nil, err
		}
		for _, p := range problems {
			path := index.ReplaceAllString(p.Path, "[]")
			path = strings.ReplaceAll(path, ".some.", ".*.")
			if path != s.Path && path != s.Path+"[]" && !strings.HasPrefix(path, s.Path+".") {
				continue
			}
			rule := examples.ReplaceAllString(p.Rule, "")
			if text, ok := value.(string); ok && len(text) > 1 {
				rule = strings.NewReplacer(strconv.Quote(text), "X", text, "X").Replace(rule)
			}
			if !trivial(s, rule) && !slices.Contains(list, rule) {
				list = append(list, rule)
			}
		}
	}
	return list, nil
}

// trivial tells whether a rule says no more than the setting's type.
func trivial(s Setting, rule string) bool {
	switch rule {
	case "must be true or false":
		return s.Type == "true, false"
	case "must be a map", "must be a list", "must be a whole number", "must be a number", "must be a list of texts":
		return true
	}
	for _, known := range []string{"must be set", "must be a whole number of ", "must be a number of seconds"} {
		if strings.HasPrefix(rule, known) {
			return true
		}
	}
	return false
}

// nested is a configuration in which only path is set.
func nested(path string, value any) map[string]any {
	root := map[string]any{}
	at, parts := root, strings.Split(path, ".")
	for i, part := range parts {
		if part == "*" {
			part = "some"
		}
		name, isList := strings.CutSuffix(part, "[]")
		if i == len(parts)-1 {
			at[name] = value
			break
		}
		below := map[string]any{}
		if isList {
			at[name] = []any{below}
		} else {
			at[name] = below
		}
		at = below
	}
	return root
}
