package commands

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/shlex"
	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/backup"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/operator"
)

func backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take a shard's backups with pgBackRest, and verify them",
		Long:  "What the timers of the Ansible role pgbackrest run. Backups, their repository and their configuration are pgBackRest's.",
		Args:  cobra.NoArgs, // or a mistyped command is none, and done
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(backupRunCommand(), backupVerifyCommand())
	return cmd
}

// pgBackRest is what both commands know of it.
type pgBackRest struct{ program, stanza string }

func (p *pgBackRest) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.program, "pgbackrest", "pgbackrest", "pgBackRest's program, with options of its own")
	cmd.Flags().StringVar(&p.stanza, "stanza", "", "the shard's stanza (required)")
	_ = cmd.MarkFlagRequired("stanza") // fails only for a flag that does not exist
}

func (p *pgBackRest) words() ([]string, error) {
	words, err := shlex.Split(p.program)
	if err != nil || len(words) == 0 {
		return nil, operator.Usage(fmt.Errorf("--pgbackrest: %q cannot be split into words", p.program))
	}
	return words, nil
}

func backupRunCommand() *cobra.Command {
	var (
		p      pgBackRest
		run    backup.Run
		agents []string
		hosts  []string
		caFile string
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "run --stanza NAME --agent URL [--agent URL...]",
		Short: "Take a backup from the member that is fit for it",
		Long: "Asks the shard's agents who leads, and becomes pgBackRest's backup of a replica that streams and is hardly behind, of the\n" +
			"leader where there is none. Of replicas one is taken that commits do not wait for, by its name where there are several: all who\n" +
			"ask choose the same.\n\n" +
			"On the repository's host --host names the members in the order of pg1-host, pg2-host, ... On a member --as is its name: it does\n" +
			"nothing where another one is chosen, so that each member may have the timer.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			words, err := p.words()
			if err != nil {
				return err
			}
			if !slices.Contains(backup.Types(), run.Type) {
				return operator.Usage(fmt.Errorf("--type: %q is none of %s", run.Type, strings.Join(backup.Types(), ", ")))
			}
			run.PgBackRest, run.Stanza = words, p.stanza
			if err := areAgents(agents); err != nil {
				return err
			}
			for _, h := range hosts {
				name, address, found := strings.Cut(h, "=")
				if !found || name == "" || address == "" {
					return operator.Usage(fmt.Errorf("--host: %q is not MEMBER=ADDRESS", h))
				}
				run.Hosts = append(run.Hosts, backup.Host{Member: name, Address: address})
			}
			client, err := api.NewClient(config.Ctl{CACert: caFile}, config.RestAPI{})
			if err != nil {
				return err
			}
			ctx, cancel := interruptible(cmd)
			defer cancel()
			defer client.Close()
			shard, err := backup.AskAgents(ctx, client, agents)
			if err != nil {
				return err
			}
			if len(run.Hosts) > 0 && !dryRun {
				if err := run.Annotate(ctx, backup.NotedVerification(ctx, client, agents)); err != nil {
					say(cmd.ErrOrStderr(), "the last verification is not noted in the repository: %v", err)
				}
			}
			argv, from, err := run.Command(shard)
			if err != nil {
				return fmt.Errorf("stanza %s: %w", p.stanza, err)
			}
			say(cmd.OutOrStdout(), "a backup is taken from %s: %s", from.Member, from.Why)
			if argv == nil || dryRun {
				return nil
			}
			program, err := exec.LookPath(argv[0])
			if err != nil {
				return fmt.Errorf("pgBackRest: %w", err)
			}
			return fmt.Errorf("%s: %w", program, syscall.Exec(program, argv, os.Environ()))
		},
	}
	p.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&run.Type, "type", backup.Incremental, strings.Join(backup.Types(), ", "))
	f.StringSliceVar(&agents, "agent", nil, "the REST API of a member, http[s]://HOST:PORT; the first that answers is believed (required)")
	f.StringVar(&caFile, "cacert", "", "the CA of the agents' certificates")
	f.StringVar(&run.As, "as", "", "the member that this runs on")
	f.StringSliceVar(&hosts, "host", nil, "on the repository's host: MEMBER=ADDRESS, as pg1-host, pg2-host, ... have them")
	f.BoolVar(&dryRun, "dry-run", false, "only say where the backup would be taken from")
	cmd.MarkFlagsMutuallyExclusive("as", "host")
	_ = cmd.MarkFlagRequired("agent") // fails only for a flag that does not exist
	return cmd
}

