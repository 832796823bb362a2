package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer"
	"github.com/lictor-ha/lictor/e2e/demo"
)

func bouncerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bouncer FILE",
		Short: "Watch the leaders of many shards and make PgBouncer follow them",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, warnings, err := bouncer.Load(settings.Source{Path: args[0], Environ: os.Environ()})
			if err != nil {
				return err
			}
			log, err := newLogger(cfg.Log.Level, cfg.Log.Format)
			if err != nil {
				return err
			}
			for _, w := range warnings {
				log.Warn().Msg(w.String())
			}
			signal.Ignore(syscall.SIGHUP) // it has nothing to reload, and must not end by it
			ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			defer cancel()
			return bouncer.Run(ctx, cfg, log)
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "render FILE",
		Short: "Print the configuration that PgBouncer would get now",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := bouncer.Load(settings.Source{Path: args[0], Environ: os.Environ()})
			if err != nil {
				return err
			}
			return bouncer.Render(cmd.Context(), cfg, cmd.OutOrStdout())
		},
	})
	return cmd
}

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
