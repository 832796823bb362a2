package docs

import (
	"fmt"
	"go/ast"
	"go/token"
	"path/filepath"
	"strings"
)

// assignedFields are the places in a directory's files, without tests, that assign to an exported field of what a name m leads to, as
// a.m.Session or m.Dynamic.Pause: the state machine's, which only its own methods change. They come as
// "file.go: Session", once each.
func assignedFields(root, dir string) ([]string, error) {
	var found []string
	seen := map[string]bool{}
	err := goFiles(root, []string{dir}, func(path string, file *ast.File) error {
		if filepath.Clean(filepath.Dir(path)) != filepath.Clean(dir) || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		note := func(e ast.Expr) {
			if field := stateField(e); field != "" {
				if at := fmt.Sprintf("%s: %s", filepath.Base(path), field); !seen[at] {
					seen[at] = true
					found = append(found, at)
				}
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, left := range n.Lhs {
					note(left)
				}
			case *ast.IncDecStmt:
				note(n.X)
			case *ast.UnaryExpr: // who has its address may assign to it
				if n.Op == token.AND {
					note(n.X)
				}
			}
			return true
		})
		return nil
	})
	return found, err
}

// stateField is the exported field behind a name m in an expression, empty: there is none.
func stateField(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		if field := stateField(e.X); field != "" {
			return field
		}
		if named(e.X) == "m" && e.Sel.IsExported() {
			return e.Sel.Name
		}
	case *ast.IndexExpr:
		return stateField(e.X)
	case *ast.StarExpr:
		return stateField(e.X)
	case *ast.ParenExpr:
		return stateField(e.X)
	}
	return ""
}

// named is the last name of an expression that names something.
func named(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
