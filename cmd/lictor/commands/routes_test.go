package commands

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/bouncer"
)

// What stands, what is held and old, and what nobody serves.
func TestRoutesTable(t *testing.T) {
	now := time.Unix(100000, 0).UTC()
	verified := now.Add(-3 * time.Second)
	rows := []bouncer.RouteRow{
		{Shard: "service/s1", Bouncer: "b1", Answers: true, Leader: "db2", Address: "h2:5432", Timeline: 2, State: cluster.RouteOpen, Since: now.Add(-time.Minute), VerifiedAt: &verified},
		{Shard: "service/s1", Bouncer: "b2", Answers: true, Leader: "db1", Address: "h1:5432", Timeline: 1, State: cluster.RouteDown, Since: now.Add(-time.Hour), Paused: true, ClientsWaiting: 7, Behind: true},
		{Shard: "service/s2", Leader: "db2", Address: "h2:5432", Timeline: 2, State: cluster.RouteOpen, Since: now.Add(-time.Minute), Problem: "no bouncer has it"},
	}
	for format, want := range map[operator.Format]string{
		operator.Pretty: `
Shard       Bouncer  Primary  Address  TL  State       Since   Verified  Paused  Waiting  Problem
service/s1  b1       db2      h2:5432   2  open    1 min ago  3.0 s ago                0
service/s1  b2       db1      h1:5432   1  down   60 min ago         no  yes           7  Consul's route is newer
service/s2  none     db2      h2:5432   2  open    1 min ago                           0  no bouncer has it
`,
		operator.TSV: `
shard	bouncer	leader	address	timeline	state	since	verified_at	paused	clients_waiting	problem
service/s1	b1	db2	h2:5432	2	open	1970-01-02T03:45:40Z	1970-01-02T03:46:37Z	false	0	
service/s1	b2	db1	h1:5432	1	down	1970-01-02T02:46:40Z		true	7	Consul's route is newer
service/s2		db2	h2:5432	2	open	1970-01-02T03:45:40Z		false	0	no bouncer has it
`,
	} {
		var out bytes.Buffer
		if err := routesTable(rows, now).Write(&out, format, false); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, "\n"+out.String()); diff != "" {
			t.Errorf("%s: %s", format, diff)
		}
	}
}
