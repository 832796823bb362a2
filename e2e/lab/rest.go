package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// request sends one HTTP request from where the lab's clients are.
func (l *Lab) request(ctx context.Context, method, url string, body []byte, timeout time.Duration) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return resp.StatusCode, answer, fmt.Errorf("%s %s: %w", method, url, err)
	}
	return resp.StatusCode, answer, nil
}

// NodeStatus is what GET /patroni of a member says, as far as a lab needs it.
type NodeStatus struct {
	State            string `json:"state"`
	Role             string `json:"role"`
	ServerVersion    int    `json:"server_version"`
	Timeline         int    `json:"timeline"`
	SystemIdentifier string `json:"database_system_identifier"`
	ReplicationState string `json:"replication_state"`
	SyncStandby      bool   `json:"sync_standby"`
	// FailsafeActive says that the leader goes on without Consul: of the leader, and of each member that has
	// promised it.
	FailsafeActive bool `json:"failsafe_mode_is_active"`
	XLog           struct {
		Location         int64 `json:"location"`
		ReceivedLocation int64 `json:"received_location"`
		ReplayedLocation int64 `json:"replayed_location"`
	} `json:"xlog"`
	Replication []Replica `json:"replication"`
	// Lictor is nil when the member runs something else.
	Lictor *struct {
		LeaseLeftMS *int64 `json:"lease_left_ms"`
	} `json:"lictor"`
}

// Replica is one standby that streams from a member.
type Replica struct {
	ApplicationName string `json:"application_name"`
	State           string `json:"state"`
	SyncState       string `json:"sync_state"`
}

// Primary tells whether the member says that it is one.
func (n NodeStatus) Primary() bool {
	return n.Role == "primary" || n.Role == "master" || n.Role == "leader"
}

// Position is how far the member's WAL reaches.
func (n NodeStatus) Position() int64 {
	return max(n.XLog.Location, n.XLog.ReceivedLocation, n.XLog.ReplayedLocation)
}

// ClusterMember is one line of GET /cluster.
type ClusterMember struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	State    string `json:"state"`
	Timeline int    `json:"timeline"`
	// Lag is a number of bytes, "unknown", or absent.
	Lag any `json:"lag"`
}

// restTimeout bounds one question to a member; one that is lost does not
// answer at all.
const restTimeout = 2 * time.Second

// Status asks the member how it fares.
func (m *Member) Status(ctx context.Context) (NodeStatus, error) {
	var status NodeStatus
	return status, m.getJSON(ctx, "/patroni", &status)
}

// Cluster asks the member how it sees the whole shard.
func (m *Member) Cluster(ctx context.Context) ([]ClusterMember, error) {
	var answer struct {
		Members []ClusterMember `json:"members"`
	}
	err := m.getJSON(ctx, "/cluster", &answer)
	return answer.Members, err
}

func (m *Member) getJSON(ctx context.Context, path string, value any) error {
	body, err := m.lab.get(ctx, "http://"+m.REST+path, restTimeout)
	if err != nil {
		return fmt.Errorf("member %s: %w", m.Name, err)
	}
	if err := json.Unmarshal(body, value); err != nil {
		return fmt.Errorf("member %s: answer to GET %s: %w", m.Name, path, err)
	}
	return nil
}

// Get returns the status code of a GET request to the member's REST API, which
// is how load balancers ask.
func (m *Member) Get(ctx context.Context, path string) (int, []byte, error) {
	return m.lab.request(ctx, http.MethodGet, "http://"+m.REST+path, nil, restTimeout)
}

// Post sends a request to the member's REST API: body as JSON, or as it is when it
// is []byte. It may take as long as what it asks for: bound it by ctx.
func (m *Member) Post(ctx context.Context, path string, body any) (int, string, error) {
	return m.send(ctx, http.MethodPost, path, body)
}

// Patch is Post for PATCH requests.
func (m *Member) Patch(ctx context.Context, path string, body any) (int, string, error) {
	return m.send(ctx, http.MethodPatch, path, body)
}

func (m *Member) send(ctx context.Context, method, path string, body any) (int, string, error) {
	encoded, raw := body.([]byte)
	if !raw {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			return 0, "", fmt.Errorf("request to %s: %w", m.Name, err)
		}
	}
	status, answer, err := m.lab.request(ctx, method, "http://"+m.REST+path, encoded, 2*time.Minute)
	if err != nil {
		return status, string(answer), fmt.Errorf("member %s: %w", m.Name, err)
	}
	return status, string(answer), nil
}

// Switchover asks the leader to hand over to candidate, or, when candidate is
// nil, to whom it chooses, and returns when it has answered.
func (s *Shard) Switchover(ctx context.Context, leader, candidate *Member) error {
	request := map[string]string{"leader": leader.Name}
	if candidate != nil {
		request["candidate"] = candidate.Name
	}
	status, answer, err := leader.Post(ctx, "/switchover", request)
	if err != nil {
		return fmt.Errorf("switchover of %s: %w", s.Name, err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("switchover of %s: %s answers %d: %s", s.Name, leader.Name, status, answer)
	}
	return nil
}
