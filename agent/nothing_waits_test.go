package agent

import (
	"encoding/json"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Nothing in the loop waits (design 6.2). This test follows every call
// from Agent.loop and from each function that is posted to it, as far as calls can be
// resolved, and finds what may wait: functions that take a context, files, programs,
// the network, channels. Nor may what holds a lock, wherever that runs, if the loop takes that
// lock. What takes a context runs elsewhere by that; so such a
// function literal is not followed, only what it hands back to the loop.
func TestNothingInTheLoopWaits(t *testing.T) {
	c := loadProgram(t)
	c.t = t
	for name, fn := range c.agentFuncs() {
		if name == "(*Agent).loop" || ofPorts(fn) {
			c.walkFunc(fn)
		}
	}
	for fn := range c.decls {
		if fn.Pkg().Path() == module+"/agent/member" {
			c.walkFunc(fn)
		}
	}
	c.walkPosted()
	c.walkHeld()
	if len(c.seen) < 100 {
		t.Errorf("only %d functions were followed: the test does not find the loop any more", len(c.seen))
	}
	for exception := range mayWait {
		if !c.used[exception] {
			t.Errorf("the exception %q is not needed any more", exception)
		}
	}
}

// ofPorts reports whether a function is one that the state machine calls.
func ofPorts(fn *types.Func) bool {
	receiver := fn.Signature().Recv()
	return receiver != nil && slices.Contains(
		[]string{"clocks", "inConsul", "inPostgres", "guarded", "watchdogPort", "toPeers", "watches", "toBouncers", "shell"},
		strings.TrimPrefix(types.TypeString(receiver.Type(), func(*types.Package) string { return "" }), "*"))
}

// mayWait are calls that are allowed nevertheless: caller, callee, and why.
var mayWait = map[[2]string]string{
	{"(*Agent).loop", "select"}:                     "the loop itself",
	{"(*Agent).lastKill", "killForGood"}:            "the agent ends, within a limit",
	{"(*Agent).loop", "(*watchdog).disable"}:        "the agent ends, within a second",
	{"(*Agent).loop", "(*guardSupervisor).dismiss"}: "the agent ends, within a second",
	{"(*runner).hear", "send"}:                      "into a channel with room for it",
	{"fence.(*Watchdog).Usable", "unix.Access"}:     "the device's name, in a file system in memory",
}

// innocent are functions of packages that wait otherwise.
var innocent = []string{
	"net.SplitHostPort", "net.JoinHostPort", "net.ParseIP", "os.Getenv", "os.Getpid", "os.Geteuid", "os.IsNotExist",
	"context.WithTimeout", "context.WithCancel", "context.WithCancelCause", "context.WithoutCancel", "context.WithDeadline", "context.Cause",
}

// waitingPackages are those whose functions wait for a disk, a process or a network.
var waitingPackages = []string{
	"os", "os/exec", "os/user", "syscall", "golang.org/x/sys/unix", "net", "net/http", "io", "io/fs", "io/ioutil", "bufio",
	"github.com/google/renameio/v2", "github.com/jackc/pgx/v5", "github.com/jackc/pgx/v5/pgconn",
}

const module = "github.com/lictor-ha/lictor"

type checked struct {
	files []*ast.File
	info  *types.Info
}

type program struct {
	t        *testing.T
	fset     *token.FileSet
	packages map[string]checked
	decls    map[*types.Func]*ast.FuncDecl
	infos    map[*types.Func]*types.Info
	seen     map[*types.Func]bool
	lits     map[*ast.FuncLit]bool
	used     map[[2]string]bool
	// locks are those that the loop takes; held is where one was followed.
	locks map[types.Object]bool
	held  map[ast.Stmt]bool
}

// loadProgram type-checks the agent and what it uses of this module from source.
func loadProgram(t *testing.T) *program {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-json=ImportPath,Export,Dir,GoFiles,CgoFiles", module+"/agent").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	c := &program{
		fset: token.NewFileSet(), packages: map[string]checked{}, decls: map[*types.Func]*ast.FuncDecl{}, infos: map[*types.Func]*types.Info{},
		seen: map[*types.Func]bool{}, lits: map[*ast.FuncLit]bool{}, used: map[[2]string]bool{}, locks: map[types.Object]bool{}, held: map[ast.Stmt]bool{},
	}
	exports, ours := map[string]string{}, map[string]*types.Package{}
	compiled := importer.ForCompiler(c.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	find := importerFunc(func(path string) (*types.Package, error) {
		if p := ours[path]; p != nil {
			return p, nil
		}
		return compiled.Import(path)
	})
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Export, Dir string
			GoFiles                 []string
		}
		if err := decoder.Decode(&p); err == io.EOF {
			return c
		} else if err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
		if !strings.HasPrefix(p.ImportPath, module) {
			continue
		}
		k := checked{info: &types.Info{
			Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
			Selections: map[*ast.SelectorExpr]*types.Selection{},
		}}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(c.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			k.files = append(k.files, f)
		}
		ours[p.ImportPath], err = (&types.Config{Importer: find}).Check(p.ImportPath, c.fset, k.files, k.info)
		if err != nil {
			t.Fatalf("%s: %v", p.ImportPath, err)
		}
		c.packages[p.ImportPath] = k
		for _, f := range k.files {
			for _, d := range f.Decls {
				if fd, is := d.(*ast.FuncDecl); is {
					fn, _ := k.info.Defs[fd.Name].(*types.Func)
					c.decls[fn], c.infos[fn] = fd, k.info
				}
			}
		}
	}
}

