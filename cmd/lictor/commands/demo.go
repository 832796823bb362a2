package commands

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/e2e/demo"
)

func demoCommand() *cobra.Command {
	o := demo.Options{Out: os.Stdout, In: os.Stdin}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a sharded cluster on this machine, and break it",
		Long: "Runs Consul's servers, shards with their agents, PgBouncers with their bouncers, HAProxy and clients that write, all on\n" +
			"this machine, and removes them at its end. On a terminal keys break it; --scenario NAME plays one of these:\n\n" + demo.Scenarios(),
		Example: "  make demo                                     # builds what it needs, then: lictor demo\n" +
			"  make demo ARGS=\"--scenario switchover\"",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Check(); err != nil {
				return operator.Usage(fmt.Errorf("--scenario: %w", err))
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.Once, "once", false, "start, kill the primary's host of shard 1, await recovery, report, stop")
	cmd.Flags().StringVar(&o.Report, "report", "", "write a report in JSON to this file")
	cmd.Flags().StringVar(&o.Scenario, "scenario", "", "run this scenario, or all, and print what the clients saw")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "keep the data and logs, and say where")
	cmd.Flags().BoolVar(&o.Async, "async", false, "asynchronous replication")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "directory for all data (default: a new one)")
	cmd.Flags().IntVar(&o.TTL, "ttl", 0, "lease of the leaders in seconds (default: Lictor's)")
	return cmd
}
