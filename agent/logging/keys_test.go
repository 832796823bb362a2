package logging

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Every line of a log has each key once: most readers of JSON refuse others, or keep
// the last. Read from the source of all log calls, loops and loggers' own fields
// included.
func TestKeysOfLogLinesAreThereOnce(t *testing.T) {
	files := token.NewFileSet()
	seen := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, problem := range duplicateKeys(file, &seen) {
			t.Errorf("%s: %s", files.Position(problem.at), problem.text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 200 {
		t.Errorf("only %d keys were found: the test does not see what it should", seen)
	}
}

// It finds what it is there for.
func TestDuplicateKeysAreFound(t *testing.T) {
	for source, want := range map[string]int{
		`log.Info().Str("a", "").Int("b", 1).Msg("m")`:                                            0,
		`log.Info().Str("a", "").Int("a", 1).Msg("m")`:                                            1,
		`log.Error().Err(err).Str("error", "").Msg("m")`:                                          1,
		`log.Info().Str("message", "").Msg("m")`:                                                  1,
		`line := log.Info(); for range x { line = line.Str("a", "") }; line.Msg("m")`:             1,
		`for range x { line := log.Info(); line = line.Str("a", ""); line.Msg("m") }`:             0,
		`line := log.Info().Str("a", ""); line = line.Str("a", ""); line.Msg("m")`:                1,
		`line := log.Info(); if x { line = line.Str("a", "") } else { line = line.Str("a", "") }`: 0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() {"+source+"}", 0)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		if got := duplicateKeys(file, &seen); len(got) != want {
			t.Errorf("%s: %v, want %d", source, got, want)
		}
	}
}

type keyProblem struct {
	at   token.Pos
	text string
}

// duplicateKeys looks at every chain of a file's calls that add fields.
func duplicateKeys(file *ast.File, seen *int) (problems []keyProblem) {
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
			s := keyScan{seen: seen, keys: map[string][]string{}, depth: map[string]int{}}
			s.block(f.Body, 0)
			problems = append(problems, s.problems...)
		}
	}
	return problems
}

// keyScan goes through one function.
type keyScan struct {
	seen     *int
	keys     map[string][]string // of a line that is in a variable
	depth    map[string]int      // of loops, where the variable was made
	problems []keyProblem
}

func (s *keyScan) fail(at token.Pos, key, text string) {
	s.problems = append(s.problems, keyProblem{at, strconv.Quote(key) + " " + text})
}

func (s *keyScan) block(n ast.Node, depth int) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.RangeStmt:
			s.block(n.Body, depth+1)
			return false
		case *ast.ForStmt:
			s.block(n.Body, depth+1)
			return false
		case *ast.FuncLit:
			inner := keyScan{seen: s.seen, keys: map[string][]string{}, depth: map[string]int{}}
			inner.block(n.Body, 0)
			s.problems = append(s.problems, inner.problems...)
			return false
		case *ast.IfStmt: // its branches exclude each other
			before := clone(s.keys)
			s.block(n.Body, depth)
			if n.Else != nil {
				after := s.keys
				s.keys = before
				s.block(n.Else, depth)
				for name, keys := range after {
					if len(keys) > len(s.keys[name]) {
						s.keys[name] = keys
					}
				}
			}
			return false
		case *ast.AssignStmt:
			if len(n.Lhs) == 1 && len(n.Rhs) == 1 {
				if target, ok := n.Lhs[0].(*ast.Ident); ok {
					if call, ok := n.Rhs[0].(*ast.CallExpr); ok {
						root, keys := s.chain(call)
						if len(keys) > 0 && n.Tok == token.ASSIGN && root == target.Name && depth > s.depth[target.Name] {
							s.fail(n.Pos(), keys[0], "is added in a loop")
						}
						if n.Tok == token.DEFINE || root != target.Name {
							s.keys[target.Name], s.depth[target.Name] = nil, depth
						}
						s.keys[target.Name] = append(s.keys[target.Name], keys...)
						return false
					}
				}
			}
		case *ast.CallExpr:
			if _, keys := s.chain(n); keys != nil {
				return false
			}
		}
		return true
	})
}

func clone(keys map[string][]string) map[string][]string {
	out := map[string][]string{}
	for name, list := range keys {
		out[name] = slices.Clone(list)
	}
	return out
}

// chain lists the keys that a chain of calls adds, and the variable it begins with.
func (s *keyScan) chain(call *ast.CallExpr) (root string, keys []string) {
	type field struct {
		at  token.Pos
		key string
	}
	var fields []field
	message := false
	for {
		selector, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			break
		}
		switch name := selector.Sel.Name; {
		case name == "Msg" || name == "Msgf":
			message = true
		case name == "Err" && len(call.Args) == 1:
			fields = append(fields, field{call.Pos(), "error"})
		case slices.Contains([]string{
			"Str", "Strs", "Stringer", "Stringers", "Int", "Ints", "Int64", "Uint8", "Uint16", "Uint32", "Uint64", "Float64", "Bool", "Dur", "Time",
			"Interface", "Any", "AnErr", "Errs", "Bytes", "Hex", "RawJSON", "IPAddr", "Array", "Object", "Dict",
		}, name) && len(call.Args) == 2:
			if literal, ok := call.Args[0].(*ast.BasicLit); ok && literal.Kind == token.STRING {
				key, _ := strconv.Unquote(literal.Value)
				fields = append(fields, field{literal.Pos(), key})
			}
		}
		inner, ok := selector.X.(*ast.CallExpr)
		if !ok {
			if id, ok := selector.X.(*ast.Ident); ok {
				root = id.Name
			}
			break
		}
		call = inner
	}
	if len(fields) == 0 || !message && len(fields) == 1 && fields[0].key == "error" && root == "" {
		return root, nil
	}
	*s.seen += len(fields)
	slices.Reverse(fields)
	all := slices.Clone(s.keys[root])
	for _, f := range fields {
		switch {
		case f.key == "level" || f.key == "time" || f.key == "message":
			s.fail(f.at, f.key, "is a key of the line itself")
		case slices.Contains(all, f.key):
			s.fail(f.at, f.key, "is added twice")
		}
		all = append(all, f.key)
		keys = append(keys, f.key)
	}
	return root, keys
}
