package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

func secretFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// PostgreSQL's user, whom the agent gives passwords, has put a link to a file of root's in the
// place of one: root does not read that for it, nor send it to Consul as a token.
func TestSecretsThroughLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const nobody = 65534
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		must(os.Chmod(at, 0o755))
	}
	roots, theirs := filepath.Join(dir, "roots"), filepath.Join(dir, "theirs")
	must(os.WriteFile(roots, []byte("another-shards-token"), 0o600))
	must(os.Mkdir(theirs, 0o755))
	must(os.Symlink(roots, filepath.Join(theirs, "link")))
	must(os.WriteFile(filepath.Join(theirs, "own"), []byte("their-own"), 0o600))
	for _, path := range []string{filepath.Join(theirs, "own"), theirs} {
		must(os.Lchown(path, nobody, nobody))
	}
	for path, want := range map[string]string{roots: "another-shards-token", filepath.Join(theirs, "own"): "their-own", filepath.Join(theirs, "link"): ""} {
		if got, err := readSecret(path); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: the password is %q, %v", path, got, err)
		}
		if got, err := (settings.Consul{TokenFile: path}).CurrentToken(); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: the token is %q, %v", path, got, err)
		}
	}
}

func TestPasswordFiles(t *testing.T) {
	file := secretFile(t, "from-a-file\n", 0o600)
	cfg, warnings, err := with(t, "restapi: {authentication: {username: u, password: , password_file: "+file+"}}\n"+
		"postgresql: {authentication: {superuser: {password: , password_file: "+file+"}, rewind: {username: r, password: , password_file: "+file+"}}}\n"+
		"bootstrap: {users: {app: {password_file: "+file+"}}}")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	auth := cfg.Postgres.Authentication
	for name, got := range map[string]string{
		"restapi": cfg.RestAPI.Authentication.Password, "superuser": auth.Superuser.Password, "rewind": auth.Rewind.Password,
		"user": cfg.Bootstrap.Users["app"].Password,
	} {
		if got != "from-a-file" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if strings.Contains(cfg.String(), "from-a-file") || len(settings.Secrets(cfg)) < 4 {
		t.Error("a password from a file is a secret as any")
	}
	for change, want := range map[string]string{
		"postgresql: {authentication: {superuser: {password: x, password_file: " + file + "}}}":                   "postgresql.authentication.superuser.password_file: \"" + file + "\": must not be set together",
		"postgresql: {authentication: {superuser: {password: , password_file: /no/such}}}":                        "postgresql.authentication.superuser.password_file: \"/no/such\": cannot be read: no such file",
		"restapi: {authentication: {username: u, password: , password_file: " + secretFile(t, "\n", 0o600) + "}}": "is empty",
		"bootstrap: {users: {app: {password: x, password_file: " + file + "}}}":                                   "bootstrap.users.app.password_file",
	} {
		if _, _, err := with(t, change); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "from-a-file") {
			t.Errorf("%s: %v, want %s", change, err, want)
		}
	}
}

func TestFilesThatOthersCanRead(t *testing.T) {
	file := secretFile(t, "0123456789", 0o644)
	for change, want := range map[string]string{
		"consul: {token_file: " + file + "}":                                                         "consul.token_file: " + file + " can be read by every user",
		"postgresql: {authentication: {superuser: {password: , password_file: " + file + "}}}":       "postgresql.authentication.superuser.password_file",
		"restapi: {authentication: {username: u, password: , password_file: " + file + "}}":          "restapi.authentication.password_file",
		"postgresql: {authentication: {replication: {sslcert: " + file + ", sslkey: " + file + "}}}": "postgresql.authentication.replication.sslkey",
	} {
		_, warnings, err := with(t, change)
		found := false
		for _, w := range warnings {
			found = found || strings.Contains(w.String(), want)
		}
		if err != nil || !found {
			t.Errorf("%s: %v, %v; want %s", change, warnings, err, want)
		}
	}
}

func TestBadHBA(t *testing.T) {
	_, _, err := with(t, "postgresql: {pg_hba: ['local all all peer', 'host all all 10.0.0.1 md5']}\nbootstrap: {pg_hba: ['hots all all all md5']}")
	for _, want := range []string{"postgresql.pg_hba[1]", "an address needs its mask", "bootstrap.pg_hba[0]", "must begin with local, host"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestNeedsNewAgent(t *testing.T) {
	before, _, err := with(t, "log: {level: info}")
	if err != nil {
		t.Fatal(err)
	}
	after, _, err := with(t, "log: {level: debug}\npostgresql: {parameters: {work_mem: 5MB}, listen: '127.0.0.1:6543'}\nwatchdog: {mode: automatic}\ntags: {nofailover: true}")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(before.NeedsNewAgent(after), " ")
	if !strings.Contains(got, "postgresql.listen") || !strings.Contains(got, "watchdog") || strings.Contains(got, "log") || strings.Contains(got, "tags") || strings.Contains(got, "parameters") {
		t.Errorf("%s", got)
	}
	if same := before.NeedsNewAgent(before); len(same) > 0 {
		t.Errorf("nothing has changed: %v", same)
	}
}
