package commands

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

func demoteClusterCommand() *cobra.Command {
	var (
		o      operate
		demote operator.DemoteOptions
	)
	cmd := &cobra.Command{
		Use:   "demote-cluster [SHARD]",
		Short: "Make a shard the standby of another site's",
		Long: "Sets standby_cluster and other_site, and tells how that ended. Where the other site is a standby of this shard, the\n" +
			"poolers hold the clients, PostgreSQL is shut down, and the other site has all WAL before this one is a standby; the\n" +
			"position is printed for lictor promote-cluster there. Where it has a primary, this one is rewound, and what it has\n" +
			"beyond is lost. Where it does not answer, nothing is done.",
		Example: "  lictor demote-cluster orders --host 10.2.0.11,10.2.0.12",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.DemoteCluster(ctx, c, s, demote)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&demote.Host, "host", "", "where the other site's PostgreSQL is: one host, or all members with commas between them")
	f.IntVar(&demote.Port, "port", 0, "its port (default 5432)")
	f.StringVar(&demote.RestoreCommand, "restore-command", "", "gets WAL from the other site's archive")
	f.StringVar(&demote.PrimarySlotName, "primary-slot-name", "", "a physical replication slot there")
	f.BoolVar(&demote.Force, "force", false, "ask nothing")
	return o.ofShard(cmd)
}

func promoteClusterCommand() *cobra.Command {
	var (
		o       operate
		promote operator.PromoteOptions
	)
	cmd := &cobra.Command{
		Use:   "promote-cluster [SHARD]",
		Short: "Give a standby shard a primary of its own",
		Long: "Removes standby_cluster, and tells how that ended. It is refused while the other site has a primary that answers, or a\n" +
			"standby with more WAL. A site that does not answer is taken for lost: make sure that it accepts no commits. It is\n" +
			"remembered as other_site: should it have lived, it fences itself when it sees this one, if it has other_site, too.",
		Example: "  lictor promote-cluster orders --lsn 0/5000060",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.PromoteCluster(ctx, c, s, promote)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&promote.LSN, "lsn", "", "wait until this position is replayed, as lictor demote-cluster has printed it")
	f.BoolVar(&promote.IgnoreOtherSite, "ignore-other-site", false, "ask the other site nothing, now and later: both are shards of their own then")
	f.BoolVar(&promote.Force, "force", false, "ask nothing")
	return o.ofShard(cmd)
}