type importerFunc func(path string) (*types.Package, error)

func (f importerFunc) Import(path string) (*types.Package, error) { return f(path) }

// name is a function as mayWait writes it; this package's without the package.
func name(fn *types.Func) string {
	pkg := ""
	if fn.Pkg() != nil && fn.Pkg().Path() != module+"/agent" {
		pkg = fn.Pkg().Name() + "."
	}
	receiver := fn.Signature().Recv()
	if receiver == nil {
		return pkg + fn.Name()
	}
	kind := types.TypeString(receiver.Type(), func(*types.Package) string { return "" })
	if strings.HasPrefix(kind, "*") {
		kind = "(" + kind + ")"
	}
	return pkg + kind + "." + fn.Name()
}

func (c *program) agentFuncs() map[string]*types.Func {
	all := map[string]*types.Func{}
	for fn := range c.decls {
		if fn.Pkg().Path() == module+"/agent" {
			all[name(fn)] = fn
		}
	}
	return all
}

// walkPosted follows what is handed to the loop from anywhere.
func (c *program) walkPosted() {
	for _, fn := range c.agentFuncs() {
		info, decl := c.infos[fn], c.decls[fn]
		ast.Inspect(decl, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				switch callee := c.callee(info, n); {
				case callee == nil:
				case slices.Contains([]string{"(*runner).post", "(*runner).ask", "(*runner).hear", "(*runner).afterwards", "call", "order", "work", "answered"}, name(callee)):
					c.walkValue(info, n.Args[len(n.Args)-1], name(fn))
				}
			case *ast.SendStmt:
				c.walkValue(info, n.Value, name(fn))
			case *ast.CompositeLit: // what the state machine is given to call
				if t := info.Types[n].Type; t != nil && t.String() == module+"/agent/member.Settings" {
					for _, e := range n.Elts {
						c.walkValue(info, e.(*ast.KeyValueExpr).Value, name(fn))
					}
				}
			}
			return true
		})
	}
}

// walkValue follows a function that is a value: a literal, or a method or function.
func (c *program) walkValue(info *types.Info, e ast.Expr, in string) {
	switch e := ast.Unparen(e).(type) {
	case *ast.FuncLit:
		c.walk(info, e, in)
	case *ast.SelectorExpr:
		if fn, is := info.Uses[e.Sel].(*types.Func); is {
			c.walkFunc(fn)
		}
	case *ast.Ident:
		if fn, is := info.Uses[e].(*types.Func); is {
			c.walkFunc(fn)
		}
	}
}

func (c *program) walkFunc(fn *types.Func) {
	fn = fn.Origin()
	if c.seen[fn] || c.decls[fn] == nil || c.decls[fn].Body == nil {
		return
	}
	c.seen[fn] = true
	c.walkBody(c.infos[fn], c.decls[fn].Body, name(fn))
}

// walk follows a function literal as one that the loop runs.
func (c *program) walk(info *types.Info, lit *ast.FuncLit, in string) {
	if !c.lits[lit] {
		c.lits[lit] = true
		c.walkBody(info, lit.Body, in)
	}
}

func (c *program) walkBody(info *types.Info, body ast.Node, in string) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			return false
		case *ast.FuncLit:
			if s, is := info.Types[n].Type.(*types.Signature); is && takesContext(s) {
				return false // runs elsewhere; walkPosted follows what it hands back
			}
			c.walk(info, n, in)
			return false
		case *ast.SelectStmt:
			if !slices.ContainsFunc(n.Body.List, func(s ast.Stmt) bool { return s.(*ast.CommClause).Comm == nil }) {
				c.waits(n, in, "select")
			}
			for _, s := range n.Body.List {
				for _, inner := range s.(*ast.CommClause).Body {
					c.walkBody(info, inner, in)
				}
			}
			return false
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				c.waits(n, in, "receive")
			}
		case *ast.SendStmt:
			c.waits(n, in, "send")
		case *ast.RangeStmt:
			if _, is := info.Types[n.X].Type.Underlying().(*types.Chan); is {
				c.waits(n, in, "receive")
			}
		case *ast.CallExpr:
			return c.walkCall(info, n, in)
		}
		return true
	})
}

