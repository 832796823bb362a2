package backup

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// The figures of docs/backups.md: what a reinit fetches out of the repository when some 1 %
// of a shard's files differ, and what a base backup does.
func TestDeltaFetchesLittle(t *testing.T) {
	all(t)
	const (
		tables  = 210
		rows    = 9600 // of 1 kB: 10 MB
		changed = 2    // of the tables
	)
	// Nothing but the test changes files.
	s := serving(t, lab.Options{Members: 2, Async: true, Parameters: map[string]any{
		"autovacuum": "off", "max_wal_size": "4GB", "checkpoint_timeout": "1h", "wal_keep_size": "64MB",
	}}, nil)
	shard := s.Shard(0)
	ctx := testkit.Within(t, 10*patience)
	leader := got(shard.Leader(ctx))(t)
	replica := got(shard.Replicas(ctx))(t)[0]
	sql(ctx, t, leader, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
		EXECUTE format('CREATE TABLE public.t%%s AS SELECT g, repeat(md5(random()::text), 31) AS filler FROM generate_series(1, %d) g', i); END LOOP; END $$`, tables, rows),
		"VACUUM FREEZE", "CHECKPOINT")
	got(shard.AwaitHealthy(ctx))(t)
	must(t, s.backup(ctx, shard))
	for i := range changed {
		sql(ctx, t, leader, fmt.Sprintf("UPDATE public.t%d SET filler = upper(filler) WHERE g %% 10 = 0", i+1))
	}
	sql(ctx, t, leader, "CHECKPOINT", "SELECT pg_switch_wal()")
	must(t, s.pgbackrest(ctx, shard, "check"))
	got(shard.AwaitHealthy(ctx))(t)

	size := count(ctx, t, leader, "SELECT (pg_database_size(current_database()) >> 20)::int")
	measure := func(by string) (megabytes float64, took time.Duration) {
		t.Helper()
		from, began := received(ctx, t, replica), time.Now()
		s.reinit(ctx, t, replica)
		megabytes, took = float64(received(ctx, t, replica)-from)/(1<<20), time.Since(began)
		if how := made(ctx, t, replica); !strings.Contains(how, " by "+by+" in ") {
			t.Fatalf("it was made %q", how)
		}
		return megabytes, took
	}
	delta, deltaTook := measure("pgbackrest")
	must(t, s.repo.Process(serverName).Kill(ctx))
	whole, wholeTook := measure("basebackup")
	t.Logf("%d MB in %d tables, of which %d had changed: --delta fetched %.1f MB in %.1f s, a base backup %.1f MB in %.1f s (%.1f %%)",
		size, tables, changed, delta, deltaTook.Seconds(), whole, wholeTook.Seconds(), 100*delta/whole)
	if delta > whole/10 {
		t.Errorf("--delta fetched %.1f MB, more than a tenth of %.1f MB", delta, whole)
	}
	if n := count(ctx, t, replica, "SELECT count(*) FROM public.t1 WHERE filler = upper(filler)"); n != rows/10 {
		t.Errorf("%d rows as they were changed", n)
	}
}

// received is how many bytes a member's host has got over its network.
func received(ctx context.Context, t *testing.T, m *lab.Member) int64 {
	t.Helper()
	out, err := m.Command(ctx, "cat", "/proc/net/dev").Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if name, counts, _ := strings.Cut(strings.TrimSpace(line), ":"); name == "eth0" {
			return got(strconv.ParseInt(strings.Fields(counts)[0], 10, 64))(t)
		}
	}
	t.Fatalf("no eth0 on %s: %s", m.Name, out)
	return 0
}
