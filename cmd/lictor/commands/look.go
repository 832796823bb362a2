package commands

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lictor-ha/lictor/agent/operator"
)

func listCommand() *cobra.Command {
	var (
		o    operate
		list operator.ListOptions
	)
	cmd := &cobra.Command{
		Use:     "list [SHARD...]",
		Aliases: []string{"members"},
		Short:   "Show the members of shards",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.agree(args); err != nil {
				return err
			}
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				return operator.List(ctx, c, site, args, list)
			})
		},
	}
	cmd.Flags().BoolVarP(&list.Extended, "extended", "e", false, "show all columns")
	cmd.Flags().BoolVarP(&list.Timestamp, "timestamp", "t", false, "show when it was read")
	return o.watched(o.formatted(o.ofShard(cmd)))
}

func topologyCommand() *cobra.Command {
	var o operate
	cmd := &cobra.Command{
		Use:   "topology [SHARD...]",
		Short: "Show who replicates from whom",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.agree(args); err != nil {
				return err
			}
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				return operator.List(ctx, c, site, args, operator.ListOptions{Topology: true})
			})
		},
	}
	return o.watched(o.formatted(o.ofShard(cmd)))
}

func historyCommand() *cobra.Command {
	var o operate
	return o.formatted(o.ofShard(&cobra.Command{
		Use:   "history [SHARD]",
		Short: "Show how the shard's timelines ended, why, and how long it took",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return o.onShard(cmd, args, operator.History) },
	}))
}

func eventsCommand() *cobra.Command {
	var (
		o    operate
		last int
	)
	cmd := &cobra.Command{
		Use:   "events [SHARD]",
		Short: "Show what happened to a shard, why, and how long each phase took",
		Long: "Shows changes of leader with their phases (noticed, elected, promoted, routed, first write), switchovers that were\n" +
			"refused or rolled back, crashes, failsafe, pause, members that were lost and came back, and changed settings, as\n" +
			"the leaders have recorded them in Consul.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if last < 0 {
				return operator.Usage(fmt.Errorf("--last: %d, must be 0 (all) or more", last))
			}
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Events(ctx, c, s, last)
			})
		},
	}
	cmd.Flags().IntVarP(&last, "last", "l", 0, "only so many of the last ones")
	return o.watched(o.formatted(o.ofShard(cmd)))
}

func showConfigCommand() *cobra.Command {
	var o operate
	return o.formatted(o.ofShard(&cobra.Command{
		Use:   "show-config [SHARD]",
		Short: "Show the dynamic configuration",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return o.onShard(cmd, args, operator.ShowConfig) },
	}))
}

func dsnCommand() *cobra.Command {
	var (
		o            operate
		member, role string
	)
	cmd := &cobra.Command{
		Use:   "dsn [SHARD]",
		Short: "Show how to connect to a member's PostgreSQL",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.DSN(ctx, c, s, member, role)
			})
		},
	}
	memberFlags(cmd, &member, &role)
	return o.ofShard(cmd)
}

func memberFlags(cmd *cobra.Command, member, role *string) {
	cmd.Flags().StringVarP(member, "member", "m", "", "this member")
	roleFlag(cmd, role, "a member with this role (default leader)")
}

func roleFlag(cmd *cobra.Command, role *string, text string) {
	cmd.Flags().StringVarP(role, "role", "r", "", text)
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(operator.Roles(), cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

func queryCommand() *cobra.Command {
	var (
		o        operate
		q        operator.QueryOptions
		file     string
		password bool
	)
	cmd := &cobra.Command{
		Use:   "query [SHARD] {--command SQL | --file FILE}",
		Short: "Run SQL on a member",
		Long: "Runs SQL as the superuser of the configuration file, or as --username; passwords also come from PGPASSWORD and\n" +
			"~/.pgpass. (--command has no short form: -c is the configuration file.)",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if q.SQL, err = statement(q.SQL, file, os.Stdin); err != nil {
				return err
			}
			if password {
				if q.Password, err = readPassword(); err != nil {
					return err
				}
			}
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Query(ctx, c, s, q)
			})
		},
	}
	memberFlags(cmd, &q.Member, &q.Role)
	cmd.Flags().StringVar(&q.SQL, "command", "", "the statement")
	cmd.Flags().StringVar(&file, "file", "", "a file with the statement; - is the standard input")
	cmd.Flags().StringVarP(&q.User, "username", "U", "", "PostgreSQL's user")
	cmd.Flags().BoolVar(&password, "password", false, "ask for the password")
	cmd.Flags().StringVar(&q.Delimiter, "delimiter", "", "between the columns of --output tsv (default: a tab)")
	cmd.Flags().StringVarP(&q.Database, "dbname", "d", "", "the database (default: postgresql.database of the file, else postgres)")
	return o.watched(o.formatted(o.ofShard(cmd)))
}

