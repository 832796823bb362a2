package commands

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/lictor-ha/lictor/agent/operator"
)

// docsCommand writes the pages that packages and docs/cli have.
func docsCommand() *cobra.Command {
	var man, markdown string
	cmd := &cobra.Command{
		Use:    "docs {--man DIR | --markdown DIR}",
		Short:  "Write the manual pages of all commands",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (man == "") == (markdown == "") {
				return operator.Usage(errors.New("say either --man or --markdown"))
			}
			dir := man + markdown
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("manual pages: %w", err)
			}
			root := cmd.Root()
			root.InitDefaultCompletionCmd()
			disableTag(root)
			if man != "" {
				// Without a date: the same source makes the same pages.
				when := time.Unix(0, 0).UTC()
				return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "lictor", Manual: "Lictor", Date: &when}, dir)
			}
			return doc.GenMarkdownTree(root, dir)
		},
	}
	cmd.Flags().StringVar(&man, "man", "", "write man pages here")
	cmd.Flags().StringVar(&markdown, "markdown", "", "write Markdown here")
	return cmd
}

// disableTag leaves out the line that says when a page was made.
func disableTag(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	for _, below := range cmd.Commands() {
		disableTag(below)
	}
}
