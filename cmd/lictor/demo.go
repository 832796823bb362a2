package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/e2e/demo"
)

func demoCommand() *cobra.Command {
	o := demo.Options{Out: os.Stdout, In: os.Stdin}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a sharded cluster on this machine, and break it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return demo.Run(cmd.Context(), o) },
	}
	cmd.Flags().BoolVar(&o.Once, "once", false, "start, kill the primary's host of shard 1, await recovery, report, stop")
	cmd.Flags().StringVar(&o.Report, "report", "", "write a report in JSON to this file")
	cmd.Flags().StringVar(&o.Scenario, "scenario", "", "run this scenario and print what the clients saw")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "keep the data and logs, and say where")
	cmd.Flags().BoolVar(&o.Async, "async", false, "asynchronous replication")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "directory for all data (default: a new one)")
	cmd.Flags().IntVar(&o.TTL, "ttl", 0, "lease of the leaders in seconds (default: Lictor's)")
	return cmd
}
