package commands

import (
	"os"
	"path/filepath"
	"testing"
	"time"

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
	if diff := cmp.Diff(pages("../../../docs/cli"), pages(dir)); diff != "" {
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

func TestSecondsFlag(t *testing.T) {
	for text, want := range map[string]time.Duration{"30": 30 * time.Second, "0.5": 500 * time.Millisecond, "2m": 2 * time.Minute, "x": 0, "0": 0, "-1s": 0} {
		var got seconds
		if err := got.Set(text); (err == nil) != (want > 0) || time.Duration(got) != want {
			t.Errorf("%q: %v, %v", text, time.Duration(got), err)
		}
	}
}
