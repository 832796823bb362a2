package osuser

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What agent, guard, bouncer and commands do to files they do through this package. The others are
// for what no user but root can change, or are done as the user anyway.
func TestNothingElseTouchesFiles(t *testing.T) {
	allowed := map[string]string{
		"fence/guard.go":                "WriteFile",                           // in /proc/self
		"postgres/probe_child.go":       "OpenFile Remove",                     // it runs as the user
		"postgres/installation.go":      "MkdirTemp",                           // within For
		"postgres/absent.go":            "Chmod Rmdir",                         // within Do
		"postgres/trial.go":             "Symlink CreateTemp Remove",           // within Do
		"postgres/restore.go":           "Symlink",                             // within Do
		"postgres/upgrade.go":           "Symlink Remove",                      // within Do, or For
		"postgres/modes.go":             "Chmod",                               // within Do
		"backup/verify.go":              "MkdirTemp Mkdir WriteFile RemoveAll", // it does not run as root
		"backup/note.go":                "WriteFile Rename",                    // nor does this
		"led.go":                        "WriteFile Rename Truncate",           // within For
		"logging/file.go":               "OpenFile",                            // within Do
		"operator/restore.go":           "MkdirTemp Link",                      // within Do
		"operator/beside.go":            "CreateTemp Link Remove",              // within its caller's Do
		"operator/drill.go":             "WriteFile",                           // the report, where whoever drills wants it
		"operator/config.go":            "MkdirTemp WriteFile RemoveAll",       // in a directory of its own in the one for temporary files
		"../bouncer/install/config.go":  "Link OpenFile Remove",                // within For
		"../bouncer/install/replace.go": "CreateTemp Remove Rename",            // within For
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
	tests := []string{"testkit", "bouncertest", "testdata"}
	used := map[string]bool{}
	for _, tree := range []string{"..", "../../bouncer", "../../cmd"} {
		must(t, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (slices.Contains(tests, d.Name()) || path == "../osuser"):
				return filepath.SkipDir
			case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(path, "../")
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				of, ok := call.X.(*ast.Ident)
				if !ok || !slices.Contains(touch[of.Name], call.Sel.Name) {
					return true
				}
				if used[name+" "+call.Sel.Name] = true; !slices.Contains(strings.Fields(allowed[name]), call.Sel.Name) {
					t.Errorf("%s calls %s.%s: use osuser, or say here why it need not", name, of.Name, call.Sel.Name)
				}
				return true
			})
			return nil
		}))
	}
	for name, calls := range allowed {
		for _, call := range strings.Fields(calls) {
			if !used[name+" "+call] {
				t.Errorf("%s does not call %s any more", name, call)
			}
		}
	}
}
