package bouncer

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/bouncer/config"
)

// Clients are not released while PgBouncer tries no login, but for no longer than
// they can do without.
func TestLoginRetry(t *testing.T) {
	for value, want := range map[any]time.Duration{
		nil: 200 * time.Millisecond, 0.05: 50 * time.Millisecond, 15: loginRetryMost, 0: 0, "never": 0,
	} {
		c := config.Config{}
		if value != nil {
			c.PgBouncer.Settings = map[string]any{"server_login_retry": value}
		}
		if got := loginRetry(c); got != want {
			t.Errorf("server_login_retry %v: %s, want %s", value, got, want)
		}
	}
}
