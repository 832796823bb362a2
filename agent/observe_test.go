package agent

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/api"
)

// What a voter received, and acknowledged, after it was looked at and before its WAL
// receiver had ended is in no position that is told.
func TestPositionOfBeforeTheParting(t *testing.T) {
	for _, tt := range []struct {
		name string
		pg   pgState
		want bool
	}{
		{"looked at before", pgState{observedAt: 9, alone: 10}, false},
		{"looked at when it ended", pgState{observedAt: 10, alone: 10}, false},
		{"looked at since", pgState{observedAt: 11, alone: 10}, true},
	} {
		if got := tt.pg.seenAlone(); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	said := api.PeerStatus{Lictor: &api.PeerLictor{Replaying: true, Restoring: true}}
	if p := peerOf("b", said); !p.Replaying || !p.Restoring {
		t.Errorf("%+v", p)
	}
	if p := peerOf("b", api.PeerStatus{}); p.Replaying || p.Restoring {
		t.Errorf("a member of Patroni's: %+v", p)
	}
}
