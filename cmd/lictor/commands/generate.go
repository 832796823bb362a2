package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/adoption"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/printable"
)

// lookLimit bounds the look at a running PostgreSQL.
const lookLimit = 30 * time.Second

func generateConfigCommand() *cobra.Command {
	var (
		o                     adoption.Options
		dsn                   string
		check, asJSON, sample bool
	)
	cmd := &cobra.Command{
		Use:   "generate-config [FILE]",
		Short: "Write an agent's configuration for a PostgreSQL that runs already",
		Long: "Asks a running PostgreSQL, as a superuser and on its own host, where it is and how it is configured, and writes\n" +
			"the file with which an agent would take charge of it, to FILE (which must not be there yet) or the standard output.\n" +
			"It invents no passwords: `lictor validate` names those that are left to fill in. What does not fit and what the agent\n" +
			"will change is told on the standard error; with --check that is all it does, and it exits with 6 if an agent must not\n" +
			"take charge. Nothing is changed in PostgreSQL.\n\n" +
			"  runuser -u postgres -- lictor generate-config --scope orders > orders.yml\n" +
			"  runuser -u postgres -- lictor generate-config --check --dsn port=5433\n\n" +
			"Where --dsn leaves something open, libpq's variables (PGHOST, PGPASSFILE, ...) and its defaults count. A password\n" +
			"does not belong on the command line, where every user of the host reads it: use PGPASSFILE.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if asJSON && !check {
				return operator.Usage(errors.New("--json: needs --check"))
			}
			if sample {
				return writeNew(cmd.OutOrStdout(), args, config.Sample())
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), lookLimit)
			defer cancel()
			found, err := adoption.Look(ctx, dsn)
			if err != nil {
				return err
			}
			findings := found.Findings()
			if check {
				return tellFindings(cmd.OutOrStdout(), found, findings, asJSON)
			}
			if found.Agent {
				return operator.Refused(fmt.Errorf("an agent of Lictor's runs the PostgreSQL in %s already: use that agent's file", found.DataDirectory))
			}
			if err := defaults(&o); err != nil {
				return err
			}
			text, err := found.Config(o)
			if err != nil {
				return operator.Usage(err)
			}
			for _, f := range findings {
				fmt.Fprintln(cmd.ErrOrStderr(), printable.Text(f.String()))
			}
			return writeNew(cmd.OutOrStdout(), args, text)
		},
	}
	cmd.Flags().StringVar(&dsn, "dsn", "", "how to connect, a connection string or URI of libpq's")
	cmd.Flags().StringVar(&o.Scope, "scope", "", "the shard's name (default cluster_name, if that tells shards apart)")
	cmd.Flags().StringVar(&o.Name, "name", "", "the member's name (default the host's)")
	cmd.Flags().StringVar(&o.Namespace, "namespace", "", "the first part of the shard's keys in Consul (default service)")
	cmd.Flags().StringVar(&o.Address, "address", "", "the address at which others reach this host (default its first)")
	cmd.Flags().BoolVar(&check, "check", false, "only say what does not fit")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --check: what was found and what does not fit, as JSON")
	cmd.Flags().BoolVar(&sample, "sample", false, "print the commented example of sample-config; asks no PostgreSQL")
	cmd.MarkFlagsMutuallyExclusive("sample", "check")
	return cmd
}

// defaults fills in what this host says of itself.
func defaults(o *adoption.Options) error {
	if o.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("--name: %w", err)
		}
		o.Name, _, _ = strings.Cut(host, ".")
	}
	if o.Address != "" {
		return nil
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			o.Address = n.IP.String()
			return nil
		}
	}
	return operator.Usage(errors.New("--address: must be set: this host has no address that others could reach"))
}

// tellFindings writes what a check has found, and fails if something stops.
func tellFindings(w io.Writer, found adoption.Found, findings []adoption.Finding, asJSON bool) error {
	stops := 0
	for _, f := range findings {
		if f.Stops {
			stops++
		}
	}
	if asJSON {
		if err := json.NewEncoder(w).Encode(struct {
			adoption.Found
			Shared   map[string]string  `json:"shared_parameters"`
			Findings []adoption.Finding `json:"findings"`
		}{found, found.Shared(), findings}); err != nil {
			return fmt.Errorf("writing what was found: %w", err)
		}
	} else {
		for _, f := range findings {
			fmt.Fprintln(w, printable.Text(f.String()))
		}
	}
	switch {
	case stops == 1:
		return operator.Findings(errors.New("1 problem found: no agent may take charge before it is mended"))
	case stops > 1:
		return operator.Findings(fmt.Errorf("%d problems found: no agent may take charge before they are mended", stops))
	case !asJSON:
		fmt.Fprintln(w, "an agent can take charge of it")
	}
	return nil
}

// writeNew writes to the file that args name, which must not be there, or to w. Passwords
// will be put into it, so that nobody else may read it.
func writeNew(w io.Writer, args []string, text []byte) error {
	if len(args) == 0 {
		_, err := w.Write(text)
		return err
	}
	keeper := osuser.Keeper(args[0])
	f, err := keeper.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing the configuration: %w", err), keeper.Remove(args[0]))
	}
	return nil
}
