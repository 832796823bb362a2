package member

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// peerPatience is how long a silent member holds up a round of questions.
const peerPatience = time.Second

// askPeers asks every other member how it fares, all at once; if part is not zero,
// they are asked first to part from the old leader, whose last status has that index.
// Each answer counts as it comes.
func (m *Member) askPeers(part uint64) {
	if m.Asking {
		return
	}
	m.Asked, m.AskedToPart, m.Answers, m.Asking = m.now(), part, nil, true
	m.AskedLSN = m.PG.Observed.LSN()
	round, until := m.Asked, m.Asked.Add(peerPatience)
	var others []cluster.Member
	for _, other := range m.Snapshot.Members {
		if other.OK() && other.Value.Name != m.Name {
			others = append(others, other.Value)
		}
	}
	open := len(others)
	if open == 0 {
		m.Later.After(0, func() { m.Asking = false })
	}
	for _, other := range others {
		m.askPeer(other, part, until, func(answer ha.Peer) {
			if m.Asked == round {
				m.Answers = append(m.Answers, answer)
			}
			if open--; open == 0 {
				m.Asking = false
			}
		})
	}
}

// askPeer asks one member, until the moment at the latest.
func (m *Member) askPeer(to cluster.Member, part uint64, until cluster.Instant, done func(ha.Peer)) {
	left := func() time.Duration { return max(until.Sub(m.now()), time.Millisecond) }
	observe := func(parted uint64) {
		asked := m.now()
		m.Peers.Observe(left(), to, func(seen Seen, err error) {
			if err != nil {
				m.Log.Debug().Err(err).Str("member", to.Name).Msg("does not answer")
				done(ha.Peer{Name: to.Name})
				return
			}
			peer := seen.Peer
			peer.Name, peer.Parted = to.Name, parted
			if seen.Lictor {
				peer.Parted = min(parted, seen.Parted) // it may have looked before it parted
				peer.Observed = 1                      // never
				if seen.Age >= 0 {
					peer.Observed = asked.Add(-seen.Age - time.Millisecond) // the age is cut to whole ones
				}
			}
			done(peer)
		})
	}
	if part == 0 {
		observe(0)
		return
	}
	m.Peers.Part(left(), to, part, func(err error) {
		if err != nil {
			m.Log.Debug().Err(err).Str("member", to.Name).Msg("does not part from the old leader")
			observe(0)
			return
		}
		observe(part)
	})
}
