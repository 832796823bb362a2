package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/logging"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/agent/systemd"
	"github.com/lictor-ha/lictor/bouncer"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/templates"
)

func bouncerCommand() *cobra.Command {
	var allowEmpty bool
	cmd := &cobra.Command{
		Use:   "bouncer FILE",
		Short: "Watch the leaders of many shards and make PgBouncer follow them",
		Args:  fileOrCommand,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, warnings, err := loadBouncer(args[0], allowEmpty)
			if err != nil {
				return orOther(err, args[0], "postgresql", "it is an agent's file: lictor agent")
			}
			logs, err := newLog(cfg.Log.Level, cfg.Log.Format)
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
				log.Warn().Msg(w)
			}
			if err := cfg.StandsFor(); err != nil {
				log.Error().Err(err).Msg("the configuration cannot be followed; the one before goes on")
			}
			ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			hangups := make(chan os.Signal, 2)
			signal.Notify(hangups, syscall.SIGHUP, syscall.SIGUSR1)
			defer signal.Stop(hangups)
			changes := make(chan config.Config)
			var reloading sync.WaitGroup
			defer reloading.Wait()
			defer cancel()
			manager := &bouncerManager{Notifier: notifier}
			reloading.Go(func() { reloadBouncer(ctx, hangups, args[0], allowEmpty, changes, logs, manager) })
			reloading.Go(func() {
				if err := notifier.Run(ctx); err != nil {
					log.Error().Err(err).Msg("systemd does not hear of the bouncer")
				}
			})
			keepLittleGarbage()
			return bouncer.Run(ctx, cfg, changes, manager, bouncerPage, log)
		},
	}
	allowEmptyFlag(cmd, &allowEmpty)
	cmd.AddCommand(validateBouncerCommand(), renderCommand(), drainCommand(), undrainCommand(), bouncerStatusCommand(),
		pausingCommand(bouncer.Pause, "Make the clients of a shard wait until resume"),
		pausingCommand(bouncer.Resume, "End a pause, and leave what the bouncer holds by itself"),
		pausingCommand(bouncer.Release, "Let clients go that the bouncer holds, or a PAUSE on PgBouncer's console"))
	return cmd
}

// fileOrCommand takes one file. What is no file, and almost the name of a command, is that one mistyped.
func fileOrCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		cmd.SuggestionsMinimumDistance = 2 // letters
		if _, err := os.Stat(args[0]); err != nil && !strings.ContainsAny(args[0], "./") {
			if meant := cmd.SuggestionsFor(args[0]); len(meant) > 0 {
				return fmt.Errorf("unknown command %q for %q; did you mean %s?", args[0], cmd.CommandPath(), strings.Join(meant, " or "))
			}
		}
	}
	return cobra.ExactArgs(1)(cmd, args)
}

func allowEmptyFlag(cmd *cobra.Command, allow *bool) {
	cmd.Flags().BoolVar(allow, "allow-empty", false, "let the last shards leave PgBouncer when all routes are deleted")
}

// bouncerManager tells systemd of a bouncer. A reload is one only after the start.
type bouncerManager struct {
	*systemd.Notifier
	ready atomic.Bool
}

func (m *bouncerManager) Ready() {
	m.ready.Store(true)
	m.Notifier.Ready()
}

func (m *bouncerManager) reloading() {
	if m.ready.Load() {
		m.Reloading()
	}
}

func (m *bouncerManager) reloaded() {
	if m.ready.Load() {
		m.Notifier.Ready()
	}
}

// loadBouncer reads a bouncer's file, with the environment over it. What is wrong with single
// shards is no error, nor is a file for which an earlier one can stand: the bouncer tells of it.
func loadBouncer(path string, allowEmpty bool) (config.Config, []string, error) {
	return loadBouncerBy(config.LoadServable, path, allowEmpty)
}

// loadBouncerBy does so with one of the config package's ways to load.
func loadBouncerBy(
	load func(settings.Source) (config.Config, []cluster.Warning, error), path string, allowEmpty bool,
) (config.Config, []string, error) {
	cfg, warnings, err := load(settings.Source{Path: path, Environ: os.Environ()})
	if err != nil {
		return config.Config{}, nil, err
	}
	cfg.Version = version
	cfg.AllowEmpty = cfg.AllowEmpty || allowEmpty
	var texts []string
	for _, w := range warnings {
		texts = append(texts, w.String())
	}
	return cfg, texts, nil
}

// reloadBouncer reads the file again at each SIGHUP, and switches debug lines on and
// off at each SIGUSR1, until ctx is done.
func reloadBouncer(
	ctx context.Context, hangups <-chan os.Signal, path string, allowEmpty bool, changes chan<- config.Config, logs *logging.Log, manager *bouncerManager,
) {
	log := logs.Logger()
	for {
		select {
		case got := <-hangups:
			if got == syscall.SIGUSR1 {
				log.Warn().Str("now", logs.ToggleDebug()).Msg("log level switched by SIGUSR1")
				continue
			}
		case <-ctx.Done():
			return
		}
		manager.reloading()
		cfg, warnings, err := loadBouncerBy(config.Load, path, allowEmpty)
		if err == nil {
			err = logs.Set(cfg.Log.Level)
		}
		if err != nil {
			log.Error().Err(err).Msg("the configuration stays as it was")
			manager.reloaded()
			continue
		}
		logs.Hide(settings.Secrets(cfg))
		for _, w := range warnings {
			log.Warn().Msg(w)
		}
		select {
		case changes <- cfg: // the bouncer says when it stands
		case <-ctx.Done():
		}
	}
}

