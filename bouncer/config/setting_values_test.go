package config

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/lictor-ha/lictor/bouncer/bouncertest"
)

// Values are refused here where PgBouncer itself refuses to start with them, and only there.
func TestSettingValues(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skipf("pgbouncer is needed: %v", err)
	}
	for _, c := range []struct {
		name  string
		value any
		taken bool
	}{
		{"default_pool_size", "abc", false},
		{"default_pool_size", "20x", false},
		{"default_pool_size", "", false},
		{"default_pool_size", 30, true},
		{"default_pool_size", "0x10", true},
		{"default_pool_size", "3.5", false},
		{"log_connections", "yes", false},
		{"log_connections", true, true},
		{"query_timeout", "5min", false},
		{"query_timeout", 0.25, true},
		{"server_lifetime", "1e3", true},
		{"pool_mode", "transactions", false},
		{"pool_mode", "statement", true},
		{"auth_type", "scram", false},
		{"auth_type", "trust", true},
		{"client_tls_sslmode", "on", false},
		{"server_tls_sslmode", "prefer", true},
		{"unix_socket_mode", "0770", true},
		{"unix_socket_mode", "rwx", false},
		{"server_reset_query", "", true},
		{"max_packet_size", "1kB", false},
		{"max_packet_size", 1 << 20, true},
		{"tcp_socket_buffer", "big", false},
		{"tcp_socket_buffer", 0, true},
		{"tcp_defer_accept", "yes", false},
		{"tcp_defer_accept", 45, true},
		{"tcp_keepcnt", 128, false},
		{"tcp_keepcnt", 127, true},
		{"tcp_keepidle", 32768, false},
		{"tcp_keepidle", 32767, true},
		{"tcp_keepintvl", 32768, false},
		{"tcp_user_timeout", 1<<31 - 1, true},
		{"listen_addr", "300.1.1.1", false},
		{"listen_addr", "127.0.0.1,no host", false},
		{"listen_addr", "127.0.0.1, ::1", true},
		{"listen_addr", "[::1]", false},
		{"listen_addr", "*", true},
		{"ignore_startup_parameters", []any{"extra_float_digits", "search_path"}, true},
	} {
		t.Run(fmt.Sprintf("%s=%v", c.name, c.value), func(t *testing.T) {
			if err := checkSetting(c.name, c.value); (err == nil) != c.taken {
				t.Errorf("checkSetting: %v", err)
			}
			out, err := bouncertest.StartsWith(t, fmt.Sprintf("%s = %s\n", c.name, settingValue(c.value)))
			if (err == nil) != c.taken {
				t.Errorf("PgBouncer: %v\n%s", err, out)
			}
		})
	}
}