// walkCall follows one call, and says whether its arguments are to be followed.
func (c *program) walkCall(info *types.Info, call *ast.CallExpr, in string) bool {
	signature, _ := info.Types[call.Fun].Type.(*types.Signature)
	fn := c.callee(info, call)
	if fn == nil {
		if signature != nil && takesContext(signature) {
			c.waits(call, in, "a function that takes a context")
		}
		return true
	}
	callee := name(fn)
	if lock := c.lock(info, call, "Lock", "RLock"); lock != nil {
		c.locks[lock] = true
	}
	switch {
	case callee == "(*runner).goDo", callee == "call", callee == "order", callee == "(*guarded).tell", callee == "(*guarded).mark", callee == "work", callee == "answered", strings.HasSuffix(callee, "WaitGroup).Go"), strings.HasSuffix(callee, "Group).Go"):
		return false // all of it runs elsewhere
	case slices.Contains(innocent, callee):
	case callee == "(*runner).post", callee == "(*runner).ask", callee == "(*runner).hear":
		c.waits(call, in, callee)
		return false
	case takesContext(fn.Signature()), slices.Contains(waitingPackages, fn.Pkg().Path()), callee == "time.Sleep",
		fn.Pkg().Path() == "sync" && fn.Name() == "Wait", fn.Name() == "TryLock":
		c.waits(call, in, callee)
	default:
		c.walkFunc(fn)
	}
	return true
}

// walkHeld follows what runs while a lock is held that the loop takes.
func (c *program) walkHeld() {
	for before := -1; before != len(c.locks)+len(c.held); {
		before = len(c.locks) + len(c.held)
		for fn, decl := range c.decls {
			ast.Inspect(decl, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BlockStmt:
					c.walkLocked(c.infos[fn], n.List, name(fn))
				case *ast.CaseClause:
					c.walkLocked(c.infos[fn], n.Body, name(fn))
				}
				return true
			})
		}
	}
}

// walkLocked follows what comes between Lock and Unlock, or all that comes after Lock where
// Unlock is deferred.
func (c *program) walkLocked(info *types.Info, list []ast.Stmt, in string) {
	for i, s := range list {
		lock := c.lock(info, callOf(s), "Lock", "RLock")
		if lock == nil || !c.locks[lock] || c.held[s] {
			continue
		}
		c.held[s] = true
		for _, s := range list[i+1:] {
			if c.lock(info, callOf(s), "Unlock", "RUnlock") == lock {
				break
			}
			if _, deferred := s.(*ast.DeferStmt); !deferred {
				c.walkBody(info, s, in)
			}
		}
	}
}

// callOf is the call that a statement is, nil: it is none.
func callOf(s ast.Stmt) *ast.CallExpr {
	e, is := s.(*ast.ExprStmt)
	if !is {
		return nil
	}
	call, _ := e.X.(*ast.CallExpr)
	return call
}

// lock is the mutex of which a call is one of these methods, nil: it is none.
func (c *program) lock(info *types.Info, call *ast.CallExpr, methods ...string) types.Object {
	if call == nil {
		return nil
	}
	fn := c.callee(info, call)
	if fn == nil || fn.Pkg().Path() != "sync" || !slices.Contains(methods, fn.Name()) {
		return nil
	}
	switch x := ast.Unparen(ast.Unparen(call.Fun).(*ast.SelectorExpr).X).(type) {
	case *ast.SelectorExpr:
		return info.Uses[x.Sel]
	case *ast.Ident:
		return info.Uses[x]
	}
	return nil
}

// callee is the function that is called, nil where only a value is known.
func (c *program) callee(info *types.Info, call *ast.CallExpr) *types.Func {
	fun := ast.Unparen(call.Fun)
	if index, is := fun.(*ast.IndexExpr); is {
		fun = index.X
	}
	var fn *types.Func
	switch fun := fun.(type) {
	case *ast.Ident:
		fn, _ = info.Uses[fun].(*types.Func)
	case *ast.SelectorExpr:
		fn, _ = info.Uses[fun.Sel].(*types.Func)
	}
	if fn == nil || fn.Pkg() == nil {
		return nil // error.Error has no package
	}
	return fn
}

func takesContext(s *types.Signature) bool {
	return s.Params().Len() > 0 && s.Params().At(0).Type().String() == "context.Context"
}

func (c *program) waits(n ast.Node, in, what string) {
	key := [2]string{in, what}
	if mayWait[key] != "" {
		c.used[key] = true
		return
	}
	at := c.fset.Position(n.Pos())
	c.t.Errorf("%s:%d: on the loop, %s waits: %s", filepath.Base(at.Filename), at.Line, in, what)
}
