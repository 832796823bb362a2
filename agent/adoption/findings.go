package adoption

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Finding is one thing that does not fit, or that will be otherwise.
type Finding struct {
	// Stops says that an agent must not take charge before it is mended.
	Stops bool   `json:"stops"`
	What  string `json:"what"`
	Do    string `json:"do"` // what helps; empty: nothing is to be done
}

func (f Finding) String() string {
	kind := "note"
	if f.Stops {
		kind = "problem"
	}
	if f.Do == "" {
		return kind + ": " + f.What
	}
	return kind + ": " + f.What + "; " + f.Do
}

// oldest is the first version of PostgreSQL that Lictor runs.
const oldest = 120000

// Findings are what stands in the way of an agent, or what it changes, the former first.
func (f Found) Findings() []Finding {
	var all []Finding
	stops := func(do, format string, args ...any) {
		all = append(all, Finding{Stops: true, What: fmt.Sprintf(format, args...), Do: do})
	}
	note := func(do, format string, args ...any) {
		all = append(all, Finding{What: fmt.Sprintf(format, args...), Do: do})
	}
	if f.Version < oldest {
		stops("upgrade it first", "PostgreSQL %s is older than 12", f.version())
	}
	if f.Agent {
		stops("use that agent's file", "an agent of Lictor's runs this PostgreSQL already")
	}
	f.replicationFindings(stops, note)
	f.standbyFindings(stops, note)
	f.settingFindings(stops, note)
	if len(f.HBAProblems) > 0 {
		stops("correct it, then pg_reload_conf()", "%s has lines that PostgreSQL does not take (%s): it would not start again", f.HBAFile, strings.Join(f.HBAProblems, "; "))
	}
	for _, t := range f.Tablespaces {
		if strings.HasPrefix(filepath.Clean(t.Location), filepath.Clean(f.DataDirectory)+"/") {
			stops("move it elsewhere", "the tablespace %s lies in the data directory (%s): a base backup would copy it twice", t.Name, t.Location)
			continue
		}
		note("see that no other shard's member of the same host has it", "the tablespace %s must have the place %s on every member", t.Name, t.Location)
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		switch {
		case a.Stops == b.Stops:
			return 0
		case a.Stops:
			return -1
		}
		return 1
	})
	return all
}

// told are how a finding is added: what helps, and what is wrong.
type told func(do, format string, args ...any)

// replicationFindings are about the roles and slots that a shard's members need.
func (f Found) replicationFindings(stops, note told) {
	const create = `CREATE ROLE replicator LOGIN REPLICATION PASSWORD '...'`
	ordinary := slices.ContainsFunc(f.Roles, func(r Role) bool { return !r.Superuser })
	switch {
	case len(f.Roles) == 0:
		stops(create, "no role may log in and replicate")
	case !ordinary:
		note(create, "only superusers replicate (%s)", f.Roles[0].Name)
	}
	if !slices.ContainsFunc(f.HBA, letsMembersReplicate) {
		stops("add a line: host replication "+f.replicator()+" NETWORK scram-sha-256", "%s lets nobody replicate from another host", f.HBAFile)
	}
	if len(f.LogicalSlots) > 0 {
		note("", "the logical slots %s are not carried to replicas: after a failover their readers begin anew", strings.Join(f.LogicalSlots, ", "))
	}
	if names := f.InForce["synchronous_standby_names"]; names != "" {
		stops("use synchronous_mode of the shard's configuration (bootstrap.dcs), and empty it before",
			"synchronous_standby_names is %q: the standby will have the name of its member, and commits would wait for the old one for ever", names)
	}
}

// letsMembersReplicate reports whether a line of pg_hba.conf lets somebody replicate
// over the network.
func letsMembersReplicate(line string) bool {
	words := strings.Fields(line)
	if len(words) < 5 || !strings.HasPrefix(words[0], "host") || words[len(words)-1] == "reject" {
		return false
	}
	local := []string{"127.0.0.1/32", "::1/128", "127.0.0.1", "localhost", "samehost"}
	return slices.Contains(strings.Split(strings.ReplaceAll(words[1], `"`, ""), ","), "replication") && !slices.Contains(local, words[3])
}

