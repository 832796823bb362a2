package api

import (
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/fence"
)

// compat3 is the value of Server.Compat that asks for Patroni 3's words.
const compat3 = "patroni-3"

// nodeStatus is the body of GET /patroni and of the health checks. What is
// optional is absent, not false.
type nodeStatus struct {
	State                string                           `json:"state"`
	PostmasterStartTime  string                           `json:"postmaster_start_time,omitempty"`
	Role                 string                           `json:"role"`
	ServerVersion        int                              `json:"server_version,omitempty"`
	XLog                 any                              `json:"xlog,omitempty"`
	Timeline             int                              `json:"timeline,omitempty"`
	SyncStandby          bool                             `json:"sync_standby,omitempty"`
	QuorumStandby        bool                             `json:"quorum_standby,omitempty"`
	ReplicationState     string                           `json:"replication_state,omitempty"`
	Replication          []replicationLine                `json:"replication,omitempty"`
	Pause                bool                             `json:"pause,omitempty"`
	ClusterUnlocked      bool                             `json:"cluster_unlocked,omitempty"`
	FailsafeModeIsActive bool                             `json:"failsafe_mode_is_active,omitempty"`
	WatchdogFailed       bool                             `json:"watchdog_failed,omitempty"`
	DCSLastSeen          int64                            `json:"dcs_last_seen"`
	Tags                 map[string]any                   `json:"tags,omitempty"`
	SystemIdentifier     string                           `json:"database_system_identifier,omitempty"`
	PendingRestart       bool                             `json:"pending_restart,omitempty"`
	PendingRestartReason map[string]cluster.PendingChange `json:"pending_restart_reason,omitempty"`
	Patroni              agentStatus                      `json:"patroni"`
	ScheduledRestart     map[string]any                   `json:"scheduled_restart,omitempty"`
	Lictor               lictorStatus                     `json:"lictor"`
}

type primaryXLog struct {
	Location int64 `json:"location"`
}

type replicaXLog struct {
	ReceivedLocation  int64   `json:"received_location"`
	ReplayedLocation  int64   `json:"replayed_location"`
	ReplayedTimestamp *string `json:"replayed_timestamp"`
	Paused            bool    `json:"paused"`
}

type replicationLine struct {
	User            string  `json:"usename"`
	ApplicationName string  `json:"application_name"`
	ClientAddr      *string `json:"client_addr"`
	State           string  `json:"state"`
	SyncState       string  `json:"sync_state"`
	SyncPriority    int     `json:"sync_priority"`
}

type agentStatus struct {
	Version string `json:"version"`
	Scope   string `json:"scope"`
	Name    string `json:"name"`
}

