package docs

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/lictor-ha/lictor/cmd/lictor/commands"
)

// WriteCommands writes a page in Markdown for every command of lictor into a directory.
func WriteCommands(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("pages of the commands: %w", err)
	}
	if err := doc.GenMarkdownTree(documented(), dir); err != nil {
		return fmt.Errorf("pages of the commands: %w", err)
	}
	return nil
}

// WriteManual writes a man page for every command of lictor into a directory.
func WriteManual(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("man pages: %w", err)
	}
	// Without a date: the same source makes the same pages.
	when := time.Unix(0, 0).UTC()
	if err := doc.GenManTree(documented(), &doc.GenManHeader{Section: "1", Source: "lictor", Manual: "Lictor", Date: &when}, dir); err != nil {
		return fmt.Errorf("man pages: %w", err)
	}
	return nil
}

// documented is lictor's command line as its pages tell of it.
func documented() *cobra.Command {
	root := commands.Root()
	root.InitDefaultCompletionCmd()
	withoutDate(root)
	return root
}

// withoutDate leaves out the line that says when a page was made.
func withoutDate(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	for _, below := range cmd.Commands() {
		withoutDate(below)
	}
}
