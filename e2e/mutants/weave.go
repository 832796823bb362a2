package mutants

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Mutant is one change of one place of the code.
type Mutant struct {
	File string // relative to the tree's root
	Line int
	// Func is the function that it is in.
	Func string
	// What is changed, as it stands in the code, on one line; How says into what.
	What, How string
	// Again counts those of the same words in the same function before.
	Again int
}

// Name names a mutant whatever stands above it in its file.
func (m Mutant) Name() string {
	name := fmt.Sprintf("%s %s: %s: %s", m.File, m.Func, m.What, m.How)
	if m.Again > 0 {
		name += fmt.Sprintf(" (%d)", m.Again+1)
	}
	return name
}

// How a place can be changed.
const (
	Never   = "never"    // a condition that never holds
	Always  = "always"   // one that always holds
	Left    = "left out" // one of several conditions, an assignment, a field
	FirstOf = "first"    // min or max is its first argument
	LastOf  = "last"     // or its last one
)

// support is what woven code calls. The mutant that is switched on is told by number.
const support = `package %s

import (
	"cmp"
	"os"
	"strconv"
)

var mutantOn = func() int { n, _ := strconv.Atoi(os.Getenv("LICTOR_MUTANT")); return n }()

func mutantZero[T any](n int, v T) T {
	if mutantOn == n {
		var zero T
		return zero
	}
	return v
}

func mutantPick[T cmp.Ordered](n int, v, first, last T) T {
	switch mutantOn {
	case n:
		return first
	case n + 1:
		return last
	}
	return v
}
`

// weave rewrites the Go files of a package so that every mutant is in them and one can be
// switched on, and returns the files, the support's among them, by path. The mutant n of
// the list has the number n+1.
func weave(root, dir string) (files map[string][]byte, list []Mutant, err error) {
	names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		return nil, nil, fmt.Errorf("the Go files in %s: %w", dir, err)
	}
	files = map[string][]byte{}
	pkg := ""
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, fmt.Errorf("weaving: %w", err)
		}
		w := weaver{file: filepath.Join(dir, filepath.Base(name)), source: source, list: list}
		woven, own, err := w.run()
		if err != nil {
			return nil, nil, fmt.Errorf("weaving %s: %w", w.file, err)
		}
		files[name], list, pkg = woven, w.list, own
	}
	files[filepath.Join(root, dir, "mutants_woven.go")] = fmt.Appendf(nil, support, pkg)
	return files, list, nil
}

type edit struct {
	at    int
	text  string
	outer bool // of two at one place the outer comes first when it opens, last when it closes
}

type weaver struct {
	file   string
	source []byte
	fset   *token.FileSet
	list   []Mutant
	edits  []edit
	fn     string
}

func (w *weaver) run() (woven []byte, pkg string, err error) {
	w.fset = token.NewFileSet()
	file, err := parser.ParseFile(w.fset, w.file, w.source, parser.SkipObjectResolution)
	if err != nil {
		return nil, "", err
	}
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Body == nil || f.Name.Name == "String" {
			continue
		}
		w.fn = f.Name.Name
		ast.Inspect(f.Body, w.visit)
	}
	slices.SortStableFunc(w.edits, func(a, b edit) int { return a.at - b.at })
	var out bytes.Buffer
	at := 0
	for _, e := range w.edits {
		out.Write(w.source[at:e.at])
		out.WriteString(e.text)
		at = e.at
	}
	out.Write(w.source[at:])
	woven, err = format.Source(out.Bytes())
	return woven, file.Name.Name, err
}

func (w *weaver) offset(p token.Pos) int { return w.fset.Position(p).Offset }

func (w *weaver) text(n ast.Node) string {
	return strings.Join(strings.Fields(string(w.source[w.offset(n.Pos()):w.offset(n.End())])), " ")
}

// add makes a mutant and returns its number.
func (w *weaver) add(n ast.Node, how string) int {
	m := Mutant{File: w.file, Line: w.fset.Position(n.Pos()).Line, Func: w.fn, What: w.text(n), How: how}
	for _, other := range w.list {
		if other.File == m.File && other.Func == m.Func && other.What == m.What && other.How == m.How {
			m.Again++
		}
	}
	w.list = append(w.list, m)
	return len(w.list)
}