func (f Found) standbyFindings(stops, note told) {
	if !f.Standby {
		return
	}
	u := f.Upstream
	switch {
	case u.Host == "":
		stops("set primary_conninfo with the primary's host", "this standby's primary_conninfo has no host: its agent could not tell whom it follows")
	case !u.Streaming:
		stops("see PostgreSQL's log: it must stream before an agent takes charge of it", "this standby does not stream from %s", u.Host)
	}
	if strings.HasPrefix(u.Host, "/") || u.Host == "localhost" || strings.HasPrefix(u.Host, "127.") {
		note("", "this standby follows a primary on its own host (%s)", u.Host)
	}
	if u.Streaming && u.Slot == "" {
		note("", "this standby has no replication slot: the leader makes one for it")
	}
	if delay := f.InForce["recovery_min_apply_delay"]; delay != "" && delay != "0" {
		note("keep it (recovery_conf of this member), and tag the member nofailover and noloadbalance", "this standby is delayed by recovery_min_apply_delay (%s ms)", delay)
	}
}

// settingFindings are about parameters.
func (f Found) settingFindings(stops, note told) {
	if unspecific(f.ClusterName) {
		note("", "cluster_name is %q: it becomes the scope with the next start, and log lines and process titles tell it", f.ClusterName)
	}
	for _, p := range cluster.SharedParameters() {
		value, known := f.InForce[p.Name]
		if !known {
			continue
		}
		if _, ok := p.Accept(value); ok {
			continue
		}
		switch p.Name {
		case "wal_log_hints":
			if f.InForce["data_checksums"] != "on" {
				note("", "neither data checksums nor wal_log_hints are on: a member that has diverged cannot be rewound before it was restarted by its agent, which has wal_log_hints on")
			}
		case "wal_level":
			stops("set wal_level = replica and restart PostgreSQL", "wal_level is %s: no standby can follow", value)
		default:
			note("", "%s is %s, which no member of a shard may have (%s): it will be %s", p.Name, value, p.Rule, p.Fallback)
		}
	}
	if f.InForce["full_page_writes"] == "off" {
		note("", "full_page_writes is off: pg_rewind refuses such a source")
	}
	if dir := f.InForce["stats_temp_directory"]; strings.HasPrefix(dir, "/var/run/") || strings.HasPrefix(dir, "/run/") {
		note("remove the line, or have systemd-tmpfiles make it", "stats_temp_directory is %s, which pg_ctlcluster makes and the agent does not: after a boot statistics would be missing", dir)
	}
	if files := f.elsewhere(); len(files) > 0 {
		note("", "settings of %s stay where they are, below those of the agent's file", strings.Join(files, ", "))
	}
	if altered := f.altered(); len(altered) > 0 {
		note("ALTER SYSTEM RESET, once the agent's file has them", "ALTER SYSTEM has set %s on this member alone, which wins over what the shard's configuration will say", strings.Join(altered, ", "))
	}
	if n, err := strconv.Atoi(f.InForce["max_wal_senders"]); err == nil && n < 3 && !f.Standby && len(f.Standbys) >= n {
		stops("raise max_wal_senders and restart PostgreSQL", "max_wal_senders is %d and all are taken: no member could be cloned", n)
	}
}

// elsewhere are the files with settings, besides postgresql.conf.
func (f Found) elsewhere() []string {
	var files []string
	for _, s := range f.Settings {
		if s.File != "" && s.File != f.ConfigFile && !s.altered() && !slices.Contains(files, s.File) {
			files = append(files, s.File)
		}
	}
	slices.Sort(files)
	return files
}

// altered are the parameters that ALTER SYSTEM has set, but for what a standby follows.
func (f Found) altered() []string {
	var names []string
	for _, s := range f.Settings {
		if s.altered() && !slices.Contains(cluster.RecoveryParameters(), s.Name) {
			names = append(names, s.Name)
		}
	}
	return names
}

func (s Setting) altered() bool { return filepath.Base(s.File) == "postgresql.auto.conf" }
