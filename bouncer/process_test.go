package bouncer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// sharedPort is a world with several processes of PgBouncer on one port.
type sharedPort struct {
	*world
	t    *testing.T
	cmds []*exec.Cmd
	ends []func()
}

// onePort runs a bouncer and n processes of PgBouncer, all of which lead to member 0.
func onePort(t *testing.T, n int, edit func(*config.Config)) *sharedPort {
	t.Helper()
	w := newWorld(t, func(c *config.Config) {
		dir, port := filepath.Dir(c.PgBouncer.Config), strings.TrimPrefix(c.PgBouncer.Admin, "127.0.0.1:")
		c.PgBouncer.Config, c.PgBouncer.Admin = "", ""
		for i := range n {
			sockets := filepath.Join(dir, fmt.Sprint(i+1))
			if err := errors.Join(os.Mkdir(sockets, 0o755), bouncertest.GiveAway(sockets)); err != nil {
				t.Fatal(err)
			}
			c.PgBouncer.Processes = append(c.PgBouncer.Processes, config.Process{
				Admin: sockets + ":" + port, Config: filepath.Join(dir, fmt.Sprintf("pgbouncer-%d.ini", i+1)),
				Settings: map[string]any{"pidfile": filepath.Join(sockets, "pid")},
			})
		}
		if edit != nil {
			edit(c)
		}
	})
	s := &sharedPort{world: w, t: t, cmds: make([]*exec.Cmd, n), ends: make([]func(), n)}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	for i := range n {
		s.start(i)
	}
	for i := range n { // one alone is healthy
		s.awaitProcess(i)
	}
	w.awaitLeader(0)
	w.awaitHealthy()
	return s
}

// start starts process number i.
func (s *sharedPort) start(i int) {
	s.t.Helper()
	path := s.config.PgBouncer.Processes[i].Config
	s.await("configuration file", func() error {
		_, err := os.Stat(path)
		return err
	})
	cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", path))
	output := &bouncertest.Log{}
	cmd.Stdout, cmd.Stderr, cmd.Dir = output, output, s.dir
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var once sync.Once
	s.cmds[i], s.ends[i] = cmd, func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	s.t.Cleanup(func() {
		s.ends[i]()
		if s.t.Failed() {
			s.t.Logf("log of process %d:\n%s", i, output.String())
		}
	})
}

