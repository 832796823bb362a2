package api

import (
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// metrics answers GET /metrics: Patroni's metrics under their names, and
// Lictor's own. Every value comes from what the loop saw last.
func (s *Server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{server: s})
	state := s.node.State()
	prometheus.WrapRegistererWith(prometheus.Labels{"scope": state.Scope, "name": state.Name}, registry).MustRegister(s.Collectors...)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
}

// collector turns a State into metrics. It is unchecked: what a node has to say
// depends on its state.
type collector struct{ server *Server }

// Describe sends nothing, which makes the collector unchecked.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends all metrics.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	state := c.server.node.State()
	status := c.server.status(state)
	labels := []string{state.Scope, state.Name}
	send := func(kind prometheus.ValueType, name, help string, value float64, more ...string) {
		names, values := []string{"scope", "name"}, labels
		if len(more) == 2 {
			names, values = append(names, more[0]), append(labels[:2:2], more[1])
		}
		m, err := prometheus.NewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
		if err != nil {
			m = prometheus.NewInvalidMetric(prometheus.NewDesc(name, help, names, nil), err)
		}
		out <- m
	}
	gauge := func(name, help string, value float64, more ...string) {
		send(prometheus.GaugeValue, name, help, value, more...)
	}
	counter := func(name, help string, value float64) { send(prometheus.CounterValue, name, help, value) }
	c.patroni(state, status, gauge, counter)
	c.lictor(state, status.Lictor, gauge)
	if room := state.WALRoom; room.Bytes > 0 {
		gauge("lictor_wal_bytes", "How much pg_wal holds, in bytes.", float64(room.Bytes))
		gauge("lictor_wal_free_bytes", "How much the file system of pg_wal has left, in bytes.", float64(room.Free))
	}
	state.Backups.metrics(gauge)
	c.archiver(state.Archiver, status.Lictor.Archiver, gauge, counter)
}

type (
	sendGauge   func(name, help string, value float64, more ...string)
	sendCounter func(name, help string, value float64)
)

func (c *collector) patroni(state State, status nodeStatus, gauge sendGauge, counter sendCounter) {
	pg := state.Postgres
	primary := pg.Accepting && !pg.InRecovery
	start := 0.0
	if pg.Accepting && !pg.StartTime.IsZero() {
		start = float64(pg.StartTime.UnixMicro()) / 1e6
	}
	gauge("patroni_version", "Version of the agent, as a number: 1.2.3 is 010203.", versionNumber(state.Version))
	gauge("patroni_postgres_running", "1 if PostgreSQL runs.", flag(pg.State == cluster.StateRunning))
	gauge("patroni_postmaster_start_time", "When PostgreSQL was started, in seconds since 1970.", start)
	leads := flag(primary && (state.Leader || pausedLeader(state)))
	gauge("patroni_primary", "1 if this member is the primary and holds the leader lock, or goes on in pause without it.", leads)
	if c.server.Compat == compat3 {
		gauge("patroni_master", "1 if this member is the primary and holds the leader lock, or goes on in pause without it.", leads)
	}
	counter("patroni_xlog_location", "Write position of the primary in bytes, 0 elsewhere.", only(primary, pg.LSN))
	gauge("patroni_standby_leader", "1 if this member leads a standby cluster.", flag(status.Role == cluster.RoleStandbyLeader))
	gauge("patroni_replica", "1 if this member is a replica.", flag(pg.Accepting && status.Role == cluster.RoleReplica))
	gauge("patroni_sync_standby", "1 if this member is a synchronous standby.", flag(status.SyncStandby))
	gauge("patroni_quorum_standby", "1 if this member is a quorum standby.", flag(status.QuorumStandby))
	replica := pg.Accepting && pg.InRecovery
	counter("patroni_xlog_received_location", "Received position of a replica in bytes, 0 elsewhere.", only(replica, max(pg.ReceivedLSN, pg.ReplayedLSN)))
	counter("patroni_xlog_replayed_location", "Replayed position of a replica in bytes, 0 elsewhere.", only(replica, pg.ReplayedLSN))
	replayed := 0.0
	if replica && !pg.ReplayedAt.IsZero() {
		replayed = float64(pg.ReplayedAt.UnixMicro()) / 1e6
	}
	gauge("patroni_xlog_replayed_timestamp", "When the last replayed transaction was committed, in seconds since 1970, 0 if unknown.", replayed)
	gauge("patroni_xlog_paused", "1 if the replay is paused.", flag(replica && pg.ReplayPaused))
	gauge("patroni_postgres_streaming", "1 if this replica streams.", flag(replica && pg.ReplicationState == "streaming"))
	gauge("patroni_postgres_in_archive_recovery", "1 if this replica reads WAL from the archive.", flag(replica && pg.ReplicationState == "in archive recovery"))
	gauge("patroni_postgres_server_version", "Version of PostgreSQL, as server_version_num.", float64(pg.ServerVersion))
	gauge("patroni_cluster_unlocked", "1 if nobody holds the leader lock.", flag(status.ClusterUnlocked))
	gauge("patroni_failsafe_mode_is_active", "1 if the lease rests on the members instead of Consul.", flag(state.FailsafeActive))
	gauge("patroni_failsafe_mode_enabled", "1 if failsafe_mode is on in the dynamic configuration.", flag(state.Dynamic.FailsafeMode))
	_, promises := state.Cluster.Failsafe.Value[state.Name]
	gauge("patroni_failsafe_member", "1 if this member is in the key failsafe.", flag(state.Cluster.Failsafe.OK() && promises))
	priority := 0
	if tags := effectiveTags(state); !cluster.NoFailover(tags) {
		priority = cluster.FailoverPriority(tags)
	}
	gauge("patroni_failover_priority", "Failover priority of this member, 0 if it must not lead.", float64(priority))
	gauge("patroni_postgres_state", "State of PostgreSQL as Patroni numbers it: 0=initdb, 1=initdb_failed, 2=custom_bootstrap, 3=custom_bootstrap_failed, 4=creating_replica, "+
		"5=running, 6=starting, 7=bootstrap_starting, 8=start_failed, 9=restarting, 10=restart_failed, 11=stopping, 12=stopped, 13=stop_failed, 14=crashed; -1=unknown.", stateNumber(status.State))
	counter("patroni_postgres_timeline", "Timeline of PostgreSQL.", float64(pg.Timeline))
	gauge("patroni_dcs_last_seen", "When Consul last answered, in seconds since 1970, 0 if never.", float64(status.DCSLastSeen))
	gauge("patroni_pending_restart", "1 if PostgreSQL must be restarted for a setting to take effect.", flag(status.PendingRestart))
	gauge("patroni_is_paused", "1 if the shard is paused.", flag(state.Dynamic.Pause))
}

