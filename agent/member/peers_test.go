package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// All others are asked at once; each answer counts as it comes, and the round is over with
// the last.
func TestAskPeers(t *testing.T) {
	w := newWorld(t)
	w.poll.ask(0, w.PG.Observed.LSN())
	w.poll.ask(0, w.PG.Observed.LSN())
	if !w.poll.Asking || w.poll.AskedLSN != 100*mib || w.poll.Asked != w.clock {
		t.Fatal("no round")
	}
	b, c := w.take("Peers.Observe"), w.take("Peers.Observe")
	w.none("Peers.Observe", "Peers.Part")
	if b.args[1] != "b" || c.args[1] != "c" || b.args[0] != peerPatience {
		t.Fatalf("%v %v", b.args, c.args)
	}
	b.answer(Seen{Peer: ha.Peer{Name: "liar", Answered: true, LSN: 7, Timeline: 3}}, nil)
	if len(w.poll.Answers) != 1 || w.poll.Answers[0].Name != "b" || w.poll.Answers[0].LSN != 7 || !w.poll.Asking {
		t.Fatalf("%+v", w.poll.Answers)
	}
	c.fail(errBoom)
	if len(w.poll.Answers) != 2 || w.poll.Answers[1].Answered || w.poll.Answers[1].Name != "c" || w.poll.Asking {
		t.Fatalf("%+v", w.poll.Answers)
	}
	w.pass(time.Second)
	w.poll.ask(0, w.PG.Observed.LSN())
	if len(w.poll.Answers) != 0 {
		t.Fatal("answers of an earlier round count")
	}
}

func TestAskNobody(t *testing.T) {
	w := newWorld(t)
	w.Snapshot.Members = w.Snapshot.Members[:1]
	w.poll.ask(0, w.PG.Observed.LSN())
	if !w.poll.Asking {
		t.Fatal("over before it began")
	}
	w.pass(0)
	if w.poll.Asking {
		t.Fatal("a round of nobody never ends")
	}
}

// A voter's word is that it has detached and looked since; an answer to an earlier question
// is void.
func TestAskToDetach(t *testing.T) {
	for _, tt := range []struct {
		name     string
		parts    error
		seen     Seen
		detached uint64
		observed time.Duration // before it was asked; -1: never
	}{
		{"it parts", nil, Seen{Lictor: true, Age: 20 * time.Millisecond, Peer: ha.Peer{Detached: 90}}, 90, 21 * time.Millisecond},
		{"it had looked before it parted", nil, Seen{Lictor: true, Age: 0, Peer: ha.Peer{Detached: 0}}, 0, time.Millisecond},
		{"it has detached under a later one", nil, Seen{Lictor: true, Peer: ha.Peer{Detached: 95}}, 90, time.Millisecond},
		{"it refuses", errBoom, Seen{Lictor: true, Peer: ha.Peer{Detached: 90}}, 0, time.Millisecond},
		{"it never looked", nil, Seen{Lictor: true, Age: -1, Peer: ha.Peer{Detached: 90}}, 90, -1},
		{"Patroni", nil, Seen{Peer: ha.Peer{Detached: 12}}, 90, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.Snapshot.Members = w.Snapshot.Members[:2]
			w.poll.ask(90, w.PG.Observed.LSN())
			if w.poll.AskedToDetach != 90 {
				t.Fatal("not asked to detach")
			}
			w.none("Peers.Observe")
			p := w.take("Peers.Part")
			if p.args[1] != "b" || p.args[2] != uint64(90) {
				t.Fatalf("%v", p.args)
			}
			w.pass(300 * time.Millisecond)
			asked := w.clock
			p.fail(tt.parts)
			o := w.take("Peers.Observe")
			if o.args[0] != 700*time.Millisecond {
				t.Fatalf("what is left: %v", o.args[0])
			}
			w.pass(100 * time.Millisecond)
			tt.seen.Answered = true
			o.answer(tt.seen, nil)
			got := w.poll.Answers[0]
			want := asked.Add(-tt.observed)
			switch {
			case tt.observed < 0:
				want = 1
			case !tt.seen.Lictor:
				want = 0
			}
			if got.Detached != tt.detached || got.Observed != want {
				t.Fatalf("detached %d, observed %v before; want %d, %v", got.Detached, asked.Sub(got.Observed), tt.detached, tt.observed)
			}
		})
	}
	w := newWorld(t)
	w.poll.ask(90, w.PG.Observed.LSN())
	late := w.take("Peers.Part")
	w.poll.Asked++ // another question meanwhile
	late.answer()
	for c := w.find("Peers.Observe"); c != nil; c = w.find("Peers.Observe") {
		w.answer("Peers.Observe", Seen{Peer: ha.Peer{Answered: true}}, nil)
	}
	if len(w.poll.Answers) != 0 {
		t.Fatal("an answer to an earlier question counts")
	}
}

// Of a member whose key is not understood nobody knows where it is.
func TestAskPeersThatAreUnderstood(t *testing.T) {
	w := newWorld(t)
	w.Snapshot.Members[1] = cluster.Entry[cluster.Member]{Value: cluster.Member{Name: "b"}, ModifyIndex: 71, Err: errBoom}
	w.poll.ask(0, w.PG.Observed.LSN())
	if c := w.take("Peers.Observe"); c.args[1] != "c" {
		t.Fatalf("%v", c.args)
	}
	w.none("Peers.Observe")
}
