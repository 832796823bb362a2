package commands

import (
	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/postgres"
)

// probeDiskCommand is the child of the agent's disk probe.
func probeDiskCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    "probe-disk",
		Short:  "Find out whether PostgreSQL's data directory can be written (started by the agent)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return postgres.RunDiskProbe(dir, cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "data directory")
	_ = cmd.MarkFlagRequired("dir") // the flag exists
	return cmd
}
