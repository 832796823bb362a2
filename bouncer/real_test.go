package bouncer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/pgbouncer"
)

// site is the software that all real tests share: one Consul and two
// PostgreSQL, which stand for the primaries of shards. It is started by the
// first test that needs it and ended by TestMain.
type site struct {
	once    sync.Once
	err     error
	dir     string
	consul  string // host:port
	client  *api.Client
	members [2]cluster.RouteMember
	stop    []func()
}

var shared site

func TestMain(m *testing.M) {
	code := m.Run()
	for i := len(shared.stop) - 1; i >= 0; i-- {
		shared.stop[i]()
	}
	os.Exit(code)
}

// world is what one test has to itself.
type world struct {
	t      *testing.T
	ctx    context.Context
	site   *site
	dir    string
	config Config
	port   int // PgBouncer's
	keys   cluster.Keys
	proxy  *proxy // between the bouncer and Consul
	log    *logBuffer
	// changes are configurations that take the place of the bouncer's.
	changes chan Config
	manager *manager
}

func newWorld(t *testing.T, edit func(*Config)) *world {
	t.Helper()
	return newWorldFor(t, 50*time.Second, edit)
}

// newWorldFor is newWorld for a test that takes longer.
func newWorldFor(t *testing.T, limit time.Duration, edit func(*Config)) *world {
	t.Helper()
	for _, program := range []string{"pgbouncer", filepath.Join(postgresBin(), "postgres")} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is needed: %v", program, err)
		}
	}
	consul := os.Getenv("CONSUL_BIN")
	if consul == "" {
		consul = "consul"
	}
	if _, err := exec.LookPath(consul); err != nil {
		t.Skip("Consul is needed: set CONSUL_BIN")
	}
	shared.once.Do(func() { shared.err = shared.start(consul) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, site: &shared, port: freePort(t), log: &logBuffer{}, changes: make(chan Config), manager: &manager{}}
	w.dir = ownDir(t)
	w.proxy = newProxy(t, shared.consul)
	prefix := "test-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	w.keys = cluster.NewKeys("", "s1", prefix)
	w.config = Config{
		Name: "b1", RoutesPrefix: prefix, Listen: "127.0.0.1:0",
		Consul:    settings.Consul{Host: w.proxy.address},
		PgBouncer: PgBouncer{Config: filepath.Join(w.dir, "pgbouncer.ini"), Admin: "127.0.0.1:" + strconv.Itoa(w.port), User: "pooler"},
	}
	w.config.Listen = "127.0.0.1:" + strconv.Itoa(freePort(t))
	if edit != nil {
		edit(&w.config)
	}
	if err := w.config.complete(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.config.validate(); err != nil {
		t.Fatal(err)
	}
	w.write("userlist.txt", `"pooler" "secret"`+"\n"+`"app" "app"`+"\n")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the bouncer:\n%s", w.log.String())
		}
		_, _ = shared.client.KV().DeleteTree(prefix+"/", nil)
	})
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// route makes the route of shard s1 with member number leader.
func (w *world) route(leader int, state cluster.RouteState) cluster.Route {
	return cluster.Route{
		Version: 1, SystemIdentifier: "7000000000000000001", State: state, Timeline: leader + 1,
		Leader: w.site.members[leader], Since: time.Unix(int64(1000+leader), 0).UTC(),
	}
}

func (w *world) put(key string, r cluster.Route) {
	w.t.Helper()
	value, err := json.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.putRaw(key, value)
}

func (w *world) putRaw(key string, value []byte) {
	w.t.Helper()
	if _, err := w.site.client.KV().Put(&api.KVPair{Key: key, Value: value}, nil); err != nil {
		w.t.Fatal(err)
	}
}

