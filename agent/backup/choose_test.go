package backup

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/api"
)

// member is one of a shard on timeline 3.
func member(name, role, state string, lag any) api.MemberView {
	m := api.MemberView{Name: name, Role: role, State: state, Timeline: 3}
	if role != "leader" {
		m.Lags = &api.Lags{Lag: lag}
	}
	return m
}

func TestCommand(t *testing.T) {
	leader := member("b", "leader", "running", nil)
	with := func(m api.MemberView, change func(*api.MemberView)) api.MemberView { change(&m); return m }
	fit := member("c", "replica", "streaming", float64(100))
	hosts := []Host{{"a", "h1"}, {"b", "h2"}, {"c", "h3"}}
	for name, test := range map[string]struct {
		members []api.MemberView
		run     Run
		want    string // the options that differ; empty: nothing is run
		from    string
		err     error
	}{
		"a replica":                        {members: []api.MemberView{leader, fit}, from: "c", want: "--backup-standby backup"},
		"numbers as an agent has them":     {members: []api.MemberView{leader, member("c", "replica", "streaming", int64(1))}, from: "c", want: "--backup-standby backup"},
		"one that commits do not wait for": {members: []api.MemberView{leader, member("a", "sync_standby", "streaming", 0.), fit}, from: "c", want: "--backup-standby backup"},
		"the synchronous one":              {members: []api.MemberView{leader, member("a", "sync_standby", "streaming", 0.)}, from: "a", want: "--backup-standby backup"},
		"the first by name":                {members: []api.MemberView{leader, fit, member("a", "replica", "streaming", 0.)}, from: "a", want: "--backup-standby backup"},
		"alone":                            {members: []api.MemberView{leader}, from: "b", want: "--no-backup-standby backup"},
		"a lag":                            {members: []api.MemberView{leader, member("c", "replica", "streaming", float64(1<<30))}, from: "b", want: "--no-backup-standby backup"},
		"a lag that is not known":          {members: []api.MemberView{leader, member("c", "replica", "streaming", "unknown")}, from: "c", want: "--backup-standby backup"},
		"one that does not stream":         {members: []api.MemberView{leader, member("c", "replica", "running", 0.)}, from: "b", want: "--no-backup-standby backup"},
		"another timeline":                 {members: []api.MemberView{leader, with(fit, func(m *api.MemberView) { m.Timeline = 2 })}, from: "b", want: "--no-backup-standby backup"},
		"replay stands still":              {members: []api.MemberView{leader, with(fit, func(m *api.MemberView) { m.ReplayStandsStill = "paused" })}, from: "b", want: "--no-backup-standby backup"},
		"no leader":                        {members: []api.MemberView{fit}, err: ErrNoLeader},
		"another member does it":           {members: []api.MemberView{leader, fit}, run: Run{As: "b"}, from: "c"},
		"this member does it":              {members: []api.MemberView{leader, fit}, run: Run{As: "c"}, from: "c", want: "--backup-standby backup"},
		"the leader does it":               {members: []api.MemberView{leader}, run: Run{As: "b"}, from: "b", want: "--no-backup-standby backup"},
		"the repository's host":            {members: []api.MemberView{leader, fit}, run: Run{Hosts: hosts}, from: "c", want: "--backup-standby --pg1-host=h3 --pg3-host=h1 backup"},
		"its first host":                   {members: []api.MemberView{leader, member("a", "replica", "streaming", 0.)}, run: Run{Hosts: hosts}, from: "a", want: "--backup-standby backup"},
		"a member that it does not know":   {members: []api.MemberView{leader, member("d", "replica", "streaming", 0.)}, run: Run{Hosts: hosts}, from: "b", want: "--no-backup-standby backup"},
	} {
		t.Run(name, func(t *testing.T) {
			test.run.PgBackRest, test.run.Stanza, test.run.Type = []string{"pgbackrest", "--config=x"}, "s", Full
			argv, from, err := test.run.Command(api.ClusterView{Members: test.members})
			if !errors.Is(err, test.err) || from.Member != test.from {
				t.Fatalf("from %q (%s), %v", from.Member, from.Why, err)
			}
			if test.want == "" {
				if len(argv) > 0 {
					t.Errorf("it runs %q", argv)
				}
				return
			}
			if want := append([]string{"pgbackrest", "--config=x", "--stanza=s", "--type=full"}, strings.Fields(test.want)...); !slices.Equal(argv, want) {
				t.Errorf("it runs %q, want %q", argv, want)
			}
			if from.Why == "" {
				t.Error("it does not say why")
			}
		})
	}
}
