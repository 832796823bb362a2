package config

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPatroniVariables sets every variable that Patroni documents and looks
// where it arrives.
func TestPatroniVariables(t *testing.T) {
	file := write(t, "x")
	environ := []string{
		"PATRONI_SCOPE=Scope", "PATRONI_NAME=Name", "PATRONI_NAMESPACE=/ns/",
		"PATRONI_RESTAPI_LISTEN=10.0.0.2:8008", "PATRONI_RESTAPI_CONNECT_ADDRESS=10.0.0.3:8008", "PATRONI_RESTAPI_USERNAME=username",
		"PATRONI_RESTAPI_PASSWORD=password", "PATRONI_RESTAPI_CAFILE=" + file, "PATRONI_RESTAPI_CERTFILE=" + file, "PATRONI_RESTAPI_KEYFILE=" + file,
		"PATRONI_RESTAPI_VERIFY_CLIENT=required", "PATRONI_RESTAPI_ALLOWLIST=10.0.0.0/8,10.1.1.1", "PATRONI_RESTAPI_ALLOWLIST_INCLUDE_MEMBERS=on",
		"PATRONI_RESTAPI_HTTP_EXTRA_HEADERS='X-A': 'b'",
		"PATRONI_CTL_INSECURE=on", "PATRONI_CTL_CERTFILE=" + file, "PATRONI_CTL_KEYFILE=" + file, "PATRONI_CTL_CACERT=" + file,
		"PATRONI_CONSUL_HOST=localhost:8500", "PATRONI_CONSUL_PORT=8501", "PATRONI_CONSUL_TOKEN=token", "PATRONI_CONSUL_VERIFY=off",
		"PATRONI_CONSUL_DC=dc2", "PATRONI_CONSUL_CONSISTENCY=consistent", "PATRONI_CONSUL_CHECKS=[]", "PATRONI_CONSUL_REGISTER_SERVICE=on",
		"PATRONI_CONSUL_SERVICE_TAGS=[A, b]", "PATRONI_CONSUL_SERVICE_CHECK_INTERVAL=6s", "PATRONI_CONSUL_SERVICE_CHECK_TLS_SERVER_NAME=n",
		"PATRONI_CONSUL_CACERT=" + file, "PATRONI_CONSUL_CERT=" + file, "PATRONI_CONSUL_KEY=" + file,
		"PATRONI_POSTGRESQL_LISTEN=10.0.0.2:5432", "PATRONI_POSTGRESQL_CONNECT_ADDRESS=10.0.0.3:5432", "PATRONI_POSTGRESQL_PROXY_ADDRESS=10.0.0.3:6432",
		"PATRONI_POSTGRESQL_DATA_DIR=/srv/other", "PATRONI_POSTGRESQL_CONFIG_DIR=/srv/config", "PATRONI_POSTGRESQL_BIN_DIR=/usr/bin",
		"PATRONI_POSTGRESQL_PGPASS=/srv/pgpass", "PATRONI_POSTGRESQL_BIN_PG_CTL=pg_ctl.sh",
		"PATRONI_SUPERUSER_USERNAME=super", "PATRONI_SUPERUSER_PASSWORD=p1", "PATRONI_SUPERUSER_SSLMODE=verify-ca", "PATRONI_SUPERUSER_SSLKEY=" + file,
		"PATRONI_SUPERUSER_SSLCERT=" + file, "PATRONI_SUPERUSER_SSLROOTCERT=" + file, "PATRONI_SUPERUSER_CHANNEL_BINDING=prefer",
		"PATRONI_REPLICATION_USERNAME=repl", "PATRONI_REPLICATION_PASSWORD=p2", "PATRONI_REWIND_USERNAME=rew", "PATRONI_REWIND_PASSWORD=p3",
		"PATRONI_REWIND_GSSENCMODE=disable",
		"PATRONI_LOG_LEVEL=DEBUG", "PATRONI_LOGFORMAT=json", "PATRONI_LOG_LOGGERS={patroni.postmaster: WARNING}",
		"PATRONI_admin_PASSWORD=p4", "PATRONI_admin_OPTIONS=createrole,createdb",
	}
	c, _, err := loadText(t, small, environ...)
	if err != nil {
		t.Fatal(err)
	}
	no := false
	want := Config{
		Scope: "Scope", Name: "Name", Namespace: "ns",
		RestAPI: RestAPI{
			Listen: "10.0.0.2:8008", ConnectAddress: "10.0.0.3:8008", Authentication: Credentials{Username: "username", Password: "password"}, CAFile: file, CertFile: file, KeyFile: file,
			VerifyClient: "required", Allowlist: []string{"10.0.0.0/8", "10.1.1.1"}, AllowlistIncludeMembers: true, HTTPExtraHeaders: map[string]string{"X-A": "b"},
		},
		Ctl: Ctl{Insecure: true, CertFile: file, KeyFile: file, CACert: file},
		Consul: Consul{
			Host: "localhost:8500", Port: 8501, Token: "token", Verify: &no, DC: "dc2", Consistency: "consistent", Checks: []string{}, RegisterService: true,
			ServiceTags: []string{"A", "b"}, ServiceCheckInterval: "6s", ServiceCheckTLSServerName: "n", CACert: file, Cert: file, Key: file,
		},
		Bootstrap: Bootstrap{DCS: map[string]any{}, Users: map[string]BootstrapUser{"admin": {Password: "p4", Options: []string{"createrole", "createdb"}}}},
		Postgres: Postgres{
			Listen: "10.0.0.2:5432", ConnectAddress: "10.0.0.3:5432", ProxyAddress: "10.0.0.3:6432", DataDir: "/srv/other", ConfigDir: "/srv/config",
			BinDir: "/usr/bin", PgPass: "/srv/pgpass", BinName: map[string]string{"pg_ctl": "pg_ctl.sh"}, Database: "postgres", PgCtlTimeout: 60,
			Authentication: Authentication{
				Superuser:   PgUser{Username: "super", Password: "p1", SSLMode: "verify-ca", SSLKey: file, SSLCert: file, SSLRootCert: file, ChannelBinding: "prefer"},
				Replication: PgUser{Username: "repl", Password: "p2"},
				Rewind:      PgUser{Username: "rew", Password: "p3", GSSEncMode: "disable"},
			},
		},
		Watchdog: Watchdog{Mode: "off", Device: "/dev/watchdog", Driver: "default"},
		Log:      Log{Level: "debug", Format: "json", Loggers: map[string]string{"patroni.postmaster": "WARNING"}, FileSize: 25000000, FileNum: 4, Mode: 0o640},
		Lictor:   Lictor{RoutesPrefix: "lictor"},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}

	// Lictor's own names win over them and reach more.
	own := append([]string{
		"LICTOR_NAME=own", "LICTOR_SUPERUSER_PASSWORD=own", "LICTOR_WATCHDOG_SAFETY_MARGIN=2", "LICTOR_ROUTES_PREFIX=routes", "LICTOR_FENCE_KILL_BEFORE=1",
		"LICTOR_LICTOR_COMPAT=patroni-3", "LICTOR_TAGS={Zone: eu}", "LICTOR_BOOTSTRAP_DCS={ttl: 10}", "LICTOR_POSTGRESQL_PARAMETERS={pg_stat_statements.max: 5}",
	}, environ...)
	c, _, err = loadText(t, small, own...)
	if err != nil || c.Name != "own" || c.Postgres.Authentication.Superuser.Password != "own" || *c.Watchdog.SafetyMargin != 2 || c.Lictor.RoutesPrefix != "routes" ||
		c.Lictor.Fence.KillBefore != 1 || c.Lictor.Compat != "patroni-3" || c.Tags["Zone"] != "eu" || c.Bootstrap.DCS["ttl"] != 10 ||
		c.Postgres.Parameters["pg_stat_statements.max"] != 5 {
		t.Errorf("%s, %v", c, err)
	}
}