func (c *collector) lictor(state State, status lictorStatus, gauge sendGauge) {
	left := 0.0
	if status.LeaseLeftMS != nil {
		left = float64(*status.LeaseLeftMS) / 1000
	}
	gauge("lictor_lease_left_seconds", "How long the lease still runs, 0 when this member holds none.", left)
	gauge("lictor_build_info", "1, with the agent's version.", 1, "version", state.Version)
	gauge("lictor_lease_duration_seconds", "How long a lease is: the setting ttl.", state.Dynamic.TTL.Seconds())
	if lag, known := state.Postgres.Lag(max(state.Postgres.ReceivedLSN, state.Postgres.ReplayedLSN)); known || !state.Postgres.InRecovery {
		gauge("lictor_replica_lag_bytes", "How far this replica is behind what the leader had published before it looked, 0 elsewhere, absent where it is not known.", float64(lag))
	}
	gauge("lictor_replay_stands_still", "1 if this replica's replay is paused or delayed, so that it serves no readers.", flag(status.ReplayStandsStill != ""))
	gauge("lictor_members", "Members of the shard in Consul.", float64(len(state.Cluster.Members)))
	gauge("lictor_nostream", "1 if this member is tagged nostream: as a replica it reads the archive and never streams.", flag(cluster.NoStream(state.Tags)))
	gauge("lictor_replica_stranded", "1 if this replica cannot go on with its data and must be made anew.", flag(status.Stranded != ""))
	gauge("lictor_guard_running", "1 if the guard answers the agent.", flag(status.Guard.Running))
	gauge("lictor_guard_armed_seconds", "How long the guard still lets PostgreSQL live, 0 when it is disarmed.", float64(status.Guard.ArmedForMS)/1000)
	gauge("lictor_other_primaries", "Other members of the shard that were seen to run as a primary: must be 0.", float64(len(state.OtherPrimaries)))
	if w := status.Watchdog; w != nil {
		gauge("lictor_watchdog_active", "1 if the watchdog device counts down for a lease.", flag(w.Active))
		gauge("lictor_watchdog_working", "1 if the last keepalive of the watchdog device succeeded.", flag(w.Working))
		gauge("lictor_watchdog_timeout_seconds", "What the watchdog device is set to, 0 when it does not run.", float64(w.TimeoutMS)/1000)
		gauge("lictor_watchdog_time_left_seconds", "How long until the watchdog device resets the host unless it is kept alive.", float64(w.TimeLeftMS)/1000)
		gauge("lictor_watchdog_keepalives", "Keepalives that were sent since the agent's start.", float64(w.KeepAlives))
		gauge("lictor_watchdog_last_reset", "1 if the host was reset, with the cause as far as it is known.", flag(w.LastReset != ""), "cause", w.LastReset)
	}
	if status.LoopAgeMS != nil {
		gauge("lictor_loop_age_seconds", "How long ago the agent's loop came round.", float64(*status.LoopAgeMS)/1000)
	}
	if beat := status.Beat; beat != nil {
		gauge("lictor_beat", "Number of the last renewal of the leader's lease that was seen.", float64(beat.Number), "owner", beat.Owner)
	}
}

// stateNumber is the number that Patroni gives to a state for ever.
func stateNumber(state string) float64 {
	return float64(slices.Index([]string{
		cluster.StateInitializing, cluster.StateInitFailed, "running custom bootstrap script", "custom bootstrap failed", cluster.StateCreating,
		cluster.StateRunning, cluster.StateStarting, "starting after custom bootstrap", cluster.StateStartFailed, cluster.StateRestarting,
		"restart failed", cluster.StateStopping, cluster.StateStopped, "stop failed", cluster.StateCrashed,
	}, state))
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func only(b bool, n int64) float64 {
	if b {
		return float64(n)
	}
	return 0
}

// versionNumber is 10203 for 1.2.3, as Patroni writes it.
func versionNumber(version string) float64 {
	n := 0
	part := 0
	for _, r := range version + "." {
		switch {
		case r == '.':
			n, part = n*100+part, 0
		case r >= '0' && r <= '9':
			part = part*10 + int(r-'0')
		}
	}
	return float64(n)
}
