package postgres

import (
	"context"
	"testing"
	"time"
)

// The operator's own postgresql.conf says whom commits wait for, and neither the agent nor the
// configuration of the shard does: that is in force.
func TestSyncNamesOfTheOperatorsFile(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := serving(ctx, t)
	must(t, p.writeConf(p.inConf("postgresql.base.conf"), "synchronous_standby_names = 'theirs'\nunix_socket_directories = '"+p.stateDir+"'\n"))
	for _, names := range [][]string{{"other"}, nil} {
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		set, err := p.SetSynchronous(limited, SyncSetting{Names: names})
		cancel()
		must(t, err)
		s := observe(ctx, t, p, "serves", func(s State) bool { return s.Accepting })
		if want := map[bool]string{true: "theirs", false: `"other"`}[names == nil]; set.Value != want || s.SyncNames != want {
			t.Errorf("%v: %q is in force, and said to be %q", names, s.SyncNames, set.Value)
		}
	}
}
