package commands

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

// outsideWindow is what the flag of that name does.
const outsideWindow = "do it also outside the shard's maintenance windows"

func switchoverCommand() *cobra.Command {
	var (
		o      operate
		change operator.ChangeOptions
	)
	cmd := &cobra.Command{
		Use:   "switchover [SHARD]",
		Short: "Hand a shard over from its leader to another member",
		Long: "Hands a healthy shard over while the poolers hold its clients, and tells how that ended: done, refused (nothing\n" +
			"has changed), rolled back (the old leader leads again), or unknown. What happened is kept: lictor events.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Switchover(ctx, c, s, change)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&change.Leader, "leader", "", "refuse unless this member leads")
	f.StringVar(&change.Leader, "primary", "", "the same as --leader, patronictl's word")
	f.StringVar(&change.Leader, "master", "", "the same as --leader, the word of patronictl 3")
	_ = f.MarkHidden("primary") // the flags exist
	_ = f.MarkHidden("master")
	f.StringVar(&change.Candidate, "candidate", "", "the member that is to lead (default: the best)")
	f.StringVar(&change.Scheduled, "scheduled", "", "when: now, +10m, or a time like 2026-11-21T22:00+01:00")
	f.StringVar(&change.OnBusy, "on-busy", "", "transactions that still run when the poolers hold the clients: cancel (after 2 s, the default), wait, refuse")
	f.BoolVar(&change.OutsideWindow, "outside-window", false, outsideWindow)
	f.BoolVar(&change.Force, "force", false, "ask nothing")
	return o.ofShard(cmd)
}

func failoverCommand() *cobra.Command {
	var (
		o      operate
		change operator.ChangeOptions
	)
	cmd := &cobra.Command{
		Use:   "failover [SHARD]",
		Short: "Make a named member lead, also when nobody does",
		Long: "For when a shard has no leader, or the candidate could not take over in an orderly way. Before anything is done it\n" +
			"says what can be lost. --force asks nothing and, when nobody leads, overrides what else would keep the candidate\n" +
			"waiting: the failsafe list, and a lease that the last leader has not released. That one is told to stop; if it still\n" +
			"runs and cannot be told, both take writes until its lease ends, and one's are lost: make sure that it is gone.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Failover(ctx, c, s, change)
			})
		},
	}
	cmd.Flags().StringVar(&change.Candidate, "candidate", "", "the member that is to lead")
	cmd.Flags().BoolVar(&change.Force, "force", false, "ask nothing, and override the failsafe list and the last lease")
	return o.ofShard(cmd)
}

func restartCommand() *cobra.Command {
	var (
		o       operate
		restart operator.RestartOptions
	)
	cmd := &cobra.Command{
		Use:   "restart [SHARD [MEMBER...]]",
		Short: "Restart PostgreSQL on members, or on a whole shard without an error for its clients",
		Long: "Without members the whole shard is restarted: the replicas one after another, then the primary hands over to one\n" +
			"of them, while the poolers hold the clients, and comes back as a replica. Members that are named are restarted in\n" +
			"place. A setting that replicas must have as much of as their primary (max_connections, ...) and that is lowered\n" +
			"takes effect only when the primary is restarted in place before the replicas: name it first, then the others.",
		RunE: func(cmd *cobra.Command, args []string) error {
			restart.Members = rest(args)
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Restart(ctx, c, s, restart)
			})
		},
	}
	f := cmd.Flags()
	roleFlag(cmd, &restart.Role, "only members with this role")
	f.BoolVar(&restart.Any, "any", false, "only one of them, by chance")
	f.BoolVar(&restart.Pending, "pending", false, "only members with settings that wait for a restart")
	f.StringVar(&restart.Below, "pg-version", "", "only members whose PostgreSQL is older than this, 15.3 for instance")
	f.StringVar(&restart.Scheduled, "scheduled", "", "when: now, +10m, or a time like 2026-11-21T22:00+01:00")
	f.Var((*seconds)(&restart.Timeout), "timeout", "how long the restart of one member may take: seconds, or with a unit, 2m for instance")
	f.BoolVar(&restart.InPlace, "in-place", false, "restart the primary where it is, instead of by a handover")
	f.BoolVar(&restart.OutsideWindow, "outside-window", false, outsideWindow)
	f.BoolVar(&restart.Force, "force", false, "ask nothing")
	return o.ofShard(cmd)
}

// seconds is a flag for a time: a number of seconds, as patronictl takes it, or one
// with a unit.
type seconds time.Duration

// Set reads the flag.
func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, notNumber := strconv.ParseFloat(text, 64); notNumber == nil {
		d, err = time.Duration(n*float64(time.Second)), nil
	}
	if err != nil || d <= 0 {
		return errors.New("must be a time like 30, 30s or 2m")
	}
	*s = seconds(d)
	return nil
}

