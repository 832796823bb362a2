package docs

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var (
	// fileListForm is a line of a comment that says what files are for; the
	// names stand at its beginning.
	fileListForm = regexp.MustCompile(`(?m)^//\t((?:[a-z0-9_]+\.go)(?:, [a-z0-9_]+\.go)*)(?:\s|$)`)
	fileNameForm = regexp.MustCompile(`[a-z0-9_]+\.go\b`)
)

// fileList compares a comment in the file own with the Go files of its package, tests left
// out. A comment without a list says nothing. Files count as told of wherever the comment
// names them; the file that has the comment need not be. Only the package's own comment
// must have them all.
func fileList(own, comment string, ofPackage bool, files []string) (problems []string) {
	if !fileListForm.MatchString(comment) {
		return nil
	}
	named := fileNameForm.FindAllString(comment, -1)
	for _, name := range named {
		if !slices.Contains(files, name) {
			problems = append(problems, "there is no "+name)
		}
	}
	for _, name := range files {
		if ofPackage && !slices.Contains(named, name) && name != own {
			problems = append(problems, name+" is not in the list")
		}
	}
	return problems
}

// allComments calls f with each comment in the Go files below root's directories, and
// with the Go files beside it, tests left out.
func allComments(root string, dirs []string, f func(path, comment string, ofPackage bool, files []string)) error {
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			beside, err := os.ReadDir(filepath.Dir(path))
			if err != nil {
				return fmt.Errorf("beside %s: %w", path, err)
			}
			var files []string
			for _, entry := range beside {
				if name := entry.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
					files = append(files, name)
				}
			}
			short, err := filepath.Rel(root, path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			for _, group := range file.Comments {
				var comment strings.Builder
				for _, line := range group.List {
					comment.WriteString(line.Text + "\n")
				}
				f(short, comment.String(), group == file.Doc, files)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("reading the comments in %s: %w", dir, err)
		}
	}
	return nil
}
