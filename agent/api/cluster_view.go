package api

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Roles in the view of a shard that are not roles of a member's own.
const (
	roleLeader        = "leader"
	roleSyncStandby   = "sync_standby"
	roleQuorumStandby = "quorum_standby"
)

// unknown stands for a position that a member does not publish.
const unknown = "unknown"

// ClusterView is a shard as GET /cluster and the command `list` show it.
type ClusterView struct {
	Members             []MemberView         `json:"members"`
	Scope               string               `json:"scope"`
	Pause               bool                 `json:"pause,omitempty"`
	ScheduledSwitchover *ScheduledSwitchover `json:"scheduled_switchover,omitempty"`
}

// ScheduledSwitchover is a switchover to come.
type ScheduledSwitchover struct {
	At   string `json:"at"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// MemberView is one member in the view of its shard.
type MemberView struct {
	Name                 string                           `json:"name"`
	Role                 string                           `json:"role"`
	State                string                           `json:"state"`
	APIURL               string                           `json:"api_url"`
	Host                 string                           `json:"host,omitempty"`
	Port                 int                              `json:"port,omitempty"`
	Timeline             int                              `json:"timeline,omitempty"`
	PendingRestart       bool                             `json:"pending_restart,omitempty"`
	PendingRestartReason map[string]cluster.PendingChange `json:"pending_restart_reason,omitempty"`
	ScheduledRestart     map[string]any                   `json:"scheduled_restart,omitempty"`
	Tags                 map[string]any                   `json:"tags,omitempty"`
	ReplayStandsStill    string                           `json:"replay_stands_still,omitempty"`
	*Lags
}

// Lags are where a replica is and how far, in bytes, behind the position that
// the leader published last. What is not known is the word "unknown".
type Lags struct {
	ReceiveLSN any `json:"receive_lsn"`
	ReceiveLag any `json:"receive_lag"`
	ReplayLSN  any `json:"replay_lsn"`
	ReplayLag  any `json:"replay_lag"`
	LSN        any `json:"lsn"`
	Lag        any `json:"lag"`
}

// NewClusterView makes the view of a shard from its keys.
func NewClusterView(scope string, s cluster.Snapshot) ClusterView {
	view := ClusterView{Scope: scope, Members: []MemberView{}}
	var config struct {
		Pause           any `json:"pause"`
		SynchronousMode any `json:"synchronous_mode"`
		StandbyCluster  any `json:"standby_cluster"`
	}
	// A config that is no JSON is reported by those who obey it.
	_ = json.Unmarshal(s.Config.Value, &config)
	view.Pause = isTrue(config.Pause)
	standbyRole := roleSyncStandby
	if config.SynchronousMode == string(cluster.SyncQuorum) {
		standbyRole = roleQuorumStandby
	}
	for _, entry := range s.Members {
		m := entry.Value
		v := MemberView{
			Name: m.Name, State: m.State, APIURL: m.APIURL, Timeline: m.Timeline,
			PendingRestart: m.PendingRestart, PendingRestartReason: m.PendingRestartReason,
			ScheduledRestart: m.ScheduledRestart, Tags: m.Tags, ReplayStandsStill: m.ReplayStandsStill,
		}
		if m.ReplicationState != "" {
			v.State = m.ReplicationState
		}
		v.Host, v.Port = hostPort(m.ConnURL)
		switch {
		case m.Name != s.LeaderName():
			v.Role = cluster.RoleReplica
			if slices.ContainsFunc(s.Sync.Value.Standbys(), func(n string) bool { return strings.EqualFold(n, m.Name) }) {
				v.Role = standbyRole
			}
			v.Lags = lagsOf(s, m)
		case isStandbyCluster(map[string]any{"standby_cluster": config.StandbyCluster}) && !cluster.IsPrimary(m.Role):
			v.Role = cluster.RoleStandbyLeader
		default:
			v.Role = roleLeader
		}
		view.Members = append(view.Members, v)
	}
	slices.SortFunc(view.Members, func(a, b MemberView) int { return strings.Compare(a.Name, b.Name) })
	if f := s.Failover.Value; f.ScheduledAt != nil {
		view.ScheduledSwitchover = &ScheduledSwitchover{At: isoTime(*f.ScheduledAt), From: f.Leader, To: f.Candidate}
	}
	return view
}

func lagsOf(s cluster.Snapshot, m cluster.Member) *Lags {
	// Positions begin above zero, so zero means that none was published.
	position := func(lsn int64) (where, lag any) {
		where, lag = unknown, unknown
		if lsn > 0 {
			where = formatLSN(lsn)
		}
		if bytes, known := s.Lag(m, lsn); known {
			lag = bytes
		}
		return where, lag
	}
	var out Lags
	out.ReceiveLSN, out.ReceiveLag = position(m.ReceiveLSN)
	out.ReplayLSN, out.ReplayLag = position(m.ReplayLSN)
	out.LSN, out.Lag = position(m.XLogLocation)
	return &out
}

// formatLSN writes a WAL position as PostgreSQL does.
func formatLSN(lsn int64) string {
	return fmt.Sprintf("%X/%X", lsn>>32, lsn&0xffffffff)
}

// hostPort takes a member's conn_url apart; what is not there is empty.
func hostPort(connURL string) (string, int) {
	u, err := url.Parse(connURL)
	if err != nil {
		return "", 0
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		port = 0
	}
	return u.Hostname(), port
}
