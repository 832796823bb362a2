// Command settings writes docs/settings.md.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lictor-ha/lictor/e2e/docs"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "settings:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "lictor-settings-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sections, err := docs.Sections(".", dir)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("docs", "settings.md"), []byte(docs.Page(sections)), 0o644)
}
