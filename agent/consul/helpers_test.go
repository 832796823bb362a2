package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// patience bounds every wait; it says nothing about how fast things are.
const patience = time.Minute

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, patience) }

func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

// wants fails the test unless err is target; a nil target wants success.
func wants(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: got %v, want %v", what, err, target)
	}
}

// server is a Consul of its own, without neighbours.
type server struct {
	address string
	dns     string
	process *os.Process
}

func consulBinary(ctx context.Context, t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(ctx, "../../e2e/tools/consul.sh").Output()
	if err != nil {
		t.Fatalf("no Consul to test with: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// startConsul runs a Consul until the end of the test.
func startConsul(t *testing.T) server {
	t.Helper()
	ctx := within(t)
	binary := consulBinary(ctx, t)
	const attempts = 3 // somebody else may have taken a port meanwhile
	for range attempts {
		s, ended, log := runConsul(t, binary)
		for ctx.Err() == nil {
			if ready(ctx, t, s) {
				return s
			}
			select {
			case <-ctx.Done():
			case <-ended:
				t.Logf("Consul ended: %s", log)
			case <-time.After(20 * time.Millisecond):
				continue
			}
			break
		}
	}
	t.Fatal("Consul did not come up")
	return server{}
}

// ready reports whether the Consul has a leader that knows its own node, without
// which there are no sessions.
func ready(ctx context.Context, t *testing.T, s server) bool {
	t.Helper()
	store := newStore(t, cluster.NewKeys("", "ready", ""), s.address)
	id, err := store.CreateSession(ctx, Session{Name: "ready", TTL: time.Second})
	return err == nil && store.DestroySession(ctx, id) == nil
}

func runConsul(t *testing.T, binary string) (s server, ended <-chan struct{}, log *bytes.Buffer) {
	t.Helper()
	ports := freePorts(t, 4)
	s.address, s.dns = "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[3]
	log = &bytes.Buffer{}
	cmd := exec.CommandContext(t.Context(), binary, "agent", "-dev", "-node=alone", "-disable-host-node-id", "-log-level=warn",
		"-bind=127.0.0.1", "-client=127.0.0.1", "-http-port="+ports[0], "-server-port="+ports[1], "-serf-lan-port="+ports[2],
		"-serf-wan-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-dns-port="+ports[3],
		`-hcl=acl { enabled = true, default_policy = "allow" }`)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = t.TempDir(), []string{"PATH=" + os.Getenv("PATH")}, log, log
	// Should the test binary be killed, Consul goes with it. The signal belongs to
	// the thread that forked, which therefore stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, gone := make(chan error), make(chan struct{})
	go func() {
		defer close(gone)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed in the end
		}
	}()
	must(t, <-started)
	s.process = cmd.Process
	t.Cleanup(func() {
		_ = s.process.Kill() // it may have ended
		<-gone
	})
	return s, gone, log
}

// stop makes the Consul hang. Some of its threads may go on for a moment after
// the signal; the parent is told when all have stopped (waitid(2)).
func (s server) stop(t *testing.T) {
	t.Helper()
	must(t, s.process.Signal(syscall.SIGSTOP))
	for {
		err := unix.Waitid(unix.P_PID, s.process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			must(t, err)
			return
		}
	}
}

func freePorts(t *testing.T, n int) []string {
	t.Helper()
	free, err := testkit.FreePorts(n)
	must(t, err)
	var ports []string
	for _, p := range free {
		ports = append(ports, strconv.Itoa(p))
	}
	return ports
}

// deadAddress is one where nobody listens.
func deadAddress(t *testing.T) string { return "127.0.0.1:" + freePorts(t, 1)[0] }

func newStore(t *testing.T, keys cluster.Keys, addresses ...string) *Store {
	t.Helper()
	var configs []*api.Config
	for _, address := range addresses {
		configs = append(configs, &api.Config{Address: address})
	}
	s, err := New(configs, keys)
	must(t, err)
	return s
}

// shard is a store with a shard of its own and what tests do to it.
type shard struct {
	*Store
	t    *testing.T
	ctx  context.Context
	keys cluster.Keys
}

func newShard(t *testing.T, addresses ...string) shard {
	t.Helper()
	keys := cluster.NewKeys("", strings.NewReplacer("/", "-", " ", "_").Replace(t.Name()), "")
	return shard{newStore(t, keys, addresses...), t, within(t), keys}
}

func (s shard) session(name string) string {
	s.t.Helper()
	id, err := s.CreateSession(s.ctx, Session{Name: name, TTL: time.Hour})
	must(s.t, err)
	return id
}

func (s shard) read() cluster.Snapshot {
	s.t.Helper()
	snapshot, err := s.Read(s.ctx)
	must(s.t, err)
	return snapshot
}

// takeover is one that rests on the shard as it stands now.
func (s shard) takeover(session, name string) TakeOver {
	s.t.Helper()
	now := s.read()
	return TakeOver{
		Session: session, Name: name, Status: status(name, 1),
		StatusIndex: now.Status.ModifyIndex, FailsafeIndex: now.Failsafe.ModifyIndex, LeaderIndex: now.Leader.ModifyIndex,
		Sync: new(cluster.NewSync(name, nil)), SyncIndex: now.Sync.ModifyIndex,
		Route: new(route(name)), RouteIndex: now.Route.ModifyIndex,
	}
}

// leader makes a leader and returns its session and the status's index.
func (s shard) leader(name string) (session string, index uint64) {
	s.t.Helper()
	session = s.session(name)
	written, err := s.TakeOver(s.ctx, s.takeover(session, name))
	must(s.t, err)
	return session, written[s.keys.Status()]
}

func (s shard) wantLeader(name, session string) {
	s.t.Helper()
	now := s.read()
	if now.LeaderName() != name || now.Leader.Session != session {
		s.t.Errorf("leader: %q with session %q, want %q with %q", now.Leader.Value, now.Leader.Session, name, session)
	}
}

func status(owner string, number int64) cluster.Status {
	return cluster.Status{OpTime: 100 + number, Lictor: &cluster.Beat{LeaseMS: 8000, Number: number, Owner: owner}}
}

func route(leader string) cluster.Route {
	return cluster.Route{
		Version: 1, SystemIdentifier: "7000000000000000001", State: cluster.RoutePromoting, Timeline: 1,
		Leader: cluster.RouteMember{Name: leader, Host: "10.0.0.1", Port: 5432},
	}
}

func value(n int) []byte { return fmt.Appendf(nil, `{"n":%d}`, n) }
