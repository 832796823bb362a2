package agent

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// A member of Patroni's does not say what it replays or restores.
func TestPeersInTheirOwnWords(t *testing.T) {
	said := api.PeerStatus{SystemIdentifier: "77", Lictor: &api.PeerLictor{Replaying: true, Restoring: true}}
	if p := peerOf("b", said); !p.Replaying || !p.Restoring || p.SystemIdentifier != "77" {
		t.Errorf("%+v", p)
	}
	if p := peerOf("b", api.PeerStatus{}); p.Replaying || p.Restoring {
		t.Errorf("a member of Patroni's: %+v", p)
	}
}

// A member's key names postgresql.database: there need be no database postgres.
func TestConnURL(t *testing.T) {
	for database, want := range map[string]string{"app": "postgres://[fd00::1]:5433/app", "my db?": "postgres://[fd00::1]:5433/my%20db%3F"} {
		got := connURL(config.Config{Postgres: config.Postgres{Database: database}}, "[fd00::1]:5433")
		if host, port, err := (cluster.Member{ConnURL: got}).Address(); got != want || host != "fd00::1" || port != 5433 || err != nil {
			t.Errorf("%s: %s is at %s %d %v", database, got, host, port, err)
		}
	}
	if got := connURL(config.Config{}, ""); got != "" {
		t.Errorf("no address: %s", got)
	}
}