func (s *seconds) String() string {
	if *s == 0 {
		return ""
	}
	return time.Duration(*s).String()
}

// Type is what the help says.
func (s *seconds) Type() string { return "time" }

func reloadCommand() *cobra.Command {
	var (
		o     operate
		role  string
		force bool
	)
	cmd := &cobra.Command{
		Use:   "reload [SHARD [MEMBER...]]",
		Short: "Have members read their configuration files again",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Reload(ctx, c, s, rest(args), role, force)
			})
		},
	}
	roleFlag(cmd, &role, "only members with this role")
	cmd.Flags().BoolVar(&force, "force", false, "ask nothing")
	return o.ofShard(cmd)
}

func reinitCommand() *cobra.Command {
	var (
		o      operate
		reinit operator.ReinitOptions
	)
	cmd := &cobra.Command{
		Use:   "reinit SHARD MEMBER...",
		Short: "Replace replicas' data by new copies of the leader's",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			reinit.Members = rest(args)
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Reinit(ctx, c, s, reinit)
			})
		},
	}
	cmd.Flags().BoolVar(&reinit.Force, "force", false, "ask nothing, and break off what the member is doing")
	cmd.Flags().BoolVar(&reinit.FromLeader, "from-leader", false, "copy from the leader, not from a replica with the tag clonefrom")
	cmd.Flags().BoolVar(&reinit.Wait, "wait", false, "wait until the members replicate again")
	return o.ofShard(cmd)
}

func pauseCommand(on bool) *cobra.Command {
	var (
		o    operate
		wait bool
	)
	cmd := &cobra.Command{
		Use:   "pause [SHARD]",
		Short: "Stop promoting, demoting and starting PostgreSQL until resume",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Pause(ctx, c, s, on, wait)
			})
		},
	}
	if !on {
		cmd.Use, cmd.Short = "resume [SHARD]", "End a pause"
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until every member says so")
	return o.ofShard(cmd)
}

func flushCommand() *cobra.Command {
	var (
		o     operate
		role  string
		force bool
	)
	cmd := &cobra.Command{
		Use:   "flush [SHARD [MEMBER...]] {restart|switchover}",
		Short: "Drop a scheduled restart or switchover",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			what, args := args[len(args)-1], args[:len(args)-1]
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Flush(ctx, c, s, what, rest(args), role, force)
			})
		},
	}
	roleFlag(cmd, &role, "only members with this role")
	cmd.Flags().BoolVar(&force, "force", false, "ask nothing")
	return o.ofShard(cmd)
}

func removeCommand() *cobra.Command {
	var o operate
	return o.formatted(o.ofShard(&cobra.Command{
		Use:   "remove SHARD",
		Short: "Delete all that Consul knows of a shard",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return o.onShard(cmd, args, operator.Remove) },
	}))
}

func editConfigCommand() *cobra.Command {
	var (
		o    operate
		edit operator.EditOptions
	)
	cmd := &cobra.Command{
		Use:   "edit-config [SHARD]",
		Short: "Change the dynamic configuration, with $EDITOR or by flags",
		Long: "Shows what will change, refuses what the agents would not take, asks, and writes it if nobody else has changed it\n" +
			"meanwhile. Values are YAML; null removes a setting.",
		Example: "  lictor edit-config shard1 --set ttl=10 --pg work_mem=16MB\n  lictor edit-config shard1 --apply changes.yml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			edit.Editor = operator.Editor(os.Getenv)
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.EditConfig(ctx, c, s, edit)
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&edit.Set, "set", "s", nil, "name=value; may be repeated")
	f.StringArrayVarP(&edit.Pg, "pg", "p", nil, "parameter=value, below postgresql.parameters; may be repeated")
	f.StringVar(&edit.Apply, "apply", "", "merge this YAML file; - is the standard input")
	f.StringVar(&edit.Replace, "replace", "", "take this YAML file for all of it; - is the standard input")
	f.BoolVar(&edit.Unknown, "unknown", false, "set also what is not a known setting")
	f.BoolVarP(&edit.Quiet, "quiet", "q", false, "do not show what changes")
	f.BoolVar(&edit.Force, "force", false, "ask nothing")
	return o.ofShard(cmd)
}

func rotateSecretCommand() *cobra.Command {
	var (
		o     operate
		force bool
	)
	cmd := &cobra.Command{
		Use:   "rotate-secret [SHARD]",
		Short: "Replace the secret that a shard's members prove themselves with",
		Long: "Members believe each other, and the operators' commands, by a secret in Consul that agents make by themselves\n" +
			"(lictor/secrets/NAMESPACE/SCOPE). This makes another one while the shard goes on: all members learn it, then it is\n" +
			"used, then the old one is taken no more. Do it when somebody may have read the key who should not.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.RotateSecret(ctx, c, s, force)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "ask nothing, and go on although members do not answer")
	return o.ofShard(cmd)
}
