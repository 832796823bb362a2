package operator

import (
	"errors"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// The restart of a shard whose leader could not hand over in the end does not begin.
func TestRestartThatCouldNotEnd(t *testing.T) {
	s := &Shard{Keys: cluster.NewKeys("", "x", "")}
	for _, c := range []struct {
		config  string
		o       RestartOptions
		refused bool
	}{
		{`{"ttl":8}`, RestartOptions{}, false},
		{`{"ttl":"much"}`, RestartOptions{}, true},
		{`{"ttl":`, RestartOptions{}, true},
		{`{"ttl":"much"}`, RestartOptions{InPlace: true}, false},
	} {
		snapshot := shardOf(func(s *cluster.Snapshot) { s.Config.Value = []byte(c.config) })
		members, err := c.o.pick(s, snapshot)
		if err != nil {
			t.Fatal(err)
		}
		err = c.o.plan(snapshot, members, nil).feasible(s, snapshot)
		if (err != nil) != c.refused || err != nil && (ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), "nothing was restarted")) {
			t.Errorf("%s %+v: %v", c.config, c.o, err)
		}
	}
}

// A refusal says that nothing has changed, which is not so once a member was done.
func TestRefusedAfterTheFirst(t *testing.T) {
	members := []cluster.Member{{Name: "a"}, {Name: "b"}}
	for name, c := range map[string]struct {
		a, b error
		code int
		text string
	}{
		"both are done":                      {nil, nil, ExitDone, ""},
		"both are refused":                   {refusedf("a lags"), refusedf("b lags"), ExitRefused, "a lags\nb lags"},
		"one is refused":                     {nil, refusedf("b lags"), ExitFailed, "1 of 2 are done: b lags"},
		"the other one":                      {rolledBack(errors.New("a hangs")), nil, ExitFailed, "1 of 2 are done: a hangs"},
		"one may have been":                  {nil, unknownf("b is silent"), ExitUnknown, "b is silent"},
		"one of them, and one may have been": {refusedf("a lags"), unknownf("b is silent"), ExitUnknown, "a lags\nb is silent"},
		"refused and failed":                 {refusedf("a lags"), errors.New("b fails"), ExitFailed, "a lags\nb fails"},
		"one has failed":                     {nil, errors.New("b fails"), ExitFailed, "b fails"},
	} {
		err := forEach(members, func(m cluster.Member) error { return map[string]error{"a": c.a, "b": c.b}[m.Name] })
		if ExitCode(err) != c.code || err != nil && err.Error() != c.text {
			t.Errorf("%s: %d, %v", name, ExitCode(err), err)
		}
	}
}
