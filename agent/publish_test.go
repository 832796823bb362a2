package agent

import (
	"testing"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// A member whose key does not say that it runs Lictor is taken for one of Patroni's: the
// others believe whoever answers at its address without a proof, send that one their
// password, and ask without a proof what Lictor refuses then (a leader that they have
// deposed would not hear of it). So it says so whatever its PostgreSQL does.
func TestAMemberAlwaysSaysThatItRunsLictor(t *testing.T) {
	for name, pg := range map[string]pgState{
		"down":     {},
		"starting": {running: true},
		"primary":  {running: true, observed: postgres.State{Accepting: true, Timeline: 1}},
		"replica":  {running: true, observed: postgres.State{Accepting: true, InRecovery: true, Timeline: 1}},
	} {
		a := Agent{log: zerolog.Nop()}
		a.m.Member = &member.Member{}
		a.m.pg = pg
		if peer := api.PeerOf(a.memberValue()); peer.Patroni {
			t.Errorf("%s: it is taken for a member of Patroni's", name)
		}
	}
}
