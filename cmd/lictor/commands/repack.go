package commands

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

func repackCommand() *cobra.Command {
	const (
		minBloat       = 20
		maxLagMB       = 64
		maxTransaction = time.Minute
		waitTimeout    = 10 * time.Second
	)
	var (
		o      operate
		repack = operator.RepackOptions{MaxTransaction: maxTransaction, WaitTimeout: waitTimeout}
		lagMB  int64
	)
	cmd := &cobra.Command{
		Use:   "repack [SHARD] --table TABLE...",
		Short: "Make chosen tables anew without what is empty in them, while their clients go on",
		Long: "Measures how much of each table and of its B-tree indexes is empty or dead (pgstattuple), and has pg_repack make those\n" +
			"anew that have enough of it, one after another. It runs on the leader's host, as a user that may read the data directory,\n" +
			"with the program and the extension of postgresql-VERSION-repack. Nothing is begun where the leader's disk lacks room for\n" +
			"a table's copy and as much WAL. It stops when the lead or the window ends, a replica is away or lags, a transaction\n" +
			"runs for long, or WAL is not archived, and removes what it began. What a run that was killed has left is removed first.\n" +
			"No session of others is ended: a table whose lock is not had in time is given up.",
		Example: "  lictor repack orders --database orders --table public.lines --table public.events --check",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			repack.MaxLag = lagMB << 20
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Repack(ctx, c, s, repack)
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&repack.Tables, "table", "t", nil, "a table, schema.table; may be repeated")
	f.StringVarP(&repack.Database, "database", "d", "", "the database (default: postgresql.database of the file)")
	f.IntVar(&repack.MinBloat, "min-bloat", minBloat, "repack tables of which at least so many percent are empty")
	f.Int64Var(&lagMB, "max-lag", maxLagMB, "stop when a replica is further behind than so many MB")
	f.Var((*seconds)(&repack.MaxTransaction), "max-transaction", "stop when a transaction has been running for longer")
	f.Var((*seconds)(&repack.WaitTimeout), "wait-timeout", "how long to wait for a table's lock")
	f.StringVar(&repack.Program, "program", "", "pg_repack (default: in postgresql.bin_dir, or in PATH)")
	f.BoolVar(&repack.OutsideWindow, "outside-window", false, outsideWindow)
	f.BoolVar(&repack.Check, "check", false, "say what would be repacked, change nothing, and exit with 6 if there is something")
	f.BoolVar(&repack.Force, "force", false, "ask nothing")
	return o.formatted(o.ofShard(cmd))
}

func windowsCommand() *cobra.Command {
	var (
		o    operate
		what string
	)
	cmd := &cobra.Command{
		Use:   "windows [SHARD]",
		Short: "Show what the shard's maintenance windows allow for now",
		Long:  "Shows which kinds of maintenance may be done now, and when the next window for the others begins. With --for it exits\nwith 3 where that kind may not be done now.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Windows(ctx, c, s, what)
			})
		},
	}
	cmd.Flags().StringVar(&what, "for", "", "handover, restart or repack")
	return o.formatted(o.ofShard(cmd))
}
