package commands

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

func upgradeCommand() *cobra.Command {
	var (
		o       operate
		upgrade operator.UpgradeOptions
	)
	cmd := &cobra.Command{
		Use:   "upgrade SHARD --to VERSION --check",
		Short: "Look whether a shard can be upgraded to another major version of PostgreSQL",
		Long: "Each member tries whether its data could become those of another major version of PostgreSQL, one after another, the\n" +
			"replicas first, while they serve. It makes an empty cluster of that version beside its data, has pg_upgrade --check --link\n" +
			"compare the two, looks whether the new version takes the parameters and has the libraries, and removes what it has made.\n" +
			"PostgreSQL is neither stopped nor changed. Each agent and bouncer must know the announcement of a new system identifier. Exit code 6 says that something stands in the way.\n\n" +
			"The programs of the new version must be installed on every member's host: beside those of the present one, in a directory\n" +
			"with that version's number instead, or where lictor.upgrade_bin_dir says.\n\n" +
			"The upgrade itself is not there yet.",
		Example: "  lictor upgrade orders --to 17 --check",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Upgrade(ctx, c, s, upgrade)
			})
		},
	}
	f := cmd.Flags()
	f.IntVar(&upgrade.To, "to", 0, "the major version: 17")
	f.BoolVar(&upgrade.Check, "check", false, "look, and change nothing")
	f.StringSliceVar(&upgrade.Members, "member", nil, "ask these members only")
	return o.formatted(o.ofShard(cmd))
}
