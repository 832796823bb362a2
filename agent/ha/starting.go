package ha

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// starting: there is no data directory that may take part in the shard.
//
//	data         key initialize       leader        decision
//	foreign      any                  any           refuse, touch nothing
//	other shard  has another id       any           refuse, touch nothing
//	incomplete   any                  any           clear away what was ours
//	empty        any                  running       clone (clonefrom member first)
//	empty        absent               none          bootstrap, unless nofailover
//	empty        held by a session    none          wait: somebody bootstraps
//	empty        has an id            none          restore a backup, if a method can without a
//	                                                leader, else wait for one
func starting(v View) (Decision, bool) {
	pg := v.Postgres
	switch pg.Data {
	case DataForeign:
		return wait("the data directory is refused and left alone: " + pg.DataProblem), true
	case DataIncomplete:
		return v.unlessFailing(do("an unfinished data directory of our own was found", DiscardIncomplete{})), true
	case DataEmpty:
		return v.unlessFailing(fill(v)), true
	}
	if id := v.Cluster.Initialize.Value; id != "" && id != pg.SystemIdentifier {
		return wait(fmt.Sprintf("the data directory is refused and left alone: its system identifier is %s, that of the shard %s; "+
			"move it away, or correct scope or namespace", pg.SystemIdentifier, id)), true
	}
	return Decision{}, false
}

func fill(v View) Decision {
	if leader := v.leader(); leader != "" && leader != v.Name {
		from, err := cloneSource(v, leader)
		if err != "" {
			return wait(err)
		}
		return do("the data directory is empty and "+leader+" leads", Clone{From: from})
	}
	init := v.Cluster.Initialize
	switch {
	case init.Exists() && init.Value != "" && v.Postgres.RestoresAlone:
		return do("the data directory is empty and nobody leads: restoring it without a leader (no_leader)", Clone{})
	case init.Exists() && init.Value != "":
		return wait("the data directory is empty: waiting for a leader to clone from")
	case init.Exists() && init.Session != "":
		return wait("the data directory is empty: waiting for the member that bootstraps the shard")
	case init.Exists():
		return wait("the key initialize is empty and nobody holds it: a bootstrap by Patroni is under way or was cut short; " +
			"if nobody bootstraps, delete the key")
	case cluster.NoFailover(v.Tags):
		return wait("the data directory is empty: waiting for a leader, as nofailover members do not bootstrap")
	default:
		return do("the shard does not exist yet", Bootstrap{})
	}
}

// cloneSource picks the member to clone from: a running replica with the tag
// clonefrom, else the leader.
func cloneSource(v View, leader string) (from, problem string) {
	for _, m := range v.Cluster.Members {
		if m.OK() && m.Value.Name != v.Name && m.Value.Name != leader &&
			m.Value.Tag("clonefrom") && m.Value.State == cluster.StateRunning {
			return m.Value.Name, ""
		}
	}
	m, found := v.Cluster.Member(leader)
	switch {
	case !found || !m.OK():
		return "", "the data directory is empty: the key of the leader " + leader + " is missing or not understood"
	case m.Value.State != cluster.StateRunning || !isPrimary(m.Value.Role):
		return "", "the data directory is empty: waiting until " + leader + " is a running primary"
	}
	return leader, ""
}

func isPrimary(role string) bool {
	return cluster.IsPrimary(role) || role == "standby_leader"
}

// unlessFailing holds a decision back while its task has just failed.
func (v View) unlessFailing(d Decision) Decision {
	if len(d.Actions) == 0 || !v.Now.Before(v.Attempt.NotUntil) {
		return d
	}
	return wait(fmt.Sprintf("%s; waiting to try again after %d failures", d.Reason, v.Attempt.Failures)).by(v.Attempt.NotUntil)
}
