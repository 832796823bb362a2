package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// The reader of a logical slot that has become a permanent one gets every row, in order, through a switchover
// and the loss of the primary's host, while there is no moment without other transactions. Rows
// that it has confirmed it does not get again.
func TestLogicalSlot(t *testing.T) { readThrough(t, false) }

// The same of a failover slot, which PostgreSQL itself keeps on replicas.
func TestFailoverSlot(t *testing.T) { readThrough(t, true) }

func readThrough(t *testing.T, native bool) {
	t.Helper()
	parameters, create := map[string]any{"wal_level": "logical"}, "SELECT pg_create_logical_replication_slot('feed', 'test_decoding')"
	if native {
		if major(t) < 17 {
			t.Skip("sync_replication_slots is of PostgreSQL 17")
		}
		parameters["sync_replication_slots"], create = "on", "SELECT pg_create_logical_replication_slot('feed', 'test_decoding', failover => true)"
	}
	l := start(t, lab.Options{
		Members: 3, Bouncers: -1, ConsulServers: 1,
		Parameters: parameters,
	})
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.AwaitHealthy(ctx))(t)
	conn := got(leader.Connect(ctx, "postgres"))(t)
	for _, sql := range []string{
		"CREATE TABLE public.feed (n bigint)", "CREATE TABLE public.others (n bigint)",
		create,
	} {
		_, err := conn.Exec(ctx, sql)
		must(t, err)
	}

	r := &feedReader{lab: l, shard: s, dir: t.TempDir()}
	work, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { overlap(work, s) })
	leave := r.start(work)
	t.Cleanup(func() { end(); leave(); running.Wait() })
	last, written := 0, int64(0) // the last row, and where it is in the WAL
	write := func(rows int) {    // each in a transaction of its own, which is acknowledged
		t.Helper()
		leader := got(s.AwaitLeader(ctx))(t)
		conn := got(leader.Connect(ctx, "postgres"))(t)
		defer conn.Close(ctx)
		for range rows {
			last++
			_, err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO public.feed VALUES (%d)", last))
			must(t, err)
		}
		must(t, conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").Scan(&written))
	}
	// Every member could lead, and its slot is where the reader is.
	inSync := func() *lab.Member {
		t.Helper()
		leader := got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx))
		await(ctx, t, "the reader has everything, and the copies of the slot are as far", func() error {
			if n := r.last(); n != last {
				return fmt.Errorf("it has come to row %d of %d; pg_recvlogical says %q", n, last, r.said())
			}
			if native { // a slot is kept from when it was moved beyond what the replica has still
				if err := checkpoint(ctx, leader); err != nil {
					return err
				}
			}
			for _, m := range s.Members() {
				if at, err := feedConfirmed(ctx, m); err != nil || at < written {
					return errors.Join(err, fmt.Errorf("the slot of %s is at %d, the last row before %d", m.Name, at, written))
				}
			}
			return nil
		})
		return leader
	}

	write(50)
	// Two checkpoints, between which all transactions have changed, move on where its reading begins: to the
	// first one, with a snapshot of those that ran there.
	ask := func(sql string) (value string) {
		t.Helper()
		must(t, conn.QueryRow(ctx, sql).Scan(&value))
		return value
	}
	const begins = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'feed'"
	made := ask(begins)
	for range 2 {
		_, err := conn.Exec(ctx, "CHECKPOINT")
		must(t, err)
		oldest := ask("SELECT pg_current_snapshot()::text")
		await(ctx, t, "those transactions have ended", func() error {
			if ask("SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= pg_snapshot_xmax('"+oldest+"')::text::bigint)::text") != "true" {
				return errors.New("some of " + oldest + " still run")
			}
			return nil
		})
	}
	await(ctx, t, "the slot is moved on", func() error {
		if ask(begins) == made {
			return errors.New("it begins where it was made")
		}
		return nil
	})
	must(t, conn.Close(ctx))
	status, answer, err := leader.Patch(ctx, "/config", map[string]any{"slots": map[string]any{"feed": map[string]any{
		"type": "logical", "database": "postgres", "plugin": "test_decoding",
	}}})
	if err != nil || status != http.StatusOK {
		t.Fatal(status, answer, err)
	}
	old := inSync()
	leave() // it is away for a while, and gets what it has missed from the next leader
	write(50)
	next := s.Member(got(s.Snapshot(ctx))(t).Sync.Value.Standbys()[0])
	before := r.runs()
	must(t, s.Switchover(ctx, old, next))
	leave = r.start(work)
	write(50)
	old = inSync()
	for _, run := range r.runs()[len(before):] {
		if len(run) > 0 && run[0] <= 50 {
			t.Errorf("after the switchover it got row %d again, which it had confirmed", run[0])
		}
	}

	write(50) // the reader may have some of them, and has confirmed less
	must(t, old.Kill(ctx))
	got(s.AwaitLeader(ctx, old))(t)
	write(50)
	must(t, old.Start(ctx))
	write(50)
	inSync()
	leave()

	seen := 0
	for i, run := range r.runs() {
		for j, n := range run {
			switch {
			case j > 0 && n != run[j-1]+1:
				t.Errorf("run %d: row %d after %d", i, n, run[j-1])
			case n > seen+1:
				t.Errorf("run %d: rows %d to %d are lost", i, seen+1, n-1)
			}
			seen = max(seen, n)
		}
	}
	if seen != last {
		t.Errorf("the last row is %d, want %d", seen, last)
	}
}

