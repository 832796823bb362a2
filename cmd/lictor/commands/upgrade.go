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
		Use:   "upgrade SHARD --to VERSION [--check]",
		Short: "Upgrade a shard to another major version of PostgreSQL, or look whether that can be done",
		Long: "The leader's data become those of the later version by pg_upgrade --link, while the poolers hold the clients; then the other\n" +
			"members are copied anew from it, one after another. Until the new version begins to serve, every error takes it back. No data\n" +
			"directory is removed. First it is looked whether it can be done, which --check does alone.\n\n" +
			"Each member tries whether its data could become those of another major version of PostgreSQL, one after another, the\n" +
			"replicas first, while they serve. It makes an empty cluster of that version beside its data, has pg_upgrade --check --link\n" +
			"compare the two, looks whether the new version takes the parameters and has the libraries, and removes what it has made.\n" +
			"PostgreSQL is neither stopped nor changed. Each agent and bouncer must know the announcement of a new system identifier. Exit code 6 says that something stands in the way.\n\n" +
			"The programs of the new version must be installed on every member's host: beside those of the present one, in a directory\n" +
			"with that version's number instead, or where lictor.upgrade_bin_dir says.",
		Example: "  lictor upgrade orders --to 17 --check\n  lictor upgrade orders --to 17",
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
	f.BoolVar(&upgrade.Force, "force", false, "ask nothing")
	f.StringSliceVar(&upgrade.Members, "member", nil, "ask these members only")
	return o.formatted(o.ofShard(cmd))
}
