package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

func restoreCommand() *cobra.Command {
	var (
		o       operate
		restore operator.RestoreOptions
	)
	cmd := &cobra.Command{
		Use:   "restore SHARD --to TIME --as NEWSHARD",
		Short: "Restore a shard from its backups, as it was at a moment, beside the living one",
		Long: "Makes the configuration of a new shard on this host, which recovers from the shard's pgBackRest backups and archive to a\n" +
			"moment: for what was deleted by mistake. The living shard goes on. Run it on a database host, with the file of a member of\n" +
			"the shard that has lictor.backup.stanza, as root or as PostgreSQL's user.\n\n" +
			"First it is looked whether that can be done, and refused if not: a backup from before the moment, WAL until after it (the\n" +
			"leader archives what there is), room on the disk, a name and ports that are free.",
		Example: "  lictor restore orders -c /etc/lictor/agents/orders.yml --to '2026-11-29 10:00+00' --as orders_monday\n  systemctl start lictor-agent@orders_monday",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			restore.Environ = os.Environ()
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.RestoreBeside(ctx, c, s, restore)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&restore.To, "to", "", "the moment, with its offset from UTC: '2026-11-29 10:00+00' (required)")
	f.StringVar(&restore.As, "as", "", "the new shard's name (required)")
	f.StringVar(&restore.Label, "from-backup", "", "the backup's label (default: the newest that had ended before the moment)")
	f.StringVar(&restore.DataDir, "data-dir", "", "the new shard's data directory (default: NEWSHARD beside the member's)")
	f.StringVar(&restore.Port, "port", "", "the new PostgreSQL's port (default: the next free one)")
	f.StringVar(&restore.APIPort, "api-port", "", "the new agent's port (default: the next free one)")
	f.StringVar(&restore.File, "file", "", "the new configuration file (default: NEWSHARD.yml beside the member's)")
	f.BoolVar(&restore.Force, "force", false, "ask nothing")
	for _, required := range []string{"to", "as"} {
		_ = cmd.MarkFlagRequired(required) // the flag exists
	}
	return o.ofShard(cmd)
}
