package simulation

import (
	"fmt"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// branch is one line of history: what one promotion began. Two members may promote
// to the same timeline number; their branches are not the same.
type branch struct {
	timeline int
	parent   *branch
	fork     int64 // where it left its parent
	restored bool  // a restore began it: what was beyond fork was discarded
	// acked and promised are how far clients were told that their commits are safe:
	// in any mode, and while the key sync vouched for them.
	acked, promised int64
	// shown is up to where clients were led to what a recovery has made visible.
	shown int64
}

// position is a place in the WAL: everything up to lsn on the branch, and what is
// before it.
type position struct {
	branch *branch
	lsn    int64
}

// holds tells whether everything up to p is here, too; nothing always is.
func (q position) holds(p position) bool {
	if p.branch == nil {
		return true
	}
	limit := q.lsn
	for b := q.branch; b != nil; b = b.parent {
		if b == p.branch {
			return p.lsn <= limit
		}
		limit = min(limit, b.fork)
	}
	return false
}

// upTo is how far what is here reaches on a branch.
func (q position) upTo(b *branch) int64 {
	limit := q.lsn
	for x := q.branch; x != nil; x = x.parent {
		if x == b {
			return limit
		}
		limit = min(limit, x.fork)
	}
	return 0
}

func (q position) history() cluster.History {
	var lines cluster.History
	for b := q.branch; b.parent != nil; b = b.parent {
		reason := "no recovery target specified"
		if b.restored {
			reason = fmt.Sprintf("after LSN 0/%X", b.fork)
		}
		lines = append(lines, cluster.TimelineSwitch{Timeline: b.parent.timeline, LSN: b.fork, Reason: reason})
	}
	slices.Reverse(lines)
	return lines
}

// connections is how many commits can wait for standbys at one time.
const connections = 20

// clients commit wherever a commit is accepted, and replicas receive WAL, now and
// then.
func (w *world) clients() {
	w.judge.onePrimary()
	w.judge.covers()
	w.judge.archiveAlone()
	w.judge.seesPause()
	w.seesStranded()
	w.remoteWrites()
	for _, h := range w.hosts {
		h.pg.receive()
		h.pg.restore()
		h.pg.recycle()
	}
	for _, h := range w.hosts {
		h.pg.acknowledge()
	}
	w.reads()
	for _, h := range w.hosts {
		if h.pg.writable && h.up && !h.frozen && h.pg.writes() && len(h.pg.pending) < connections {
			h.pg.at.lsn += 100 + w.random.Int64N(3000)
			h.pg.pending = append(h.pg.pending, h.pg.at.lsn)
			h.pg.acknowledge()
			h.pg.archive()
		}
	}
	w.after(w.between(40*time.Millisecond, 200*time.Millisecond), w.clients)
}

// receive streams from the upstream, if it can.
func (p *postgres) receive() {
	w := p.host.w
	was := p.streaming
	p.streaming = false
	up := w.hostNamed(p.upstream)
	if up != nil && !was && w.nameless() { // a connection that lasts needs no name
		return
	}
	if !p.ready && !p.recovering || p.primary || p.replaying() || up == nil || up == p.host || !p.host.up || p.host.frozen || p.cutShort() ||
		!up.up || up.frozen || !up.pg.ready && !up.pg.stopping || !w.net.both(p.host.id, up.id) || !up.pg.at.holds(p.at) || !up.pg.serves(p) {
		return
	}
	if p.diskHangs == 0 {
		p.repliedAt = w.now
	}
	if p.streaming = w.now < p.repliedAt+senderTimeout; !p.streaming {
		return
	}
	p.received = true
	if p.lagging == 0 && p.diskHangs == 0 {
		p.messageAt = w.now
	}
	switch {
	case p.lagging > 0 || p.diskHangs > 0 || w.chance(0.2):
	case p.at.branch == up.pg.at.branch && w.chance(0.1):
		p.at.lsn += w.random.Int64N(up.pg.at.lsn - p.at.lsn + 1)
	default:
		p.at = up.pg.at
	}
	if p.reached(p.at) {
		p.ready = true
		p.beginReplay()
	}
}

// senderTimeout is wal_sender_timeout: a standby whose disk hangs does not answer.
const senderTimeout = 10 * time.Second

// behind is how far a standby has replayed of what it has received.
func (p *postgres) behind() int64 { return max(1, p.at.lsn-p.trails) }

// segment is how much WAL gets into the archive at once.
const segment = 32 << 10

// archive puts what is complete of a primary's WAL where every member finds it.
func (p *postgres) archive() {
	end := p.at.lsn / segment * segment
	if end <= p.at.branch.fork {
		return
	}
	p.host.w.archived[p.at.branch] = max(p.host.w.archived[p.at.branch], end)
}

// restore takes what the archive has of the newest timeline that goes on from here; so
// does a member that is tagged nostream.
func (p *postgres) restore() {
	if !cluster.NoStream(p.host.tags) || p.upstream != "" || !p.ready && !p.recovering || p.primary || p.replaying() || p.stopping || !p.writes() || !p.host.up || p.host.frozen {
		return
	}
	next := p.at
	for b, end := range p.host.w.archived {
		if to := (position{b, end}); to.holds(p.at) && (b.timeline > next.branch.timeline || b == next.branch && end > next.lsn) {
			next = to
		}
	}
	p.at = next
	if p.reached(p.at) {
		p.ready = true
		p.beginReplay()
	}
}

// cutShort reports whether the WAL receiver is being stopped, or cannot write.
func (p *postgres) cutShort() bool { return p.stopping || !p.running || p.full > 0 }

// acknowledge tells clients of the commits that enough standbys hold.
func (p *postgres) acknowledge() {
	if !p.writable || !p.host.up || p.host.frozen {
		return
	}
	done := 0
	for _, lsn := range p.pending {
		if !p.satisfied(lsn) {
			break
		}
		done++
		p.host.w.judge.acknowledged(p.host, lsn)
	}
	p.pending = p.pending[done:]
}

// satisfied tells whether the standbys that commits wait for hold lsn.
func (p *postgres) satisfied(lsn int64) bool {
	if len(p.waits.names) == 0 || p.unsynchronous {
		return true
	}
	need, have := len(p.waits.names), 0
	if p.waits.any > 0 {
		need = p.waits.any
	}
	for _, s := range p.host.w.hosts {
		if p.streamsTo(s) && s.pg.at.lsn >= lsn && (p.waits.names[0] == "*" || slices.Contains(p.waits.names, s.name)) {
			have++
		}
	}
	return have >= need
}

// streamsTo tells whether a standby is connected.
func (p *postgres) streamsTo(s *host) bool {
	return s.pg.streaming && s.pg.upstream == p.host.name && s.pg.at.branch == p.at.branch && p.host.w.net.both(s.id, p.host.id)
}

func (w *world) hostNamed(name string) *host {
	if cluster.IsRemote(name) {
		return w.remote
	}
	for _, h := range w.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}
