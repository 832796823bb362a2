package docs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommandPagesAreCurrent(t *testing.T) {
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
	dir := filepath.Join(t.TempDir(), "cli")
	if err := WriteCommands(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pages(filepath.Join(root, "docs", "cli")), pages(dir)); diff != "" {
		t.Errorf("docs/cli is not what the commands say: go run ./e2e/docs/cmd/cli\n%s", diff)
	}
}

func TestManual(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	if err := WriteManual(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "lictor-switchover.1")); err != nil {
		t.Error(err)
	}
}
