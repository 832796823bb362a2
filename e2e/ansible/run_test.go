package ansible

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadsWhatAnsibleSays(t *testing.T) {
	t.Parallel()
	const out = `
PLAY [Database hosts] **********************************************************

TASK [lictor_ha.lictor.agent : Install the agents' tokens for Consul] **********
ok: [db1] => (item=orders)
changed: [db1] => (item=users)

TASK [Drain] *******************************************************************
changed: [db2]
fatal: [db3]: FAILED! => {"changed": false, "msg": "no"}

PLAY RECAP *********************************************************************
db1                        : ok=13   changed=1    unreachable=0    failed=0    skipped=4    rescued=0    ignored=0
db2                        : ok=11   changed=1    unreachable=0    failed=0    skipped=4    rescued=0    ignored=0
db3                        : ok=11   changed=0    unreachable=0    failed=1    skipped=4    rescued=0    ignored=0
`
	var got result
	got.read(out)
	want := result{
		changed: []string{"db1: lictor_ha.lictor.agent : Install the agents' tokens for Consul", "db2: Drain"},
		failed:  []string{`db3: Drain: FAILED! => {"changed": false, "msg": "no"}`},
		changes: 2, hosts: 3,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Error(diff)
	}
}
