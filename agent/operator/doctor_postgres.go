package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// sqlFacts is what a member's PostgreSQL says of itself.
type sqlFacts struct {
	Recovering bool              `json:"recovering"`
	Settings   map[string]string `json:"settings"`
	// Altered are the parameters that ALTER SYSTEM has set and that are in force.
	Altered []string `json:"altered"`
	// Clock is PostgreSQL's time in seconds since 1970.
	Clock   float64      `json:"clock"`
	Slots   []slotFact   `json:"slots"`
	Senders []senderFact `json:"senders"`
	// Unwaiting are roles and databases whose own synchronous_commit has commits wait for no standby's disk.
	Unwaiting []ownCommit `json:"unwaiting"`
	// OwnCommit: the session that asked has a synchronous_commit of its role's or database's, and does not show the server's.
	OwnCommit bool          `json:"own_commit"`
	skew      time.Duration // its clock minus ours, as far as that can be known
}

// ownCommit is a synchronous_commit of a role's, a database's, or of a role's in a database; empty: of all.
type ownCommit struct {
	Role     string `json:"role"`
	Database string `json:"database"`
	Value    string `json:"value"`
}

func (c ownCommit) String() string {
	who := []string{}
	if c.Role != "" {
		who = append(who, "role "+c.Role)
	}
	if c.Database != "" {
		who = append(who, "database "+c.Database)
	}
	return strings.Join(who, " in ") + ": " + c.Value
}

type slotFact struct {
	Name   string `json:"name"`
	Active bool   `json:"active"`
	// Retained is how much WAL the slot keeps, in bytes.
	Retained int64  `json:"retained"`
	Status   string `json:"status"` // wal_status; empty before 13
}

type senderFact struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// factsSQL asks for everything at once, as JSON. (Slots keep WAL from restart_lsn
// on, see pg_replication_slots.)
const factsSQL = `
WITH position AS (
  SELECT pg_is_in_recovery() AS recovering,
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn)
SELECT json_build_object(
  'recovering', recovering,
  'clock', extract(epoch FROM clock_timestamp()),
  'settings', (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name IN (
     'fsync', 'full_page_writes', 'wal_level', 'hot_standby', 'max_wal_senders', 'max_replication_slots', 'wal_log_hints', 'data_checksums',
     'synchronous_commit', 'restart_after_crash', 'server_version',
     'max_slot_wal_keep_size', 'password_encryption')),
  'own_commit', (SELECT source IN ('global', 'database', 'user', 'database user') FROM pg_settings WHERE name = 'synchronous_commit'),
  'altered', COALESCE((SELECT json_agg(name ORDER BY name) FROM pg_settings WHERE sourcefile LIKE '%/postgresql.auto.conf'), '[]'),
  'slots', COALESCE((SELECT json_agg(json_build_object('name', slot_name, 'active', active,
     'retained', COALESCE(pg_wal_lsn_diff(lsn, restart_lsn), 0)::bigint, 'status', COALESCE(to_jsonb(s) ->> 'wal_status', '')))
     FROM pg_replication_slots s WHERE NOT temporary), '[]'),
  'unwaiting', COALESCE((SELECT json_agg(json_build_object('role', COALESCE(rolname, ''), 'database', COALESCE(datname, ''), 'value', own) ORDER BY rolname, datname)
     FROM (SELECT r.rolname, d.datname, lower(split_part(setting, '=', 2)) AS own
       FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) AS setting
       WHERE setting LIKE 'synchronous_commit=%') AS owns
     WHERE own NOT IN ('on', 'remote_apply', 'true', 'yes', '1')), '[]'),
  'senders', COALESCE((SELECT json_agg(json_build_object('name', application_name, 'state', state)) FROM pg_stat_replication), '[]'))::text
FROM position`

