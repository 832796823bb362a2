package osuser

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What agent, guard and bouncer do to files they do through this package. The others are
// for what no user but root can change, or are done as the user anyway.
func TestNothingElseTouchesFiles(t *testing.T) {
	allowed := map[string]string{
		"fence/guard.go":                "WriteFile",                           // in /proc/self
		"postgres/probe_child.go":       "OpenFile Remove",                     // it runs as the user
		"postgres/installation.go":      "MkdirTemp",                           // within For
		"postgres/aside.go":             "Rename Mkdir RemoveAll",              // within For
		"postgres/absent.go":            "Chmod Rmdir",                         // within Do
		"postgres/trial.go":             "Symlink CreateTemp Remove",           // within Do
		"postgres/modes.go":             "Chmod",                               // within Do
		"backup/verify.go":              "MkdirTemp Mkdir WriteFile RemoveAll", // it does not run as root
		"led.go":                        "WriteFile Rename Truncate",           // within For
		"../bouncer/install/replace.go": "CreateTemp Chmod Remove Rename",      // within For
		"../bouncer/install/spare.go":   "OpenFile Rename",                     // within For
	}
	touch := map[string][]string{
		"os": {
			"OpenFile", "WriteFile", "Create", "CreateTemp", "Rename", "Remove", "RemoveAll", "Mkdir", "MkdirAll", "MkdirTemp",
			"Chmod", "Chown", "Lchown", "Symlink", "Link", "Truncate", "Chtimes",
		},
		"renameio": {"WriteFile", "NewPendingFile", "TempFile", "Symlink"},
		"syscall":  {"Rmdir", "Unlink", "Mkdir", "Chmod", "Chown", "Rename"},
		"unix":     {"Rmdir", "Unlink", "Mkdir", "Chmod", "Chown", "Rename"},
	}
	var dirs []string
	must(t, filepath.WalkDir("../../bouncer", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() != "bouncertest" {
			dirs = append(dirs, path)
		}
		return err
	}))
	for _, dir := range append(dirs, "..", "../fence", "../postgres") {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		must(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			must(t, err)
			name := strings.TrimPrefix(filepath.Clean(file), "../")
			ast.Inspect(tree, func(n ast.Node) bool {
				call, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				of, ok := call.X.(*ast.Ident)
				if ok && slices.Contains(touch[of.Name], call.Sel.Name) && !slices.Contains(strings.Fields(allowed[name]), call.Sel.Name) {
					t.Errorf("%s calls %s.%s: use osuser, or say here why it need not", name, of.Name, call.Sel.Name)
				}
				return true
			})
		}
	}
	for name := range allowed {
		if _, err := os.Stat(filepath.Join("..", name)); err != nil {
			t.Error(err)
		}
	}
}
