package bouncer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
)

// PgBouncer's own figures have the names that pgbouncer_exporter gives them.
func TestPoolerMetrics(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	conn := w.connect("s1")
	if member := w.where(conn); member != 0 {
		t.Fatalf("the client is at member %d", member)
	}

	text := w.scrape("/metrics/pgbouncer")
	for _, want := range []string{
		"pgbouncer_up 1\n",
		`pgbouncer_version_info{version="1.`,
		`pgbouncer_databases_paused{database="s1",force_user="",host="` + w.site.members[0].Host + `",name="s1",`,
		`pgbouncer_databases_pool_size{`,
		`pgbouncer_pools_server_idle_connections{database="s1",user="app"} 1` + "\n",
		`pgbouncer_pools_client_waiting_connections{database="s1",user="app"} 0` + "\n",
		`pgbouncer_stats_totals_sql_transactions_pooled_total{database="s1"} `,
		`pgbouncer_stats_totals_client_wait_seconds_total{database="s1"} `,
		"pgbouncer_used_servers 1\n",
		"pgbouncer_config_max_client_connections ",
		"# TYPE pgbouncer_stats_totals_queries_pooled_total counter\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("not there: %s", want)
		}
	}
	if strings.Contains(w.scrape("/metrics"), "pgbouncer_pools") {
		t.Error("the bouncer's own metrics have PgBouncer's among them")
	}
	if t.Failed() {
		t.Log(text)
	}
	kill()
	w.await("pgbouncer_up 0", func() error {
		if text := w.scrape("/metrics/pgbouncer"); !strings.Contains(text, "pgbouncer_up 0\n") || strings.Contains(text, "pgbouncer_pools") {
			return errors.New(text)
		}
		return nil
	})
}

// scrape is the answer of the bouncer's listener.
func (w *world) scrape(path string) string {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.ctx, http.MethodGet, "http://"+w.config.Listen+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %d %s %v", path, response.StatusCode, body, err)
	}
	return string(body)
}

// However many ask, PgBouncer is asked once at a time, and once a second.
func TestPoolerMetricsAreShared(t *testing.T) {
	var asked atomic.Int64
	c := &poolerCollector{log: zerolog.Nop(), ask: func(context.Context) (pooler.Figures, error) {
		asked.Add(1)
		return pooler.Figures{}, errors.New("gone")
	}}
	for range 20 {
		if err := testutil.CollectAndCompare(c, strings.NewReader("# HELP pgbouncer_up 1 if PgBouncer answers.\n# TYPE pgbouncer_up gauge\npgbouncer_up 0\n")); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("PgBouncer was asked %d times", n)
	}
	c.at = c.at.Add(-poolerMetricsAge)
	testutil.CollectAndCount(c)
	if n := asked.Load(); n != 2 {
		t.Errorf("old figures were told: PgBouncer was asked %d times", n)
	}
}

// A client of the database * names one as it likes. Two names that are no text cost nobody the metrics.
func TestNamesThatAreNoTextCostNoMetrics(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		console, err := bouncertest.FakeStartup(conn)
		if err != nil {
			return
		}
		console.Send(&pgproto3.AuthenticationOk{})
		for {
			console.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if console.Flush() != nil {
				return
			}
			said, err := console.Receive()
			q, asks := said.(*pgproto3.Query)
			if err != nil || !asks {
				return
			}
			columns, rows := []string{"version"}, [][]string{{"PgBouncer 1.24.1"}}
			if q.String == "SHOW POOLS" {
				columns, rows = []string{"database", "user", "cl_active"}, [][]string{{"s1", "app", "7"}, {"a\xff", "app", "1"}, {"a\xfe", "app", "1"}}
			}
			fields := make([]pgproto3.FieldDescription, len(columns))
			for i, name := range columns {
				fields[i].Name = []byte(name)
			}
			console.Send(&pgproto3.RowDescription{Fields: fields})
			for _, row := range rows {
				values := make([][]byte, len(row))
				for i, value := range row {
					values[i] = []byte(value)
				}
				console.Send(&pgproto3.DataRow{Values: values})
			}
			console.Send(&pgproto3.CommandComplete{CommandTag: []byte("SHOW")})
		}
	})
	defer served.Wait()
	defer l.Close()
	c := &poolerCollector{log: zerolog.Nop(), ask: func(ctx context.Context) (pooler.Figures, error) {
		return pooler.AskFigures(ctx, config.Config{PgBouncer: config.PgBouncer{Admin: l.Addr().String(), User: "pooler"}})
	}}
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	if n, err := testutil.GatherAndCount(registry, "pgbouncer_pools_client_active_connections"); err != nil || n != 2 {
		t.Errorf("%d pools, %v", n, err)
	}
}
