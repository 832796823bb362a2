package docs

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// tests are the names of all test functions, by the folder of their package.
type tests map[string][]string

func readTests(root string) (tests, error) {
	all := tests{}
	err := goFiles(root, []string{"agent", "bouncer", "cmd", "e2e"}, func(path string, file *ast.File) error {
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				dir := filepath.Dir(path)
				all[dir] = append(all[dir], f.Name.Name)
			}
		}
		return nil
	})
	return all, err
}

// has tells whether a test of this name is anywhere.
func (t tests) has(name string) bool {
	for _, names := range t {
		if slices.Contains(names, name) {
			return true
		}
	}
	return false
}

var claimForm = regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z0-9]*)(?:/[^`]*)?`|in `((?:agent|bouncer|cmd|e2e)[a-z0-9/]*)`")

// claim is a test that a cell of a table names, and the package that it says has it; none
// where it names none.
type claim struct{ test, folder string }

// claims reads "`TestA`, `TestB` in `agent/api`, `TestC` in `e2e`": a package is that of all
// names since the one before.
func claims(cell string) []claim {
	var all []claim
	fresh := 0
	for _, m := range claimForm.FindAllStringSubmatch(cell, -1) {
		if m[1] != "" {
			all = append(all, claim{test: m[1]})
			continue
		}
		for i := fresh; i < len(all); i++ {
			all[i].folder = m[2]
		}
		fresh = len(all)
	}
	return all
}

// matches tells whether -run pattern finds a test in a package, or below it for
// a folder that ends in "...".
func (t tests) matches(folder, pattern string) (bool, error) {
	top, _, _ := strings.Cut(pattern, "/")
	want, err := regexp.Compile(top)
	if err != nil {
		return false, fmt.Errorf("-run %s: %w", pattern, err)
	}
	below, all := strings.CutSuffix(folder, "...")
	for dir, names := range t {
		if dir != folder && (!all || !strings.HasPrefix(dir+"/", below)) {
			continue
		}
		if slices.ContainsFunc(names, want.MatchString) {
			return true, nil
		}
	}
	return false, nil
}

var targetForm = regexp.MustCompile(`(?m)^([a-z0-9-]+):`)

// readTargets are the Makefile's.
func readTargets(root string) (map[string]bool, error) {
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		return nil, fmt.Errorf("targets: %w", err)
	}
	targets := map[string]bool{}
	for _, m := range targetForm.FindAllStringSubmatch(string(text), -1) {
		targets[m[1]] = true
	}
	return targets, nil
}

// commandFlags are the flags of every command of lictor, by its words ("bouncer drain").
type commandFlags map[string]map[string]bool

// readCommands reads the tree of commands, hidden ones left out.
func readCommands() commandFlags {
	all := commandFlags{}
	var add func(cmd *cobra.Command)
	add = func(cmd *cobra.Command) {
		flags := map[string]bool{"help": true, "h": true}
		note := func(f *pflag.Flag) { flags[f.Name], flags[f.Shorthand] = true, true }
		cmd.NonInheritedFlags().VisitAll(note)
		cmd.InheritedFlags().VisitAll(note)
		_, words, _ := strings.Cut(cmd.CommandPath(), " ")
		all[words] = flags
		for _, below := range cmd.Commands() {
			if below.IsAvailableCommand() {
				add(below)
			}
		}
	}
	add(documented())
	return all
}

var endsCommand = regexp.MustCompile(`\s#\s.*$|\s+[|&;].*$|\s+[<>].*$|\s*\).*$`)

// problem says what is wrong with a command line of lictor; its first word is
// "lictor".
func (c commandFlags) problem(line string) string {
	line = endsCommand.ReplaceAllString(line, "")
	words := strings.Fields(line)[1:]
	name := ""
	for len(words) > 0 {
		next := strings.TrimSpace(name + " " + words[0])
		if c[next] == nil {
			break
		}
		name, words = next, words[1:]
	}
	if name == "" {
		if len(words) > 0 && regexp.MustCompile(`^[a-z][a-z-]*$`).MatchString(words[0]) {
			return "there is no command lictor " + words[0]
		}
		return ""
	}
	for _, word := range words {
		flag, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
		if dashes := len(word) - len(strings.TrimLeft(word, "-")); dashes > 0 && flag != "" && !c[name][flag] {
			return fmt.Sprintf("lictor %s has no flag %s", name, word)
		}
	}
	return ""
}

// literals are the texts that a program says: its string literals, those that are
// added up as one.
func literals(root string, dirs ...string) ([]string, error) {
	var all []string
	err := goFiles(root, dirs, func(path string, file *ast.File) error {
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if text := added(e); text != "" {
					all = append(all, text)
				}
			}
			return true
		})
		return nil
	})
	return all, err
}

// added is the text of a literal, or of a sum of literals and other things, which
// leave a gap.
func added(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return text
		}
	case *ast.BinaryExpr:
		if left, right := added(e.X), added(e.Y); e.Op == token.ADD && left+right != "" {
			return left + gapIf(left == "" || right == "") + right
		}
	}
	return ""
}

func gapIf(gap bool) string {
	if gap {
		return "\x00"
	}
	return ""
}