func (s *Site) lookAtPostgres(ctx context.Context, m cluster.Member) (*sqlFacts, error) {
	if s.Postgres.Authentication.Superuser.Username == "" {
		return nil, nil //nolint:nilnil // without a role nothing is asked
	}
	conn, err := s.connect(ctx, m, QueryOptions{})
	if err != nil {
		return nil, err
	}
	defer hangUp(conn)
	var out string
	began := time.Now()
	if err := conn.QueryRow(ctx, factsSQL).Scan(&out); err != nil {
		return nil, fmt.Errorf("asking PostgreSQL of %s: %w", m.Name, err)
	}
	ended := time.Now()
	f := &sqlFacts{}
	if err := json.Unmarshal([]byte(out), f); err != nil {
		return nil, fmt.Errorf("what PostgreSQL of %s says: %w", m.Name, err)
	}
	if f.OwnCommit {
		f.Settings["synchronous_commit"] = serversCommit(ctx, conn)
	}
	f.skew = skew(time.UnixMicro(int64(f.Clock*1e6)), began, ended)
	return f, nil
}

// serversCommit is the synchronous_commit of the server's files, and empty where these may not be read.
func serversCommit(ctx context.Context, conn *pgx.Conn) string {
	var commit string
	if err := conn.QueryRow(ctx, `SELECT COALESCE((SELECT lower(setting) FROM pg_file_settings WHERE name = 'synchronous_commit' AND applied
		ORDER BY seqno DESC LIMIT 1), 'on')`).Scan(&commit); err != nil {
		return ""
	}
	return commit
}

// skew is how far another clock must be off that showed at some time between two
// moments of ours; zero when it may be right.
func skew(at, began, ended time.Time) time.Duration {
	switch {
	case at.Before(began):
		return at.Sub(began)
	case at.After(ended):
		return at.Sub(ended)
	}
	return 0
}

const (
	// muchSkew is from where on clocks that differ mislead people who compare logs.
	muchSkew = time.Second
	// muchWAL is how much WAL a slot that nobody uses may keep before it is told.
	muchWAL = 1 << 30
)

// examinePostgres judges a member's PostgreSQL: settings, replication, slots, clock.
func examinePostgres(m memberFacts) []Finding {
	d := diagnosis{area: "postgresql"}
	who := m.scope + "/" + m.member.Name
	if m.sqlErr != nil {
		d.add(Wrong, who, "see that PostgreSQL runs, and postgresql.authentication.superuser in the configuration file", "it cannot be asked: %v", m.sqlErr)
		return d.findings
	}
	if m.sql == nil {
		return nil
	}
	f := m.sql
	if primary := m.leads && m.member.Role != cluster.RoleStandbyLeader; f.Recovering == primary { // a standby leader is none
		d.add(Wrong, who, "see the agent's log", "%s, but PostgreSQL is %s", map[bool]string{true: "it has the lock", false: "it does not lead"}[m.leads],
			map[bool]string{true: "in recovery", false: "a primary"}[f.Recovering])
	}
	if off := f.skew.Abs(); off > muchSkew {
		d.add(Worth, who, "let chrony or systemd-timesyncd set it", "its clock is off by %s from this host's: leases do not depend on clocks, schedules, logs and certificates do", Duration(off))
	}
	d.settings(who, m)
	d.slots(who, m)
	if m.leads {
		d.replication(who, m)
	}
	if len(d.findings) == 0 {
		d.fine(who, "PostgreSQL %s: settings, slots and clock", f.Settings["server_version"])
	}
	return d.findings
}