func TestVariablesOfOtherStoresAreRefused(t *testing.T) {
	for _, name := range []string{"PATRONI_ETCD_HOST", "PATRONI_ETCD3_HOSTS", "PATRONI_ZOOKEEPER_HOSTS", "PATRONI_KUBERNETES_LABELS", "PATRONI_RAFT_SELF_ADDR", "PATRONI_CITUS_GROUP"} {
		if _, _, err := loadText(t, small, name+"=1"); err == nil || !strings.Contains(err.Error(), name+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConsulsOwnVariables(t *testing.T) {
	environ := []string{"CONSUL_HTTP_ADDR=https://env:8501", "CONSUL_HTTP_TOKEN=env", "CONSUL_HTTP_SSL_VERIFY=false"}
	c, _, err := loadText(t, small, environ...)
	if err != nil || c.Consul.Host != "https://env:8501" || c.Consul.Token != "env" || *c.Consul.Verify {
		t.Errorf("%s, %v", c, err)
	}
	c, _, err = with(t, "consul: {url: 'http://file:8500', token: file}", environ...)
	if err != nil || c.Consul.Host != "" || c.Consul.Token != "file" {
		t.Errorf("%s, %v", c, err)
	}
	c, _, err = loadText(t, small, append(environ, "PATRONI_CONSUL_HOST=patroni", "LICTOR_CONSUL_TOKEN=own")...)
	if err != nil || c.Consul.Host != "patroni" || c.Consul.Token != "own" {
		t.Errorf("%s, %v", c, err)
	}
	if _, _, err := loadText(t, small, "CONSUL_HTTP_SSL=perhaps"); err == nil || !strings.Contains(err.Error(), `CONSUL_HTTP_SSL: "perhaps": must be true or false`) {
		t.Error(err)
	}
}

// TestFilesThatPatroniShips loads the examples of Debian's package unchanged, but
// for the store.
func TestFilesThatPatroniShips(t *testing.T) {
	t.Run("example", func(t *testing.T) {
		for i := range 2 {
			path := fmt.Sprintf("/usr/share/doc/patroni/examples/postgres%d.yml.gz", i)
			packed, err := os.ReadFile(path)
			if err != nil {
				t.Skip("Patroni's examples are not installed")
			}
			reader, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := loadText(t, string(text)); err == nil || !strings.Contains(err.Error(), "etcd: Lictor keeps") || len(strings.Split(err.Error(), "\n")) != 2 {
				t.Errorf("%s, with its etcd: %v", path, err)
			}
			consul := strings.NewReplacer("\netcd:", "\nconsul:", "127.0.0.1:2379", "127.0.0.1:8500").Replace(string(text))
			c, warnings, err := loadText(t, consul)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if c.Consul.Host != "127.0.0.1:8500" || c.Scope != "batman" || c.Bootstrap.Users["admin"].Password != "admin%" || c.Bootstrap.DCS["ttl"] != 30 {
				t.Errorf("%s: %s", path, c)
			}
			if len(warnings) == 0 || !strings.Contains(fmt.Sprint(warnings), "bootstrap.dcs.ttl: 30 s") {
				t.Errorf("%s: %v", path, warnings)
			}
		}
	})
	t.Run("Debian's", func(t *testing.T) {
		text, err := os.ReadFile("/etc/patroni/config.yml.in")
		if err != nil {
			t.Skip("Debian's Patroni is not installed")
		}
		filled := strings.NewReplacer(
			"@VERSION@", "15", "@CLUSTER@", "main", "@HOSTNAME@", "db1", "@HOSTIP@", "10.0.0.1", "@API_PORT@", "8008", "@PORT@", "5432", "@LISTEN_VIP@", "",
			"@NETWORK@", "10.0.0.0/8", "@DATADIR_BASE@", "/var/lib/postgresql", "@DCS_CONFIG@", "consul:\n  host: 127.0.0.1:8500",
		).Replace(string(text))
		if _, err := os.Stat("/usr/lib/postgresql/15/bin"); err != nil {
			filled = strings.ReplaceAll(filled, "/usr/lib/postgresql/15/bin", t.TempDir())
		}
		c, _, err := loadText(t, filled)
		if err != nil {
			t.Fatal(err)
		}
		if c.Bootstrap.Method != "pg_createcluster" || c.Postgres.Methods["pg_clonecluster"] == nil || c.Namespace != "postgresql-common" ||
			c.Postgres.ConnectAddress != "10.0.0.1:5432" || !c.Postgres.UseUnixSocket || c.Postgres.CreateReplica[0] != "pg_clonecluster" {
			t.Error(c)
		}
	})
}