func (s *sharedPort) signal(i int, sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmds[i].Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// client logs in to process number i, whose port may lead to any.
func (s *sharedPort) client(i int) *pgconn.PgConn {
	s.t.Helper()
	host, port, _ := strings.Cut(s.config.PgBouncer.Processes[i].Admin, ":")
	conn, err := pgconn.Connect(s.ctx, fmt.Sprintf("host=%s port=%s user=app password=app dbname=s1", host, port))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// database is how process number i has shard s1.
func (s *sharedPort) database(i int) (pgbouncer.Database, error) {
	options, err := s.config.Each()[i].Admin()
	if err != nil {
		return pgbouncer.Database{}, err
	}
	conn, err := pgbouncer.Connect(s.ctx, options)
	if err != nil {
		return pgbouncer.Database{}, err
	}
	defer conn.Close()
	all, err := conn.Databases(s.ctx)
	return all["s1"], err
}

func (s *sharedPort) awaitPaused(i int, want bool) {
	s.t.Helper()
	s.await(fmt.Sprintf("process %d paused: %v", i, want), func() error {
		d, err := s.database(i)
		if err == nil && d.Paused != want {
			err = fmt.Errorf("%+v", d)
		}
		return err
	})
}

// Every process is brought to the new primary, and only then the shard counts as verified.
func TestProcessesFollowARoute(t *testing.T) {
	s := onePort(t, 3, nil)
	var old []*pgconn.PgConn
	for i := range s.cmds {
		old = append(old, s.client(i))
	}
	s.put(s.keys.Route(), s.route(1, cluster.RouteOpen))
	s.awaitLeader(1)
	for i := range s.cmds {
		if a, b := s.where(old[i]), s.where(s.client(i)); a != 1 || b != 1 {
			t.Errorf("process %d leads old clients to %d, new ones to %d", i, a, b)
		}
	}
	if at := s.where(s.connect("s1")); at != 1 {
		t.Errorf("the port leads to %d", at)
	}
	status, err := s.status()
	if err != nil {
		t.Fatal(err)
	}
	if len(status.PgBouncer.Processes) != 3 || status.Clients == nil || *status.Clients < 3 {
		t.Errorf("status is %+v, clients %v", status.PgBouncer, status.Clients)
	}
	for i, p := range status.PgBouncer.Processes {
		if p.Admin != s.config.PgBouncer.Processes[i].Admin || !p.Answers || p.Shards != 1 || p.Verified != 1 {
			t.Errorf("process %d: %+v", i, p)
		}
		own, pgbouncers := s.metrics("/metrics"), s.metrics("/metrics/pgbouncer")
		for _, want := range []string{
			fmt.Sprintf(`lictor_bouncer_process_up{bouncer="b1",process=%q} 1`, p.Admin), fmt.Sprintf(`lictor_bouncer_process_shards_behind{bouncer="b1",process=%q} 0`, p.Admin),
		} {
			if !strings.Contains(own, want) {
				t.Errorf("/metrics lacks %s", want)
			}
		}
		if want := fmt.Sprintf(`pgbouncer_up{process=%q} 1`, p.Admin); !strings.Contains(pgbouncers, want) {
			t.Errorf("/metrics/pgbouncer lacks %s:\n%s", want, pgbouncers)
		}
	}
}

func (s *sharedPort) metrics(path string) string {
	s.t.Helper()
	answer, err := http.Get("http://" + s.config.Listen + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s %v", path, answer.Status, err)
	}
	return string(text)
}

// A leader may go on when each process holds its clients and nothing of the shard runs in
// any; clients go on when all have been released.
func TestProcessesHoldTogether(t *testing.T) {
	s := onePort(t, 2, nil)
	idle, busy := s.client(0), s.client(1)
	s.exec(idle, "SELECT 1")
	s.exec(busy, "BEGIN; SELECT 1")
	a := s.announce("h1", 30*time.Second)
	if answer := a.held(); answer.Busy != 1 || answer.Quiet() {
		t.Fatalf("with a transaction in the second process the answer is %+v", answer)
	}
	for i := range s.cmds {
		if d, err := s.database(i); err != nil || !d.Paused {
			t.Errorf("the leader was told that clients are held, and process %d has %+v %v", i, d, err)
		}
	}
	if shard := s.awaitShard("hold", func(s ShardStatus) bool { return s.Held }); !shard.Paused {
		t.Errorf("shard is %+v", shard)
	}
	s.exec(busy, "COMMIT")
	if code, answer := a.ask(20 * time.Second); code != http.StatusOK || !answer.Quiet() {
		t.Fatalf("answer is %d %+v", code, answer)
	}
	waiting := []<-chan error{s.awaitMember1(idle), s.awaitMember1(busy)}
	s.await("both waiting clients being counted", func() error {
		if _, answer := a.ask(0); answer.ClientsWaiting != 2 {
			return fmt.Errorf("%+v", answer)
		}
		return nil
	})
	s.put(s.keys.Route(), s.route(1, cluster.RouteOpen))
	s.awaitLeader(1)
	for i, one := range waiting {
		if err := <-one; err != nil {
			t.Errorf("client %d: %v", i, err)
		}
		s.awaitPaused(i, false)
	}
	s.awaitHealthy()
}

// A process that dies in a hold holds up nobody, and is right before it counts again.
func TestProcessKilledInHold(t *testing.T) {
	s := onePort(t, 2, nil)
	client := s.client(0)
	s.exec(client, "SELECT 1")
	a := s.announce("h1", 30*time.Second)
	a.held()
	s.ends[1]()
	s.await("the end being seen", func() error {
		status, err := s.status()
		if err == nil && status.PgBouncer.Processes[1].Answers {
			err = errors.New("it is said to answer")
		}
		return err
	})
	if answer := a.held(); answer.Problem != "" {
		t.Errorf("answer is %+v", answer)
	}
	s.awaitHealthy() // clients go to the other
	waiting := s.awaitMember1(client)
	s.put(s.keys.Route(), s.route(1, cluster.RoutePromoting))
	s.start(1)
	s.awaitPaused(1, true)
	s.put(s.keys.Route(), s.route(1, cluster.RouteOpen))
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if at := s.where(s.client(1)); at != 1 {
		t.Errorf("a client of the new process is at %d", at)
	}
	s.awaitLeader(1)
	s.awaitHealthy()
}

// A process that hangs holds up no failover of the others, and keeps the host out of the
// balancer: the kernel goes on giving it clients.
func TestProcessThatHangs(t *testing.T) {
	s := onePort(t, 2, nil)
	stuck := s.client(1)
	s.signal(1, syscall.SIGSTOP)
	t.Cleanup(func() { _ = s.cmds[1].Process.Signal(syscall.SIGCONT) })
	begun := time.Now()
	s.put(s.keys.Route(), s.route(1, cluster.RouteOpen))
	s.await("the other process at the new primary", func() error {
		d, err := s.database(0)
		if err == nil && d.Port != s.site.members[1].Port {
			err = fmt.Errorf("at %+v", d)
		}
		return err
	})
	if at := s.where(s.client(0)); at != 1 {
		t.Errorf("a client of the other is at %d", at)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the failover of the other took %s", took)
	}
	s.awaitReason(s.config.PgBouncer.Processes[1].Admin)
	if shard := s.awaitShard("unverified", func(ShardStatus) bool { return true }); shard.VerifiedAt != nil {
		t.Errorf("with a process that hangs at the old primary the shard is verified: %+v", shard)
	}
	s.signal(1, syscall.SIGCONT)
	s.awaitLeader(1)
	s.awaitHealthy()
	if at := s.where(stuck); at != 1 {
		t.Errorf("the client of the process that hung is at %d", at)
	}
}

// A leader is not told that clients are held as long as a process that hangs may have some.
func TestProcessHangsInHandover(t *testing.T) {
	s := onePort(t, 2, nil)
	s.signal(1, syscall.SIGSTOP)
	t.Cleanup(func() { _ = s.cmds[1].Process.Signal(syscall.SIGCONT) })
	s.handoverWithout(1)
	s.signal(1, syscall.SIGCONT)
	s.awaitHealthy()
	s.awaitPaused(1, false)
}

// handoverWithout begins and cancels a handover, of which the leader must hear that process
// number i does not hold its clients; the first one does.
func (s *sharedPort) handoverWithout(i int) {
	s.t.Helper()
	a := s.announce("h1", 40*time.Second)
	s.awaitPaused(0, true)
	name := s.config.PgBouncer.Processes[i].Admin
	s.await("the process in the answer", func() error {
		code, answer, err := a.post(0)
		if err == nil && answer.Paused {
			s.t.Fatalf("the leader was told that clients are held: %+v", answer)
		}
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(answer.Problem, name)) {
			err = fmt.Errorf("%d %+v", code, answer)
		}
		return err
	})
	a.write(cluster.HandoverCancelled)
	s.awaitPaused(0, false)
}

// Processes are added and taken out while the bouncer runs, and those that stay go on.
func TestProcessesChange(t *testing.T) {
	s := onePort(t, 2, nil)
	client := s.client(0)
	next := s.config
	next.PgBouncer.Processes = next.PgBouncer.Processes[:1]
	s.changes <- next
	s.ends[1]()
	s.put(s.keys.Route(), s.route(1, cluster.RouteOpen))
	s.awaitLeader(1)
	s.awaitHealthy()
	s.changes <- s.config
	s.start(1)
	s.awaitProcess(1)
	s.awaitLeader(1)
	for i, one := range []*pgconn.PgConn{client, s.client(1)} {
		if at := s.where(one); at != 1 {
			t.Errorf("a client of process %d is at %d", i, at)
		}
	}
	if n := s.manager.ready.Load(); n != 3 {
		t.Errorf("ready was said %d times, want once for each configuration", n)
	}
}

// The bouncer is ready when each process is, and alive as long as each loop comes round.
func TestLoopsAreOne(t *testing.T) {
	m := &manager{every: time.Second}
	list := managers(m, 2)
	list[0].Ready()
	list[0].Alive()
	list[0].Alive()
	list[0].Status("1 shards, all routes applied and verified")
	if m.ready.Load() != 0 || m.alive.Load() != 0 {
		t.Errorf("ready %d, alive %d times with one loop of two", m.ready.Load(), m.alive.Load())
	}
	list[1].Ready()
	list[1].Alive()
	list[1].Status(notReady + "it hangs")
	list[0].Alive()
	if m.ready.Load() != 1 || m.alive.Load() != 1 || m.status.Load() != notReady+"it hangs" {
		t.Errorf("ready %d, alive %d times, status %v", m.ready.Load(), m.alive.Load(), m.status.Load())
	}
}

// A process that has the port and is not on the list gets clients: the host is not healthy.
func TestProcessThatIsNotListed(t *testing.T) {
	s := onePort(t, 2, nil)
	text, err := os.ReadFile(s.config.PgBouncer.Processes[0].Config)
	if err != nil {
		t.Fatal(err)
	}
	sockets := filepath.Join(s.dir, "stranger")
	if err := errors.Join(os.Mkdir(sockets, 0o755), bouncertest.GiveAway(sockets)); err != nil {
		t.Fatal(err)
	}
	s.write("stranger.ini", strings.ReplaceAll(string(text), filepath.Join(s.dir, "1"), sockets))
	stranger := bouncertest.Unprivileged(exec.Command("pgbouncer", filepath.Join(s.dir, "stranger.ini")))
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	t.Cleanup(end)
	s.awaitReason("1 sockets at PgBouncer's port are of no process")
	end()
	s.awaitHealthy()
}

// A process that was started with an old file is brought to the newest routes before
// /health says that all is well.
func TestProcessStartedWithOldFile(t *testing.T) {
	for name, changed := range map[string]bool{"the route changed while it was away": true, "it was right before": false} {
		t.Run(name, func(t *testing.T) {
			s := onePort(t, 2, nil)
			path := s.config.PgBouncer.Processes[1].Config
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if changed {
				s.ends[1]()
			}
			s.put(s.keys.Route(), s.route(1, cluster.RouteOpen))
			s.awaitLeader(1)
			s.ends[1]()
			s.awaitHealthy()
			if err := os.WriteFile(path, old, 0o644); err != nil {
				t.Fatal(err)
			}
			s.start(1)
			isOld := func() bool {
				d, err := s.database(1)
				return err == nil && d.Port == s.site.members[0].Port
			}
			s.await("the new primary in the process", func() error {
				before := isOld()
				var h Health
				code, err := s.http(http.MethodGet, "/health", &h)
				if err != nil {
					return err
				}
				if before && code == http.StatusOK && isOld() { // all the time
					t.Fatal("/health is well while a process leads to the old primary")
				}
				d, err := s.database(1)
				if err == nil && d.Port != s.site.members[1].Port {
					err = fmt.Errorf("it leads to %+v", d)
				}
				return err
			})
			s.awaitHealthy()
			if at := s.where(s.client(1)); at != 1 {
				t.Errorf("a client is at %d", at)
			}
		})
	}
}

// Of a PgBouncer that may share its port without our knowledge nothing is verified, though
// it is brought to the newest routes as far as it can be reached.
func TestSharedPortWithoutList(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Template = c.PgBouncer.Config + ".ctmpl" })
	text, err := templates.Read(templates.PgBouncer)
	if err != nil {
		t.Fatal(err)
	}
	w.write("pgbouncer.ini.ctmpl", strings.Replace(string(text), "[pgbouncer]\n", "[pgbouncer]\nso_reuseport = 1\n", 1))
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitReason("pgbouncer.processes")
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.await("the new primary", func() error {
		if at := w.where(w.connect("s1")); at != 1 {
			return fmt.Errorf("at %d", at)
		}
		return nil
	})
	if shard := w.awaitShard("leader", func(s ShardStatus) bool { return s.Leader == "db2" }); shard.VerifiedAt != nil {
		t.Errorf("it is said to be verified: %+v", shard)
	}
}

