package docs

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A comment that lists files of its package lists those that exist, and the package's own
// comment all of them.
func TestFileListsAreWhole(t *testing.T) {
	lists := 0
	err := allComments(root, []string{"agent", "bouncer", "cmd", "e2e", "templates"}, func(path, comment string, ofPackage bool, files []string) {
		if fileListForm.MatchString(comment) {
			lists++
		}
		for _, problem := range fileList(filepath.Base(path), comment, ofPackage, files) {
			t.Errorf("%s: %s", path, problem)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if lists < 5 {
		t.Errorf("only %d lists were found", lists)
	}
}

func TestFileLists(t *testing.T) {
	files := []string{"doc.go", "loop.go", "act.go"}
	for comment, want := range map[string][]string{
		"// Package a; see loop.go and gone.go.\n":                      nil,
		"// Package a:\n//\n//\tloop.go  the loop\n//\tact.go   acts":   nil,
		"// Package a:\n//\n//\tloop.go, act.go\n//\t         both":     nil,
		"// Package a:\n//\n//\tloop.go  the loop; act.go acts":         nil,
		"// Package a:\n//\n//\tloop.go  the loop":                      {"act.go is not in the list"},
		"// Package a:\n//\n//\tstopping.go  gone\n//\tloop.go, act.go": {"there is no stopping.go"},
	} {
		if got := fileList("doc.go", comment, true, files); !slices.Equal(got, want) {
			t.Errorf("%q: %s, want %s", comment, strings.Join(got, "; "), strings.Join(want, "; "))
		}
	}
}
