package commands

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/bouncer"
	"github.com/lictor-ha/lictor/bouncer/config"
)

func routesCommand() *cobra.Command {
	var (
		o      operate
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "Show where every bouncer sends the clients of every shard",
		Long: "Shows every shard at every bouncer: the primary that it leads to, since when, verified since when, held or not, and\n" +
			"how many clients wait. Consul tells which bouncers there are; they are asked themselves, all at once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				o.output = string(operator.JSON)
			}
			return o.onSite(cmd, func(ctx context.Context, c *operator.Console, site *operator.Site) error {
				rows, err := bouncer.Overview(ctx, config.Config{
					Consul: site.Consul, RoutesPrefix: site.RoutesPrefix(),
					CertFile: cmp.Or(site.Ctl.CertFile, site.RestAPI.CertFile), KeyFile: cmp.Or(site.Ctl.KeyFile, site.RestAPI.KeyFile),
					CAFile: cmp.Or(site.Ctl.CACert, site.RestAPI.CAFile), VerifyNames: site.Ctl.VerifyNames,
				})
				if err != nil {
					return fmt.Errorf("the bouncers: %w", err)
				}
				if c.Format == operator.JSON {
					return writeJSON(c.Out, rows)
				}
				if len(rows) == 0 && c.Format == operator.Pretty {
					c.Say("There is neither a route nor a bouncer in Consul.")
					return nil
				}
				return c.Show(routesTable(rows, time.Now()))
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same as --output json")
	_ = cmd.Flags().MarkHidden("json") // the flag exists
	return o.watched(o.formatted(o.command(cmd)))
}

func routesTable(rows []bouncer.RouteRow, now time.Time) operator.Table {
	t := operator.Table{Columns: []operator.Column{
		{Name: "Shard", Key: "shard"},
		{Name: "Bouncer", Key: "bouncer"},
		{Name: "Primary", Key: "leader"},
		{Name: "Address", Key: "address"},
		{Name: "TL", Key: "timeline", Right: true},
		{Name: "State", Key: "state"},
		{Name: "Since", Key: "since", Right: true},
		{Name: "Verified", Key: "verified_at", Right: true},
		{Name: "Paused", Key: "paused"},
		{Name: "Waiting", Key: "clients_waiting", Right: true},
		{Name: "Problem", Key: "problem", Prose: true},
	}}
	when := func(at time.Time) operator.Cell {
		if at.IsZero() {
			return operator.Cell{}
		}
		return operator.Cell{Text: operator.Duration(max(0, now.Sub(at))) + " ago", Value: at.Format(time.RFC3339Nano)}
	}
	for _, r := range rows {
		state := operator.Text(string(r.State))
		state.Style = operator.Warning
		if r.State == cluster.RouteOpen {
			state.Style = operator.Good
		}
		verified, paused := operator.Cell{Text: "no", Value: "", Style: operator.Bad}, operator.Cell{Text: "", Value: r.Paused}
		if r.VerifiedAt != nil {
			verified = when(*r.VerifiedAt)
		}
		if r.Paused {
			paused.Text, paused.Style = "yes", operator.Warning
		}
		name := operator.Text(r.Bouncer)
		problem := operator.Text(r.Problem)
		problem.Style = operator.Bad
		switch {
		case r.Bouncer == "":
			// Nobody is there who could verify anything.
			name, verified = operator.Cell{Text: "none", Value: "", Style: operator.Warning}, operator.Cell{}
		case r.Problem == "" && r.Behind:
			problem.Text = "Consul's route is newer"
		}
		t.Rows = append(t.Rows, []operator.Cell{
			operator.Text(r.Shard), name, operator.Text(r.Leader), operator.Text(r.Address),
			{Text: fmt.Sprint(r.Timeline), Value: r.Timeline},
			state,
			when(r.Since), verified, paused,
			{Text: fmt.Sprint(r.ClientsWaiting), Value: r.ClientsWaiting},
			problem,
		})
	}
	return t
}