// version is that of process number i.
func (s *sharedPort) version(i int) pgbouncer.Version {
	s.t.Helper()
	options, err := s.config.Each()[i].Admin()
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := pgbouncer.Connect(s.ctx, options)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	version, err := conn.Version(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return version
}

// From 1.23 on a process is replaced without the balancer: it ends when its last client has
// gone, which follows the routes until then, and new ones come to the others meanwhile.
func TestProcessIsReplaced(t *testing.T) {
	s := onePort(t, 2, nil)
	if version := s.version(1); !version.AtLeast(1, 23) {
		t.Skipf("PgBouncer %s ends at once", version)
	}
	client := s.client(1)
	s.exec(client, "SELECT 1")
	gone := make(chan struct{})
	old := s.cmds[1]
	var ended sync.WaitGroup
	ended.Go(func() { _ = old.Wait(); close(gone) })
	t.Cleanup(func() { _ = old.Process.Kill(); ended.Wait() })
	s.signal(1, syscall.SIGTERM)
	healthy := func() {
		t.Helper()
		var h Health
		if code, err := s.http(http.MethodGet, "/health", &h); err != nil || code != http.StatusOK {
			t.Fatalf("/health is %d %v %v", code, h, err)
		}
	}
	s.put(s.keys.Route(), s.route(1, cluster.RouteOpen))
	s.await("the new primary in both", func() error {
		healthy()
		status, err := s.status()
		if shard := status.Shards["service/s1"]; err == nil && (shard.Leader != "db2" || shard.VerifiedAt == nil) {
			err = fmt.Errorf("%+v", shard)
		}
		return err
	})
	if at := s.where(client); at != 1 {
		t.Errorf("the client that stays is at %d", at)
	}
	if at := s.where(s.connect("s1")); at != 1 {
		t.Errorf("a new client is at %d", at)
	}
	select {
	case <-gone:
		t.Fatal("it ended while a client was there")
	default:
	}
	if err := client.Close(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.await("the end of the old process", func() error {
		healthy()
		select {
		case <-gone:
			return nil
		default:
			return errors.New("it runs")
		}
	})
	s.start(1)
	s.awaitProcess(1)
	s.awaitHealthy()
	if at := s.where(s.client(1)); at != 1 {
		t.Errorf("a client of the new process is at %d", at)
	}
}

// Clients that come and go are served while one process after the other is replaced. Only
// one that logs in just when a process is told to end may have to try again: PgBouncer
// refuses who has not logged in, and the kernel resets who was not accepted.
func TestProcessesAreReplacedUnderLoad(t *testing.T) {
	s := onePort(t, 2, nil)
	if version := s.version(1); !version.AtLeast(1, 23) {
		t.Skipf("PgBouncer %s ends at once", version)
	}
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	var (
		clients sync.WaitGroup
		served  atomic.Int64
	)
	failures := make(chan error, 1000)
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if err := s.comeAndGo(s.ctx); err != nil {
					failures <- err
				}
				served.Add(1)
			}
		})
	}
	for i := range s.cmds {
		before := served.Load()
		s.signal(i, syscall.SIGTERM)
		_ = s.cmds[i].Wait() // its clients go by themselves
		s.start(i)
		s.awaitProcess(i)
		s.awaitHealthy()
		s.await("clients meanwhile", func() error {
			if n := served.Load(); n < before+50 {
				return fmt.Errorf("%d", n-before)
			}
			return nil
		})
	}
	stop()
	clients.Wait()
	close(failures)
	t.Logf("%d clients, of which %d were refused", served.Load(), len(failures))
	for err := range failures {
		if text := err.Error(); !strings.Contains(text, "failed to connect") || !strings.Contains(text, "pooler is shutting down") && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client failed: %v", err)
		}
	}
}

