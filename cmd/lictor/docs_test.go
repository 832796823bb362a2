package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The pages in docs/cli are what `lictor docs` writes.
func TestDocsAreCurrent(t *testing.T) {
	pages := func(dir string) map[string]string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = string(content)
		}
		return all
	}
	dir := t.TempDir()
	root, _ := rootCommand()
	root.SetArgs([]string{"docs", "--markdown", dir})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pages("../../docs/cli"), pages(dir)); diff != "" {
		t.Errorf("go run ./cmd/lictor docs --markdown docs/cli:\n%s", diff)
	}
	root, _ = rootCommand()
	man := filepath.Join(dir, "man")
	root.SetArgs([]string{"docs", "--man", man})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(man, "lictor-switchover.1")); err != nil {
		t.Error(err)
	}
}
