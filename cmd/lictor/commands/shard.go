package commands

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/operator"
)

// operate is what the operator's commands have in common: where Consul is, which
// shard is meant, and how the result is shown.
type operate struct {
	flags  operator.Flags
	output string
	// watch is how often the result is shown again; 0: once.
	watch  float64
	watch2 bool
}

// command completes a command of the operator's: its flags, its group, and
// completion of the names of shards and members.
func (o *operate) command(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVarP(&o.flags.Config, "config", "c", "",
		"an agent's, bouncer's or patronictl's configuration file (default: "+operator.ConfigVariable+", ~/.config/lictor/lictor.yml)")
	f.StringVar(&o.flags.Consul, "consul", "", "where Consul is: host, host:port or URL")
	f.StringVar(&o.flags.Token, "consul-token-file", "", "a file with the token for Consul")
	f.StringVarP(&o.flags.Namespace, "namespace", "n", "", "the first part of the shards' keys in Consul (default service)")
	f.BoolVarP(&o.flags.Insecure, "insecure", "k", false, "do not check the certificates of the members' REST API")
	f.BoolVar(&o.flags.PasswordToPatroni, "password-to-patroni", false, "send the password of restapi or ctl to members that run Patroni, also where the shard's secret is known")
	cmd.GroupID = groupShards
	return cmd
}

// ofShard is command for one that is about a shard, which --scope may name, too.
func (o *operate) ofShard(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&o.flags.Scope, "scope", "", "the shard (default: the configured one, or the only one)")
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = o.complete
	}
	_ = cmd.RegisterFlagCompletionFunc("scope", o.completeScope) // fails only for a flag that does not exist
	return o.command(cmd)
}

// formatted adds --output.
func (o *operate) formatted(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&o.output, "output", "o", string(operator.Pretty), strings.Join(operator.Formats(), ", "))
	cmd.Flags().StringVarP(&o.output, "format", "f", string(operator.Pretty), "the same as --output, patronictl's word")
	_ = cmd.Flags().MarkHidden("format")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(operator.Formats(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// watched adds --watch.
func (o *operate) watched(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().Float64VarP(&o.watch, "watch", "w", 0, "show it again every so many seconds")
	cmd.Flags().BoolVarP(&o.watch2, "watch2", "W", false, "show it again every 2 seconds")
	cmd.Flags().Lookup("watch2").Hidden = true
	return cmd
}

func (o *operate) every() time.Duration {
	if o.watch2 && o.watch == 0 {
		o.watch = 2
	}
	return time.Duration(o.watch * float64(time.Second))
}

// interruptible ends with SIGINT and SIGTERM.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
}

// onSite runs f for a Consul with its shards, again and again if that is asked for.
func (o *operate) onSite(cmd *cobra.Command, f func(ctx context.Context, c *operator.Console, site *operator.Site) error) error {
	format, err := operator.ParseFormat(o.output)
	if err != nil {
		return err
	}
	if !(o.watch >= 0) { // not a number neither
		return operator.Usage(fmt.Errorf("--watch %v: must be a number of seconds above 0", o.watch))
	}
	settings, err := operator.Load(o.flags, os.Environ())
	if err != nil {
		return err
	}
	site, err := operator.Connect(settings)
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(cmd)
	defer cancel()
	context.AfterFunc(ctx, cancel) // a second signal ends a command that waits for what is under way
	return operator.Terminal(format).Watch(ctx, o.every(), func(ctx context.Context, c *operator.Console) error { return f(ctx, c, site) })
}

// agree returns an error if --scope names another shard than the arguments.
func (o *operate) agree(args []string) error {
	if o.flags.Scope != "" && len(args) > 0 && o.flags.Scope != args[0] {
		return operator.Usage(fmt.Errorf("two shards are named: %s, and --scope %s", args[0], o.flags.Scope))
	}
	return nil
}

// onShard runs f for the shard that is meant: the first argument, if there is one.
func (o *operate) onShard(cmd *cobra.Command, args []string, f func(ctx context.Context, c *operator.Console, s *operator.Shard) error) error {
	if err := o.agree(args); err != nil {
		return err
	}
	scope := o.flags.Scope
	if len(args) > 0 {
		scope = args[0]
	}
	return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
		s, err := site.Open(ctx, scope)
		if err != nil {
			return err
		}
		defer s.Close()
		return f(ctx, c, s)
	})
}

// completeLimit bounds asking Consul for completion: a shell waits for it.
const completeLimit = time.Second

func (o *operate) completeScope(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return o.complete(cmd, nil, prefix)
}

// complete proposes names of shards, then of the shard's members.
func (o *operate) complete(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	settings, err := operator.Load(o.flags, os.Environ())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	site, err := operator.Connect(settings)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
	defer cancel()
	names, err := site.Names(ctx, args)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
