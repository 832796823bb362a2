package ha

import (
	"cmp"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// syncPromise is what the key `sync` promises for its leader L: of the voters,
// each may lead once it has seen quorum others of {L} and the voters at or
// behind its own position. No voters: only L itself may lead.
type syncPromise struct {
	voters []string
	quorum int
}

// syncWait is what PostgreSQL's commits wait for: num of the names.
type syncWait struct {
	names []string // "*" alone: anybody
	num   int
}

// keptBy is the invariant of synchronous replication. Of V voters a candidate
// and the quorum Q that it sees make Q+1; a commit that waited for n of the
// names S is held by at least n-|S\V| voters. The two share a member, so that the
// candidate, being the most advanced of its Q+1, holds the commit, if
//
//	(Q+1) + (n-|S\V|) > |V|,  that is  Q + n >= |V ∪ S|.
//
// With Q=0 this means: every voter is waited for.
//
// The key and the setting cannot change at one moment, so every step must leave
// a pair that satisfies it, whichever write is the last before a crash, and be
// right about commits that were acknowledged under earlier settings:
//
//   - the setting changes only to one that satisfies it together with the key as
//     it certainly is (no write of the key under way or of unknown outcome);
//   - voters may be taken out of the key at any time, as V shrinks by as much as
//     the number of those that hold a commit at the most;
//   - voters are let in, or Q is lowered, only when the setting is certainly in
//     force and enough of the new voters have reached the position that was read
//     after it took effect (SyncSince): they hold everything older, and the
//     setting sees to everything newer.
func (p syncPromise) keptBy(w syncWait) bool {
	return len(p.voters) == 0 || !w.anybody() && p.quorum+w.num >= len(union(p.voters, w.names))
}

func (w syncWait) anybody() bool { return len(w.names) == 1 && w.names[0] == "*" }

// synchronous keeps the key `sync` and PostgreSQL's setting together, in steps
// that keep the invariant of syncPromise.keptBy.
//
//	mode        key                        PostgreSQL waits for    decision
//	any         being written              any                     wait
//	off         exists                     any                     delete the key
//	off         absent                     somebody, or unknown    wait for nobody
//	on, quorum  not ours                   any                     write it: nobody but us
//	on, quorum  last write uncertain       any                     write it anew as it is
//	on, quorum  names some, none is able   any                     take all out of the key
//	on, quorum  names nobody, none is able not as asked for        wait for nobody; strict: for anybody
//	on, quorum  names more that are gone
//	            than its quorum            any                     take those out of the key
//	on, quorum  ours                       not what leads to the
//	                                       wanted ones, or unknown wait for these
//	on, quorum  not the wanted ones        enough have caught up   write the wanted ones
//	on, quorum  lacks a caught-up one      not enough have         write the key with it
func synchronous(v View) Decision {
	pg, key := v.Postgres, v.Cluster.Sync
	if v.SyncWriting {
		return Decision{}
	}
	if v.Config.SynchronousMode == cluster.SyncOff {
		switch {
		case key.Exists():
			return do("synchronous mode is off", WriteSync{Index: key.ModifyIndex})
		case len(pg.SyncNames) > 0 || pg.SyncUnsure:
			return do("synchronous mode is off", SetSync{})
		}
		return Decision{}
	}
	now := syncPromise{voters: key.Value.Standbys(), quorum: max(0, key.Value.Quorum)}
	switch {
	case !key.OK() || !strings.EqualFold(key.Value.Leader, v.Name):
		return v.writeSync("nobody but the new leader holds every commit yet", syncPromise{})
	case v.SyncUncertain:
		return v.writeSync("the outcome of the last write of the sync key is unknown", now)
	}
	able := v.syncCandidates(now.voters)
	wanted, wait := v.syncTarget(able)
	if len(able) == 0 {
		if len(now.voters) > 0 {
			return v.writeSync("a synchronous standby is gone: none is left", wanted)
		}
		return v.waitFor(wait)
	}
	bridge, ok := bridgeTo(now, wanted, wait, v.Postgres.connected(now.voters))
	if !ok {
		return v.writeSync("a synchronous standby is gone", v.withoutGone(now))
	}
	if d := v.waitFor(bridge); len(d.Actions) > 0 || pg.SyncUnsure {
		return d
	}
	caughtUp := v.Postgres.caughtUp()
	partly := syncPromise{voters: slices.Clone(now.voters), quorum: now.quorum}
	for _, name := range wanted.voters {
		if containsFold(caughtUp, name) && !containsFold(now.voters, name) {
			partly.voters = append(partly.voters, name)
		}
	}
	for _, next := range []syncPromise{wanted, partly} {
		switch {
		case next.same(now):
			return Decision{}
		case !next.keptBy(bridge) || !next.holdsOlder(now, caughtUp):
			continue
		case slices.ContainsFunc(next.voters, func(n string) bool { return !containsFold(now.voters, n) }):
			return v.writeSync("a synchronous standby has caught up", next)
		}
		return v.writeSync("the synchronous standbys have changed", next)
	}
	return Decision{}
}

// bridgeTo is what PostgreSQL should wait for now on the way to the wanted
// promise: something that keeps the present promise and the wanted one. It is the
// wanted setting if that does, else the same names with a greater number, else
// the present voters as well, as long as they are connected. There is none when
// more voters are gone than the quorum allows for.
func bridgeTo(now, wanted syncPromise, wait syncWait, connected []string) (syncWait, bool) {
	for _, names := range [][]string{wait.names, union(wait.names, connected)} {
		num := max(wait.num, len(union(wanted.voters, names))-wanted.quorum)
		if len(now.voters) > 0 {
			num = max(num, len(union(now.voters, names))-now.quorum)
		}
		if num <= len(names) {
			return syncWait{names: names, num: num}, true
		}
	}
	return syncWait{}, false
}

// holdsOlder tells whether enough voters hold every commit that was acknowledged
// before the present setting took effect: those that have caught up with that
// moment do; and of the present voters all but quorum do, of whom some may be left
// out.
func (p syncPromise) holdsOlder(now syncPromise, caughtUp []string) bool {
	if len(p.voters) == 0 {
		return true
	}
	sure, added := 0, 0
	for _, name := range p.voters {
		switch caught := containsFold(caughtUp, name); {
		case caught && !containsFold(now.voters, name):
			sure, added = sure+1, added+1
		case caught:
			sure++
		}
	}
	left := 0
	for _, name := range now.voters {
		if !containsFold(p.voters, name) {
			left++
		}
	}
	return max(sure, len(now.voters)-now.quorum-left+added)+p.quorum >= len(p.voters)
}

func (p syncPromise) same(q syncPromise) bool {
	return p.quorum == q.quorum && sameNames(p.voters, q.voters)
}

// withoutGone takes voters that are not connected out until no more of them are
// left than the quorum.
func (v View) withoutGone(p syncPromise) syncPromise {
	connected := v.Postgres.connected(p.voters)
	kept, gone := syncPromise{quorum: p.quorum}, 0
	for _, name := range p.voters {
		if !containsFold(connected, name) {
			if gone++; gone > p.quorum {
				continue
			}
		}
		kept.voters = append(kept.voters, name)
	}
	return kept
}

// syncTarget is the promise to aim at, and what PostgreSQL waits for then: as many
// standbys as synchronous_node_count says, all of them named (on), or any of all
// that are able (quorum).
func (v View) syncTarget(able []string) (syncPromise, syncWait) {
	if len(able) == 0 {
		if v.Config.SynchronousStrict {
			return syncPromise{}, syncWait{names: []string{"*"}, num: 1}
		}
		return syncPromise{}, syncWait{}
	}
	num := min(len(able), max(1, v.Config.SynchronousNodeCount))
	if v.Config.SynchronousMode != cluster.SyncQuorum {
		able = able[:num]
	}
	return syncPromise{voters: able, quorum: len(able) - num}, syncWait{names: able, num: num}
}

// waitFor makes PostgreSQL wait for w unless it certainly does so already.
func (v View) waitFor(w syncWait) Decision {
	set := SetSync{Standbys: w.names}
	if v.Config.SynchronousMode == cluster.SyncQuorum {
		set.Any = w.num
	}
	if !v.Postgres.SyncUnsure && set.Any == v.Postgres.SyncAny && sameNames(v.Postgres.SyncNames, w.names) {
		return Decision{}
	}
	return do("synchronous standbys are chosen", set)
}

func (v View) writeSync(reason string, p syncPromise) Decision {
	value := cluster.NewSync(v.Name, p.voters)
	value.Quorum = p.quorum
	if v.SyncUncertain {
		value.After = v.Cluster.Sync.ModifyIndex
	}
	return do(reason, WriteSync{Index: v.Cluster.Sync.ModifyIndex, Value: &value})
}

// syncBeforePromotion: in strict mode no commit may be acknowledged by the new
// primary alone, so it waits for anybody from its first commit on. And the promotion
// replaces the key, of which no other write may be under way.
func (v View) syncBeforePromotion() (Decision, bool) {
	if v.SyncWriting {
		return wait("the leader; the sync key is being written"), true
	}
	if v.Config.SynchronousMode == cluster.SyncOff || !v.Config.SynchronousStrict {
		return Decision{}, false
	}
	_, wait := v.syncTarget(nil)
	d := v.waitFor(wait)
	return d, len(d.Actions) > 0
}

// promote is the promotion, bound to the key sync that says that nobody else holds what
// this member acknowledges from then on.
func (v View) promote() Promote {
	if !v.Cluster.Sync.Exists() && v.Config.SynchronousMode == cluster.SyncOff {
		return Promote{}
	}
	alone := cluster.NewSync(v.Name, nil)
	return Promote{SyncIndex: v.Cluster.Sync.ModifyIndex, Sync: &alone}
}

// mustGiveBack: a promotion has replaced the key and then failed. This member has
// acknowledged nothing, so whoever held every commit before still does, and may lead.
func (v View) mustGiveBack() bool {
	key := v.Cluster.Sync
	alone := key.OK() && strings.EqualFold(key.Value.Leader, v.Name) && len(key.Value.Standbys()) == 0
	return v.SyncBefore != nil && !v.Postgres.Primary && (alone || v.SyncUncertain)
}

func (v View) giveBack() Decision {
	if v.SyncWriting {
		return wait("the leader; the sync key is being written")
	}
	d := WriteSync{Index: v.Cluster.Sync.ModifyIndex}
	if before := v.SyncBefore; before.OK() {
		value := before.Value
		value.After = v.Cluster.Sync.ModifyIndex
		d.Value = &value
	}
	return do("the promotion has failed; what the sync key promised before holds again", d)
}

// startPrimary starts a primary with a setting that fits the key sync, as that certainly
// is. What its configuration file says did when it was written; but a file may have
// been lost, or written by somebody else.
//
//	Consul   mode   key                     decision
//	silent   any    any                     start with what the file says
//	answers  any    being written           wait
//	answers  off    absent                  start with what the file says
//	answers  any    not ours, or absent     write it: nobody but us
//	answers  any    last write uncertain    write it anew as it is
//	answers  any    ours                    start with what keeps it
func (v View) startPrimary() Decision {
	const why = "the leader; PostgreSQL is down and is started again"
	key := v.Cluster.Sync
	promise := syncPromise{voters: key.Value.Standbys(), quorum: max(0, key.Value.Quorum)}
	switch {
	case v.Read.IsZero() || !v.inTouch():
		return do(why, StartPrimary{})
	case v.SyncWriting:
		return wait(why + " when the sync key is written")
	case !key.Exists() && v.Config.SynchronousMode == cluster.SyncOff:
		return do(why, StartPrimary{})
	case !key.OK() || !strings.EqualFold(key.Value.Leader, v.Name):
		return v.writeSync(why+" when the sync key says that nobody else holds every commit", syncPromise{})
	case v.SyncUncertain:
		return v.writeSync(why+" when it is certain what the sync key says", promise)
	}
	set := SetSync{Standbys: promise.voters}
	if n := len(promise.voters) - promise.quorum; n < len(promise.voters) || v.Config.SynchronousMode == cluster.SyncQuorum {
		set.Any = n
	}
	if len(promise.voters) == 0 && v.Config.SynchronousMode != cluster.SyncOff {
		_, none := v.syncTarget(nil)
		set = SetSync{Standbys: none.names}
		if v.Config.SynchronousMode == cluster.SyncQuorum {
			set.Any = none.num
		}
	}
	return do(why, StartPrimary{Sync: &set})
}

// PrimaryStart is how a primary is started that the operator asks for; wait says what is to
// come before, empty: nothing.
func PrimaryStart(v View) (start StartPrimary, wait string) {
	d := v.startPrimary()
	for _, action := range d.Actions {
		if start, is := action.(StartPrimary); is {
			return start, ""
		}
	}
	return StartPrimary{}, d.Reason
}

// syncCandidates are the members that could be synchronous standbys, best first:
// connected and streaming, tagged neither nosync nor nostream, and, with maximum_lag_on_syncnode, not
// lagging behind the most advanced of them (a single one: behind the primary) by
// more than that. Of equal sync_priority, those promised already come first, so
// that a short lead in the WAL changes nothing; then the most advanced by the
// position that synchronous_commit asks for. Members in other zones come before those
// (see spreadOverZones).
func (v View) syncCandidates(promised []string) []string {
	var able []Standby
	for _, s := range v.Postgres.standbys() {
		m, found := v.member(s.Name)
		if s.Streaming && found && !strings.EqualFold(s.Name, v.Name) && !m.Tag("nosync") && !m.Tag("nostream") && cluster.SyncPriority(m.Tags) > 0 {
			able = append(able, s)
		}
	}
	if limit := v.Config.MaximumLagOnSyncNode; limit > 0 && len(able) > 0 {
		best := v.Postgres.LSN
		if len(able) > 1 {
			best = v.Postgres.position(slices.MaxFunc(able, func(a, b Standby) int { return cmp.Compare(v.Postgres.position(a), v.Postgres.position(b)) }))
		}
		able = slices.DeleteFunc(able, func(s Standby) bool { return best-v.Postgres.position(s) > limit })
	}
	slices.SortStableFunc(able, func(a, b Standby) int {
		first, _ := v.member(a.Name)
		second, _ := v.member(b.Name)
		return cmp.Or(
			cmp.Compare(cluster.SyncPriority(second.Tags), cluster.SyncPriority(first.Tags)),
			-compareBool(containsFold(promised, a.Name), containsFold(promised, b.Name)),
			cmp.Compare(v.Postgres.position(b), v.Postgres.position(a)),
			strings.Compare(a.Name, b.Name),
		)
	})
	able = v.spreadOverZones(able, promised)
	names := make([]string, 0, len(able))
	for _, s := range able {
		names = append(names, s.Name)
	}
	return names
}

// spreadOverZones puts standbys of equal sync_priority into an order in which the first ones
// are in as many zones as can be, none of them the leader's, by the tag zone. One that has
// no zone counts as a neighbour of the leader, and so does one that lags more than
// maximum_lag_on_failover, as commits would wait until it has caught up; once they do it
// keeps its place, so that a lag which comes and goes changes nothing.
func (v View) spreadOverZones(able []Standby, promised []string) []Standby {
	own := cluster.TextTag(v.Tags, zoneTag)
	if own == "" {
		return able
	}
	zone := func(s Standby) string {
		m, _ := v.member(s.Name)
		if near := v.Postgres.LSN-v.Postgres.position(s) <= v.Config.MaximumLagOnFailover; !near && !containsFold(promised, s.Name) && !containsFold(v.Postgres.SyncNames, s.Name) {
			return own
		}
		return cmp.Or(cluster.TextTag(m.Tags, zoneTag), own)
	}
	priority := func(s Standby) int {
		m, _ := v.member(s.Name)
		return cluster.SyncPriority(m.Tags)
	}
	left, spread := slices.Clone(able), make([]Standby, 0, len(able))
	chosen := map[string]int{own: 1}
	for len(left) > 0 {
		best := 0
		for i, s := range left {
			if priority(s) == priority(left[0]) && chosen[zone(s)] < chosen[zone(left[best])] {
				best = i
			}
		}
		chosen[zone(left[best])]++
		spread = append(spread, left[best])
		left = slices.Delete(left, best, best+1)
	}
	return spread
}

// zoneTag names the zone of a member.
const zoneTag = "zone"

// position is how far a standby is, in the sense of synchronous_commit.
func (p Postgres) position(s Standby) int64 {
	switch p.SynchronousCommit {
	case "remote_apply":
		return s.ReplayLSN
	case "remote_write":
		return s.WriteLSN
	}
	return s.FlushLSN
}

// standbys are the connected standbys, one line for each name. Two connections
// under one name count as one that is no further than the slower: PostgreSQL
// counts each of them, so that neither alone proves anything.
func (p Postgres) standbys() []Standby {
	var out []Standby
	for _, s := range p.Standbys {
		i := slices.IndexFunc(out, func(o Standby) bool { return strings.EqualFold(o.Name, s.Name) })
		if i < 0 {
			out = append(out, s)
			continue
		}
		o := &out[i]
		o.Streaming, o.Sync = o.Streaming && s.Streaming, o.Sync && s.Sync
		o.WriteLSN, o.FlushLSN, o.ReplayLSN = min(o.WriteLSN, s.WriteLSN), min(o.FlushLSN, s.FlushLSN), min(o.ReplayLSN, s.ReplayLSN)
	}
	return out
}

// connected are those of names that stream.
func (p Postgres) connected(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		return !slices.ContainsFunc(p.Standbys, func(s Standby) bool { return s.Streaming && strings.EqualFold(s.Name, n) })
	})
}