func statement(sql, file string, in io.Reader) (string, error) {
	switch {
	case (sql == "") == (file == ""):
		return "", operator.Usage(fmt.Errorf("say either --command or --file"))
	case file == "-":
		content, err := io.ReadAll(in)
		return string(content), err
	case file != "":
		content, err := os.ReadFile(file)
		if err != nil {
			return "", operator.Usage(fmt.Errorf("--file: %w", err))
		}
		return string(content), nil
	}
	return sql, nil
}

func readPassword() (string, error) {
	fmt.Fprint(os.Stderr, "Password: ")
	defer fmt.Fprintln(os.Stderr)
	password, err := term.ReadPassword(int(os.Stdin.Fd()))
	if err != nil {
		return "", operator.Usage(fmt.Errorf("--password: nobody can be asked here: %w", err))
	}
	return string(password), nil
}

func versionCommand() *cobra.Command {
	var (
		o      operate
		asJSON bool
	)
	cmd := o.formatted(o.ofShard(&cobra.Command{
		Use:   "version [SHARD [MEMBER...]]",
		Short: "Show the version of this program, of the members' agents and of their PostgreSQL",
		RunE: func(cmd *cobra.Command, args []string) error {
			if asJSON {
				o.output = string(operator.JSON)
			}
			if len(args) == 0 && o.flags.Scope == "" {
				format, err := operator.ParseFormat(o.output)
				if err != nil {
					return err
				}
				console := operator.Terminal(format)
				console.Out = cmd.OutOrStdout()
				return operator.OwnVersion(console, version)
			}
			return o.onShard(cmd, args, func(ctx context.Context, c *operator.Console, s *operator.Shard) error {
				return operator.Version(ctx, c, s, version, rest(args))
			})
		},
	}))
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same as --output json")
	cmd.MarkFlagsMutuallyExclusive("json", "output")
	cmd.MarkFlagsMutuallyExclusive("json", "format")
	return cmd
}

// rest are the arguments behind the shard.
func rest(args []string) []string {
	if len(args) == 0 {
		return nil
	}
	return args[1:]
}

func fleetCommand() *cobra.Command {
	var (
		o     operate
		fleet operator.FleetOptions
	)
	cmd := &cobra.Command{
		Use:   "fleet [SHARD...]",
		Short: "Show all shards in one table",
		Long: "Shows primary, replicas, lag, timeline, lease, route, bouncers and alarms of every shard, from a few reads of Consul\n" +
			"however many shards there are. The leaders are asked what is left of their leases, all at once.",
		RunE: func(cmd *cobra.Command, args []string) error {
			fleet.Scopes = args
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				return operator.Fleet(ctx, c, site, fleet)
			})
		},
		ValidArgsFunction: o.completeScope,
	}
	cmd.Flags().BoolVarP(&fleet.Alarms, "alarms", "a", false, "only shards with alarms")
	cmd.Flags().BoolVar(&fleet.Check, "check", false, "exit with 6 if there are alarms")
	cmd.Flags().BoolVar(&fleet.Quiet, "consul-only", false, "ask no leader what is left of its lease")
	return o.watched(o.formatted(o.command(cmd)))
}

func doctorCommand() *cobra.Command {
	var (
		o      operate
		doctor operator.DoctorOptions
	)
	cmd := &cobra.Command{
		Use:   "doctor [SHARD...]",
		Short: "Find what is wrong or will be, and say what to do",
		Long: "Looks at the configuration file, Consul (servers, elections, latency, autopilot), every member's agent, lease, guard\n" +
			"and watchdog, PostgreSQL's settings, replication, slots and clocks, routes and bouncers. It changes nothing. With an\n" +
			"agent's configuration file it checks that, too, and asks PostgreSQL as the superuser in it. Exits with 6 if there are\n" +
			"problems; warnings alone exit with 0.",
		RunE: func(cmd *cobra.Command, args []string) error {
			doctor.Scopes, doctor.Environ = args, os.Environ()
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				return operator.Doctor(ctx, c, site, doctor)
			})
		},
		ValidArgsFunction: o.completeScope,
	}
	cmd.Flags().BoolVarP(&doctor.All, "all", "a", false, "show also what is fine")
	return o.formatted(o.command(cmd))
}