// lictorStatus is what Patroni has no field for.
type lictorStatus struct {
	// LeaseLeftMS is absent when this member holds no lease.
	LeaseLeftMS *int64      `json:"lease_left_ms,omitempty"`
	Guard       guardStatus `json:"guard"`
	// Watchdog is absent when its mode is off.
	Watchdog *watchdogStatus `json:"watchdog,omitempty"`
	Reason   string          `json:"reason"`
	// Problems are what somebody has to mend; absent when there is nothing.
	Problems []string `json:"problems,omitempty"`
	// OtherPrimaries must be empty.
	OtherPrimaries []string `json:"other_primaries,omitempty"`
	// Task is the long piece of work under way, absent when there is none.
	Task *taskStatus `json:"task,omitempty"`
	// Made says when and how the data directory was made last; absent when not by this
	// run of the agent.
	Made string `json:"made,omitempty"`
	// Beat is the last renewal of the leader's lease that this member has seen;
	// absent when there is none.
	Beat *cluster.Beat `json:"beat,omitempty"`
	// LoopAgeMS is how long ago the loop came round; absent before the first
	// time.
	LoopAgeMS *int64 `json:"loop_age_ms,omitempty"`
	// ObservedAgeMS is how long ago PostgreSQL was looked at, absent before the
	// first time.
	ObservedAgeMS *int64 `json:"observed_age_ms,omitempty"`
	// ReplayStandsStill says why a replica serves no readers, absent when its replay
	// goes on.
	ReplayStandsStill string `json:"replay_stands_still,omitempty"`
	// Stranded says why a replica cannot go on with its data and must be made anew, absent
	// when it can.
	Stranded string `json:"stranded,omitempty"`
	// Rebuild says what one that is to be made anew by policy waits for, or that it has its turn.
	Rebuild string `json:"rebuild,omitempty"`
	// Replaying says whether the replica may have more WAL than xlog says: it has
	// not replayed all that it had when it was started. Absent without positions.
	Replaying *bool `json:"replaying,omitempty"`
	// Restoring says that the data were removed, rewound or cloned, and may not have
	// again all that they had acknowledged before.
	Restoring bool `json:"restoring,omitempty"`
	// Secrets are the fingerprints of the shard's secrets that this member takes, the
	// one in use first; absent when it knows none.
	Secrets []string `json:"secrets,omitempty"`
	// Archiver is how WAL gets into the archive; absent where this member archives none.
	Archiver *archiverStatus `json:"archiver,omitempty"`
	// WAL is how much there is of it, and how much room it has; absent while that is not known.
	WAL *walStatus `json:"wal,omitempty"`
	// Backups are those of the shard; absent where nobody asks for them, and on replicas.
	Backups *backupsStatus `json:"backups,omitempty"`
	// Verified is the backup that was restored and checked on this host last.
	Verified *Verification `json:"verified,omitempty"`
	// Detached is the status (its ModifyIndex) under which this member had detached from
	// the old leader when it began to look at PostgreSQL; absent when it had not.
	Detached uint64 `json:"parted,omitempty"`
	// Attempts are those at a takeover by quorum for which it had.
	Attempts []string `json:"attempts,omitempty"`
}

// walStatus is PostgreSQL's WAL on its disk.
type walStatus struct {
	Bytes     int64 `json:"bytes"`
	FreeBytes int64 `json:"free_bytes"`
	// FullInMS is when nothing is free at the pace of the last minutes; absent when it does
	// not grow.
	FullInMS int64 `json:"full_in_ms,omitempty"`
}

// taskStatus is a long piece of work; bytes are absent when it is no clone or they
// are not known.
type taskStatus struct {
	Kind       string `json:"kind"`
	ForMS      int64  `json:"for_ms"`
	From       string `json:"from,omitempty"`
	Bytes      int64  `json:"bytes,omitempty"`
	TotalBytes int64  `json:"total_bytes,omitempty"`
	// Of a clone: the method at work, how far its program says it is, and why the
	// methods before it have failed.
	Method  string  `json:"method,omitempty"`
	Percent float64 `json:"percent,omitempty"`
	Failed  string  `json:"failed,omitempty"`
}

type guardStatus struct {
	Running    bool  `json:"running"`
	ArmedForMS int64 `json:"armed_for_ms"`
}

// watchdogStatus is the state of the watchdog device; times are milliseconds.
type watchdogStatus struct {
	Mode       string `json:"mode"`
	Device     string `json:"device"`
	Identity   string `json:"identity,omitempty"`
	Active     bool   `json:"active"`
	Working    bool   `json:"working"`
	TimeoutMS  int64  `json:"timeout_ms"`
	TimeLeftMS int64  `json:"time_left_ms"`
	Nowayout   *bool  `json:"nowayout,omitempty"`
	KeepAlives uint64 `json:"keepalives"`
	LastReset  string `json:"last_reset,omitempty"`
	LastError  string `json:"last_error,omitempty"`
}

func newWatchdogStatus(w fence.WatchdogState) *watchdogStatus {
	if w.Mode == "" || w.Mode == "off" {
		return nil
	}
	return &watchdogStatus{
		Mode: w.Mode, Device: w.Device, Identity: w.Identity, Active: w.Active, Working: w.Working,
		TimeoutMS: w.Timeout.Milliseconds(), TimeLeftMS: w.TimeLeft.Milliseconds(), Nowayout: w.Nowayout,
		KeepAlives: w.KeepAlives, LastReset: w.LastReset, LastError: w.LastError,
	}
}

