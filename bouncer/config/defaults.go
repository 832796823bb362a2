package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// A NamedSetting is one line of the section [pgbouncer].
type NamedSetting struct {
	Name, Value string
}

// Settings are the lines of the section [pgbouncer]: what a failover needs of
// PgBouncer (design 7.4), with the operator's own on top. PgBouncer
// does not start with a setting that it does not know, so there are none newer
// than the version that runs; while none is known to run, than 1.18.
func (c Config) Settings(version pgbouncer.Version) []NamedSetting {
	list := append(c.defaultSettings(), NamedSetting{"tcp_user_timeout", c.Frees(version).userTimeout()})
	if version.AtLeast(1, 19) {
		list = append(list, NamedSetting{"cancel_wait_timeout", "5"})
		if len(c.PgBouncer.Peers) > 0 {
			list = append(list, NamedSetting{"peer_id", strconv.Itoa(c.PgBouncer.PeerID)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.PgBouncer.Settings)) {
		if lacksSetting(name, version) != nil {
			continue // UnknownOptions tells
		}
		value := settingValue(c.PgBouncer.Settings[name])
		if i := slices.IndexFunc(list, func(s NamedSetting) bool { return s.Name == name }); i >= 0 {
			list[i].Value = value
		} else {
			list = append(list, NamedSetting{name, value})
		}
	}
	return list
}

// freeing is the way in which clients of a lost primary are freed.
type freeing string

// The ways of freeing, as the bouncer's key in Consul has them.
const (
	FreeBySockets freeing = cluster.FreesBySockets
	FreeByKill    freeing = cluster.FreesByKill
	FreeByTimeout freeing = cluster.FreesByTimeout
)

// WithClosing is the configuration where PgBouncer's connections can be closed from here
// (SOCK_DESTROY), or cannot.
func (c Config) WithClosing(can bool) Config {
	c.closesSockets = &can
	return c
}

// Closing reports whether PgBouncer's connections can be closed from here, if that is known.
func (c Config) Closing() (can, known bool) {
	return c.closesSockets != nil && *c.closesSockets, c.closesSockets != nil
}

// Frees tells how clients of a lost primary are freed, with a PgBouncer of version.
func (c Config) Frees(version pgbouncer.Version) freeing {
	switch {
	case c.closesSockets != nil && *c.closesSockets:
		return FreeBySockets
	case version.AtLeast(1, 24):
		return FreeByKill
	}
	return FreeByTimeout
}

// userTimeout is PgBouncer's tcp_user_timeout in milliseconds. It also ends connections
// to peers that only do not read, a pager or a COPY that waits for a lock: so it is off
// where something else frees the clients of a lost primary.
func (f freeing) userTimeout() string {
	if f == FreeByTimeout {
		return "30000"
	}
	return "0"
}

// A Peer is one PgBouncer that takes requests to cancel for the others.
type Peer struct {
	ID   int
	Host string
	Port int
}

// Peers are the lines of the section [peers], which PgBouncer has since 1.19.
func (c Config) Peers(version pgbouncer.Version) (list []Peer) {
	if !version.AtLeast(1, 19) {
		return nil
	}
	for i, peer := range c.PgBouncer.Peers {
		if a, err := pgbouncer.ParseAddress(peer); err == nil { // validated
			list = append(list, Peer{i + 1, a.Host, a.Port})
		}
	}
	return list
}

func (c Config) defaultSettings() []NamedSetting {
	listen, socket := "127.0.0.1", ""
	address, err := pgbouncer.ParseAddress(c.PgBouncer.Admin)
	if err == nil && address.IsUnix() {
		socket = address.Host
	} else if err == nil {
		listen = address.Host
	}
	return []NamedSetting{
		{"listen_addr", listen},
		{"listen_port", strconv.Itoa(address.Port)},
		{"unix_socket_dir", socket},
		// With auth_query instead, logins wait while a shard is held.
		{"auth_type", "scram-sha-256"},
		{"auth_file", filepath.Join(filepath.Dir(c.PgBouncer.Config), "userlist.txt")},
		{"admin_users", c.PgBouncer.User},
		{"pool_mode", "transaction"},
		{"max_client_conn", "1000"},
		{"default_pool_size", "20"},
		{"ignore_startup_parameters", "extra_float_digits"},
		// A dead host is given up after 2 s and the next attempt comes at once,
		// so that a new primary never waits for the timer of the old one.
		{"server_connect_timeout", "2"},
		{"server_login_retry", "0.2"},
		{"server_check_delay", "1"},
		{"dns_max_ttl", "1"},
		// Whose kernel says nothing for 30 s is gone; who is only slow is not. That it
		// is asked each second tells the health prober of a host that falls silent.
		{"tcp_keepalive", "1"},
		{"tcp_keepidle", "1"},
		{"tcp_keepintvl", "1"},
		{"tcp_keepcnt", "30"},
		// Longer than a hold: clients are released, not failed.
		{"query_wait_timeout", "60"},
	}
}

// Setting is the value of one line of [pgbouncer], empty when there is none.
func (c Config) Setting(name string) string {
	for _, s := range c.Settings(pgbouncer.Version{}) {
		if s.Name == name {
			return s.Value
		}
	}
	return ""
}

func settingValue(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case bool:
		if v {
			return "1"
		}
		return "0"
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case []any:
		var parts []string
		for _, p := range v {
			parts = append(parts, settingValue(p))
		}
		return strings.Join(parts, ", ")
	}
	return fmt.Sprint(v)
}

// checkSetting refuses what would make PgBouncer refuse its file, which it does
// at its next start only, when it is too late.
func checkSetting(name string, value any) error {
	known := knownSettings()
	if !slices.Contains(known, name) {
		best, distance := "", 4
		for _, k := range known {
			if d := levenshtein.ComputeDistance(name, k); d < distance {
				best, distance = k, d
			}
		}
		if best != "" {
			return fmt.Errorf("PgBouncer has no such setting, did you mean %s?", best)
		}
		return fmt.Errorf("PgBouncer has no such setting")
	}
	if _, isMap := value.(map[string]any); isMap {
		return fmt.Errorf("must be a single value or a list")
	}
	if !isText(settingValue(value)) {
		return fmt.Errorf("must be one line without control characters")
	}
	return CheckSettingValue(name, settingValue(value))
}

// KnownSettings are those of them that PgBouncer of version has.
func KnownSettings(version pgbouncer.Version) []string {
	return slices.DeleteFunc(knownSettings(), func(name string) bool { return lacksSetting(name, version) != nil })
}

// knownSettings are the settings of PgBouncer up to 1.26 that make sense in a
// file which is read again at run time.
func knownSettings() []string {
	return strings.Fields(`
admin_users application_name_add_host auth_dbname auth_file auth_hba_file auth_ident_file auth_ldap_options auth_query auth_type auth_user
autodb_idle_timeout cancel_wait_timeout client_idle_timeout client_login_timeout client_tls13_ciphers client_tls_ca_file client_tls_cert_file
client_tls_ciphers client_tls_dheparams client_tls_ecdhcurve client_tls_key_file client_tls_protocols client_tls_sslmode default_pool_size
disable_pqexec dns_max_ttl dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout ignore_startup_parameters job_name
login_notify_message pool_idle_timeout listen_addr listen_backlog listen_port log_connections log_disconnections log_pooler_errors log_stats logfile max_client_conn
max_db_client_connections max_db_connections max_packet_size max_prepared_statements max_user_client_connections max_user_connections
min_pool_size peer_id pidfile pkt_buf pool_mode query_timeout query_wait_notify query_wait_timeout reserve_pool_size reserve_pool_timeout
resolv_conf sbuf_loopcnt scram_iterations server_check_delay server_check_query server_connect_timeout server_fast_close server_idle_timeout
server_lifetime server_login_retry server_reset_query server_reset_query_always server_round_robin server_tls13_ciphers server_tls_ca_file
server_tls_cert_file server_tls_ciphers server_tls_key_file server_tls_protocols server_tls_sslmode service_name so_reuseport
stats_period stats_users suspend_timeout syslog syslog_facility syslog_ident tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle
tcp_keepintvl tcp_socket_buffer tcp_user_timeout track_extra_parameters transaction_timeout unix_socket_dir unix_socket_group
unix_socket_mode user verbose conffile`)
}

// settingSince is the first version that has a setting, by main.c's history; zero: all from
// 1.18 on.
func settingSince(name string) pgbouncer.Version {
	switch name {
	case "auth_dbname", "cancel_wait_timeout", "peer_id":
		return pgbouncer.Version{1, 19}
	case "track_extra_parameters":
		return pgbouncer.Version{1, 20}
	case "max_prepared_statements":
		return pgbouncer.Version{1, 21}
	case "auth_ident_file":
		return pgbouncer.Version{1, 23}
	case "max_db_client_connections", "max_user_client_connections":
		return pgbouncer.Version{1, 24}
	case "auth_ldap_options", "client_tls13_ciphers", "query_wait_notify", "scram_iterations", "server_tls13_ciphers", "transaction_timeout":
		return pgbouncer.Version{1, 25}
	case "login_notify_message", "pool_idle_timeout":
		return pgbouncer.Version{1, 26}
	}
	return pgbouncer.Version{}
}

// lacksSetting says that PgBouncer of version, which would not start with it, does not have a
// setting yet, or any more.
func lacksSetting(name string, version pgbouncer.Version) error {
	since := settingSince(name)
	switch gone := name == "service_name" || name == "suspend_timeout"; {
	case gone && version.AtLeast(1, 26):
		return fmt.Errorf("PgBouncer does not have this setting any more from 1.26 on, here it is %s, which would not start with it", version)
	case !version.AtLeast(since[0], since[1]):
		return fmt.Errorf("PgBouncer has this setting from %d.%d on, here it is %s, which would not start with it", since[0], since[1], version)
	}
	return nil
}
