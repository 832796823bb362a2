package render

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// RELOAD takes files with which PgBouncer could not start, and says nothing: they are
// refused here, by what PgBouncer says at a start.
func TestCheckStart(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skipf("pgbouncer is needed: %v", err)
	}
	out, err := exec.Command("pgbouncer", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	version, err := pgbouncer.ParseVersion(string(out))
	if err != nil {
		t.Fatal(err)
	}
	dir := bouncertest.Dir(t)
	one, other := bouncertest.Certificate(t, dir, "one"), bouncertest.Certificate(t, dir, "other")
	for _, path := range []string{one, other} {
		if err := bouncertest.GiveAway(path); err != nil {
			t.Fatal(err)
		}
	}
	tls := func(mode, certificate, key string) string {
		return fmt.Sprintf("client_tls_sslmode = %s\nclient_tls_cert_file = %s\nclient_tls_key_file = %s\n", mode, certificate, key)
	}
	for name, c := range map[string]struct {
		settings string
		starts   bool
	}{
		"nothing":                     {"", true},
		"no certificate":              {"client_tls_sslmode = require\n", false},
		"a certificate":               {tls("require", one, one), true},
		"none is needed":              {tls("disable", dir+"/none", dir+"/none"), true},
		"a file that is not there":    {tls("allow", dir+"/none", one), false},
		"another's key":               {tls("prefer", one, other), false},
		"no authorities":              {tls("verify-full", one, one), false},
		"authorities":                 {tls("verify-full", one, one) + "client_tls_ca_file = " + one + "\n", true},
		"certificates without TLS":    {"auth_type = cert\n", false},
		"authorities that are none":   {tls("verify-ca", one, one) + "client_tls_ca_file = " + dir + "/none\n", false},
		"a word in other letters":     {"pool_mode = Transaction\n", true},
		"no such protocol":            {tls("require", one, one) + "client_tls_protocols = tlsv1.4\n", false},
		"protocols":                   {tls("require", one, one) + "client_tls_protocols = TLSv1.2,tlsv1.3\n", true},
		"all protocols but one":       {tls("require", one, one) + "client_tls_protocols = all,!tlsv1.0\n", true},
		"protocols without TLS":       {"client_tls_protocols = tlsv1.4\n", true},
		"no such protocol to servers": {"server_tls_sslmode = prefer\nserver_tls_protocols = ssl\n", false},
		"no such parameters":          {tls("require", one, one) + "client_tls_dheparams = strong\n", false},
		"parameters":                  {tls("require", one, one) + "client_tls_dheparams = none\n", true},
		"parameters of before":        {tls("require", one, one) + "client_tls_dheparams = legacy\n", !version.AtLeast(1, 19)},
		"ciphers":                     {tls("require", one, one) + "client_tls_ciphers = HIGH:!aNULL\n", true},
		"a word for ciphers":          {tls("require", one, one) + "client_tls_ciphers = Fast\n", true},
		"a word of before":            {tls("require", one, one) + "client_tls_ciphers = compat\n", !version.AtLeast(1, 19)},
		"no such ciphers":             {tls("require", one, one) + "client_tls_ciphers = high\n", false},
		"one such cipher":             {tls("require", one, one) + "client_tls_ciphers = nonsense:ECDHE+AES\n", true},
		"ciphers of TLS 1.3":          {tls("require", one, one) + "client_tls_ciphers = TLS_AES_128_GCM_SHA256\n", false},
		"no such ciphers to servers":  {"server_tls_sslmode = prefer\nserver_tls_ciphers = nonsense\n", false},
		"ciphers without TLS":         {"client_tls_ciphers = nonsense\n", true},
		"curve":                       {tls("require", one, one) + "client_tls_ecdhcurve = secp384r1\n", true},
		"no such curve":               {tls("require", one, one) + "client_tls_ecdhcurve = X25519\n", false},
		"nowhere to listen":           {"listen_addr =\n", false},
		"authentication of later":     {"auth_type = ldap\n", version.AtLeast(1, 25)},
		"read at the start only":      {"pkt_buf = big\n", false},
		"read at the start only, too": {"listen_backlog = 1k\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := pgbouncer.ParseFile([]byte("[pgbouncer]\nunix_socket_dir =\n" + c.settings))
			if err != nil {
				t.Fatal(err)
			}
			checker := NewChecker(config.Config{PgBouncer: config.PgBouncer{Admin: "127.0.0.1:6432"}})
			checker.version = version
			if err := checker.checkStart(file); (err == nil) != c.starts {
				t.Errorf("checkStart: %v", err)
			}
			out, err := bouncertest.StartsWith(t, c.settings)
			if (err == nil) != c.starts {
				t.Errorf("PgBouncer: %v\n%s", err, out)
			}
		})
	}
}
