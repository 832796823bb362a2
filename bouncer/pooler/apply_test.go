package pooler

import "testing"

func TestSameSetting(t *testing.T) {
	for _, test := range []struct {
		name, want, have string
		same             bool
	}{
		{"server_login_retry", "0.20", "0.2", true},
		{"server_login_retry", "15", "0.2", false},
		{"default_pool_size", "many", "20", false},
		{"log_connections", "no", "0", true},
		{"log_connections", "no", "1", false},
		{"so_reuseport", "Yes", "1", true},
		{"pool_mode", "transaction", "transaction", true},
		{"pool_mode", "transactions", "session", false},
		{"auth_file", "~/users", "/root/users", true}, // PgBouncer's way to write it
	} {
		if got := sameSetting(test.name, test.want, test.have); got != test.same {
			t.Errorf("%s = %s, SHOW CONFIG: %s: %v", test.name, test.want, test.have, got)
		}
	}
}