// comeAndGo is a client that asks once.
func (s *sharedPort) comeAndGo(ctx context.Context) error {
	conn, err := pgconn.Connect(ctx, s.dsn("s1"))
	if err != nil {
		return err
	}
	_, err = s.ask(ctx, conn)
	return errors.Join(err, conn.Close(ctx))
}

// What an operator asks for is done in every process.
func TestProcessesAreOneForOperators(t *testing.T) {
	s := onePort(t, 2, nil)
	s.pausing(Pause, "s1")
	s.awaitPaused(0, true)
	s.awaitPaused(1, true)
	s.pausing(Resume, "s1")
	s.awaitPaused(0, false)
	s.awaitPaused(1, false)
	s.put(s.keys.Route(), s.route(0, cluster.RouteDown))
	s.awaitPaused(0, true)
	s.awaitPaused(1, true)
	s.awaitShard("hold", func(s ShardStatus) bool { return s.Held && s.Paused })
	s.pausing(Release, "s1")
	s.awaitPaused(0, false)
	s.awaitPaused(1, false)
}

// awaitProcess waits until process number i is known to be right.
func (s *sharedPort) awaitProcess(i int) {
	s.t.Helper()
	s.await("process", func() error {
		status, err := s.status()
		if all := status.PgBouncer.Processes; err == nil && (len(all) <= i || !all[i].Answers || all[i].Verified != 1) {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
}

// A request to cancel a query that comes to another process reaches the query.
func TestProcessesCancelForEachOther(t *testing.T) {
	s := onePort(t, 2, nil)
	if version := s.version(0); !version.AtLeast(1, 19) {
		t.Skipf("PgBouncer %s has no peers", version)
	}
	client := s.client(0)
	s.exec(client, "SELECT 1")
	result := make(chan error, 1)
	go func() {
		_, err := client.Exec(s.ctx, "SELECT pg_sleep(300)").ReadAll()
		result <- err
	}()
	host, port, _ := strings.Cut(s.config.PgBouncer.Processes[1].Admin, ":")
	request, err := (&pgproto3.CancelRequest{ProcessID: client.PID(), SecretKey: client.SecretKey()}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	for {
		other, err := net.Dial("unix", filepath.Join(host, ".s.PGSQL."+port))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Write(request); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, other) // until it was dealt with
		_ = other.Close()
		select {
		case err := <-result:
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != "57014" {
				t.Errorf("the query ended with %v", err)
			}
			return
		case <-s.ctx.Done():
			t.Fatal("the query goes on")
		case <-time.After(50 * time.Millisecond): // it may not have begun
		}
	}
}

// An operator's pause stays when the list of processes gets another order, or loses its first one.
func TestOperatorPauseAndTheOrderOfProcesses(t *testing.T) {
	s := onePort(t, 2, nil)
	s.pausing(Pause, "s1")
	paused := func(when string, processes ...int) {
		t.Helper()
		s.await("the pause "+when, func() error {
			for _, i := range processes {
				if d, err := s.database(i); err != nil {
					return fmt.Errorf("process %d: %w", i, err)
				} else if !d.Paused {
					return fmt.Errorf("process %d: %+v", i, d)
				}
			}
			status, err := s.status()
			if one := status.Shards["service/s1"]; err == nil && (one.Operator == nil || one.Operator.By != "alice@pooler1") {
				err = fmt.Errorf("%+v", one)
			}
			return err
		})
	}
	paused("at first", 0, 1)
	change := func(what string, processes ...config.Process) {
		t.Helper()
		next := s.config
		next.PgBouncer.Processes, next.StateFile = processes, ""
		if err := next.Complete(); err != nil {
			t.Fatal(err)
		}
		s.changes <- next
		s.await(what, func() error {
			status, err := s.status()
			if err == nil && (len(status.PgBouncer.Processes) != len(processes) || status.PgBouncer.Processes[0].Admin != processes[0].Admin || !status.PgBouncer.Answers) {
				err = fmt.Errorf("%+v", status.PgBouncer)
			}
			return err
		})
	}
	first, second := s.config.PgBouncer.Processes[0], s.config.PgBouncer.Processes[1]
	change("another order", second, first)
	paused("in another order", 0, 1)
	change("the order of before", first, second)
	paused("in the order of before", 0, 1)
	change("the first one removed", second)
	paused("without the first one", 1)
}
