package httpserver

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What a client shows is compared with a password or a proof by functions that take as
// long for every wrong one: nothing that has such a name is compared in another way.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	secret := regexp.MustCompile(`(?i)password|passwd|username|mac$|^sum$|proof$`)
	constant := 0
	for _, pattern := range []string{".", "../../api", "../../proof", "../../../bouncer", "../../../bouncer/*", "../../../bouncer/*/*"} {
		files, err := filepath.Glob(filepath.Join(pattern, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				var operands []ast.Expr
				switch n := n.(type) {
				case *ast.BinaryExpr:
					if n.Op == token.EQL || n.Op == token.NEQ {
						operands = []ast.Expr{n.X, n.Y}
					}
				case *ast.CallExpr:
					switch called(n) {
					case "subtle.ConstantTimeCompare", "hmac.Equal":
						constant++
					case "bytes.Equal", "bytes.Compare", "strings.EqualFold", "strings.Compare", "slices.Equal", "reflect.DeepEqual":
						operands = n.Args
					}
				}
				for i, x := range operands {
					if name := nameOf(x); secret.MatchString(name) && !isLiteral(operands[1-i]) {
						t.Errorf("%s: %s is compared in a time that tells of it", set.Position(x.Pos()), name)
					}
				}
				return true
			})
		}
	}
	if constant < 5 {
		t.Errorf("only %d comparisons in constant time are left", constant)
	}
}

func called(c *ast.CallExpr) string {
	if s, ok := c.Fun.(*ast.SelectorExpr); ok {
		return nameOf(s.X) + "." + s.Sel.Name
	}
	return ""
}

func nameOf(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	case *ast.SliceExpr:
		return nameOf(x.X)
	}
	return ""
}

func isLiteral(x ast.Expr) bool {
	_, literal := x.(*ast.BasicLit)
	return literal || nameOf(x) == "nil"
}
