package agent

import (
	"testing"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// A member whose key does not say that it runs Lictor is taken for one of Patroni's: the
// others believe whoever answers at its address without a proof, send that one their
// password, and ask without a proof what Lictor refuses then (a leader that they have
// deposed would not hear of it). So it says so whatever its PostgreSQL does.
func TestAMemberAlwaysSaysThatItRunsLictor(t *testing.T) {
	for name, pg := range map[string]member.PG{
		"down":     {},
		"starting": {Running: true},
		"primary":  {Running: true, Observed: postgres.State{Accepting: true, Timeline: 1}},
		"replica":  {Running: true, Observed: postgres.State{Accepting: true, InRecovery: true, Timeline: 1}},
	} {
		a := Agent{log: zerolog.Nop(), board: newBoard(&runner{})}
		a.m.Member = member.New(member.Settings{}, member.Ports{Postgres: noPostgres{}}, shell{&a}, cluster.Dynamic{})
		a.m.PG = pg
		if peer := api.PeerOf(a.m.Value()); peer.Patroni {
			t.Errorf("%s: it is taken for a member of Patroni's", name)
		}
	}
}

// noPostgres is asked for its version alone.
type noPostgres struct{ member.Postgres }

func (noPostgres) Major() int { return 15 }
