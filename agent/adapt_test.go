package agent

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/api"
)

// A member of Patroni's does not say what it replays or restores.
func TestPeersInTheirOwnWords(t *testing.T) {
	said := api.PeerStatus{Lictor: &api.PeerLictor{Replaying: true, Restoring: true}}
	if p := peerOf("b", said); !p.Replaying || !p.Restoring {
		t.Errorf("%+v", p)
	}
	if p := peerOf("b", api.PeerStatus{}); p.Replaying || p.Restoring {
		t.Errorf("a member of Patroni's: %+v", p)
	}
}
