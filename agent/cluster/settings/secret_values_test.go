package settings

import (
	"slices"
	"testing"
)

func TestSecrets(t *testing.T) {
	type user struct {
		Name     string `mapstructure:"username"`
		Password string `mapstructure:"password"`
	}
	type section struct {
		Token  string          `mapstructure:"token"`
		File   string          `mapstructure:"token_file"`
		Users  map[string]user `mapstructure:"users"`
		Method map[string]any  `mapstructure:",remain"`
		User   *user           `mapstructure:"user"`
	}
	got := Secrets(section{
		Token: "t0ken", File: "/etc/token", User: &user{"app", "one"},
		Users: map[string]user{"x": {"x", "two"}},
		Method: map[string]any{"restore": map[string]any{
			"repo_password": "three", "command": "restore", "s3-access-key": "four", "cipher-pass": "five",
			"conninfo": "host=a password='six' user=b", "url": "https://u:seven@host/", "password_file": "/etc/x",
		}},
	})
	slices.Sort(got)
	if want := []string{"five", "four", "one", "seven", "six", "t0ken", "three", "two"}; !slices.Equal(got, want) {
		t.Errorf("secrets %q, want %q", got, want)
	}
}
