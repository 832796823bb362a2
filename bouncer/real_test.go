package bouncer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// world is what one test has to itself.
type world struct {
	t      *testing.T
	ctx    context.Context
	site   *site
	dir    string
	config config.Config
	port   int // PgBouncer's
	keys   cluster.Keys
	proxy  *proxy // between the bouncer and Consul
	log    *bouncertest.Log
	// changes are configurations that take the place of the bouncer's.
	changes chan config.Config
	manager *manager
	page    NewPage
	// stop ends the bouncer that waiting has started.
	stop func()
	// timeline and leader are those of the last route.
	timeline, leader int
	console          *pgbouncer.Conn // the last that admin has opened
}

func newWorld(t *testing.T, edit func(*config.Config)) *world {
	t.Helper()
	return newWorldFor(t, 50*time.Second, edit)
}

// newWorldFor is newWorld for a test that takes longer.
func newWorldFor(t *testing.T, limit time.Duration, edit func(*config.Config)) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("Consul, PostgreSQL and PgBouncer: make test-e2e")
	}
	for _, program := range []string{"pgbouncer", filepath.Join(bouncertest.PostgresBin(), "postgres")} {
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
	w := &world{t: t, ctx: ctx, site: &shared, port: bouncertest.FreePort(t), log: &bouncertest.Log{}, changes: make(chan config.Config), manager: &manager{}}
	w.dir = bouncertest.Dir(t)
	w.proxy = newProxy(t, shared.consul)
	prefix := "test-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	w.keys = cluster.NewKeys("", "s1", prefix)
	w.config = config.Config{
		Name: "b1", RoutesPrefix: prefix,
		HoldTimeout: 300, // longer than any test: it is not what releases clients, unless a test wants it
		Consul:      settings.Consul{Host: w.proxy.address},
		PgBouncer:   config.PgBouncer{Config: filepath.Join(w.dir, "pgbouncer.ini"), Admin: "127.0.0.1:" + strconv.Itoa(w.port), User: "pooler"},
	}
	w.config.Listen = "127.0.0.1:" + strconv.Itoa(bouncertest.FreePort(t))
	if edit != nil {
		edit(&w.config)
	}
	if err := w.config.Complete(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.config.Validate(); err != nil {
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

// route makes the route of shard s1 with member number leader; another one than the last
// has a timeline of its own.
func (w *world) route(leader int, state cluster.RouteState) cluster.Route {
	if w.timeline == 0 {
		w.timeline, w.leader = leader+1, leader
	} else if w.leader != leader {
		w.timeline, w.leader = w.timeline+1, leader
	}
	return cluster.Route{
		Version: 1, SystemIdentifier: "7000000000000000001", State: state, Timeline: w.timeline,
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
		ended <- Run(ctx, w.config, w.changes, w.manager, w.page, zerolog.New(w.log).Level(zerolog.DebugLevel).With().Timestamp().Logger())
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
	cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", w.config.PgBouncer.Config))
	output := &bouncertest.Log{}
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

// awaitConsole waits until PgBouncer's console lets the bouncer's user in.
func (w *world) awaitConsole() {
	w.t.Helper()
	w.await("PgBouncer's console", func() error {
		options, err := w.config.Admin()
		if err != nil {
			return err
		}
		conn, err := pgbouncer.Connect(w.ctx, options)
		if err == nil {
			conn.Close()
		}
		return err
	})
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
		if err == nil && (code != http.StatusOK || len(h.Warnings) > 0) {
			err = fmt.Errorf("%d %+v", code, h)
		}
		return err
	})
}

// admin asks PgBouncer's console, by a connection that lasts until it is called again:
// whoever waits for something asks many times, and PgBouncer takes 100 clients.
func (w *world) admin() *pgbouncer.Conn {
	w.t.Helper()
	options, err := w.config.Admin()
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := pgbouncer.Connect(w.ctx, options)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.console != nil {
		w.console.Close()
	} else {
		w.t.Cleanup(func() { w.console.Close() })
	}
	w.console = conn
	return conn
}

// awaitPool waits for a pool of PgBouncer as it is wanted.
func (w *world) awaitPool(what string, want func(pgbouncer.Pool) bool) {
	w.t.Helper()
	w.await(what, func() error {
		pools, err := w.admin().Pools(w.ctx)
		if err == nil && !slices.ContainsFunc(pools, want) {
			err = fmt.Errorf("%+v", pools)
		}
		return err
	})
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

// awaitMember1 asks where a query goes, which may have to wait. The channel gets nil
// when it is the second member.
func (w *world) awaitMember1(conn *pgconn.PgConn) <-chan error {
	answer := make(chan error, 1)
	go func() {
		at, err := w.ask(w.ctx, conn)
		if err == nil && at != 1 {
			err = fmt.Errorf("it reached member %d", at)
		}
		answer <- err
	}()
	return answer
}