// status says all about a node.
func (s *Server) status(state State) nodeStatus {
	pg := state.Postgres
	out := nodeStatus{
		State:                pg.State,
		Role:                 s.role(state),
		Pause:                state.Dynamic.Pause,
		ClusterUnlocked:      state.ConsulSeen.IsZero() || state.Cluster.LeaderName() == "",
		FailsafeModeIsActive: state.FailsafeActive,
		Tags:                 effectiveTags(state),
		SystemIdentifier:     pg.SystemIdentifier,
		PendingRestart:       len(pg.PendingRestart) > 0 || state.Member.PendingRestart,
		PendingRestartReason: pg.PendingRestart,
		Patroni:              agentStatus{Version: state.Version, Scope: state.Scope, Name: state.Name},
		ScheduledRestart:     scheduledRestart(state.Member),
		Lictor:               s.lictor(state),
	}
	if w := out.Lictor.Watchdog; w != nil && state.Leader && !w.Working {
		out.WatchdogFailed = true
	}
	if !state.ConsulSeen.IsZero() {
		out.DCSLastSeen = state.ConsulSeen.Unix()
	}
	if !pg.Accepting {
		if pg.State == cluster.StateRunning {
			// It was started and did not stop, yet it does not answer.
			out.State = "unknown"
		}
		return out
	}
	if !pg.StartTime.IsZero() {
		out.PostmasterStartTime = pythonTime(pg.StartTime)
	}
	out.ServerVersion, out.Timeline = pg.ServerVersion, pg.Timeline
	if pg.InRecovery {
		x := replicaXLog{ReceivedLocation: pg.ReceivedLSN, ReplayedLocation: pg.ReplayedLSN, Paused: pg.ReplayPaused}
		if x.ReceivedLocation == 0 {
			x.ReceivedLocation = pg.ReplayedLSN
		}
		if !pg.ReplayedAt.IsZero() {
			at := pythonTime(pg.ReplayedAt)
			x.ReplayedTimestamp = &at
		}
		out.XLog = x
		out.ReplicationState = pg.ReplicationState
		out.SyncStandby = syncRole(state) == roleSyncStandby
		out.QuorumStandby = syncRole(state) == roleQuorumStandby
	} else {
		out.XLog = primaryXLog{Location: pg.LSN}
	}
	for _, b := range pg.Standbys {
		line := replicationLine{
			User: b.User, ApplicationName: b.ApplicationName,
			State: b.State, SyncState: b.SyncState, SyncPriority: b.SyncPriority,
		}
		if b.ClientAddr != "" {
			line.ClientAddr = &b.ClientAddr
		}
		out.Replication = append(out.Replication, line)
	}
	return out
}

func (s *Server) lictor(state State) lictorStatus {
	now := s.now()
	out := lictorStatus{
		Guard: guardStatus{Running: state.GuardRunning}, Watchdog: newWatchdogStatus(state.Watchdog),
		Reason: state.Reason, Problems: state.Problems, OtherPrimaries: state.OtherPrimaries,
		Beat:      state.Cluster.Status.Value.Lictor,
		Restoring: state.Postgres.Restoring, Detached: state.ObservedDetached, Attempts: state.Attempts,
	}
	if secret, held := s.secrets.Secret(); held {
		out.Secrets = secret.Fingerprints()
	}
	if !state.At.IsZero() {
		passed := age(state.At, now)
		out.Guard.ArmedForMS = max(0, state.GuardArmedFor-passed).Milliseconds()
		if state.Leader {
			left := max(0, state.LeaseLeft-passed).Milliseconds()
			out.LeaseLeftMS = &left
		}
	}
	if t := state.Task; t.Kind != "" {
		out.Task = &taskStatus{
			Kind: t.Kind, ForMS: age(t.Since, now).Milliseconds(), From: t.From, Method: t.Method,
			Bytes: t.Done, TotalBytes: t.Total, Percent: t.Percent, Failed: t.Failed,
		}
	}
	if l := state.Member.Lictor; l != nil {
		out.Made, out.Stranded, out.Rebuild = l.Made, l.Stranded, l.Rebuild
	}
	if !state.ObservedAt.IsZero() {
		passed := age(state.ObservedAt, now).Milliseconds()
		out.ObservedAgeMS = &passed
	}
	if state.Postgres.Accepting && state.Postgres.InRecovery {
		replaying := state.Postgres.Replaying
		out.Replaying, out.ReplayStandsStill = &replaying, state.Postgres.Standstill
	}
	out.Archiver, out.Backups = newArchiverStatus(state.Archiver, now), state.Backups.status(now)
	out.Verified = state.Verified.orNil()
	if room := state.WALRoom; room.Bytes > 0 {
		out.WAL = &walStatus{Bytes: room.Bytes, FreeBytes: room.Free, FullInMS: room.FullIn.Milliseconds()}
	}
	if !state.LoopAt.IsZero() {
		passed := age(state.LoopAt, now).Milliseconds()
		out.LoopAgeMS = &passed
	}
	return out
}