func backupVerifyCommand() *cobra.Command {
	var (
		p        pgBackRest
		v        backup.Verification
		annotate bool
		note     string
		as       string
		agents   []string
		caFile   string
	)
	cmd := &cobra.Command{
		Use:   "verify --stanza NAME --scratch DIRECTORY --bin-dir DIRECTORY",
		Short: "Restore a backup beside everything else, start it and check it",
		Long: "Restores the newest backup into a new directory below --scratch, starts PostgreSQL on it, where nobody but its user can reach\n" +
			"it, and has pg_amcheck (PostgreSQL 14 and later) look at every table and index. The directory is removed afterwards; nothing\n" +
			"else is touched. Run it as PostgreSQL's user, on a host where pgBackRest can restore. The last line is the backup's label and\n" +
			"the time.\n\n" +
			"With --as and --agent it does nothing where another member would be backed up from, so that each member may have the timer.\n" +
			"Where the repository is another host's, --note names the file DATA_DIR/../.NAME.lictor-verified beside the member's data: its\n" +
			"agent shows it, and the next lictor backup run on the repository's host notes it there.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if v.PgBackRest, err = p.words(); err != nil {
				return err
			}
			if v.Scratch == "" {
				return operator.Usage(errors.New("--scratch: say where there is room to restore to"))
			}
			if err := areAgents(agents); err != nil {
				return err
			}
			v.Stanza = p.stanza
			v.Say = func(format string, args ...any) { say(cmd.ErrOrStderr(), format, args...) }
			ctx, cancel := interruptible(cmd)
			defer cancel()
			if as != "" {
				mine, err := chosen(ctx, cmd, as, agents, caFile)
				if err != nil || !mine {
					return err
				}
			}
			done, err := v.Verify(ctx)
			if err == nil && annotate {
				err = v.Annotate(ctx, done)
			}
			if err == nil && note != "" {
				err = done.Note(note)
			}
			if err != nil {
				return fmt.Errorf("stanza %s: %w", p.stanza, err)
			}
			v.Say("the backup is good; it took %s", done.Took.Round(time.Second))
			say(cmd.OutOrStdout(), "%s %s", done.Label, done.At.Format(time.RFC3339))
			return nil
		},
	}
	p.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&v.Scratch, "scratch", "", "the directory to restore below (required)")
	f.StringVar(&v.Label, "set", "", "the backup's label (default: the newest good one)")
	f.StringVar(&v.BinDir, "bin-dir", "", "where PostgreSQL's programs of the backup's version are (required)")
	f.StringVar(&v.User, "username", "postgres", "the superuser in the backup")
	f.BoolVar(&annotate, "annotate", false, "note in the repository that it was verified (where the repository is this host's)")
	f.StringVar(&note, "note", "", "the file that notes that it was verified, for the member's agent (where the repository is another host's)")
	f.StringVar(&as, "as", "", "the member that this runs on")
	f.StringSliceVar(&agents, "agent", nil, "with --as, the REST API of a member, http[s]://HOST:PORT; the first that answers is believed")
	f.StringVar(&caFile, "cacert", "", "the CA of the agents' certificates")
	cmd.MarkFlagsRequiredTogether("as", "agent")
	cmd.MarkFlagsMutuallyExclusive("annotate", "note")
	_ = cmd.MarkFlagRequired("bin-dir") // fails only for a flag that does not exist
	return cmd
}

// areAgents says which of some URLs is none of an agent.
func areAgents(urls []string) error {
	for _, agent := range urls {
		if u, err := url.Parse(agent); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return operator.Usage(fmt.Errorf("--agent: %q is not http://HOST:PORT or https://HOST:PORT", agent))
		}
	}
	return nil
}

// chosen reports whether a member is the one whose host a backup is verified on.
func chosen(ctx context.Context, cmd *cobra.Command, member string, agents []string, caFile string) (bool, error) {
	client, err := api.NewClient(config.Ctl{CACert: caFile}, config.RestAPI{})
	if err != nil {
		return false, err
	}
	defer client.Close()
	shard, err := backup.AskAgents(ctx, client, agents)
	if err != nil {
		return false, err
	}
	from, err := backup.Choose(shard, nil)
	if err == nil && from.Member != member {
		say(cmd.ErrOrStderr(), "a backup is verified on %s: %s", from.Member, from.Why)
	}
	return err == nil && from.Member == member, err
}