// around puts text before and after a node. Nodes are visited from the outside in: what
// comes later opens after and closes before.
func (w *weaver) around(n ast.Node, before, after string) {
	w.edits = append(w.edits, edit{at: w.offset(n.Pos()), text: before})
	end := w.offset(n.End())
	i := slices.IndexFunc(w.edits, func(e edit) bool { return e.at == end && e.outer })
	closing := edit{at: end, text: after, outer: true}
	if i < 0 {
		w.edits = append(w.edits, closing)
		return
	}
	w.edits = slices.Insert(w.edits, i, closing)
}

func (w *weaver) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.IfStmt:
		w.condition(n.Cond)
	case *ast.SwitchStmt:
		if n.Tag == nil {
			for _, clause := range n.Body.List {
				for _, cond := range clause.(*ast.CaseClause).List {
					w.condition(cond)
				}
			}
		}
	case *ast.BinaryExpr:
		switch n.Op {
		case token.LAND:
			w.operand(n.X, n.Op)
			w.operand(n.Y, n.Op)
		case token.LOR:
			w.operand(n.X, n.Op)
			w.operand(n.Y, n.Op)
		}
	case *ast.CallExpr:
		if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "min" || f.Name == "max") && len(n.Args) == 2 {
			number := w.add(n, FirstOf)
			w.add(n, LastOf)
			w.around(n, fmt.Sprintf("mutantPick(%d, ", number), fmt.Sprintf(", %s, %s)", w.text(n.Args[0]), w.text(n.Args[1])))
			return false // the arguments are in the code twice now
		}
	case *ast.BlockStmt:
		for _, s := range n.List {
			w.statement(s)
		}
	case *ast.CaseClause:
		for _, s := range n.Body {
			w.statement(s)
		}
	case *ast.CompositeLit:
		for _, e := range n.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok && isField(kv) {
				w.around(kv.Value, fmt.Sprintf("mutantZero(%d, ", w.add(kv, Left)), ")")
			}
		}
	}
	return true
}

// isField: a named field with a value that has a type of its own.
func isField(kv *ast.KeyValueExpr) bool {
	_, named := kv.Key.(*ast.Ident)
	switch v := kv.Value.(type) {
	case *ast.BasicLit:
		return false
	case *ast.Ident:
		return named && v.Name != "nil"
	}
	return named
}

func (w *weaver) condition(cond ast.Expr) {
	never, always := w.add(cond, Never), w.add(cond, Always)
	w.around(cond, fmt.Sprintf("(mutantOn != %d && (mutantOn == %d || (", never, always), ")))")
}

// operand is one of several conditions; a chain of them is visited one by one.
func (w *weaver) operand(x ast.Expr, op token.Token) {
	if inner, ok := x.(*ast.BinaryExpr); ok && inner.Op == op {
		return
	}
	if op == token.LAND {
		w.around(x, fmt.Sprintf("(mutantOn == %d || (", w.add(x, Left)), "))")
	} else {
		w.around(x, fmt.Sprintf("(mutantOn != %d && (", w.add(x, Left)), "))")
	}
}

// statement is one that does something and declares nothing.
func (w *weaver) statement(s ast.Stmt) {
	switch s := s.(type) {
	case *ast.AssignStmt:
		if s.Tok == token.DEFINE {
			return
		}
	case *ast.ExprStmt:
		if logs(s) {
			return
		}
	case *ast.IncDecStmt:
	default:
		return
	}
	w.around(s, fmt.Sprintf("if mutantOn != %d { ", w.add(s, Left)), " }")
}

// logs reports whether a statement writes to the log, which no test reads.
func logs(s *ast.ExprStmt) bool {
	call, is := s.X.(*ast.CallExpr)
	if !is {
		return false
	}
	f, is := call.Fun.(*ast.SelectorExpr)
	return is && (f.Sel.Name == "Msg" || f.Sel.Name == "Msgf")
}
