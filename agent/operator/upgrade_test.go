package operator

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A command that would change something, or does not say to what, ends before anybody is asked.
func TestUpgradeIsRefused(t *testing.T) {
	for name, o := range map[string]UpgradeOptions{"of one member": {To: 17, Members: []string{"db1"}}, "without --to": {Check: true}, "to nothing": {To: -1, Check: true}} {
		if err := Upgrade(t.Context(), &Console{}, &Shard{}, o); ExitCode(err) != ExitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := &Shard{}
	if _, err := s.checkUpgrade(t.Context(), cluster.Member{Name: "db1"}, 17); err == nil || !strings.Contains(err.Error(), "runs Patroni") {
		t.Errorf("of a member of Patroni's: %v", err)
	}
}

func TestJudgeUpgrade(t *testing.T) {
	for name, test := range map[string]struct {
		found pg.UpgradeCheck
		err   error
		want  []Level
	}{
		"nothing found":  {pg.UpgradeCheck{From: 15}, nil, []Level{Fine}},
		"a warning":      {pg.UpgradeCheck{From: 15, Warnings: []string{"slots"}}, nil, []Level{Worth, Fine}},
		"a problem":      {pg.UpgradeCheck{From: 15, Problems: []string{"a", "b"}, Warnings: []string{"slots"}}, nil, []Level{Wrong, Wrong, Worth}},
		"no answer":      {pg.UpgradeCheck{}, errors.New("refused"), []Level{Wrong}},
		"half an answer": {pg.UpgradeCheck{Problems: []string{"a"}}, errors.New("no room"), []Level{Wrong, Wrong}},
	} {
		d := diagnosis{area: "upgrade"}
		d.judgeUpgrade("orders/db1", 17, time.Second, test.found, test.err)
		var levels []Level
		for _, f := range d.findings {
			levels = append(levels, f.Level)
			if f.Level == Wrong && f.Do == "" {
				t.Errorf("%s: %+v does not say what to do", name, f)
			}
		}
		if len(levels) != len(test.want) {
			t.Fatalf("%s: %+v", name, d.findings)
		}
		for i, level := range test.want {
			if levels[i] != level {
				t.Errorf("%s: %v, want %v", name, levels, test.want)
			}
		}
	}
}

// An agent that would write the route without what it succeeds stands in the way.
func TestJudgeAgents(t *testing.T) {
	d := diagnosis{area: "upgrade"}
	d.judgeAgents("orders", []cluster.Member{
		{Name: "new", Lictor: &cluster.MemberLictor{Succession: true}},
		{Name: "old", Lictor: &cluster.MemberLictor{}},
		{Name: "patroni"},
	})
	if len(d.findings) != 1 || d.findings[0].Level != Wrong || d.findings[0].Subject != "orders/old" || d.findings[0].Do == "" {
		t.Errorf("%+v", d.findings)
	}
}

// A bouncer that would refuse the new cluster's route stands in the way, if it serves the shard.
func TestJudgeBouncers(t *testing.T) {
	d := diagnosis{area: "upgrade"}
	d.judgeBouncers("orders", "service", []cluster.Bouncer{
		{Name: "new", All: true, Succession: true},
		{Name: "old", All: true, Version: "0.1.0"},
		{Name: "other", Shards: []string{"service/stock", "elsewhere/orders"}},
		{Name: "named", Shards: []string{"service/orders"}},
	})
	var subjects []string
	for _, f := range d.findings {
		if f.Level != Wrong || f.Do == "" {
			t.Errorf("%+v", f)
		}
		subjects = append(subjects, f.Subject)
	}
	if want := []string{"orders/old", "orders/named"}; !slices.Equal(subjects, want) {
		t.Errorf("%v, want %v", subjects, want)
	}
}
