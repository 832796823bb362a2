package member

import (
	"slices"
	"sort"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// readers decides which replicas the route sends readers to: those that stream and
// are not too far behind in replaying, by bytes and by time. One that is tagged nostream
// may be a few bytes and yet hours behind: it gets readers only where
// maximum_delay_for_readers says what is too far. Who is too far behind
// is taken back within half of that, so that it does not come and go. One whose replay
// stands still gets none, however little it is behind by now. A replica that
// has readers and stops streaming keeps them for one ttl: a change of leader ends
// all replication for a moment.
type readers struct {
	// passed is where the leader's WAL was, and when, the oldest first.
	passed  []passed
	lagging map[string]bool
	// silent is since when a replica with readers does not stream.
	silent map[string]cluster.Instant
}

type passed struct {
	at  cluster.Instant
	lsn int64
}

// mostPassed bounds passed; beyond it the older half becomes coarser.
const mostPassed = 1024

// saw notes where the leader's WAL is now.
func (r *readers) saw(now cluster.Instant, leader pg.State) {
	if !leader.Accepting || leader.InRecovery {
		r.passed = nil
		return
	}
	last := len(r.passed) - 1
	if last >= 0 && leader.WriteLSN <= r.passed[last].lsn {
		return
	}
	r.passed = append(r.passed, passed{now, leader.WriteLSN})
	if len(r.passed) > mostPassed {
		half := mostPassed / 2
		for i := range half / 2 {
			r.passed[i] = r.passed[2*i]
		}
		r.passed = slices.Delete(r.passed, half/2, half)
	}
}

// delay is how long ago the leader's WAL went beyond a position.
func (r *readers) delay(now cluster.Instant, position int64) time.Duration {
	i := sort.Search(len(r.passed), func(i int) bool { return r.passed[i].lsn > position })
	if i == len(r.passed) {
		return 0
	}
	return now.Sub(r.passed[i].at)
}

// replayed is how far a replica that streams has replayed; 0: it does not stream, or
// nothing is known. What the leader's PostgreSQL says of it is as fresh as the
// leader's own position; of one that streams from another member only its key tells,
// every loop_wait.
func replayed(leader pg.State, replica cluster.Member) int64 {
	position, direct := int64(0), false
	for _, s := range leader.Standbys {
		if s.ApplicationName != replica.Name {
			continue
		}
		direct = true
		if s.State == pg.Streaming {
			position = max(position, s.ReplayLSN)
		}
	}
	if !direct && replica.ReplicationState == pg.Streaming {
		position = replica.ReplayLSN
	}
	return position
}

// restores reports whether a replica gets its WAL from the archive and it can be told
// how old its data are: a leader knows that of what was written since it leads.
func (r *readers) restores(replica cluster.Member, limits cluster.Dynamic) bool {
	return cluster.NoStream(replica.Tags) && replica.ReplicationState == pg.InArchiveRecovery &&
		limits.MaximumDelayForReaders > 0 && len(r.passed) > 0 && replica.ReplayLSN >= r.passed[0].lsn
}

// serve reports whether a replica takes readers; had says that it did.
func (r *readers) serve(now cluster.Instant, leader pg.State, replica cluster.Member, had bool, limits cluster.Dynamic) bool {
	name := replica.Name
	if replica.ReplayStandsStill != "" {
		return false
	}
	position := replayed(leader, replica)
	if position == 0 && r.restores(replica, limits) {
		position = replica.ReplayLSN
	}
	if position == 0 {
		since, known := r.silent[name]
		if !known {
			since = now
		}
		keeps := had && !r.lagging[name] && now.Sub(since) < limits.TTL
		if keeps {
			r.silent[name] = since
		}
		return keeps
	}
	delete(r.silent, name)
	share := int64(1)
	if r.lagging[name] {
		share = 2
	}
	end := leader.LSN()
	if l := replica.Lictor; l != nil && l.LeaderLSN > 0 && position == replica.ReplayLSN {
		end = min(end, l.LeaderLSN) // its key's position is of an earlier moment than the leader's
	}
	r.lagging[name] = end-position > limits.MaximumLagForReaders/share ||
		limits.MaximumDelayForReaders > 0 && r.delay(now, position) > limits.MaximumDelayForReaders/time.Duration(share)
	return !r.lagging[name]
}
