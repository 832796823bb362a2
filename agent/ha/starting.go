package ha

import (
	"fmt"
	"slices"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// starting: there is no data directory that may take part in the shard.
//
//	data         key initialize       leader        decision
//	foreign      any                  any           refuse, touch nothing
//	other shard  has another id       any           refuse, touch nothing (identifier.go)
//	incomplete   any                  any           clear away what was ours; a clone stays where a
//	                                                method goes on with it, and is cloned as if empty
//	bootstrapped held by our session  none          register the shard, again and again
//	bootstrapped absent               none          hold the key again, then as above
//	bootstrapped has our id           ours, or none make the data directory the shard's
//	bootstrapped has another's id     any           clear away what was ours
//	empty        any                  running       clone (clonefrom member first)
//	empty        absent               none          bootstrap, unless nofailover
//	empty        held by a session    none          wait: somebody bootstraps
//	empty        has an id            none          restore a backup, if a method can without a
//	                                                leader, else wait for one
//
// In a standby shard a bootstrap copies the remote primary, and so does the only member that
// there is where the shard has an id (standby.go).
func starting(v View) (Decision, bool) {
	pg := v.Postgres
	switch pg.Data {
	case DataForeign:
		return wait("the data directory is refused and left alone: " + pg.DataProblem), true
	case DataIncomplete:
		if d := fill(v); pg.Resumable && !d.bootstraps() {
			return v.unlessFailing(d), true
		}
		return v.unlessFailing(do("an unfinished data directory of our own was found", DiscardIncomplete{})), true
	case DataBootstrapped:
		return register(v), true
	case DataEmpty:
		return v.unlessFailing(fill(v)), true
	}
	if id := v.Cluster.Initialize.Value; id != "" && id != pg.SystemIdentifier {
		return wait(fmt.Sprintf("the data directory is refused and left alone: its system identifier is %s, that of the shard %s; "+
			"move it away, or correct scope or namespace", pg.SystemIdentifier, id)), true
	}
	if why := v.otherCluster(pg.SystemIdentifier); why != "" {
		return wait("the data directory is refused and left alone: this member " + why +
			"; move it away, or, if the shard was set back to it on purpose, delete the shard's route in Consul"), true
	}
	return Decision{}, false
}

// ledBy is the member that led the shard last, as far as Consul tells.
func (v Shard) ledBy() string {
	if holder := v.lockHolder(); holder != "" {
		return holder
	}
	if b := v.beat(); b != nil {
		return b.Owner
	}
	return ""
}

// registered reports whether Consul knows the shard that this member has made, as its
// work.
func (v View) registered() bool {
	id, by := v.Cluster.Initialize.Value, v.ledBy()
	return v.Postgres.Data == DataBootstrapped && id != "" && id == v.Postgres.SystemIdentifier && (by == "" || by == v.Name)
}

// register: this member has made the shard, and Consul does not know of it yet: the
// transaction that says so was refused, or its answer lost, or the agent was
// restarted before it. What was made (a backup that took hours to restore, maybe)
// is kept until Consul names another cluster.
func register(v View) Decision {
	init, other := v.Cluster.Initialize, v.ledBy()
	if other == v.Name {
		other = ""
	}
	switch {
	case v.Lease.InFlight:
		return wait("bootstrapped: registering the shard")
	// Two members that restore the same backup have the same identifier.
	case init.Value != "" && (init.Value != v.Postgres.SystemIdentifier || other != ""):
		return v.unlessFailing(do("another member has made the shard meanwhile: what was bootstrapped here is of no use", DiscardIncomplete{}))
	case v.registered():
		return finishBootstrap(v)
	case other != "":
		return wait("bootstrapped, but " + other + " leads a shard that the key initialize does not name: " +
			"empty the data directory, or write that shard's system identifier to the key")
	case v.Session == "":
		return wait("bootstrapped: waiting for a Consul session to register the shard")
	case v.Now.Before(v.Lease.NotBefore):
		return wait("bootstrapped: the shard could not be registered yet").by(v.Lease.NotBefore)
	case init.Session == v.Session:
		t := v.takeOver()
		t.Sync = nil // nobody but this member has any data
		return do("bootstrapped: registering the shard", Register{TakeOver: t})
	case init.Session != "":
		return wait("bootstrapped, but the key initialize is held by another session: waiting for its end")
	case init.Exists():
		return wait("bootstrapped, but the key initialize is empty and nobody holds it: if nobody bootstraps, delete the key")
	default:
		return v.unlessFailing(do("bootstrapped: the key initialize has gone with a session and is taken again", ClaimBootstrap{}))
	}
}

func finishBootstrap(v View) Decision {
	return v.unlessFailing(do("bootstrapped, and the shard is registered", FinishBootstrap{}))
}

func fill(v View) Decision {
	what := v.Postgres.noData()
	if leader := v.leader(); leader != "" && leader != v.Name {
		if v.Config.Takeover == cluster.TakeoverQuorum && v.Detached != 0 {
			return wait(what + ": a candidate counts on its receiving nothing from " + leader)
		}
		from, err := cloneSource(v, leader)
		if err != "" {
			return wait(err)
		}
		return do(what+" and "+leader+" leads", Clone{From: from, NoStream: cluster.NoStream(v.Tags)})
	}
	if d, applies := fillFromRemote(v, what); applies {
		return d
	}
	init := v.Cluster.Initialize
	switch {
	case init.Exists() && init.Value != "" && v.Postgres.RestoresAlone:
		return do(what+" and nobody leads: restoring it without a leader (no_leader)", Clone{})
	case init.Exists() && init.Value != "":
		return wait(what + ": waiting for a leader to clone from")
	case init.Exists() && init.Session != "":
		return wait(what + ": waiting for the member that bootstraps the shard")
	case init.Exists():
		return wait("the key initialize is empty and nobody holds it: a bootstrap by Patroni is under way or was cut short; " +
			"if nobody bootstraps, delete the key")
	case cluster.NoFailover(v.Tags):
		return wait(what + ": waiting for a leader, as nofailover members do not bootstrap")
	default:
		return do("the shard does not exist yet", Bootstrap{})
	}
}

// noData says that there is no data directory.
func (p Postgres) noData() string {
	if p.Data == DataIncomplete {
		return "the data directory is a clone that was not finished"
	}
	return "the data directory is empty"
}

// bootstraps reports whether the shard is to be made.
func (d Decision) bootstraps() bool {
	return slices.ContainsFunc(d.Actions, func(a Action) bool { _, is := a.(Bootstrap); return is })
}

// cloneSource is the member to clone from, or why there is none yet.
func cloneSource(v View, leader string) (from, problem string) {
	if from := v.Cluster.CloneSource(v.Name, leader); from != leader {
		return from, ""
	}
	m, found := v.Cluster.Member(leader)
	what := v.Postgres.noData()
	switch {
	case !found || !m.OK():
		return "", what + ": the key of the leader " + leader + " is missing or not understood"
	case m.Value.State != cluster.StateRunning || !isPrimary(m.Value.Role):
		return "", what + ": waiting until " + leader + " is a running primary"
	}
	return leader, ""
}

func isPrimary(role string) bool {
	return cluster.IsPrimary(role) || role == cluster.RoleStandbyLeader
}

// unlessFailing holds a decision back while its task has just failed.
func (v View) unlessFailing(d Decision) Decision {
	if len(d.Actions) == 0 || !v.Now.Before(v.Attempt.NotUntil) {
		return d
	}
	return wait(fmt.Sprintf("%s; waiting to try again after %d failures", d.Reason, v.Attempt.Failures)).by(v.Attempt.NotUntil)
}
