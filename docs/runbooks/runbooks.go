// Package runbooks has the runbooks in the program, so that they can be read where nothing else
// can be reached.
package runbooks

import (
	"embed"
	"fmt"
)

//go:embed *.md
var files embed.FS

// Read returns the text of a page, by its name without .md.
func Read(name string) ([]byte, error) {
	text, err := files.ReadFile(name + ".md")
	if err != nil {
		return nil, fmt.Errorf("runbook %q: %w", name, err)
	}
	return text, nil
}
