package mutants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Rule is a rule of design 5 that the simulator can switch off: a field of its Mutant.
type Rule struct {
	Name string
	// What is left out, in words.
	What string
	// Tests are those that notice. Without one, Reason says why none does.
	Tests  []string
	Reason string
}

// survives is what stands before the reason in the comment beside a field.
const survives = "; survives: "

// Rules are the rules that the simulator can switch off, in their order, with the tests that
// switch each off.
func Rules(root string) ([]Rule, error) {
	dir := filepath.Join(root, simulator)
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, filepath.Join(dir, "mutant.go"), nil, parser.ParseComments)
	if err != nil {
		return nil, fmt.Errorf("the simulator's rules: %w", err)
	}
	var rules []Rule
	ast.Inspect(file, func(n ast.Node) bool {
		spec, is := n.(*ast.TypeSpec)
		if !is || spec.Name.Name != "Mutant" {
			return true
		}
		for _, field := range spec.Type.(*ast.StructType).Fields.List {
			text := strings.Join(strings.Fields(field.Doc.Text()+" "+field.Comment.Text()), " ")
			what, reason, _ := strings.Cut(text, survives)
			rules = append(rules, Rule{Name: field.Names[0].Name, What: what, Reason: reason})
		}
		return false
	})
	tests, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, fmt.Errorf("the simulator's tests: %w", err)
	}
	for _, path := range tests {
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("the simulator's tests: %w", err)
		}
		for _, decl := range file.Decls {
			if f, is := decl.(*ast.FuncDecl); is && strings.HasPrefix(f.Name.Name, "Test") {
				noteTest(rules, f)
			}
		}
	}
	return rules, nil
}

// noteTest notes which rules a test wants to be missed: those that it gives to a function that
// judges what comes of it, as killed does. (One that runs a schedule without a rule, and wants it to
// be survived, gives it to Run by Options.)
func noteTest(rules []Rule, f *ast.FuncDecl) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, is := n.(*ast.CallExpr)
		if !is {
			return true
		}
		for _, arg := range call.Args {
			literal, is := arg.(*ast.CompositeLit)
			if !is {
				continue
			}
			if name, is := literal.Type.(*ast.Ident); !is || name.Name != "Mutant" {
				continue
			}
			for _, e := range literal.Elts {
				key := e.(*ast.KeyValueExpr).Key.(*ast.Ident).Name
				i := slices.IndexFunc(rules, func(r Rule) bool { return r.Name == key })
				if i >= 0 && !slices.Contains(rules[i].Tests, f.Name.Name) {
					rules[i].Tests = append(rules[i].Tests, f.Name.Name)
				}
			}
		}
		return true
	})
}

var noticed = regexp.MustCompile(`noticed in \d+ of \d+ runs`)

// Play plays the directed schedules of the rules that match, and prints what notices that each
// is left out. It fails when nothing does of one that has no reason.
func Play(ctx context.Context, root string, rules []Rule) error {
	var failed []string
	for _, r := range rules {
		switch {
		case len(r.Tests) > 0:
			out, err := play(ctx, root, r.Tests)
			if err != nil {
				return err
			}
			fmt.Printf("killed    rule %s: %s\n          by %s: %s\n", r.Name, r.What, strings.Join(r.Tests, ", "), out)
		case r.Reason != "":
			fmt.Printf("survived  rule %s: %s\n          %s\n", r.Name, r.What, r.Reason)
		default:
			failed = append(failed, r.Name)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("no test switches these rules off: %s", strings.Join(failed, ", "))
	}
	return nil
}

// play runs tests of the simulator, each of which fails unless it notices.
func play(ctx context.Context, root string, tests []string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-v", "-run", "^("+strings.Join(tests, "|")+")$", "./"+simulator) //nolint:gosec // names of our own tests
	cmd.Dir = root
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", errors.Join(fmt.Errorf("%s: %w", strings.Join(tests, ", "), err), errors.New(out.String()))
	}
	return strings.Join(noticed.FindAllString(out.String(), -1), ", "), nil
}
