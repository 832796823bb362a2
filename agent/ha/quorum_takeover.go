package ha

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is design 5.30: a leader that falls silent is replaced before its lease is over,
// where its standbys have detached from it and it can acknowledge nothing any more.

// readYoung is how old the consistent reading may be on which a takeover by quorum is sent.
const readYoung = 200 * time.Millisecond

// attemptRests is for how many leases after a takeover nobody tries to take over by quorum.
const attemptRests = 3

// TakeoverView is what a member has found out for a takeover by quorum.
type TakeoverView struct {
	// Heard is when this member has last heard of the leader, or found one that it does not know; an attempt
	// that another member has handed over counts as if it was not heard for long.
	Heard cluster.Instant
	// Attempt names the attempt under way, Index is the status that it would replace; empty: there
	// is none. NotBefore is when the next one may begin.
	Attempt   string
	Index     uint64
	NotBefore cluster.Instant
	// Witness is who does not hear the leader either; WitnessesDone: all have answered or failed to.
	Witness       string
	WitnessesDone bool
	// Asked: this member detaches, and the others were asked to; Done: all have answered, or failed to.
	Asked, Done bool
	// Detached: this member has, and has looked at its PostgreSQL since.
	Detached bool
	// Answers are the others', of members that have detached and looked since.
	Answers []Peer
	// Sent: the takeover was sent, and certainly had no effect.
	Sent bool
}

// takeoverByQuorum: somebody else leads, and is silent. However an attempt ends, the next one has to wait.
//
//	S, key sync, this member         attempt                                  decision
//	S does not consent, or this
//	  member must not lead by it     none                                     (as without it)
//	                                 under way                                end it
//	L was heard lately               none                                     (as without it)
//	                                 under way                                end it
//	L is silent                      none, and it is too early for one        (as without it)
//	                                 none                                     begin one: ask for a witness
//	                                 of another status                        end it
//	                                 nobody else misses L                     end it
//	                                 a witness                                detach, ask the others to
//	                                 a voter that has detached is ahead       leave it to that one
//	                                 this member and Q other voters have
//	                                   detached, none of them ahead           read Consul; take the lock
//	                                 all have answered, and too few detached  end it
func takeoverByQuorum(view View) (Decision, bool) {
	v := bid{view}
	t := v.Takeover
	if why := v.mayNotTakeOver(); why != "" {
		if t.Attempt == "" {
			return Decision{}, false
		}
		return do("no takeover by quorum: "+why, EndAttempt{}).by(v.Now), true
	}
	index, leader := v.Cluster.Status.ModifyIndex, v.beat().Owner
	silent := leader + " is silent; "
	switch {
	case t.Attempt == "" && v.Now.Before(v.attemptNotBefore()):
		return Decision{}, false
	case t.Attempt == "":
		return do(silent+"asking for a witness", BeginAttempt{Index: index}), true
	case v.Lease.InFlight:
		return wait(silent + "taking the lock"), true
	case t.Index != index:
		return do("no takeover by quorum: "+leader+" has beaten since", EndAttempt{}).by(v.Now), true
	case t.Sent:
		return do(silent+"the lock could not be taken", EndAttempt{}).by(v.Now), true
	case t.Witness == "" && !t.WitnessesDone:
		return wait(silent + "waiting for a witness"), true
	case t.Witness == "":
		return do(silent+"no other member says so, and its lease is waited for", EndAttempt{}).by(v.Now), true
	case !t.Asked:
		return do(silent+"detaching from it, with the others", DetachForAttempt{}), true
	}
	problem, further := v.attemptProblem()
	switch {
	case t.Detached && problem == "" && v.Now.Sub(v.Confirmed) > readYoung:
		return do(silent+"enough standbys have detached; reading Consul", Reread{}), true
	case t.Detached && problem == "":
		return do(silent+"enough standbys have detached, and this member has what they have", v.takeOverByQuorum()), true
	case further != "":
		return do(silent+further+" is ahead", EndAttempt{Instead: further}).by(v.Now), true
	case !t.Done || !t.Detached && v.Task != TaskNone:
		return wait(silent + "waiting for the standbys to detach"), true
	}
	return do(silent+problem, EndAttempt{}).by(v.Now), true
}

// bid is what one member looks at when it would take over, or be taken over, by quorum.
type bid struct{ View }