func (d *diagnosis) settings(who string, m memberFacts) {
	set, members := m.sql.Settings, len(m.shard.snapshot.Members)
	for _, rule := range []struct {
		name, bad string
		level     Level
		why, do   string
	}{
		{"fsync", "off", Wrong, "a crash of the host can destroy the data", "set fsync: on"},
		{"full_page_writes", "off", Wrong, "a crash of the host can leave torn pages", "set full_page_writes: on"},
		{"synchronous_commit", "off", Worth, "commits are acknowledged before they are on disk: the last ones are lost in a crash", "set synchronous_commit: on"},
		{"wal_level", "minimal", Wrong, "nothing can replicate", "set wal_level: replica in the dynamic configuration"},
		{"hot_standby", "off", Wrong, "a replica answers nobody, its agent neither", "set hot_standby: on"},
		{"restart_after_crash", "off", Worth, "one crashing backend costs a failover", "set restart_after_crash: on"},
		{"password_encryption", "md5", Worth, "passwords are kept as md5 hashes, which can be used as they are", "set password_encryption: scram-sha-256, and set the passwords again"},
	} {
		if set[rule.name] == rule.bad {
			d.add(rule.level, who, rule.do, "%s is %s: %s", rule.name, rule.bad, rule.why)
		}
	}
	if commit := set["synchronous_commit"]; m.shard.dynamic.SynchronousMode.On() {
		if why := cluster.Unkept("synchronous_commit", commit); why != "" {
			d.add(Wrong, who, "set synchronous_commit: on", "synchronous_commit is %s: %s", commit, why)
		}
	}
	if m.leads && m.shard.dynamic.SynchronousMode.On() && len(m.sql.Unwaiting) > 0 {
		own := make([]string, len(m.sql.Unwaiting))
		for i, c := range m.sql.Unwaiting {
			own[i] = c.String()
		}
		d.add(Worth, who, "use ALTER ROLE or ALTER DATABASE ... RESET synchronous_commit, unless their commits may be lost in a failover",
			"synchronous_mode does not cover who has a synchronous_commit of its own: %s", abridged(own, 5))
	}
	if set["wal_log_hints"] == "off" && set["data_checksums"] == "off" {
		d.add(Worth, who, "set wal_log_hints: on, or enable checksums with pg_checksums", "neither wal_log_hints nor data checksums are on: pg_rewind cannot work, an old primary is cloned anew")
	}
	if senders, err := strconv.Atoi(set["max_wal_senders"]); err == nil && senders < members+1 {
		d.add(Wrong, who, fmt.Sprintf("set max_wal_senders to %d or more", members+2), "max_wal_senders is %d: too few for %d members and a clone", senders, members)
	}
	if slots, err := strconv.Atoi(set["max_replication_slots"]); err == nil && slots < members {
		d.add(Wrong, who, fmt.Sprintf("set max_replication_slots to %d or more", members+2), "max_replication_slots is %d: too few for %d members", slots, members)
	}
	if limit := set["max_slot_wal_keep_size"]; limit == "-1" && m.leads {
		d.add(Worth, who, "set max_slot_wal_keep_size below what the disk has free", "max_slot_wal_keep_size is unlimited: the slot of a member that is away can fill the disk")
	}
	if len(m.sql.Altered) > 0 {
		d.add(Worth, who, "put them into postgresql.parameters (lictor edit-config), and use ALTER SYSTEM RESET",
			"ALTER SYSTEM has set %s: on this member alone, and over what the configuration says", strings.Join(m.sql.Altered, ", "))
	}
	for name, change := range m.status.PendingReason {
		d.add(Worth, who, "lictor restart --pending "+m.scope, "%s takes effect with the next restart (%s -> %s)", name, change.OldValue, change.NewValue)
	}
}

func (d *diagnosis) slots(who string, m memberFacts) {
	for _, slot := range m.sql.Slots {
		switch {
		case slot.Status == "lost":
			d.add(Wrong, who, "drop it; its reader must be made anew", "slot %s has lost WAL that it needs", slot.Name)
		case !slot.Active && slot.Retained > muchWAL && !m.sql.Recovering: // a replica's are moved by its agent
			d.add(Worth, who, "bring its reader back, or drop it with pg_drop_replication_slot", "nobody reads slot %s, which keeps %s of WAL", slot.Name, size(slot.Retained))
		}
	}
}

// replication judges whether every running member streams from the primary.
func (d *diagnosis) replication(who string, m memberFacts) {
	streams := map[string]senderFact{}
	for _, s := range m.sql.Senders {
		streams[s.Name] = s
	}
	for _, other := range m.shard.snapshot.Members {
		from, _ := other.Value.Tags["replicatefrom"].(string)
		if other.Value.Name == m.member.Name || other.Value.State != cluster.StateRunning || from != "" && from != m.member.Name || cluster.NoStream(other.Value.Tags) {
			continue
		}
		s, connected := streams[other.Value.Name]
		switch {
		case !connected:
			d.add(Wrong, who, "see PostgreSQL's log on "+other.Value.Name+": pg_hba, password, slot, network", "%s does not stream from it", other.Value.Name)
		case s.State != "streaming":
			d.add(Worth, who, "wait; if it stays so, see the replica's disk and network", "%s is in state %s", other.Value.Name, s.State)
		}
	}
}
