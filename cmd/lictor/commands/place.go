package commands

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

// moveFlags are those of commands that hand many leaders over.
func moveFlags(cmd *cobra.Command, m *operator.MoveOptions) {
	const defaultParallel = 4
	f := cmd.Flags()
	f.IntVar(&m.Parallel, "parallel", defaultParallel, "how many leaders are handed over at the same time")
	f.BoolVar(&m.NoWait, "no-wait", false, "do not wait until the old leaders follow their successors")
	f.StringVar(&m.OnBusy, "on-busy", "", "transactions that still run when the poolers hold the clients: cancel (after 2 s, the default), wait, refuse")
	f.StringVar(&m.ZoneTag, "zone-tag", operator.DefaultZoneTag, "the tag of members that names their zone")
	f.BoolVar(&m.OutsideWindow, "outside-window", false, outsideWindow)
	f.BoolVar(&m.DryRun, "dry-run", false, "show what would be done, from what the members say now; change nothing")
	f.BoolVar(&m.Check, "check", false, "the same, and exit with 6 if leaders would move")
	f.BoolVar(&m.Force, "force", false, "ask nothing")
	f.BoolVar(&m.Force, "yes", false, "the same as --force")
}

func evacuateCommand() *cobra.Command {
	var (
		o        operate
		evacuate operator.EvacuateOptions
	)
	cmd := &cobra.Command{
		Use:   "evacuate HOST",
		Short: "Hand over all leaders that are on a host, and back",
		Long: "Hands every shard that is led on a host over to a member on another host, some at a time, while the poolers hold\n" +
			"their clients; the replicas there stay. New leaders are spread over the other hosts, and over zones (tag zone). HOST is\n" +
			"the address of its members, their tag host, or their name where all shards call them alike. A leader that nobody can\n" +
			"replace is a reason to do nothing (--partial moves the others). It stops at the first handover that does not go well;\n" +
			"run again it goes on. What it has done stands in Consul: --undo hands the same leaders back, also after it was killed,\n" +
			"and until then no other evacuation and no rebalance hands anything over to the host.",
		Example: "  lictor evacuate db7 --dry-run\n  lictor evacuate db7 --yes && ssh db7 reboot    # and when it is back:\n  lictor evacuate db7 --undo --yes",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			evacuate.Host = args[0]
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				return operator.Evacuate(ctx, c, site, evacuate)
			})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	moveFlags(cmd, &evacuate.MoveOptions)
	f := cmd.Flags()
	f.BoolVar(&evacuate.Undo, "undo", false, "hand the leaders back to the members on the host that led before")
	f.BoolVar(&evacuate.Forget, "forget", false, "forget that the host was evacuated; the leaders stay where they are")
	f.BoolVar(&evacuate.Partial, "partial", false, "go on though some leaders cannot be moved; exit with 1 in the end")
	return o.formatted(o.command(cmd))
}

func rebalanceCommand() *cobra.Command {
	var (
		o         operate
		rebalance operator.RebalanceOptions
	)
	cmd := &cobra.Command{
		Use:   "rebalance [SHARD...]",
		Short: "Spread the leaders over hosts and zones, by fewest handovers",
		Long: "Hands leaders over so that all hosts lead as many shards as each other, as far as the members that can take over\n" +
			"allow for; where that leaves a choice, zones (tag zone) do, too. It takes as few handovers as possible. A leader is not\n" +
			"handed over to a member with a lower failover_priority, nor to a host that is evacuated. With shards named, the leaders\n" +
			"of the others stay. It shows the plan and asks first, and stops at the first handover that does not go well.",
		Example: "  lictor rebalance --dry-run\n  lictor rebalance --yes --parallel 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			rebalance.Scopes = args
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				return operator.Rebalance(ctx, c, site, rebalance)
			})
		},
		ValidArgsFunction: o.completeScope,
	}
	moveFlags(cmd, &rebalance.MoveOptions)
	cmd.Flags().BoolVar(&rebalance.Undo, "undo", false, "hand back what the last rebalance has handed over")
	return o.formatted(o.command(cmd))
}