// caughtUp are the standbys that hold every commit acknowledged under an earlier
// setting.
func (p Postgres) caughtUp() []string {
	var names []string
	for _, s := range p.standbys() {
		if s.Streaming && s.Sync && p.SyncSince > 0 && s.FlushLSN >= p.SyncSince {
			names = append(names, s.Name)
		}
	}
	return names
}

// member finds a member by the application_name that it streams under.
func (v Shard) member(applicationName string) (cluster.Member, bool) {
	for _, m := range v.Cluster.Members {
		if m.OK() && strings.EqualFold(m.Value.Name, applicationName) {
			return m.Value, true
		}
	}
	return cluster.Member{}, false
}

// syncForbids: while the key sync names a leader, only it and its synchronous
// standbys hold every acknowledged commit (I2). The key counts, not the
// setting: the setting may have changed after the last commit.
func (v Shard) syncForbids(name string) string {
	key := v.Cluster.Sync
	switch {
	case key.Err != nil:
		return "the sync key is not understood, so nobody is known to hold every commit: correct or delete it"
	case key.Exists() && key.Value.Leader != "" && !key.Value.Has(name):
		return "is not a synchronous standby of " + key.Value.Leader
	}
	return ""
}

// forcedByOperator tells whether an operator asked for a failover to this member,
// whatever it may lose. A switchover, which names the leader as well, is no such
// thing: its leader may have died on the way.
func (v Shard) forcedByOperator(name string) bool {
	f := v.Cluster.Failover
	return f.OK() && f.Value.Leader == "" && f.Value.Candidate == name
}

// union is the names of a, and those of b that are not among them.
func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, n := range b {
		if !containsFold(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func containsFold(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

func sameNames(a, b []string) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(n string) bool { return !containsFold(b, n) })
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
