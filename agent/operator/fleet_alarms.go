package operator

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/printable"
)

// This file judges a shard by what Consul tells of it: `lictor fleet` shows its
// alarms, `lictor doctor` says what to do about them.

// alarm is something that is not as it should be with a shard.
type alarm struct {
	what string
	remedy
	// level is Wrong, or Worth where nothing is broken.
	level Level
}

// remedy is what helps against one kind of alarm.
type remedy struct {
	// kind is the same for all shards: a few words by which people look for their like.
	kind string
	do   string
	// command is one of Lictor's that helps, as it is typed; empty: none does.
	command string
	// runbook is the page below docs/runbooks, without .md; empty: there is none.
	runbook string
}

// The kinds of the worst alarms.
const (
	twoPrimaries = "two primaries"
	noLeader     = "no leader"
	noPrimary    = "no primary"
)

const (
	ofTheImpostor     = "see that its own agent has that port and knows the shard's secret, as its log says"
	ofTheKeys         = "see what stands below its prefix in Consul, and whose token may write there; what no agent of its own wrote may be deleted"
	ofTheRoute        = "see the leader's log; the key below lictor/routes/ is the leader's to write"
	ofTheArchive      = "see PostgreSQL's log there: it says what archive_command met with (docs/runbooks/archive-fails.md)"
	ofTheBackups      = "see what pgbackrest info says, and the log of the last backup (docs/runbooks/backups-missing.md)"
	ofTheVerification = "see the log of lictor-verify@SHARD on the members' hosts, or run the playbook verify_backups (docs/runbooks/backups-missing.md)"
	ofTheBouncer      = "see that bouncer's log and lictor bouncer status"
)

// commandLine is a command of Lictor's about these: a shard, a member of it. Whoever copies it
// gives it to a shell, so there is none about what is no name.
func commandLine(words string, names ...string) string {
	for _, name := range names {
		if cluster.CheckName(name) != nil {
			return ""
		}
	}
	return strings.Join(append([]string{"lictor", words}, names...), " ")
}

// archiveLag is what a member that reads the archive may be behind besides: the segment
// that is being written, and one on its way.
const archiveLag = 2 * 16 << 20

// alarms says what is not as it should be with a shard, as far as Consul tells.
func (s fleetShard) alarms() []alarm {
	var alarms []alarm
	add := func(is bool, r remedy, format string, args ...any) {
		if is {
			alarms = append(alarms, alarm{fmt.Sprintf(format, args...), r, Wrong})
		}
	}
	if s.unread != nil { // nothing is known of it
		add(true, remedy{kind: "too many keys", do: ofTheKeys}, "%v", s.unread)
		return alarms
	}
	snapshot, leaderName := s.snapshot, s.snapshot.LeaderName()
	add(leaderName == "", remedy{
		noLeader, "lictor list and the agents' logs say why nobody may lead; lictor failover makes a named member lead",
		commandLine("failover", s.scope), "no-leader",
	}, "no leader")
	for _, err := range snapshot.Problems() {
		add(true, remedy{kind: "key not understood", do: "see the agents' logs"}, "%v", err)
	}
	for _, problem := range cluster.Problems(s.problem) {
		add(true, remedy{
			kind: "configuration not valid", do: "put it right with lictor edit-config; until then the members keep the last one that was valid",
			command: commandLine("edit-config", s.scope),
		}, "the dynamic configuration is not valid: %v", problem)
	}
	add(s.dynamic.Pause, remedy{kind: "paused", do: "lictor resume, when the maintenance is over", command: commandLine("resume", s.scope)}, "paused")
	for _, m := range snapshot.Members {
		alarms = append(alarms, s.memberAlarms(m)...)
	}
	alarms = append(alarms, s.standbyAlarms()...)
	for _, slot := range gone(snapshot) {
		add(true, remedy{kind: "member missing", do: ofTheMissing, command: commandLine("events", s.scope)},
			"a member is missing: nobody is here who uses the slot %s, which is kept for it", printable.Text(slot))
	}
	add(len(snapshot.Members) == 1, remedy{kind: "no replica", do: "add a member: without one nothing can take over"}, "no replica")
	add(s.dynamic.Synchronous() && len(snapshot.Members) > 1 && len(snapshot.Sync.Value.Standbys()) == 0,
		remedy{"no synchronous standby", "see that a replica streams and is not tagged nosync", commandLine("list", s.scope), "lag"}, "no synchronous standby")
	if s.impostor != nil {
		add(true, remedy{kind: "somebody else answers", do: ofTheImpostor}, "%s", s.impostor.Who())
	}
	for _, what := range archiveAlarms(leaderName, s.archiver) {
		add(true, remedy{kind: "archive", do: ofTheArchive, runbook: "archive-fails"}, "%s", what)
	}
	add(s.backups != "", remedy{kind: "backups", do: ofTheBackups, runbook: "backups-missing"}, "%s", s.backups)
	if s.unverified != "" {
		alarms = append(alarms, alarm{s.unverified, remedy{kind: "backups", do: ofTheVerification, runbook: "backups-missing"}, Worth})
	}
	alarms = append(alarms, s.bouncerAlarms()...)
	if what, do := s.misrouted(); what != "" {
		return append(alarms, alarm{what, remedy{kind: "route", do: do, command: commandLine("routes"), runbook: "pgbouncer-stuck"}, Wrong})
	}
	for _, b := range s.bouncers {
		what := s.behind(b)
		add(s.snapshot.Route.OK() && what != "", remedy{"bouncer", ofTheBouncer, commandLine("routes"), "pgbouncer-stuck"}, "%s", what)
	}
	return alarms
}