// validateBouncerCommand checks a file as SIGHUP does: with one shard that is wrong it is refused.
func validateBouncerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a bouncer's configuration without starting anything",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, warnings, err := loadBouncerBy(config.Load, args[0], false)
			if err != nil {
				return orOther(err, args[0], "postgresql", "it is an agent's file: lictor validate")
			}
			for _, w := range warnings {
				say(cmd.ErrOrStderr(), "warning: %s", w)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "valid")
			return nil
		},
	}
}

func renderCommand() *cobra.Command {
	var (
		allowEmpty bool
		dryRun     bool
		template   string
	)
	cmd := &cobra.Command{
		Use:   "render FILE",
		Short: "Print the configuration that PgBouncer would get now",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := loadBouncer(args[0], allowEmpty)
			if err != nil {
				return err
			}
			switch {
			case dryRun && template != "":
				return operator.Usage(errors.New("--dry-run compares pgbouncer.ini, it does not go with --template"))
			case dryRun:
				if note := bouncer.RightsNote(cmd.Context(), cfg); note != "" {
					say(cmd.ErrOrStderr(), "note: %s", note)
				}
				return bouncer.DryRun(cmd.Context(), cfg, onTerminal(cmd.OutOrStdout()))
			case template != "":
				text, err := readTemplate(template)
				if err != nil {
					return err
				}
				return bouncer.RenderTemplate(cmd.Context(), cfg, text, onTerminal(cmd.OutOrStdout()))
			}
			return bouncer.Render(cmd.Context(), cfg, onTerminal(cmd.OutOrStdout()))
		},
	}
	allowEmptyFlag(cmd, &allowEmpty)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print how the installed file would change, as a diff")
	cmd.Flags().StringVar(&template, "template", "", "render this template instead: a file, or the name of one that Lictor ships")
	return cmd
}

// readTemplate reads a file or, by its name, a template that Lictor ships.
func readTemplate(name string) (string, error) {
	if !strings.ContainsRune(name, os.PathSeparator) {
		if text, err := templates.Read(name); err == nil {
			return string(text), nil
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", operator.Usage(fmt.Errorf("--template: %w; a name without a slash may also be one that Lictor ships: %s", err, strings.Join(templates.Names(), ", ")))
	}
	return string(text), nil
}

func drainCommand() *cobra.Command {
	var wait seconds
	cmd := &cobra.Command{
		Use:   "drain FILE",
		Short: "Make the load balancer send no more clients to this host's PgBouncer",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := loadBouncer(args[0], false)
			if err != nil {
				return err
			}
			if err := bouncer.Drain(cmd.Context(), cfg, true); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "draining: /health answers 503")
			if wait <= 0 {
				return nil
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Duration(wait))
			defer cancel()
			return bouncer.AwaitClientsGone(ctx, cfg, func(n int) { fmt.Fprintf(cmd.OutOrStdout(), "%d clients are connected\n", n) })
		},
	}
	cmd.Flags().Var(&wait, "wait", "wait at most so long until no client is connected: seconds, or with a unit, 5m for instance")
	return cmd
}

func undrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "undrain FILE",
		Short: "Let the load balancer send clients again",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := loadBouncer(args[0], false)
			if err != nil {
				return err
			}
			if err := bouncer.Drain(cmd.Context(), cfg, false); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "not draining")
			return nil
		},
	}
}

// pausingCommand pauses, resumes or releases the clients of one shard at this host's PgBouncer.
func pausingCommand(what bouncer.Pausing, short string) *cobra.Command {
	return &cobra.Command{
		Use:   string(what) + " FILE SHARD",
		Short: short,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := loadBouncer(args[0], false)
			if err != nil {
				return err
			}
			answer, err := what.Do(cmd.Context(), cfg, args[1], operatorName())
			if errors.Is(err, bouncer.ErrRefused) {
				return operator.Refused(err)
			}
			if err != nil {
				return err
			}
			say(cmd.OutOrStdout(), "%s", pausingResult(answer))
			if answer.Warning != "" {
				say(cmd.ErrOrStderr(), "warning: %s", answer.Warning)
			}
			return nil
		},
	}
}

// pausingResult says how the clients of a shard stand.
func pausingResult(a bouncer.PauseAnswer) string {
	switch {
	case a.Paused != nil && a.Held:
		return fmt.Sprintf("%s: clients wait, by %s since %s, and for its primary", a.Shard, a.Paused.By, a.Paused.Since.Format(time.RFC3339))
	case a.Paused != nil:
		return fmt.Sprintf("%s: clients wait, by %s since %s", a.Shard, a.Paused.By, a.Paused.Since.Format(time.RFC3339))
	case a.Held:
		return fmt.Sprintf("%s: no operator's pause; clients still wait for its primary, as the bouncer holds them", a.Shard)
	}
	return fmt.Sprintf("%s: clients do not wait", a.Shard)
}

// operatorName is who runs this command, and where.
func operatorName() string {
	name := os.Getenv("SUDO_USER")
	if u, err := user.Current(); name == "" && err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

func bouncerStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status FILE",
		Short: "Print what the running bouncer knows, as JSON",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := loadBouncer(args[0], false)
			if err != nil {
				return err
			}
			status, err := bouncer.AskStatus(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), status)
		},
	}
}

// onTerminal is out for a file as it stands, unless out is a terminal: then it shows
// nothing that a terminal acts on.
func onTerminal(out io.Writer) io.Writer {
	if f, isFile := out.(*os.File); isFile && term.IsTerminal(int(f.Fd())) {
		return printable.Writer(out)
	}
	return out
}

// writeJSON writes a value as indented JSON in which everything is printable.
func writeJSON(out io.Writer, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the result as JSON: %w", err)
	}
	_, err = out.Write(append(printable.JSON(text), '\n'))
	return err
}
