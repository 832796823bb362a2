package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
)

// fakeNode is a Node of function fields; what is not set must not be called.
type fakeNode struct {
	state            func() State
	reload           func(context.Context) error
	restart          func(context.Context) error
	scheduleRestart  func(context.Context, RestartRequest) error
	cancelRestart    func(context.Context) error
	restore          func(context.Context, RestoreRequest) error
	cancelRestore    func(context.Context) error
	checkUpgrade     func(context.Context, int) (pg.UpgradeCheck, error)
	upgrade          func(to int) error
	analyze          func() error
	reinitialize     func(context.Context, ReinitRequest) error
	switchover       func(context.Context, cluster.Failover) (Outcome, error)
	cancelSwitchover func(context.Context) error
	observe          func(context.Context)
	failsafe         func(context.Context, FailsafeRequest) error
	deposed          func(context.Context, Deposition) error
	detach           func(context.Context, DetachRequest) error
	changeConfig     func(context.Context, func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error)
}

var _ Node = (*fakeNode)(nil)

var errUnexpected = errors.New("the node was asked for something that the test does not expect")

func (n *fakeNode) State() State { return n.state() }

func (n *fakeNode) Observe(ctx context.Context) {
	if n.observe != nil {
		n.observe(ctx)
	}
}

func (n *fakeNode) Failsafe(ctx context.Context, r FailsafeRequest) error {
	if n.failsafe == nil {
		return errUnexpected
	}
	return n.failsafe(ctx, r)
}

func (n *fakeNode) Deposed(ctx context.Context, d Deposition) error {
	if n.deposed == nil {
		return errUnexpected
	}
	return n.deposed(ctx, d)
}

func (n *fakeNode) Detach(ctx context.Context, p DetachRequest) error {
	if n.detach == nil {
		return errUnexpected
	}
	return n.detach(ctx, p)
}

func (n *fakeNode) Reload(ctx context.Context) error {
	if n.reload == nil {
		return errUnexpected
	}
	return n.reload(ctx)
}

func (n *fakeNode) Restart(ctx context.Context) error {
	if n.restart == nil {
		return errUnexpected
	}
	return n.restart(ctx)
}

func (n *fakeNode) ScheduleRestart(ctx context.Context, r RestartRequest) error {
	if n.scheduleRestart == nil {
		return errUnexpected
	}
	return n.scheduleRestart(ctx, r)
}

func (n *fakeNode) CancelRestart(ctx context.Context) error {
	if n.cancelRestart == nil {
		return ErrNone
	}
	return n.cancelRestart(ctx)
}

func (n *fakeNode) Reinitialize(ctx context.Context, r ReinitRequest) error {
	if n.reinitialize == nil {
		return errUnexpected
	}
	return n.reinitialize(ctx, r)
}

func (n *fakeNode) Restore(ctx context.Context, r RestoreRequest) error {
	if n.restore == nil {
		return errUnexpected
	}
	return n.restore(ctx, r)
}

func (n *fakeNode) CancelRestore(ctx context.Context) error {
	if n.cancelRestore == nil {
		return errUnexpected
	}
	return n.cancelRestore(ctx)
}

func (n *fakeNode) Upgrade(_ context.Context, to int) error {
	if n.upgrade == nil {
		return errUnexpected
	}
	return n.upgrade(to)
}

func (n *fakeNode) Analyze(context.Context) error {
	if n.analyze == nil {
		return errUnexpected
	}
	return n.analyze()
}

func (n *fakeNode) CheckUpgrade(ctx context.Context, to int) (pg.UpgradeCheck, error) {
	if n.checkUpgrade == nil {
		return pg.UpgradeCheck{}, errUnexpected
	}
	return n.checkUpgrade(ctx, to)
}

func (n *fakeNode) Switchover(ctx context.Context, f cluster.Failover) (Outcome, error) {
	if n.switchover == nil {
		return Outcome{}, errUnexpected
	}
	return n.switchover(ctx, f)
}

func (n *fakeNode) CancelSwitchover(ctx context.Context) error {
	if n.cancelSwitchover == nil {
		return errUnexpected
	}
	return n.cancelSwitchover(ctx)
}

func (n *fakeNode) ChangeConfig(ctx context.Context, change func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
	if n.changeConfig == nil {
		return nil, nil, errUnexpected
	}
	return n.changeConfig(ctx, change)
}

const mega = 1 << 20