// memberAlarms says what is not as it should be with one of its members.
func (s fleetShard) memberAlarms(m cluster.Entry[cluster.Member]) []alarm {
	var alarms []alarm
	add := func(is bool, r remedy, format string, args ...any) {
		if is {
			alarms = append(alarms, alarm{fmt.Sprintf(format, args...), r, Wrong})
		}
	}
	snapshot, leaderName, v := s.snapshot, s.snapshot.LeaderName(), m.Value
	leader, _ := snapshot.Member(leaderName)
	streams := snapshot.Status.Value.Lictor != nil // Patroni 3 does not say
	add(m.OK() && v.State != cluster.StateRunning, remedy{
		"member not running", "see the agent's and PostgreSQL's log there", commandLine("list", s.scope), "replica-will-not-start",
	}, "%s is %s", v.Name, v.State)
	if v.PendingRestart {
		pending := remedy{kind: "restart waits", do: "lictor restart --pending", command: commandLine("restart --pending", s.scope)}
		alarms = append(alarms, alarm{v.Name + " waits for a restart", pending, Worth})
	}
	if unheard(snapshot, m) {
		add(true, remedy{
			kind: "member silent", do: "see whether its host and its agent run; its key vanishes with its Consul session, a while after them",
			command: commandLine("events", s.scope),
		}, "%s has not been heard of since %s took over", v.Name, leaderName)
		return alarms
	}
	if v.Stranded() && v.Name != leaderName {
		stranded := remedy{"cannot go on", "lictor reinit makes it anew; with rebuild: auto its agent would", commandLine("reinit", s.scope, v.Name), "rewind-failed"}
		if s.dynamic.Rebuild == cluster.RebuildAuto {
			stranded.do, stranded.command = "rebuild is auto: its agent makes it anew, when it is its turn", ""
			if v.Lictor.Rebuild != "" {
				stranded.do = "rebuild is auto: " + printable.Text(v.Lictor.Rebuild)
			}
		}
		add(true, stranded, "%s cannot go on: %s", v.Name, printable.Text(v.Lictor.Stranded))
		return alarms
	}
	if v.Name == leaderName || v.State != cluster.StateRunning || leaderName == "" {
		return alarms
	}
	add(cluster.IsPrimary(v.Role), remedy{
		twoPrimaries, "see whether it runs (its key outlives it for a while); if so, stop it at once unless it holds the lease, and see what was written there",
		commandLine("list", s.scope), "two-primaries",
	}, "%s says that it is a primary, too", v.Name)
	add(v.Timeline > 0 && leader.Value.Timeline > 0 && v.Timeline != leader.Value.Timeline, remedy{
		"another timeline", "wait some seconds after a change of leader; if it stays there see its log, lictor reinit makes it anew",
		commandLine("reinit", s.scope, v.Name), "rewind-failed",
	}, "%s is on timeline %d", v.Name, v.Timeline)
	noStream := cluster.NoStream(v.Tags)
	add(streams && v.ReplicationState == "" && !noStream, remedy{
		"not streaming", "see PostgreSQL's log on both sides: pg_hba, password, slot, network", commandLine("doctor", s.scope), "lag",
	}, "%s does not replicate", v.Name)
	add(streams && v.ReplicationState == "" && noStream, remedy{
		"not streaming", "give it a restore_command (postgresql.recovery_conf), or take the tag nostream away", commandLine("doctor", s.scope), "lag",
	}, "%s gets no WAL", v.Name)
	add(v.ReplayStandsStill != "", remedy{
		kind: "replay stands still", do: "it serves no readers: SELECT pg_wal_replay_resume() there, take recovery_min_apply_delay away or, if that is wanted, tag it noloadbalance; " +
			"one that waits for a restart gets it from its agent, unless the shard is paused", runbook: "lag",
	}, "replay of %s stands still: %s", v.Name, v.ReplayStandsStill)
	lag, known := snapshot.Lag(v, v.XLogLocation)
	limit := s.dynamic.MaximumLagOnFailover
	behind := "see pg_stat_replication on the primary, and the replica's disk and long queries"
	if noStream {
		behind = "see archive_command on the primary (pg_stat_archiver) and restore_command on the replica"
		if limit > 0 {
			limit += archiveLag
		}
	}
	add(known && limit > 0 && lag > limit, remedy{"lag", behind, commandLine("doctor", s.scope), "lag"}, "%s lags %s", v.Name, size(lag))
	return alarms
}

