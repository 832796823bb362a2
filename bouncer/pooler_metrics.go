package bouncer

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// poolerMetricsAge is how old PgBouncer's own figures may be: it works on one processor,
// and whoever may reach the listener may ask for them.
const poolerMetricsAge = time.Second

// poolerMetrics answers GET /metrics/pgbouncer with PgBouncer's own figures: SHOW POOLS,
// STATS_TOTALS, DATABASES, LISTS and CONFIG, under the names that prometheus-community's
// pgbouncer_exporter gives them, so that its dashboards and rules work. They are not among
// the bouncer's own (GET /metrics): at a thousand shards there are tens of thousands. Where
// several processes may have the port each has its own, with the label process.
func (a *listenerAPI) poolerMetrics() http.Handler {
	registry := prometheus.NewRegistry()
	for _, p := range a.processes.all {
		labeled := prometheus.Registerer(registry)
		if p.config.Listed() {
			labeled = prometheus.WrapRegistererWith(prometheus.Labels{"process": p.name()}, registry)
		}
		labeled.MustRegister(&poolerCollector{log: p.reconciler.log, ask: func(ctx context.Context) (pooler.Figures, error) {
			return pooler.AskFigures(ctx, p.config)
		}})
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
}

// poolerCollector turns PgBouncer's figures into metrics. Those who ask within
// poolerMetricsAge get the same ones; PgBouncer is asked once at a time.
type poolerCollector struct {
	ask func(context.Context) (pooler.Figures, error)
	log zerolog.Logger

	mu     sync.Mutex
	at     time.Time
	last   []prometheus.Metric
	failed bool
}

// Describe sends nothing, which makes the collector unchecked: which databases there
// are changes.
func (c *poolerCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends all metrics; pgbouncer_up alone, with 0, when PgBouncer does not answer.
func (c *poolerCollector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil || time.Since(c.at) >= poolerMetricsAge {
		ctx, cancel := context.WithTimeout(context.Background(), httpBound)
		figures, err := c.ask(ctx)
		cancel()
		c.note(err)
		c.at, c.last = time.Now(), poolerMetricsOf(figures, err == nil)
	}
	for _, m := range c.last {
		out <- m
	}
}

// note logs when PgBouncer cannot be asked any more, and when it can be again.
func (c *poolerCollector) note(err error) {
	switch {
	case err != nil && !c.failed:
		c.log.Warn().Err(err).Msg("PgBouncer's metrics cannot be had")
	case err == nil && c.failed:
		c.log.Info().Msg("PgBouncer's metrics can be had again")
	}
	c.failed = err != nil
}

// poolerMetric is a column of an answer as a metric.
type poolerMetric struct {
	column, name, help string
	unit               float64 // of the column, in that of the metric
}

// poolerTable is an answer of which each row is something that has metrics.
type poolerTable struct {
	show, prefix string
	kind         prometheus.ValueType
	labels       []string // columns of the same name
	metrics      []poolerMetric
}

// poolerTables are the answers with a row for each database or pool.
func poolerTables() []poolerTable {
	return []poolerTable{
		{
			show: "DATABASES", prefix: "pgbouncer_databases_", kind: prometheus.GaugeValue,
			labels: []string{"name", "host", "port", "database", "force_user", "pool_mode"},
			metrics: []poolerMetric{
				{"pool_size", "pool_size", "How many server connections a pool of the database may have.", 1},
				{"reserve_pool", "reserve_pool", "How many more it may have for clients that have waited long.", 1},
				{"reserve_pool_size", "reserve_pool", "How many more it may have for clients that have waited long.", 1},
				{"max_connections", "max_connections", "How many server connections the database may have; 0: no limit.", 1},
				{"current_connections", "current_connections", "Server connections of the database.", 1},
				{"paused", "paused", "1 if the database is paused.", 1},
				{"disabled", "disabled", "1 if the database is disabled.", 1},
			},
		},
		{
			show: "POOLS", prefix: "pgbouncer_pools_", kind: prometheus.GaugeValue,
			labels: []string{"database", "user"},
			metrics: []poolerMetric{
				{"cl_active", "client_active_connections", "Clients that have a server connection, or are idle.", 1},
				{"cl_waiting", "client_waiting_connections", "Clients that wait for a server connection.", 1},
				{"cl_active_cancel_req", "client_active_cancel_connections", "Cancel requests that were passed on and not answered yet.", 1},
				{"cl_waiting_cancel_req", "client_waiting_cancel_connections", "Cancel requests that were not passed on yet.", 1},
				{"sv_active", "server_active_connections", "Server connections that a client has.", 1},
				{"sv_active_cancel", "server_active_cancel_connections", "Server connections that pass on a cancel request.", 1},
				{"sv_being_canceled", "server_being_canceled_connections", "Server connections that wait for cancel requests in flight.", 1},
				{"sv_idle", "server_idle_connections", "Server connections that wait for a client.", 1},
				{"sv_used", "server_used_connections", "Server connections that are checked before the next client gets them.", 1},
				{"sv_tested", "server_testing_connections", "Server connections that run the reset or the check query.", 1},
				{"sv_login", "server_login_connections", "Server connections that log in.", 1},
				{"maxwait", "client_maxwait_seconds", "How long the client has waited that waits longest.", 1},
			},
		},
		{
			show: "STATS_TOTALS", prefix: "pgbouncer_stats_totals_", kind: prometheus.CounterValue,
			labels: []string{"database"},
			metrics: []poolerMetric{
				{"xact_count", "sql_transactions_pooled_total", "Transactions.", 1},
				{"query_count", "queries_pooled_total", "Queries.", 1},
				{"bytes_received", "received_bytes_total", "Bytes from clients.", 1},
				{"bytes_sent", "sent_bytes_total", "Bytes to clients.", 1},
				{"xact_time", "server_in_transaction_seconds_total", "Time that servers spent in transactions, idle in them included.", 1e-6},
				{"query_time", "queries_duration_seconds_total", "Time that servers spent on queries.", 1e-6},
				{"wait_time", "client_wait_seconds_total", "Time that clients waited for a server connection.", 1e-6},
				{"server_assignment_count", "server_assignments_total", "Times that a client got a server connection.", 1},
				{"client_parse_count", "client_parses_total", "Prepared statements that clients made.", 1},
				{"server_parse_count", "server_parses_total", "Prepared statements that were made on servers.", 1},
				{"bind_count", "binds_total", "Prepared statements that were bound.", 1},
			},
		},
	}
}

// poolerLists are the rows of SHOW LISTS that are metrics.
func poolerLists() map[string]poolerMetric {
	return map[string]poolerMetric{
		"databases":     {name: "pgbouncer_databases", help: "Databases."},
		"users":         {name: "pgbouncer_users", help: "Users."},
		"pools":         {name: "pgbouncer_pools", help: "Pools."},
		"free_clients":  {name: "pgbouncer_free_clients", help: "Places for clients that are made and free."},
		"used_clients":  {name: "pgbouncer_used_clients", help: "Clients."},
		"login_clients": {name: "pgbouncer_login_clients", help: "Clients that log in."},
		"free_servers":  {name: "pgbouncer_free_servers", help: "Places for server connections that are made and free."},
		"used_servers":  {name: "pgbouncer_used_servers", help: "Server connections."},
		"dns_names":     {name: "pgbouncer_cached_dns_names", help: "Names that are remembered."},
		"dns_zones":     {name: "pgbouncer_cached_dns_zones", help: "Zones that are remembered."},
		"dns_queries":   {name: "pgbouncer_in_flight_dns_queries", help: "Names that are asked for."},
	}
}

// poolerSettings are the settings that are metrics.
func poolerSettings() map[string]poolerMetric {
	return map[string]poolerMetric{
		"max_client_conn":      {name: "pgbouncer_config_max_client_connections", help: "How many clients PgBouncer takes."},
		"max_user_connections": {name: "pgbouncer_config_max_user_connections", help: "How many server connections a user may have; 0: no limit."},
	}
}

// errNoNumber: PgBouncer's answer has something else where a number must be.
var errNoNumber = errors.New("PgBouncer's answer has no number there")

// poolerMetricsOf are the figures as metrics.
func poolerMetricsOf(f pooler.Figures, up bool) []prometheus.Metric {
	all := []prometheus.Metric{poolerValue("pgbouncer_up", "1 if PgBouncer answers.", prometheus.GaugeValue, truth(up), nil)}
	if !up {
		return all
	}
	all = append(all, poolerValue("pgbouncer_version_info", "1, with PgBouncer's version.", prometheus.GaugeValue, 1, []string{"version"}, f.Version.String()))
	for _, table := range poolerTables() {
		told := map[string]bool{}
		for _, row := range f.Shown[table.show] {
			values := make([]string, len(table.labels))
			for i, label := range table.labels {
				values[i] = strings.ToValidUTF8(row.Text(label), "?") // anything else fails all
			}
			one := strings.Join(values, "\x00")
			if told[one] { // as do two of one name: a client of * has asked for them
				continue
			}
			told[one] = true
			for _, m := range table.metrics {
				if n, found := row.Number(m.column); found { // an older PgBouncer may not have it
					all = append(all, poolerValue(table.prefix+m.name, m.help, table.kind, n*m.unit, table.labels, values...))
				}
			}
		}
	}
	all = append(all, named(f.Shown["LISTS"], "list", "items", poolerLists())...)
	return append(all, named(f.Shown["CONFIG"], "key", "value", poolerSettings())...)
}

// named are the rows that are called as wanted says, each with one value.
func named(rows []pgbouncer.Figures, key, value string, wanted map[string]poolerMetric) []prometheus.Metric {
	var all []prometheus.Metric
	for _, row := range rows {
		m, found := wanted[row.Text(key)]
		if !found {
			continue
		}
		n, ok := row.Number(value)
		if !ok {
			all = append(all, prometheus.NewInvalidMetric(prometheus.NewDesc(m.name, m.help, nil, nil), errNoNumber))
			continue
		}
		all = append(all, poolerValue(m.name, m.help, prometheus.GaugeValue, n, nil))
	}
	return all
}

func poolerValue(name, help string, kind prometheus.ValueType, value float64, labels []string, values ...string) prometheus.Metric {
	desc := prometheus.NewDesc(name, help, labels, nil)
	m, err := prometheus.NewConstMetric(desc, kind, value, values...)
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return m
}