// snapshot is a healthy shard of three, node1 leading at 100 MB.
func snapshot() cluster.Snapshot {
	member := func(name, host, role, state string, lsn int64) cluster.Entry[cluster.Member] {
		return cluster.Entry[cluster.Member]{ModifyIndex: 5, Session: "s", Value: cluster.Member{
			Name: name, ConnURL: "postgres://" + host + ":5432/postgres", APIURL: "http://" + host + ":8008/patroni",
			State: state, Role: role, Version: "1.2.3", XLogLocation: lsn, Timeline: 2,
		}}
	}
	return cluster.Snapshot{
		Index:      9,
		Initialize: cluster.Entry[string]{Value: "7277694203142172922", ModifyIndex: 1},
		Config:     cluster.Entry[[]byte]{Value: []byte(`{"ttl":8,"unknown":{"kept":1.50}}`), ModifyIndex: 2},
		Leader:     cluster.Entry[string]{Value: "node1", Session: "s", ModifyIndex: 3},
		Status: cluster.Entry[cluster.Status]{ModifyIndex: 4, Value: cluster.Status{
			OpTime: 100 * mega, Lictor: &cluster.Beat{LeaseMS: 8000, Number: 42, Owner: "node1"},
		}},
		Members: []cluster.Entry[cluster.Member]{
			member("node1", "10.0.0.1", "primary", "running", 100*mega),
			member("node2", "10.0.0.2", "replica", "running", 100*mega),
			member("node3", "10.0.0.3", "replica", "running", 98*mega),
		},
	}
}

func synced(c cluster.Snapshot, standbys ...string) cluster.Snapshot {
	c.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 6, Value: cluster.NewSync("node1", standbys)}
	return c
}

// primaryState is the state of node1, seen at that moment.
func primaryState(at time.Time) State {
	return State{
		At: at, Name: "node1", Scope: "batman", Version: "1.2.3",
		Cluster: snapshot(),
		Dynamic: cluster.Dynamic{
			MaximumLagOnFailover: 1 << 20,
			Timing:               cluster.Timing{TTL: 8 * time.Second, LoopWait: 2 * time.Second, RetryTimeout: 3 * time.Second},
			SynchronousMode:      cluster.SyncOff,
		},
		ConsulSeen: at, LoopAt: at, Reason: "leading",
		Leader: true, LeaseLeft: 7 * time.Second, GuardRunning: true, GuardArmedFor: 6 * time.Second,
		Member: cluster.Member{Name: "node1", Role: "primary", State: "running"},
		Postgres: Postgres{
			State: "running", Accepting: true, StartTime: time.Date(2026, 11, 21, 2, 49, 57, 598387000, time.UTC),
			ServerVersion: 150020, SystemIdentifier: "7277694203142172922", Timeline: 2, LSN: 100 * mega,
		},
	}
}

// replicaState is the state of node2, 1 MB behind.
func replicaState(at time.Time) State {
	s := primaryState(at)
	s.Name, s.Leader, s.LeaseLeft, s.GuardArmedFor, s.Reason = "node2", false, 0, 0, "following node1"
	s.Member = cluster.Member{Name: "node2", Role: "replica", State: "running"}
	s.Postgres.InRecovery, s.Postgres.LSN = true, 0
	s.Postgres.ReceivedLSN, s.Postgres.ReplayedLSN = 100*mega, 99*mega
	s.Postgres.LeaderLSN = 100 * mega
	s.Postgres.ReplicationState = "streaming"
	return s
}

// fixed gives a node that is always in that state.
func fixed(s State) *fakeNode { return &fakeNode{state: func() State { return s }} }

// running is a server that a test has started.
type running struct {
	*Server
	url string
	// stop ends the server and returns what Serve returned.
	stop func() error
}

// start serves a node on a free port until the test ends.
func start(t *testing.T, cfg config.RestAPI, node Node, adjust ...func(*Server)) running {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	s, err := NewServer(cfg, node, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range adjust {
		f(s)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-served
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	scheme := "http"
	if cfg.CertFile != "" {
		scheme = "https"
	}
	return running{Server: s, url: scheme + "://" + s.Addr().String(), stop: stop}
}

// reply is what a server answered.
type reply struct {
	status int
	body   string
	header http.Header
}

// ask sends one request on a connection of its own; body "-" sends no
// Content-Length where a body could be.
func ask(t *testing.T, method, url, body string, adjust ...func(*http.Request)) reply {
	t.Helper()
	return askWith(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, method, url, body, adjust...)
}

func askWith(t *testing.T, client *http.Client, method, url, body string, adjust ...func(*http.Request)) reply {
	t.Helper()
	defer client.CloseIdleConnections()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, content)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range adjust {
		f(req)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{status: resp.StatusCode, body: string(got), header: resp.Header}
}

func chunked(r *http.Request) {
	r.ContentLength = -1
	r.Body = io.NopCloser(r.Body)
}

// sameJSON reports whether two texts are the same JSON.
func sameJSON(t *testing.T, got, want string) bool {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("the test's own JSON: %v", err)
	}
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Errorf("not JSON: %v: %s", err, got)
		return false
	}
	a, errA := json.Marshal(g)
	b, errB := json.Marshal(w)
	return errA == nil && errB == nil && string(a) == string(b)
}
