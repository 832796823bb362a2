package operator

import (
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
