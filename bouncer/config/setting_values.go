package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// CheckSettingValue tells why PgBouncer would refuse a value, by the kind that its
// main.c gives each setting.
func CheckSettingValue(name, value string) error {
	switch {
	case slices.Contains(integerSettings(), name):
		// As strtol reads it: octal and hexadecimal, too.
		n, err := strconv.ParseInt(value, 0, 64)
		switch {
		case err != nil || n > math.MaxInt32 || n < math.MinInt32:
			return fmt.Errorf("%q must be a whole number", value)
		case n < 0:
			return fmt.Errorf("%q must not be negative", value)
		case n > settingMost(name):
			return fmt.Errorf("%q must be %d at most", value, settingMost(name))
		}
	case slices.Contains(timeSettings(), name):
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil || math.IsNaN(seconds) || math.IsInf(seconds, 0) {
			return fmt.Errorf("%q must be a number of seconds", value)
		}
		if seconds < 0 {
			return fmt.Errorf("%q must not be negative", value)
		}
	}
	switch name {
	case "auth_dbname":
		if value == "pgbouncer" {
			return errors.New(`"pgbouncer" is PgBouncer's console`)
		}
	case "listen_addr":
		return checkListenAddr(value)
	}
	if words := SettingWords(name); words != nil && !slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, value) }) {
		return fmt.Errorf("%q must be one of %s", value, strings.Join(words, ", "))
	}
	return nil
}

// settingMost is the greatest value of a whole number. What the kernel does not take PgBouncer
// cannot listen with.
func settingMost(name string) int64 {
	switch name {
	case "listen_port":
		return math.MaxUint16
	case "tcp_keepcnt":
		return math.MaxInt8
	case "tcp_keepidle", "tcp_keepintvl":
		return math.MaxInt16
	}
	return math.MaxInt32
}

// checkListenAddr has the form of addresses. Whether a name leads anywhere is known when PgBouncer
// starts.
func checkListenAddr(value string) error {
	for address := range strings.SplitSeq(value, ",") {
		address = strings.TrimSpace(address)
		if _, err := netip.ParseAddr(address); address == "" || address == "*" || err == nil {
			continue
		}
		if cluster.CheckHost(address) != nil || strings.Trim(address, "0123456789.") == "" {
			return fmt.Errorf("%q is neither an address nor the name of a host nor *", address)
		}
	}
	return nil
}

// IsOn reports whether a switch of PgBouncer's is on, as a file or SHOW CONFIG has it.
func IsOn(value string) bool {
	switch strings.ToLower(value) {
	case "yes", "true", "on", "y", "t":
		return true
	}
	n, err := strconv.ParseInt(value, 0, 64)
	return err == nil && n != 0
}

// SettingWords are the values that a setting has, nil where they are not words.
func SettingWords(name string) []string {
	switch name {
	case "pool_mode":
		return []string{"session", "transaction", "statement"}
	case "auth_type":
		return []string{"any", "trust", "plain", "md5", "cert", "hba", "pam", "ldap", "scram-sha-256"}
	case "client_tls_sslmode", "server_tls_sslmode":
		return []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
	}
	return nil
}

func integerSettings() []string {
	return strings.Fields(`
application_name_add_host default_pool_size disable_pqexec listen_backlog listen_port log_connections log_disconnections log_pooler_errors
log_stats max_client_conn max_db_client_connections max_db_connections max_packet_size max_prepared_statements max_user_client_connections max_user_connections
min_pool_size peer_id pkt_buf query_wait_notify reserve_pool_size sbuf_loopcnt scram_iterations server_fast_close server_reset_query_always
server_round_robin so_reuseport stats_period syslog tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl
tcp_socket_buffer tcp_user_timeout
unix_socket_mode verbose`)
}

func timeSettings() []string {
	return strings.Fields(`
autodb_idle_timeout cancel_wait_timeout client_idle_timeout client_login_timeout dns_max_ttl dns_nxdomain_ttl dns_zone_check_period
idle_transaction_timeout pool_idle_timeout query_timeout query_wait_timeout reserve_pool_timeout server_check_delay server_connect_timeout
server_idle_timeout server_lifetime server_login_retry suspend_timeout transaction_timeout`)
}
