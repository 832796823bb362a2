package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// picture is the cluster at one moment, as its own parts tell.
type picture struct {
	shards  []shardPicture
	poolers []poolerPicture
}

type shardPicture struct {
	name    string
	members []memberPicture
	// written and failed are totals of the shard's clients.
	written int64
	failed  int
	// perSecond is how many rows were written in the last second.
	perSecond float64
	// waiting is how long ago the last row was acknowledged.
	waiting time.Duration
}

type memberPicture struct {
	name    string
	address string
	// silent says that the member's agent does not answer.
	silent   bool
	role     string
	state    string
	timeline int
	// lag is in bytes behind the primary, negative when unknown.
	lag int64
	// lease is what is left of the leader's lease, negative when there is none.
	lease time.Duration
}

type poolerPicture struct {
	name    string
	healthy bool
	// routes are the shards' primaries as this pooler knows them.
	routes map[string]string
	note   string
}

// observer asks all parts of the cluster how they fare.
type observer struct {
	lab       *lab.Lab
	workloads []*lab.Workload
}

// look asks everybody at once. Who does not answer within a second is silent.
func (o *observer) look(ctx context.Context) picture {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	shards, poolers := o.lab.Shards(), o.lab.BouncerHosts()
	p := picture{shards: make([]shardPicture, len(shards)), poolers: make([]poolerPicture, len(poolers))}
	var asking sync.WaitGroup
	for i, s := range shards {
		p.shards[i] = o.clients(s, o.workloads[i])
		p.shards[i].members = make([]memberPicture, len(s.Members()))
		asking.Go(func() { o.members(ctx, s, p.shards[i].members) })
	}
	for i, b := range poolers {
		asking.Go(func() { p.poolers[i] = o.pooler(ctx, b) })
	}
	asking.Wait()
	return p
}

func (o *observer) clients(s *lab.Shard, w *lab.Workload) shardPicture {
	now := time.Now()
	p := shardPicture{
		name: s.Name, written: w.Writes.Acked(), failed: w.Writes.ErrorCount() + w.Reads.ErrorCount(),
		perSecond: float64(len(w.Writes.Acks(now.Add(-time.Second), now))),
	}
	if last := w.Writes.LastAck(); !last.At.IsZero() {
		p.waiting = now.Sub(last.At)
	}
	return p
}

func (o *observer) members(ctx context.Context, s *lab.Shard, pictures []memberPicture) {
	members := s.Members()
	positions := make([]int64, len(members))
	var asking sync.WaitGroup
	for i, m := range members {
		asking.Go(func() { pictures[i], positions[i] = member(ctx, m) })
	}
	asking.Wait()
	primary := slices.IndexFunc(pictures, func(p memberPicture) bool { return p.role == "primary" })
	for i := range pictures {
		switch {
		case primary < 0 || pictures[i].silent || positions[i] == 0:
			pictures[i].lag = -1
		default: // the primary was asked at another moment than the replica
			pictures[i].lag = max(0, positions[primary]-positions[i])
		}
	}
}

func member(ctx context.Context, m *lab.Member) (memberPicture, int64) {
	p := memberPicture{name: m.Name, address: m.Postgres, lag: -1, lease: -1}
	status, err := m.Status(ctx)
	if err != nil {
		p.silent = true
		return p, 0
	}
	p.role, p.state, p.timeline = status.Role, status.State, status.Timeline
	if status.Primary() {
		p.role = "primary"
	} else if status.SyncStandby {
		p.role = "sync replica"
	}
	if status.Lictor != nil && status.Lictor.LeaseLeftMS != nil && *status.Lictor.LeaseLeftMS > 0 {
		p.lease = time.Duration(*status.Lictor.LeaseLeftMS) * time.Millisecond
	}
	return p, status.Position()
}

func (o *observer) pooler(ctx context.Context, b *lab.Bouncer) poolerPicture {
	body, err := o.get(ctx, "http://"+b.API+"/status")
	if err != nil {
		return poolerPicture{name: b.Name, note: "its bouncer does not answer"}
	}
	p, err := readBouncer(body)
	if err != nil {
		p.note = "its bouncer's status is not understood"
	}
	p.name = b.Name
	return p
}

// readBouncer reads a bouncer's GET /status.
func readBouncer(body []byte) (poolerPicture, error) {
	var status struct {
		Health struct {
			Healthy bool     `json:"healthy"`
			Reasons []string `json:"reasons"`
		} `json:"health"`
		Shards map[string]struct {
			Leader string             `json:"leader"`
			State  cluster.RouteState `json:"state"`
			Held   bool               `json:"held"`
		} `json:"shards"` // by NAMESPACE/SCOPE
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return poolerPicture{}, err
	}
	p := poolerPicture{healthy: status.Health.Healthy, routes: map[string]string{}}
	if len(status.Health.Reasons) > 0 {
		p.note = status.Health.Reasons[0]
	}
	for id, s := range status.Shards {
		to := s.Leader
		switch {
		case s.Held:
			to += " (clients wait)"
		case s.State != cluster.RouteOpen:
			to += " (" + string(s.State) + ")"
		}
		p.routes[id[strings.LastIndexByte(id, '/')+1:]] = to
	}
	return p, nil
}

func (o *observer) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := o.lab.HTTP().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %d", url, resp.StatusCode)
	}
	var raw json.RawMessage
	return raw, json.NewDecoder(resp.Body).Decode(&raw)
}