// longWait is from where on WAL that waits for its archive is told, although no try has
// failed: a command that hangs.
const longWait = 15 * time.Minute

// archiveAlarms says what is not as it should be with a leader's archive; nil: nothing is known of it.
func archiveAlarms(leader string, a *api.PeerArchiver) []string {
	switch {
	case a == nil:
	case a.Failing:
		return []string{fmt.Sprintf("%s cannot archive %s, and %s behind it", leader, a.LastFailed, count(a.Waiting-1, "file"))}
	case a.Waiting > 0 && a.WaitingFor > longWait:
		return []string{fmt.Sprintf("WAL of %s has waited for the archive for %s", leader, Duration(a.WaitingFor))}
	}
	return nil
}

// unheard reports whether a member led before the present leader and has written
// nothing since. The key of a leader whose host has died outlives it for the rest of
// its session: it still says that a primary runs there, which is no more than what
// was true when it was written.
func unheard(s cluster.Snapshot, m cluster.Entry[cluster.Member]) bool {
	return m.OK() && cluster.IsPrimary(m.Value.Role) && s.LeaderName() != "" && m.Value.Name != s.LeaderName() && m.ModifyIndex < s.Leader.ModifyIndex
}

// isStandby reports whether the shard has a standby leader, and no primary.
func (s fleetShard) isStandby() bool {
	leader, _ := s.snapshot.Member(s.snapshot.LeaderName())
	return leader.Value.Role == cluster.RoleStandbyLeader
}

// ofTheMissing is what helps where a member has gone: its key goes with its session.
const ofTheMissing = "bring its host and its agent back (lictor events says when it went away); if it was removed on purpose, nothing is to be done"

// gone are the slots that the leader keeps, for member_slots_ttl, for members that have no key any more.
func gone(s cluster.Snapshot) []string {
	here := map[string]bool{}
	for _, m := range s.Members {
		here[cluster.SlotName(m.Value.Name)] = true
	}
	return slices.DeleteFunc(slices.Clone(s.Status.Value.RetainSlots), func(slot string) bool { return here[slot] })
}

// lost are the members that went away, and when, by what the leaders have recorded, and have not come back. Those whose
// slots are kept are told of already.
func lost(s cluster.Snapshot, log events.Log) map[string]time.Time {
	away := map[string]time.Time{}
	for _, e := range log.Events {
		switch e.Kind {
		case events.MemberLost:
			away[e.To] = e.At
		case events.MemberBack:
			delete(away, e.To)
		}
	}
	for _, m := range s.Members {
		delete(away, m.Value.Name)
	}
	maps.DeleteFunc(away, func(name string, _ time.Time) bool {
		return slices.Contains(s.Status.Value.RetainSlots, cluster.SlotName(name))
	})
	return away
}

