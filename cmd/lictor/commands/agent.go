package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/agent/systemd"
)

func agentCommand() *cobra.Command {
	var set []string
	cmd := &cobra.Command{
		Use:   "agent [FILE]",
		Short: "Run one PostgreSQL member: hold its lock, run, replicate and fence it",
		Long: "Runs in the foreground. FILE is a patroni.yml (or a directory of *.yml); without it the whole\n" +
			"configuration comes from LICTOR_CONFIGURATION or PATRONI_CONFIGURATION. SIGTERM stops PostgreSQL in an\n" +
			"orderly way and gives the lock up, SIGHUP reloads the configuration, SIGUSR1 switches the log to the level\n" +
			"debug and back, SIGUSR2 goes on in the same process with the binary that is installed by now, without touching\n" +
			"PostgreSQL.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := configSource(args, set)
			if err != nil {
				return err
			}
			cfg, warnings, err := config.Load(source)
			if err != nil {
				return orOther(err, source.Path, "pgbouncer", "it is a bouncer's file: lictor bouncer")
			}
			logs, err := newFileLog(cfg.Log)
			if err != nil {
				return err
			}
			defer logs.Close(lastLines)
			logs.Hide(settings.Secrets(cfg))
			log := logs.Logger()
			notifier, err := systemd.New()
			if err != nil {
				return err
			}
			for _, w := range warnings {
				log.Warn().Msg(w.String())
			}
			self, err := installed()
			if err != nil {
				return err
			}
			a, err := agent.New(cfg, agent.Options{
				Source: source, Version: version, Log: log, GuardCommand: []string{self, "guard"}, ProbeCommand: []string{self, "probe-disk"},
				Runnable: func(ctx context.Context) error { return runnable(ctx, self) },
				Logging:  logs, Systemd: notifier,
			})
			if err != nil {
				return err
			}
			keepLittleGarbage()
			s := listenForSignals(func() { log.Warn().Str("now", logs.ToggleDebug()).Msg("log level switched by SIGUSR1") })
			err = a.Run(cmd.Context(), agent.Signals{Stop: s.stop, Reload: s.reload, Upgrade: s.upgrade})
			s.release()
			if errors.Is(err, agent.ErrUpgrade) {
				logs.Close(lastLines)
				return execute(self)
			}
			return err
		},
	}
	setFlag(cmd, &set)
	return cmd
}

func setFlag(cmd *cobra.Command, set *[]string) {
	cmd.Flags().StringArrayVar(set, "set", nil, "override a setting, e.g. --set restapi.listen=127.0.0.1:8009; may be repeated")
}

// configSource is the file that the arguments name, under the environment, under
// what --set says.
func configSource(args, set []string) (config.Source, error) {
	source := config.Source{Environ: os.Environ(), Flags: map[string]any{}}
	if len(args) > 0 {
		source.Path = args[0]
	}
	for _, s := range set {
		path, value, found := strings.Cut(s, "=")
		if !found || path == "" {
			return source, operator.Usage(fmt.Errorf("--set %s: must be section.key=value", s))
		}
		if _, twice := source.Flags[path]; twice {
			return source, operator.Usage(fmt.Errorf("--set %s: is given twice: keep one of them", path))
		}
		source.Flags[path] = value
	}
	return source, nil
}

// orOther adds to an error what a file is meant for that has a section which only the other program's have.
func orOther(err error, path, section, what string) error {
	text, unread := os.ReadFile(path)
	var sections map[string]any
	if unread != nil || yaml.Unmarshal(text, &sections) != nil || sections[section] == nil {
		return err
	}
	return fmt.Errorf("%w\n  %s %s", err, what, path)
}

func guardCommand() *cobra.Command {
	var o fence.GuardOptions
	cmd := &cobra.Command{
		Use:    "guard",
		Short:  "Own PostgreSQL's kill switch (started by the agent)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return fence.RunGuard(cmd.Context(), o) },
	}
	cmd.Flags().StringVar(&o.Socket, "socket", "", "unix socket to listen on")
	cmd.Flags().StringVar(&o.DataDir, "data-dir", "", "data directory whose PostgreSQL is guarded")
	cmd.Flags().BoolVar(&o.Watch, "watch", false, "run a guard and watch it: what it cannot do any more is done in its place")
	return cmd
}

func validateCommand() *cobra.Command {
	var (
		set  []string
		show bool
	)
	cmd := &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Check an agent's configuration without starting anything",
		Long: "Tells everything that is wrong with a configuration at once, and warns of what has no effect. With --print it\n" +
			"shows the one that an agent would have: file, environment and --set together, with the defaults that are filled in,\n" +
			"and without its secrets.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := configSource(args, set)
			if err != nil {
				return err
			}
			cfg, warnings, err := config.Load(source)
			for _, w := range warnings {
				say(cmd.ErrOrStderr(), "warning: %s", w)
			}
			if err != nil {
				return orOther(err, source.Path, "pgbouncer", "it is a bouncer's file: lictor bouncer validate")
			}
			warnings, problems, unasked := postgres.CheckFile(cmd.Context(), cfg.Postgres, cfg.Bootstrap.DCS)
			for _, w := range warnings {
				say(cmd.ErrOrStderr(), "warning: %s", w)
			}
			if problems != nil {
				return &settings.Refused{Source: source.String(), Err: problems}
			}
			if unasked != nil {
				say(cmd.ErrOrStderr(), "note: the values of PostgreSQL's parameters were not checked: %v", unasked)
			}
			if show {
				_, err := fmt.Fprint(cmd.OutOrStdout(), printable.Lines(settings.Dump(cfg)))
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "valid")
			return nil
		},
	}
	setFlag(cmd, &set)
	cmd.Flags().BoolVar(&show, "print", false, "show it")
	return cmd
}

func sampleConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sample-config", Aliases: []string{"generate-sample-config"}, // Patroni's name
		Short: "Print a commented example of an agent's configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Sample())
			return err
		},
	}
}
