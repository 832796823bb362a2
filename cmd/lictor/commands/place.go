package commands

import (
	"context"
	"strings"
	"time"

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

func drillCommand() *cobra.Command {
	const probeTimeout, limit = 10 * time.Second, 10 * time.Minute
	var (
		o     operate
		drill = operator.DrillOptions{ProbeTimeout: probeTimeout, Limit: limit}
	)
	cmd := &cobra.Command{
		Use:   "drill [SHARD...]",
		Short: "Try on the real fleet what is promised: hand over, restart, lose an agent or a host, and measure",
		Long: "A game day. On one shard after another it checks that all is well and that somebody can take over, does what --kind\n" +
			"says, waits until the shard is as well as before, and stops at the first surprise (exit code 7): a shard that is not\n" +
			"well before or not again within --limit, an error where there must be none, a row that is lost. A client (--probe) goes\n" +
			"through the load balancer or the pooler meanwhile; it inserts rows into a table of its own, lictor_drill, or reads where\n" +
			"it may not, and measures its longest wait, its errors, and which acknowledged rows are missing in the end.\n\n" +
			"  switchover  the leader hands over; clients wait and see no error\n" +
			"  restart     PostgreSQL is restarted on every member, as lictor restart does; clients see no error\n" +
			"  kill-agent  the leader's agent is killed by --cut; clients see no error if it is back within its lease\n" +
			"  host        the leader's host is taken away by --cut, and brought back by --restore; no row is lost\n\n" +
			"--cut and --restore are run without a shell: %h stands for the host, %m for the member, %s for the shard, and so do\n" +
			"LICTOR_DRILL_HOST, _MEMBER and _SHARD in their environment. Without --cut somebody is asked to do it, and it waits\n" +
			"until that shows; after --cut it always restores, also when it is interrupted. Members' keys in Consul say which host\n" +
			"is meant, and a shard's token may write them: with --yes, --hosts must name those that may be cut.",
		Example: "  lictor drill orders --probe 'host=lb port=6432 user=drill' --report drill.html\n" +
			"  lictor drill --shards 3 --kind restart --probe 'postgresql://drill@lb:6432/%s' --schedule 2026-12-05T02:00+01:00\n" +
			"  lictor drill orders --kind host --cut 'ipmitool -H %h-bmc power off' --restore 'ipmitool -H %h-bmc power on'",
		RunE: func(cmd *cobra.Command, args []string) error {
			drill.Scopes = args
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				return operator.Drill(ctx, c, site, drill)
			})
		},
		ValidArgsFunction: o.completeScope,
	}
	f := cmd.Flags()
	f.IntVar(&drill.Count, "shards", 0, "so many shards, by chance")
	f.BoolVar(&drill.All, "all", false, "all shards")
	f.StringVar(&drill.Kind, "kind", operator.DrillSwitchover, strings.Join(operator.DrillKinds(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(operator.DrillKinds(), cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	f.StringVar(&drill.Probe, "probe", "", "where a client connects: a connection string or URI of libpq's, %s is the shard's name, and the database where it names none; the password comes from ~/.pgpass or PGPASSWORD")
	f.DurationVar(&drill.ProbeTimeout, "probe-timeout", probeTimeout, "how long the client waits for one answer")
	f.DurationVar(&drill.MaxWait, "max-wait", 0, "a longer wait of the client is a surprise (default: none is)")
	f.StringVar(&drill.Cut, "cut", "", "the command that takes the host or the agent away (default: somebody is asked to)")
	f.StringVar(&drill.Restore, "restore", "", "the command that brings it back (default: somebody is asked to bring the host back)")
	f.StringSliceVar(&drill.Hosts, "hosts", nil, "the hosts that --cut may take away, as fleet names them; --cut with --yes needs it")
	f.DurationVar(&drill.Limit, "limit", limit, "how long may be waited for another leader, and until a shard is well again")
	f.StringVar(&drill.Schedule, "schedule", "", "when it begins; it waits for that: now, +10m, or a time like 2026-11-21T22:00+01:00")
	f.StringVar(&drill.Schedule, "scheduled", "", "the same as --schedule, other commands' word")
	_ = f.MarkHidden("scheduled") // the flag exists
	f.BoolVar(&drill.OutsideWindow, "outside-window", false, "do it also outside the shards' maintenance windows")
	f.StringVar(&drill.Report, "report", "", "a file for the report as one HTML page, rewritten after each shard")
	f.BoolVar(&drill.Force, "force", false, "ask nothing")
	f.BoolVar(&drill.Force, "yes", false, "the same as --force")
	return o.formatted(o.command(cmd))
}