// bouncerAlarms says where an operator has clients wait, or sent elsewhere, and may have forgotten it.
func (s fleetShard) bouncerAlarms() []alarm {
	var alarms []alarm
	draining := 0
	for _, b := range s.bouncers {
		if pause := b.Applied[s.id].Paused; pause != nil {
			alarms = append(alarms, alarm{
				fmt.Sprintf("bouncer %s has clients wait since %s, paused by %s", b.Name, pause.Since.UTC().Format(time.RFC3339), printable.Text(pause.By)),
				remedy{kind: "clients wait", do: "lictor bouncer resume, on its host, when the maintenance is over", runbook: "pgbouncer-stuck"},
				Wrong,
			})
		}
		if b.Draining {
			draining++
		}
	}
	if draining > 0 && draining == len(s.bouncers) {
		alarms = append(alarms, alarm{
			"all bouncers are draining: load balancers send them no clients", remedy{kind: "bouncers drain", do: "lictor bouncer undrain, on their hosts"}, Wrong,
		})
	}
	return alarms
}

// draining says which bouncers get no clients from their load balancer; empty: none.
func (f fleet) draining() string {
	var names []string
	for _, b := range f.bouncers {
		if b.Draining {
			names = append(names, b.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(", %d draining (%s)", len(names), abridged(names, 10))
}

// standbyAlarms says what is not as it should be with a shard that has a standby leader: its route is down, which is
// right only while it follows another site.
func (s fleetShard) standbyAlarms() []alarm {
	if !s.isStandby() {
		return nil
	}
	leader, _ := s.snapshot.Member(s.snapshot.LeaderName())
	standby, beat := s.dynamic.StandbyCluster, s.snapshot.Status.Value.Lictor
	own := s.snapshot.CheckSite(standby.Host, standby.Port)
	switch {
	case beat != nil && beat.Succeeded > 0 && !standby.On():
		return []alarm{{
			fmt.Sprintf("no primary: the other site has taken over, on timeline %d", beat.Succeeded),
			remedy{kind: noPrimary, do: "lictor demote-cluster has it follow that site; promote-cluster --ignore-other-site makes two shards of them"},
			Wrong,
		}}
	case !standby.On():
		return []alarm{{
			"no primary: " + leader.Value.Name + " is a standby leader, and there is no standby_cluster to follow",
			remedy{kind: noPrimary, do: "see lictor doctor for why it is not promoted", command: commandLine("doctor", s.scope)},
			Wrong,
		}}
	case own != nil:
		return []alarm{{"no primary: the shard follows itself, " + own.Error(), remedy{kind: noPrimary, do: "lictor promote-cluster", command: commandLine("promote-cluster", s.scope)}, Wrong}}
	case beat != nil && leader.Value.ReplicationState == "" && leader.Value.State == cluster.StateRunning:
		return []alarm{{
			leader.Value.Name + " gets nothing from the " + standby.Upstream(),
			remedy{kind: "nothing from the other site", do: "see whether the other site lives, and pg_hba, password and network; if it is lost, lictor promote-cluster"},
			Wrong,
		}}
	}
	return nil
}

// misrouted says what is not right with the route, and what helps.
func (s fleetShard) misrouted() (what, do string) {
	r, leader := s.snapshot.Route, s.snapshot.LeaderName()
	switch {
	case !r.Exists() && s.snapshot.Status.Value.Lictor == nil: // Patroni writes none
		return "", ""
	case !r.Exists():
		return "no route", "see the leader's log, and what its Consul token may write below lictor/routes/"
	case r.Err != nil:
		return "", "" // among the problems
	case s.snapshot.Initialize.Value != "" && r.Value.SystemIdentifier != s.snapshot.Initialize.Value:
		return "the route belongs to another cluster", ofTheRoute
	case leader != "" && r.Value.Leader.Name != leader:
		return "the route leads to " + r.Value.Leader.Name, ofTheRoute
	case r.Value.State == cluster.RouteDown && s.isStandby():
		return "", "" // it leads no writer to a standby leader
	case r.Value.State != cluster.RouteOpen:
		return "the route is " + string(r.Value.State), ofTheRoute
	}
	return "", ""
}