// feedConfirmed is up to where the reader has everything, as a member's slot has it.
func feedConfirmed(ctx context.Context, m *lab.Member) (at int64, err error) {
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint FROM pg_replication_slots WHERE slot_name = 'feed'").Scan(&at); err != nil {
		return 0, fmt.Errorf("the slot on %s: %w", m.Name, err)
	}
	return at, nil
}

// major is the version of PostgreSQL that labs run.
func major(t *testing.T) (n int) {
	t.Helper()
	programs := got(lab.Programs{}.Find())(t)
	said := got(exec.CommandContext(t.Context(), filepath.Join(programs.PostgresBin, "postgres"), "--version").Output())(t)
	if _, err := fmt.Sscanf(string(said), "postgres (PostgreSQL) %d", &n); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	return n
}

func checkpoint(ctx context.Context, m *lab.Member) error {
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "CHECKPOINT")
	return errors.Join(err, conn.Close(ctx))
}

// overlap keeps transactions open on whichever member leads, each of which ends when the
// next one has begun: there is no moment at which none runs.
func overlap(ctx context.Context, s *lab.Shard) {
	var open []*pgx.Conn
	end := func() {
		for _, conn := range open {
			_ = conn.Close(context.WithoutCancel(ctx)) // its PostgreSQL may be gone
		}
		open = nil
	}
	defer end()
	for ctx.Err() == nil {
		if err := func() error {
			leader, err := s.Leader(ctx)
			if err != nil {
				return err
			}
			conn, err := leader.Connect(ctx, "postgres")
			if err != nil {
				return err
			}
			open = append(open, conn)
			if _, err := conn.Exec(ctx, "BEGIN; INSERT INTO public.others VALUES (1)"); err != nil {
				return err
			}
			if len(open) == 1 {
				return nil
			}
			_, err = open[0].Exec(ctx, "COMMIT")
			_ = open[0].Close(ctx)
			open = open[1:]
			return err
		}(); err != nil {
			end()
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// feedReader reads the slot feed of whichever member leads, with PostgreSQL's own client.
type feedReader struct {
	lab   *lab.Lab
	shard *lab.Shard
	dir   string

	mu    sync.Mutex
	files []string // of each run
}

// start starts the reader, and returns what ends it and waits for its end.
func (r *feedReader) start(ctx context.Context) (leave func()) {
	ctx, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx) })
	return func() { end(); running.Wait() }
}

func (r *feedReader) run(ctx context.Context) {
	for ctx.Err() == nil {
		if leader, err := r.shard.Leader(ctx); err == nil {
			r.read(ctx, leader)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// read reads until the connection ends.
func (r *feedReader) read(ctx context.Context, m *lab.Member) {
	host, port, err := net.SplitHostPort(m.Postgres)
	if err != nil {
		return
	}
	r.mu.Lock()
	file := filepath.Join(r.dir, strconv.Itoa(len(r.files)))
	r.files = append(r.files, file)
	r.mu.Unlock()
	cmd := r.lab.Command(ctx, filepath.Join(r.lab.Options.Programs.PostgresBin, "pg_recvlogical"), "--no-loop", "--start", "--slot=feed",
		"--file="+file, "--fsync-interval=1", "--status-interval=1", "--host="+host, "--port="+port, "--username="+lab.SuperuserRole, "--dbname=postgres")
	cmd.Env = append(os.Environ(), "PGPASSWORD="+r.lab.Secrets.Superuser, "PGCONNECT_TIMEOUT=2")
	said, err := os.Create(file + ".said")
	if err != nil {
		return
	}
	defer said.Close()
	cmd.Stderr = said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); errors.Is(err, exec.ErrNotFound) {
		panic(err)
	}
}

var feedRow = regexp.MustCompile(`(?m)^table public\.feed: INSERT: n\[bigint\]:(\d+)$`)

// runs are the rows that each connection has brought.
func (r *feedReader) runs() [][]int {
	r.mu.Lock()
	files := slices.Clone(r.files)
	r.mu.Unlock()
	var all [][]int
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // it brought nothing
		}
		var rows []int
		for _, match := range feedRow.FindAllSubmatch(content, -1) {
			if n, err := strconv.Atoi(string(match[1])); err == nil {
				rows = append(rows, n)
			}
		}
		all = append(all, rows)
	}
	return all
}

// said is what the last connections have ended with.
func (r *feedReader) said() string {
	r.mu.Lock()
	files := slices.Clone(r.files)
	r.mu.Unlock()
	said := ""
	for _, file := range files[max(0, len(files)-3):] {
		content, _ := os.ReadFile(file + ".said")
		said += string(content)
	}
	return said
}

func (r *feedReader) last() int {
	last := 0
	for _, run := range r.runs() {
		for _, n := range run {
			last = max(last, n)
		}
	}
	return last
}
