package docs

import (
	"go/ast"
	"path/filepath"
	"strings"
)

// mostMethods is how many methods a type of the agent has at the most. One that needs more
// tells several stories.
const mostMethods = 60

// methods counts the methods of each type below root's directories, tests left out. A type's
// name has its directory before it.
func methods(root string, dirs []string) (map[string]int, error) {
	counted := map[string]int{}
	return counted, goFiles(root, dirs, func(path string, file *ast.File) error {
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		for _, d := range file.Decls {
			if fn, is := d.(*ast.FuncDecl); is && fn.Recv != nil {
				counted[filepath.Dir(path)+" "+receiver(fn.Recv.List[0].Type)]++
			}
		}
		return nil
	})
}

// receiver is the name of a receiver's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr: // of a type with a parameter
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return "?"
}
