package member

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// peerPatience is how long a silent member holds up a round of questions.
const peerPatience = time.Second

// poll is what the other members answered last, and to which question.
type poll struct {
	*Shard
	peers Peers

	Answers []ha.Peer
	Asked   cluster.Instant
	Asking  bool
	// AskedLSN is this member's own position as it was known then.
	AskedLSN int64
	// AskedToDetach is the status that they were asked to detach from first; zero: none.
	AskedToDetach uint64
}

// ask asks every other member how it fares, all at once; if part is not zero,
// they are asked first to detach from the old leader, whose last status has that index.
// lsn is this member's own position. Each answer counts as it comes.
func (p *poll) ask(detach uint64, lsn int64) {
	if p.Asking {
		return
	}
	p.Asked, p.AskedToDetach, p.Answers, p.Asking = p.Now(), detach, nil, true
	p.AskedLSN = lsn
	round, until := p.Asked, p.Asked.Add(peerPatience)
	var others []cluster.Member
	for _, other := range p.Snapshot.Members {
		if other.OK() && other.Value.Name != p.Name {
			others = append(others, other.Value)
		}
	}
	open := len(others)
	if open == 0 {
		p.After(0, func() { p.Asking = false })
	}
	for _, other := range others {
		p.askOne(other, detach, until, func(answer ha.Peer) {
			if p.Asked == round {
				p.Answers = append(p.Answers, answer)
			}
			if open--; open == 0 {
				p.Asking = false
			}
		})
	}
}

// askOne asks one member, until the moment at the latest.
func (p *poll) askOne(to cluster.Member, detach uint64, until cluster.Instant, done func(ha.Peer)) {
	left := func() time.Duration { return max(until.Sub(p.Now()), time.Millisecond) }
	observe := func(detached uint64) {
		asked := p.Now()
		p.peers.Observe(left(), to, func(seen Seen, err error) {
			if err != nil {
				p.Log.Debug().Err(err).Str("member", to.Name).Msg("does not answer")
				done(ha.Peer{Name: to.Name})
				return
			}
			peer := seen.Peer
			peer.Name, peer.Detached = to.Name, detached
			if seen.Lictor {
				peer.Detached = min(detached, seen.Detached) // it may have looked before it detached
				peer.Observed = 1                            // never
				if seen.Age >= 0 {
					peer.Observed = asked.Add(-seen.Age - time.Millisecond) // the age is cut to whole ones
				}
			}
			done(peer)
		})
	}
	if detach == 0 {
		observe(0)
		return
	}
	p.peers.Detach(left(), to, detach, func(err error) {
		if err != nil {
			p.Log.Debug().Err(err).Str("member", to.Name).Msg("does not part from the old leader")
			observe(0)
			return
		}
		observe(detach)
	})
}
