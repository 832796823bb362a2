package commands

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

func restoreCommand() *cobra.Command {
	var (
		o       operate
		restore operator.RestoreOptions
		cancel  bool
	)
	cmd := &cobra.Command{
		Use:   "restore SHARD --to TIME [--as NEWSHARD]",
		Short: "Put a shard back to a moment from its backups, or restore it beside the living one",
		Long: "With --as it makes the configuration of a new shard on this host, which recovers from the shard's pgBackRest backups and\n" +
			"archive to a moment: for what was deleted by mistake. The living shard goes on.\n\n" +
			"Without --as the shard itself is put back, and what was committed since is discarded. The leader moves its data directory\n" +
			"aside (it is never removed), restores and recovers in its place, and leads on a new timeline; the other members follow it.\n" +
			"An error, --cancel, or an agent that dies in the middle undo that: the old data are put back.\n\n" +
			"Run it on a database host (without --as on the leader's), with the file of its member that has lictor.backup.stanza, as\n" +
			"root or as PostgreSQL's user.\n\n" +
			"First it is looked whether that can be done, and refused if not: a backup from before the moment, WAL until after it (the\n" +
			"leader archives what there is), room on the disk, a name and ports that are free.",
		Example: "  lictor restore orders -c /etc/lictor/agents/orders.yml --to '2026-11-29 10:00+00' --as orders_monday\n  systemctl start lictor-agent@orders_monday",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if restore.As == "" && restore.Beside() {
				return operator.Usage(errors.New("--data-dir, --port, --api-port and --file are of a new shard: say with --as what it is called; without it the shard itself is put back"))
			}
			restore.Environ = os.Environ()
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				switch {
				case cancel:
					return operator.CancelRestore(ctx, c, s)
				case restore.To == "":
					return operator.Usage(errors.New("--to: say to which moment"))
				case restore.As == "":
					return operator.Restore(ctx, c, s, restore)
				}
				return operator.RestoreBeside(ctx, c, s, restore)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&restore.To, "to", "", "the moment, with its offset from UTC: '2026-11-29 10:00+00'")
	f.StringVar(&restore.As, "as", "", "restore beside the living shard, as this one")
	f.StringVar(&restore.Label, "from-backup", "", "the backup's label (default: the newest that had ended before the moment)")
	f.StringVar(&restore.DataDir, "data-dir", "", "the new shard's data directory (default: NEWSHARD beside the member's)")
	f.StringVar(&restore.Port, "port", "", "the new PostgreSQL's port (default: the next free one)")
	f.StringVar(&restore.APIPort, "api-port", "", "the new agent's port (default: the next free one)")
	f.StringVar(&restore.File, "file", "", "the new configuration file (default: NEWSHARD.yml beside the member's)")
	f.BoolVar(&restore.Force, "force", false, "ask nothing")
	f.BoolVar(&cancel, "cancel", false, "undo a restore that is under way")
	for _, other := range []string{"to", "as", "from-backup"} {
		cmd.MarkFlagsMutuallyExclusive("cancel", other)
	}
	return o.ofShard(cmd)
}
