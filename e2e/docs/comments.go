package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"strings"
)

// module is the prefix of this module's import paths.
const module = "github.com/lictor-ha/lictor/"

// comments are the doc comments of a module's types and their fields, by
// "import/path.Type" and "import/path.Type.Field".
type comments map[string]string

// readComments reads the doc comments of the packages in these directories below
// root. A comment at the end of a field's line counts where there is none above it.
func readComments(root string, dirs ...string) (comments, error) {
	all := comments{}
	for _, dir := range dirs {
		files, err := parseDir(filepath.Join(root, dir))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			all.add(module+dir, file)
		}
	}
	return all, nil
}

func (c comments) add(pkg string, file *ast.File) {
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, spec := range gen.Specs {
			t, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			name := pkg + "." + t.Name.Name
			c[name] = text(gen.Doc)
			fields, ok := t.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, field := range fields.Fields.List {
				doc := text(field.Doc)
				if doc == "" {
					doc = text(field.Comment)
				}
				for _, n := range field.Names {
					c[name+"."+n.Name] = doc
				}
			}
		}
	}
}

// of is the comment of a field of t.
func (c comments) of(t reflect.Type, field string) string {
	return c[t.PkgPath()+"."+t.Name()+"."+field]
}

// text is a comment on one line.
func text(group *ast.CommentGroup) string {
	if group == nil {
		return ""
	}
	return strings.Join(strings.Fields(group.Text()), " ")
}

// parseDir parses the Go files of a directory, without its tests.
func parseDir(dir string) ([]*ast.File, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, fmt.Errorf("reading the Go files in %s: %w", dir, err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parsing: %w", err)
		}
		files = append(files, file)
	}
	return files, nil
}

// goFiles calls f with every Go file below root's directories.
func goFiles(root string, dirs []string, f func(path string, file *ast.File) error) error {
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return fmt.Errorf("parsing: %w", err)
			}
			short, err := filepath.Rel(root, path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			return f(short, file)
		})
		if err != nil {
			return fmt.Errorf("reading the Go files in %s: %w", dir, err)
		}
	}
	return nil
}