// role is the node's role in the words of the Patroni that is spoken.
func (s *Server) role(state State) string {
	role := roleOf(state)
	if cluster.IsPrimary(role) {
		return s.primaryRole()
	}
	return role
}

// roleOf is the node's role. When PostgreSQL answers, it knows best.
func roleOf(state State) string {
	role := state.Member.Role
	if state.Postgres.Accepting {
		switch {
		case !state.Postgres.InRecovery:
			role = cluster.RolePrimary
		case state.Leader && isStandbyCluster(state.Dynamic.Raw):
			role = cluster.RoleStandbyLeader
		default:
			role = cluster.RoleReplica
		}
	}
	if role == "" {
		return cluster.RoleUninitialized
	}
	return role
}

func (s *Server) primaryRole() string {
	if s.Compat == compat3 {
		return cluster.RoleMaster
	}
	return cluster.RolePrimary
}

// effectiveTags are the tags that the member publishes.
func effectiveTags(state State) map[string]any {
	if state.Member.Tags != nil {
		return state.Member.Tags
	}
	out := map[string]any{}
	for name, value := range state.Tags {
		if value == false && slices.Contains([]string{"nofailover", "clonefrom", "noloadbalance", "nosync", "nostream"}, name) {
			continue
		}
		out[name] = value
	}
	return out
}

func boolTag(state State, name string) bool {
	return cluster.Member{Tags: state.Tags}.Tag(name) || state.Member.Tag(name)
}

// syncRole is which of the synchronous roles a node has by the key sync, if any.
func syncRole(state State) string {
	c := state.Cluster
	if !c.Sync.OK() || !state.Dynamic.SynchronousMode.On() {
		return ""
	}
	if !slices.ContainsFunc(c.Sync.Value.Standbys(), func(n string) bool { return strings.EqualFold(n, state.Name) }) {
		return ""
	}
	if state.Dynamic.SynchronousMode == cluster.SyncQuorum {
		return roleQuorumStandby
	}
	return roleSyncStandby
}

// isStandbyCluster reports whether a dynamic configuration makes the shard follow
// another one.
func isStandbyCluster(dynamic map[string]any) bool {
	section, ok := dynamic["standby_cluster"].(map[string]any)
	if !ok {
		return false
	}
	for _, key := range []string{"host", "port", "restore_command"} {
		if v, set := section[key]; set && v != nil && v != "" {
			return true
		}
	}
	return false
}

// scheduledRestart is what may be told of a scheduled restart: all but the
// moment by which the member recognises it.
func scheduledRestart(m cluster.Member) map[string]any {
	if m.ScheduledRestart == nil {
		return nil
	}
	out := map[string]any{}
	for k, v := range m.ScheduledRestart {
		if k != postmasterStart {
			out[k] = v
		}
	}
	return out
}

// pythonTime writes a time as Patroni's clients know it: with a space, and with
// six digits of a second or none.
func pythonTime(t time.Time) string {
	return t.UTC().Format(withFraction(t, "2006-01-02 15:04:05"))
}

// isoTime is ISO 8601 in the same manner, in the time's own zone.
func isoTime(t time.Time) string {
	return t.Format(withFraction(t, "2006-01-02T15:04:05"))
}

// withFraction completes a layout: with the fraction of the second, if there is
// one, and the zone.
func withFraction(t time.Time, layout string) string {
	if t.Nanosecond()/1000 != 0 {
		layout += ".000000"
	}
	return layout + "-07:00"
}
