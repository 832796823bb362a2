package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// memberStatus is the part of GET /patroni that commands and the doctor look at.
type memberStatus struct {
	State            string                           `json:"state"`
	Role             string                           `json:"role"`
	Started          string                           `json:"postmaster_start_time"`
	ReplicationState string                           `json:"replication_state"`
	PendingRestart   bool                             `json:"pending_restart"`
	PendingReason    map[string]cluster.PendingChange `json:"pending_restart_reason"`
	ServerVersion    int                              `json:"server_version"`
	Failsafe         bool                             `json:"failsafe_mode_is_active"`
	WatchdogFailed   bool                             `json:"watchdog_failed"`
	XLog             struct {
		Replayed int64 `json:"replayed_location"`
	} `json:"xlog"`
	Patroni struct {
		Version string `json:"version"`
	} `json:"patroni"`
	Lictor *lictorStatus `json:"lictor"` // nil: the member runs Patroni
}

// lictorStatus is what only Lictor's agents tell.
type lictorStatus struct {
	LeaseLeftMS *int64 `json:"lease_left_ms"`
	// Secrets are fingerprints, of the secret in use first.
	Secrets  []string `json:"secrets"`
	Archiver *struct {
		Waiting   int   `json:"waiting"`
		WaitingMS int64 `json:"waiting_ms"`
		Failing   bool  `json:"failing"` // told as a problem, too
	} `json:"archiver"`
	LoopAgeMS *int64 `json:"loop_age_ms"`
	Reason    string `json:"reason"`
	Guard     struct {
		Running    bool  `json:"running"`
		ArmedForMS int64 `json:"armed_for_ms"`
	} `json:"guard"`
	Watchdog *struct {
		Mode      string `json:"mode"`
		Device    string `json:"device"`
		Working   bool   `json:"working"`
		LastError string `json:"last_error"`
		LastReset string `json:"last_reset"`
	} `json:"watchdog"`
	OtherPrimaries []string `json:"other_primaries"`
	// Problems are what its log tells of, and what lasts.
	Problems []string `json:"problems"`
	// Task is the work that is under way.
	Task *struct {
		From       string `json:"from"`
		Bytes      int64  `json:"bytes"`
		TotalBytes int64  `json:"total_bytes"`
	} `json:"task"`
}

func (m memberStatus) primary() bool { return cluster.IsPrimary(m.Role) }

// askStatus asks a member how it is. A client that proves itself believes the member alone.
func askStatus(ctx context.Context, client *api.Client, m api.Peer) (memberStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answer, err := client.Ask(ctx, m, "/patroni")
	if err != nil {
		return memberStatus{}, err
	}
	if answer.Status != http.StatusOK {
		return memberStatus{}, fmt.Errorf("%s answers %d", m.Name, answer.Status)
	}
	var status memberStatus
	if err := json.Unmarshal([]byte(answer.Text), &status); err != nil {
		return memberStatus{}, fmt.Errorf("%s answers no status: %w", m.Name, printable.Error(err))
	}
	return status, nil
}

func (s *Shard) status(ctx context.Context, m cluster.Member) (memberStatus, error) {
	return askStatus(ctx, s.client, api.PeerOf(m))
}
