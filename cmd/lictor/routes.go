package main

import (
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/bouncer"
)

func routesCommand() *cobra.Command {
	var (
		file   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "routes -c FILE",
		Short: "Show where every bouncer sends the clients of every shard",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := loadBouncer(file, false)
			if err != nil {
				return err
			}
			rows, err := bouncer.Overview(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if asJSON {
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				return out.Encode(rows)
			}
			return bouncer.FormatRoutes(cmd.OutOrStdout(), rows, time.Now())
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "a bouncer's configuration file; it tells where Consul is")
	_ = cmd.MarkFlagRequired("config") // fails only for a flag that does not exist
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