// mayNotTakeOver says why this member does not try to take over by quorum; empty: it may.
func (v bid) mayNotTakeOver() string {
	b, pg := v.beat(), v.Postgres
	switch {
	case v.Config.Takeover != cluster.TakeoverQuorum || b == nil || !b.Consents() || b.Owner == v.Name:
		return "the last beat does not consent to it"
	case v.Config.Pause || v.Stopping || !v.Lease.Until.IsZero():
		return "paused, stopping, or the leader itself"
	case v.leader() != b.Owner:
		return b.Owner + " does not lead any more"
	case !v.isVoterOf(b.Owner):
		return "the key sync does not name this member as a standby of " + b.Owner
	case v.promised() != nil:
		return "the lock is promised to " + v.promised().Leader + " for now"
	case v.Now.Before(v.GoneBack):
		return "Consul has gone back"
	case v.Session == "":
		return "there is no Consul session"
	case !pg.Running || !pg.Accepting || pg.Undersized != "":
		return "PostgreSQL does not run, or must be restarted first"
	case !pg.Durable.Fsync || pg.Durable.ReplayPaused:
		return "fsync is off, or replay is paused"
	}
	if why := v.unelectable(); why != "" {
		return why
	}
	if v.Now.Sub(v.Takeover.Heard) < v.Config.SuspectAfter {
		return b.Owner + " was heard lately"
	}
	return ""
}

// isVoterOf reports whether the key sync names this member as a synchronous standby of owner.
func (v Shard) isVoterOf(owner string) bool {
	key := v.Cluster.Sync
	return key.OK() && strings.EqualFold(key.Value.Leader, owner) && containsFold(key.Value.Standbys(), v.Name)
}

// attemptNotBefore is when an attempt may begin.
func (v bid) attemptNotBefore() cluster.Instant {
	t := max(v.Takeover.NotBefore, v.Lease.NotBefore)
	if !v.OwnerChangedAt.IsZero() {
		t = max(t, v.OwnerChangedAt.Add(attemptRests*v.Config.TTL))
	}
	return t
}

// attemptProblem says why the members that have detached are not enough; empty: they are. better is one of
// them that has more WAL than this member, and could lead.
func (v bid) attemptProblem() (problem, better string) {
	key, seen, further := v.Cluster.Sync.Value, 0, ""
	voters := key.Standbys()
	for i, p := range v.Takeover.Answers {
		counts := p.Answered && !p.Primary && p.State == cluster.StateRunning && p.LSN > 0 && p.Timeline > 0 &&
			!strings.EqualFold(p.Name, v.Name) && containsFold(voters, p.Name) && slices.Contains(p.Attempts, v.Takeover.Attempt) &&
			!slices.ContainsFunc(v.Takeover.Answers[:i], func(q Peer) bool { return strings.EqualFold(q.Name, p.Name) })
		switch {
		case !counts:
		case v.otherCluster(p.SystemIdentifier) != "":
			further += "; " + p.Name + " " + v.otherCluster(p.SystemIdentifier)
		case p.Restoring:
			further += "; " + p.Name + ": " + v.restoringForbids(true)
		case p.Replaying:
			further += "; " + p.Name + " " + stillReplays
		case ahead(p, v.self()):
			further += "; " + p.Name + " is ahead"
			if v.electable(p) == "" {
				better = p.Name
			}
		default:
			seen++
		}
	}
	if seen >= max(0, key.Quorum) {
		return "", better
	}
	return fmt.Sprintf("beside this member %d of its standbys %v must have detached, at or behind its own position; %d have%s",
		key.Quorum, voters, seen, further), better
}

// takeOverByQuorum is the takeover by quorum. Nobody but this member leads next.
func (v bid) takeOverByQuorum() TakeOver {
	t := v.takeOver()
	alone := cluster.NewSync(v.Name, nil)
	t.Sync, t.ByQuorum = &alone, true
	return t
}