// bouncer runs a bouncer until the returned function is called, or the test
// ends.
func (w *world) bouncer() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, w.config, w.changes, w.manager, zerolog.New(w.log).Level(zerolog.DebugLevel).With().Timestamp().Logger())
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				w.t.Errorf("Run: %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

// pgbouncer starts PgBouncer and returns a function that kills it.
func (w *world) pgbouncer() (kill func()) {
	w.t.Helper()
	w.await("configuration file", func() error {
		_, err := os.Stat(w.config.PgBouncer.Config)
		return err
	})
	cmd := unprivileged(exec.Command("pgbouncer", w.config.PgBouncer.Config))
	output := &logBuffer{}
	cmd.Stdout, cmd.Stderr, cmd.Dir = output, output, w.dir
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	w.t.Cleanup(func() {
		kill()
		if w.t.Failed() {
			w.t.Logf("log of PgBouncer:\n%s", output.String())
		}
	})
	return kill
}

// await polls until check succeeds.
func (w *world) await(what string, check func() error) {
	w.t.Helper()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-w.ctx.Done():
			w.t.Fatalf("%s: %v", what, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (w *world) status() (Status, error) {
	var s Status
	_, err := w.http(http.MethodGet, "/status", &s)
	return s, err
}

func (w *world) http(method, path string, into any) (int, error) {
	request, err := http.NewRequestWithContext(w.ctx, method, "http://"+w.config.Listen+path, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return response.StatusCode, json.NewDecoder(response.Body).Decode(into)
}

// awaitShard waits until the status of shard s1 is as wanted.
func (w *world) awaitShard(what string, want func(ShardStatus) bool) ShardStatus {
	w.t.Helper()
	var got ShardStatus
	w.await(what, func() error {
		s, err := w.status()
		if err != nil {
			return err
		}
		if got = s.Shards["service/s1"]; !want(got) {
			return fmt.Errorf("shard is %+v, health %v", got, s.Health)
		}
		return nil
	})
	return got
}

// awaitLeader waits until PgBouncer verifiably leads to member number leader.
func (w *world) awaitLeader(leader int) {
	w.t.Helper()
	w.awaitShard("leader", func(s ShardStatus) bool {
		return s.Leader == w.site.members[leader].Name && s.VerifiedAt != nil && !s.Held && s.State == cluster.RouteOpen
	})
}

func (w *world) awaitHealthy() {
	w.t.Helper()
	w.await("health", func() error {
		var h Health
		code, err := w.http(http.MethodGet, "/health", &h)
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %v", code, h.Reasons)
		}
		return err
	})
}

// admin asks PgBouncer's console.
func (w *world) admin() *pgbouncer.Conn {
	w.t.Helper()
	options, err := w.config.admin()
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := pgbouncer.Connect(w.ctx, options)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(conn.Close)
	return conn
}

func (w *world) paused() bool {
	w.t.Helper()
	all, err := w.admin().Databases(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return all["s1"].Paused
}

// connect logs a client in to PgBouncer's database.
func (w *world) connect(database string) *pgconn.PgConn {
	w.t.Helper()
	conn, err := pgconn.Connect(w.ctx, w.dsn(database))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (w *world) dsn(database string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=app password=app dbname=%s sslmode=disable", w.port, database)
}

// where tells which member answers a query.
func (w *world) where(conn *pgconn.PgConn) int {
	w.t.Helper()
	member, err := w.ask(w.ctx, conn)
	if err != nil {
		w.t.Fatal(err)
	}
	return member
}

// errElsewhere says that a query was answered by none of the site's members.
var errElsewhere = errors.New("answered by another server")

func (w *world) ask(ctx context.Context, conn *pgconn.PgConn) (int, error) {
	results, err := conn.Exec(ctx, "SELECT inet_server_port()").ReadAll()
	if err != nil {
		return 0, err
	}
	port := string(results[0].Rows[0][0])
	for i, m := range w.site.members {
		if strconv.Itoa(m.Port) == port {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%w: port %s", errElsewhere, port)
}

func (s *site) start(consul string) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "lictor-bouncer"); err != nil {
		return err
	}
	s.stop = append(s.stop, func() { _ = os.RemoveAll(s.dir) })
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	if err := s.startConsul(consul); err != nil {
		return err
	}
	if err := s.startPostgres(); err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := s.client.KV().Put(&api.KVPair{Key: "ready"}, nil)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("consul takes no write: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *site) startConsul(consul string) error {
	ports, err := testkit.FreePorts(3)
	if err != nil {
		return err
	}
	s.consul = "127.0.0.1:" + strconv.Itoa(ports[0])
	cmd := exec.Command(consul, "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1",
		"-http-port="+strconv.Itoa(ports[0]), "-server-port="+strconv.Itoa(ports[1]), "-serf-lan-port="+strconv.Itoa(ports[2]),
		"-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-disable-host-node-id",
		"-hcl=limits { http_max_conns_per_client = 1000 }", "-hcl=performance { raft_multiplier = 1 }")
	cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.stop = append(s.stop, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	s.client, err = api.NewClient(&api.Config{Address: s.consul})
	return err
}

func (s *site) startPostgres() error {
	bin := postgresBin()
	ports, err := testkit.FreePorts(2)
	if err != nil {
		return err
	}
	for i, port := range ports {
		data := filepath.Join(s.dir, "pg"+strconv.Itoa(i))
		if i == 0 {
			if err := makeSeed(bin, filepath.Join(s.dir, "seed")); err != nil {
				return err
			}
		}
		stop, err := s.runPostgres(data, port)
		if err != nil {
			return err
		}
		s.stop = append(s.stop, func() { stop(syscall.SIGQUIT) })
		s.members[i] = cluster.RouteMember{Name: "db" + strconv.Itoa(i+1), Host: "127.0.0.1", Port: port}
	}
	for _, m := range s.members {
		if err := createDatabase(m); err != nil {
			return err
		}
	}
	return nil
}

// makeSeed makes the data directory that all instances are copies of.
func makeSeed(bin, data string) error {
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := giveAway(data); err != nil {
		return err
	}
	init := unprivileged(exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "app", "-A", "trust", "--no-sync"))
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", init.Args, err, out)
	}
	return nil
}

// runPostgres runs an instance, with a copy of the seed as its data when it has
// none yet. stop ends all its processes by a signal to the postmaster; after
// SIGKILL the backends find out by themselves.
func (s *site) runPostgres(data string, port int) (stop func(syscall.Signal), err error) {
	if _, err := os.Stat(data); err != nil {
		if out, err := exec.Command("cp", "-a", filepath.Join(s.dir, "seed"), data).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("copying: %w: %s", err, out)
		}
	}
	cmd := unprivileged(exec.Command(filepath.Join(postgresBin(), "postgres"), "-D", data, "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1,127.0.0.2", "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=1MB",
		"-c", "max_connections=50"))
	cmd.Dir = data
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var once sync.Once
	return func(sig syscall.Signal) {
		once.Do(func() {
			_ = cmd.Process.Signal(sig)
			_ = cmd.Wait()
		})
	}, nil
}

func createDatabase(m cluster.RouteMember) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=app dbname=postgres sslmode=disable", m.Host, m.Port))
		if err == nil {
			_, err = conn.Exec(ctx, "CREATE DATABASE s1").ReadAll()
			return errors.Join(err, conn.Close(ctx))
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// postgresBin is where PostgreSQL's programs are: POSTGRES_BIN, when set.
func postgresBin() string {
	if dir := os.Getenv("POSTGRES_BIN"); dir != "" {
		return dir
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		if path, err := exec.LookPath("postgres"); err == nil {
			return filepath.Dir(path)
		}
		return ""
	}
	return found[0]
}

// needInHotStandby skips a test with a PostgreSQL that does not say of itself
// whether it is a primary: those before 14.
func needInHotStandby(t *testing.T) {
	t.Helper()
	out, err := exec.Command(filepath.Join(postgresBin(), "postgres"), "--version").Output() // postgres (PostgreSQL) 15.20 (Debian ...)
	if err != nil {
		t.Skipf("PostgreSQL is needed: %v", err)
	}
	_, version, _ := strings.Cut(string(out), "(PostgreSQL) ")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < 14 {
		t.Skipf("PostgreSQL %d has no in_hot_standby", n)
	}
}

// unprivileged makes a command run as postgres when the tests run as root:
// neither PostgreSQL nor PgBouncer runs as root.
func unprivileged(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid, gid, ok := postgresUser(); ok {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

func postgresUser() (uid, gid uint32, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, false
	}
	n, errU := strconv.ParseUint(u.Uid, 10, 32)
	g, errG := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(n), uint32(g), errU == nil && errG == nil
}

func giveAway(path string) error {
	if uid, gid, ok := postgresUser(); ok {
		return os.Chown(path, int(uid), int(gid))
	}
	return nil
}

// ownDir is a directory that PgBouncer can read; t.TempDir is root's alone.
func ownDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lictor-bouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := giveAway(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := testkit.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

// proxy passes TCP connections on, until it is cut.
type proxy struct {
	address string
	target  string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
	// hung, when it is not nil, is closed when the proxy passes data on again.
	hung chan struct{}
}

// hang makes the proxy keep its connections and take new ones, but pass nothing
// on, as a process does that was stopped.
func (p *proxy) hang(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hung != nil {
		close(p.hung)
		p.hung = nil
	}
	if on {
		p.hung = make(chan struct{})
	}
}

func (p *proxy) awaitThaw() {
	p.mu.Lock()
	hung := p.hung
	p.mu.Unlock()
	if hung != nil {
		<-hung
	}
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), target: target, conns: map[net.Conn]bool{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.pass(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.hang(false)
		p.set(true)
		running.Wait()
	})
	return p
}

func (p *proxy) pass(conn net.Conn) {
	defer conn.Close()
	if !p.add(conn) {
		return
	}
	defer p.remove(conn)
	up, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer up.Close()
	if !p.add(up) {
		return
	}
	defer p.remove(up)
	var half sync.WaitGroup
	half.Go(func() { p.copyUntilEnd(up, conn) })
	half.Go(func() { p.copyUntilEnd(conn, up) })
	half.Wait()
}

func (p *proxy) copyUntilEnd(to, from net.Conn) {
	defer to.Close()
	buffer := make([]byte, 1<<15)
	for {
		n, err := from.Read(buffer)
		p.awaitThaw()
		if _, e := to.Write(buffer[:n]); err != nil || e != nil {
			return
		}
	}
}

func (p *proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cut {
		p.conns[c] = true
	}
	return !p.cut
}

func (p *proxy) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// set cuts the proxy or mends it.
func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

// logBuffer collects output of several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// hangingServer takes connections and never answers.
type hangingServer struct{ address string }

func newHangingServer(t *testing.T) *hangingServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &hangingServer{l.Addr().String()}
}