// MayDetachFor says why this member cannot detach for an attempt at a takeover by quorum of the
// status at index. free is since when it has not been detached.
func MayDetachFor(v View, index uint64, attempt string, free cluster.Instant) error {
	if err := v.MayDetach(index); err != nil {
		return err
	}
	b := v.beat()
	switch {
	case attempt == "":
		return fmt.Errorf("%w: the attempt has no name", ErrNotDetached)
	case v.Config.Takeover != cluster.TakeoverQuorum || b == nil || v.Cluster.Status.ModifyIndex != index || !b.Consents():
		return fmt.Errorf("%w: the status at %d was not seen, or does not consent", ErrNotDetached, index)
	case v.Now.Sub(v.Takeover.Heard) < v.Config.SuspectAfter:
		return fmt.Errorf("%w: %s was heard lately", ErrNotDetached, b.Owner)
	case !v.Postgres.Durable.Fsync || v.Postgres.Durable.ReplayPaused:
		return fmt.Errorf("%w: fsync is off, or replay is paused", ErrNotDetached)
	case v.Detached == index:
		return nil // it costs nothing more
	case v.Now.Before(free.Add(2 * v.Config.BeatInterval())):
		return fmt.Errorf("%w: it has detached for another attempt just before", ErrNotDetached)
	}
	if rests := v.OwnerChangedAt; !rests.IsZero() && v.Now.Before(rests.Add(attemptRests*v.Config.TTL)) {
		return fmt.Errorf("%w: the last takeover was just before", ErrNotDetached)
	}
	return nil
}

// Misses reports whether this member can witness that the leader of the status at index is silent.
func Misses(v View, index uint64) bool {
	b := v.beat()
	return index > 0 && v.Cluster.Status.ModifyIndex >= index && b != nil && b.Owner != v.Name && v.promised() == nil &&
		v.Now.Sub(v.Takeover.Heard) >= v.Config.SuspectAfter
}

// consents reports whether this leader may be replaced by its standbys before its lease is over. What
// PostgreSQL shows counts.
func (v bid) consents() bool {
	pg, key := v.Postgres, v.Cluster.Sync
	voters := key.Value.Standbys()
	switch {
	case v.Config.Takeover != cluster.TakeoverQuorum, !v.Config.SynchronousMode.On(), v.Config.Pause, v.Config.StandbyCluster.On():
		return false
	case v.Stopping, v.Task != TaskNone, v.Giving != nil, v.Cluster.Failover.Exists() && (v.Cluster.Failover.Err != nil || !v.Cluster.Failover.Value.Empty()):
		return false
	case !pg.Running, !pg.Accepting, !pg.Primary, !pg.ShutDown.IsZero():
		return false
	case !pg.Durable.Fsync, pg.Durable.StartRace:
		return false
	case !waitsForFlush(pg.SynchronousCommit), !waitsForFlush(pg.Durable.SynchronousCommit):
		return false // what is configured will be shown
	case pg.SyncUnsure, v.SyncWriting, v.SyncUncertain, !key.OK(), !strings.EqualFold(key.Value.Leader, v.Name), len(voters) == 0:
		return false
	}
	for _, name := range voters {
		connections := 0
		for _, s := range pg.Standbys {
			if strings.EqualFold(s.Name, name) {
				if connections++; !s.Streaming || s.Foreign {
					return false
				}
			}
		}
		if connections != 1 {
			return false
		}
	}
	promise := syncPromise{voters: voters, quorum: max(0, key.Value.Quorum)}
	num := pg.SyncAny
	if num == 0 {
		num = len(pg.SyncNames)
	}
	return promise.keptBy(syncWait{names: pg.SyncNames, num: num})
}

// waitsForFlush reports whether commits with this synchronous_commit wait until standbys have them on disk.
func waitsForFlush(commit string) bool { return commit == "on" || commit == "remote_apply" }

// mustWithdraw reports whether a beat is due at once that does not consent any more.
func (v bid) mustWithdraw() bool { return v.Lease.Consented && !v.consents() }

// BeginConsent notes that a beat is about to be sent that consents to a takeover by quorum, or not.
func (t *LeaseState) BeginConsent(consent bool) { t.consented = t.consented || consent }

// Withdrawn notes that a beat without consent is confirmed.
func (t *LeaseState) Withdrawn() { t.consented = false }

// Consented reports whether a beat that consents may stand in Consul.
func (t *LeaseState) Consented() bool { return t.consented }

// BeginTakeoverByQuorum notes that the takeover which is about to be sent is one by quorum, and replaces
// the status at index.
func (t *LeaseState) BeginTakeoverByQuorum(index uint64) { t.byQuorum = index }

// MayLandLate notes that a takeover by quorum of the agent's earlier run may have been sent.
func (t *LeaseState) MayLandLate(index uint64) { t.late = max(t.late, index) }

// mayLand reports whether a takeover by quorum may still take effect while that status stands: no
// reading that shows it settles that.
func (t *LeaseState) mayLand(status uint64) bool {
	landing := max(t.byQuorum, t.late)
	return landing != 0 && status <= landing
}

// MayLand is whether a takeover by quorum may still take effect while that status stands.
func (t *LeaseState) MayLand(status uint64) bool { return t.mayLand(status) }
